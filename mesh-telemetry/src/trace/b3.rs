//! B3 propagation, in one header or in several (openzipkin/b3-propagation).

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Formats, Incoming, Sampling, TraceContext, hex, hex128, unhex, unhex64};

/// Everything in one header: `TRACE-SPAN-SAMPLED-PARENT`.
pub const B3_SINGLE: HeaderName = HeaderName::from_static("b3");
/// The trace.
pub const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
/// The span.
pub const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
/// The span's parent.
pub const B3_PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
/// `1` or `0`.
pub const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
/// `1` is debug.
pub const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// A trace id of 64 or 128 bits; says whether it was the short one.
fn trace_id(digits: &[u8]) -> Option<(u128, bool)> {
    if !matches!(digits.len(), 16 | 32) {
        return None;
    }
    unhex(digits, true).filter(|id| *id != 0).map(|id| (id, digits.len() == 16))
}

fn span_id(digits: &[u8]) -> Option<u64> {
    unhex64(digits, true).filter(|id| *id != 0)
}

fn context(
    trace: Option<&[u8]>,
    span: Option<&[u8]>,
    parent: Option<&[u8]>,
    sampling: Sampling,
    formats: Formats,
) -> Option<TraceContext> {
    let (trace_id, short) = trace_id(trace?)?;
    Some(TraceContext {
        trace_id,
        span_id: span_id(span?)?,
        parent_span_id: parent.and_then(span_id),
        sampling,
        random: false,
        short,
        tracestate: None,
        formats,
    })
}

/// `None` when there is no `b3`.
pub(super) fn read_single(headers: &HeaderMap) -> Option<Incoming> {
    let mut values = headers.get_all(B3_SINGLE).iter();
    let value = values.next()?.as_bytes();
    let mut incoming = Incoming { context: None, sampling: Sampling::Undecided, formats: Formats::B3_SINGLE };
    if values.next().is_some() {
        return Some(incoming);
    }
    let state = |text: &[u8]| match text {
        b"0" => Some(Sampling::Drop),
        b"1" => Some(Sampling::Keep),
        b"d" => Some(Sampling::Debug),
        _ => None,
    };
    if let Some(alone) = state(value) {
        incoming.sampling = alone;
        return Some(incoming);
    }
    let mut parts = value.split(|b| *b == b'-');
    let (trace, span, decision, parent) = (parts.next(), parts.next(), parts.next(), parts.next());
    let sampling = decision.map_or(Some(Sampling::Undecided), state);
    let parent_ok = parent.is_none_or(|p| span_id(p).is_some());
    if let (Some(sampling), true, None) = (sampling, parent_ok, parts.next()) {
        incoming.context = context(trace, span, parent, sampling, Formats::B3_SINGLE);
    }
    Some(incoming)
}

/// `None` when there is none of the headers.
pub(super) fn read_multi(headers: &HeaderMap) -> Option<Incoming> {
    let get = |name: &HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    let (trace, span) = (get(&B3_TRACE_ID), get(&B3_SPAN_ID));
    let (sampled, flags) = (get(&B3_SAMPLED), get(&B3_FLAGS));
    if trace.is_none() && span.is_none() && sampled.is_none() && flags.is_none() {
        return None;
    }
    let sampling = match (flags, sampled) {
        (Some(b"1"), _) => Sampling::Debug,
        (_, Some(b"1" | b"true")) => Sampling::Keep,
        (_, Some(b"0" | b"false")) => Sampling::Drop,
        _ => Sampling::Undecided,
    };
    let context = context(trace, span, get(&B3_PARENT_SPAN_ID), sampling, Formats::B3_MULTI);
    Some(Incoming { context, sampling, formats: Formats::B3_MULTI })
}

fn trace_digits<'a>(context: &TraceContext, digits: &'a [u8; 32]) -> &'a [u8] {
    let from = if context.short { 16 } else { 0 };
    digits.get(from..).unwrap_or_default()
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<&[u8]>) {
    match value.and_then(|v| HeaderValue::from_bytes(v).ok()) {
        Some(value) => headers.insert(name, value),
        None => headers.remove(name),
    };
}

pub(super) fn write_multi(context: &TraceContext, headers: &mut HeaderMap) {
    let digits = hex128(context.trace_id);
    let (sampled, flags): (Option<&[u8]>, Option<&[u8]>) = match context.sampling {
        Sampling::Undecided => (None, None),
        Sampling::Drop => (Some(b"0"), None),
        Sampling::Keep => (Some(b"1"), None),
        Sampling::Debug => (None, Some(b"1")),
    };
    set(headers, B3_TRACE_ID, Some(trace_digits(context, &digits)));
    set(headers, B3_SPAN_ID, Some(&hex(context.span_id)));
    set(headers, B3_PARENT_SPAN_ID, context.parent_span_id.map(hex).as_ref().map(<[u8; 16]>::as_slice));
    set(headers, B3_SAMPLED, sampled);
    set(headers, B3_FLAGS, flags);
}

pub(super) fn write_single(context: &TraceContext, headers: &mut HeaderMap) {
    let digits = hex128(context.trace_id);
    let mut text = Vec::with_capacity(68);
    text.extend_from_slice(trace_digits(context, &digits));
    text.push(b'-');
    text.extend_from_slice(&hex(context.span_id));
    let state = match context.sampling {
        Sampling::Undecided => None,
        Sampling::Drop => Some(b'0'),
        Sampling::Keep => Some(b'1'),
        Sampling::Debug => Some(b'd'),
    };
    if let Some(state) = state {
        text.extend_from_slice(&[b'-', state]);
        if let Some(parent) = context.parent_span_id {
            text.push(b'-');
            text.extend_from_slice(&hex(parent));
        }
    }
    set(headers, B3_SINGLE, Some(&text));
}
