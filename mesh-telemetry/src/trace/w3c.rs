//! W3C Trace Context, levels 1 and 2.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Formats, Incoming, Sampling, TraceContext, hex, hex128, unhex, unhex64};

/// Which trace, which span, sampled or not.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors add.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// How much of `tracestate` is passed on, in bytes: what the specification asks for. Of a longer one,
/// members of more than 128 bytes are left out first, then the last ones.
pub const MAX_TRACESTATE: usize = 512;
/// How many members `tracestate` may have; one with more is not passed on. The specification's number.
pub const MAX_TRACESTATE_MEMBERS: usize = 32;
/// A `tracestate` that is longer than this altogether is not looked at.
const MAX_TRACESTATE_READ: usize = 8 * 1024;
/// Members longer than this go first when `tracestate` is too long.
const LONG_MEMBER: usize = 128;

/// How long a `traceparent` of the version that is written is, in bytes.
pub(crate) const TRACEPARENT_LEN: usize = 55;

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// `None` when there is no `traceparent`.
pub(super) fn read(headers: &HeaderMap) -> Option<Incoming> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let first = values.next()?;
    let parsed = parse(first.as_bytes()).filter(|_| values.next().is_none());
    let context = parsed.map(|(trace_id, span_id, flags)| TraceContext {
        trace_id,
        span_id,
        parent_span_id: None,
        sampling: Sampling::of(flags & SAMPLED != 0),
        random: flags & RANDOM != 0,
        short: false,
        tracestate: tracestate(headers),
        formats: Formats::W3C,
    });
    Some(Incoming { context, sampling: Sampling::Undecided, formats: Formats::W3C })
}

/// `VERSION-TRACE-SPAN-FLAGS`; later versions may add to the end, after another dash.
fn parse(value: &[u8]) -> Option<(u128, u64, u8)> {
    let version = unhex(value.get(..2)?, false)?;
    let rest = match (version, value.len()) {
        (0xff, _) => return None,
        (0, TRACEPARENT_LEN) => None,
        (0, _) => return None,
        _ => value.get(TRACEPARENT_LEN),
    };
    let dashes = [2, 35, 52].into_iter().all(|at| value.get(at) == Some(&b'-'));
    if !dashes || rest.is_some_and(|b| *b != b'-') {
        return None;
    }
    let trace = unhex(value.get(3..35)?, false)?;
    let span = unhex64(value.get(36..52)?, false)?;
    let flags = u8::try_from(unhex(value.get(53..55)?, false)?).ok()?;
    (trace != 0 && span != 0).then_some((trace, span, flags))
}

/// The vendors' part if it is well-formed, cut to what is passed on.
fn tracestate(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(TRACESTATE).iter();
    let first = values.next()?;
    let single = values.next().is_none();
    let total: usize = headers.get_all(TRACESTATE).iter().map(HeaderValue::len).sum();
    if total > MAX_TRACESTATE_READ {
        return None;
    }
    // The specification counts empty members as nothing.
    let members = || {
        headers
            .get_all(TRACESTATE)
            .iter()
            .flat_map(|v| v.as_bytes().split(|b| *b == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|m| !m.is_empty())
    };
    let count = members().count();
    if count == 0 || count > MAX_TRACESTATE_MEMBERS || !members().all(is_member) {
        return None;
    }
    if single && first.len() <= MAX_TRACESTATE {
        return Some(first.clone());
    }
    let joined: usize = members().map(|m| m.len() + 1).sum::<usize>() - 1;
    let mut excess = joined.saturating_sub(MAX_TRACESTATE);
    let mut kept: Vec<&[u8]> = members().collect();
    let mut at = kept.len();
    while excess > 0 && at > 0 {
        at -= 1;
        if kept.get(at).is_some_and(|m| m.len() > LONG_MEMBER) {
            excess = excess.saturating_sub(kept.remove(at).len() + 1);
        }
    }
    while excess > 0 {
        excess = excess.saturating_sub(kept.pop()?.len() + 1);
    }
    HeaderValue::from_bytes(&kept.join(&b',')).ok().filter(|v| !v.is_empty())
}

/// `key=value`, or `tenant@system=value`.
fn is_member(member: &[u8]) -> bool {
    let Some(equals) = member.iter().position(|b| *b == b'=') else {
        return false;
    };
    let (key, value) = member.split_at(equals);
    let value = value.get(1..).unwrap_or_default();
    let key_byte = |b: &u8| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    let key_ok = (1..=256).contains(&key.len())
        && key.first().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && key.iter().all(key_byte)
        && key.iter().filter(|b| **b == b'@').count() <= 1;
    let value_byte = |b: &u8| matches!(b, b' '..=b'~') && *b != b',' && *b != b'=';
    key_ok && (1..=256).contains(&value.len()) && value.iter().all(value_byte)
}

/// The `traceparent` of a context.
pub(super) fn text(context: &TraceContext) -> [u8; TRACEPARENT_LEN] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let flags = u8::from(context.is_sampled()) * SAMPLED + u8::from(context.random) * RANDOM;
    // Pieces of known lengths, which are written as a whole each.
    if let Some((_, rest)) = text.split_first_chunk_mut::<3>()
        && let Some((trace, rest)) = rest.split_first_chunk_mut::<32>()
        && let Some((_, rest)) = rest.split_first_chunk_mut::<1>()
        && let Some((span, _)) = rest.split_first_chunk_mut::<16>()
    {
        *trace = hex128(context.trace_id);
        *span = hex(context.span_id);
    }
    if let Some(last) = text.last_mut() {
        *last = b'0' + flags;
    }
    text
}

/// Whether the headers say just that already.
pub(super) fn says(headers: &HeaderMap, text: &[u8]) -> bool {
    // To look at each name of a head is less than to look one up.
    if !headers.keys().any(|name| *name == TRACEPARENT) {
        return false;
    }
    let mut values = headers.get_all(TRACEPARENT).iter();
    values.next().is_some_and(|value| value.as_bytes() == text) && values.next().is_none()
}

/// Writes a context; `parent` is its [`text`], `None` where the headers have it.
pub(super) fn write(context: &TraceContext, parent: Option<Bytes>, headers: &mut HeaderMap) {
    if let Some(value) = parent.and_then(|parent| HeaderValue::from_maybe_shared(parent).ok()) {
        headers.insert(TRACEPARENT, value);
    }
    match &context.tracestate {
        Some(state) => {
            headers.insert(TRACESTATE, state.clone());
        }
        None if headers.keys().any(|name| *name == TRACESTATE) => {
            headers.remove(TRACESTATE);
        }
        None => {}
    }
}
