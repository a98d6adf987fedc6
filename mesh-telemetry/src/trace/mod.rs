//! Trace context: read, continued, and passed on.
//!
//! A request that carries a trace keeps it, in every form that it came in: W3C `traceparent` with
//! `tracestate` ([Trace Context](https://www.w3.org/TR/trace-context/), levels 1 and 2), B3 in one header
//! (`b3`) or in several (`x-b3-traceid`, ...). Where several disagree, `traceparent` wins, then `b3`. A hop
//! makes a child span for what it sends on (see [`Tracing::spans`]); the trace id never changes. A form
//! that came in unreadable is overwritten, so that nothing that was not checked travels on.
//!
//! A request without a trace starts one, sampled at a rate ([`DEFAULT_SAMPLING_PERCENT`], as Istio's).
//! A new trace is written as `traceparent`, which every current tracer reads; [`Tracing::formats`] adds B3
//! for applications that still copy only that.
//!
//! Applications must copy these headers from the requests that they get to the requests that they make:
//! no proxy can know which belongs to which.
//!
//! ```
//! use http::{HeaderMap, HeaderName, HeaderValue};
//! use tower_mesh_telemetry::trace::{TraceContext, Tracing};
//!
//! let mut headers = HeaderMap::new();
//! headers.insert(
//!     "traceparent",
//!     HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
//! );
//! let mut draw = || 0x11;
//! let hop = Tracing::default().advance(&mut headers, &mut draw);
//! assert!(hop.is_sampled());
//! assert_eq!(hop.trace_id(), 0x0af7651916cd43dd8448eb211c80319c);
//! assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-0000000000000011-01");
//! assert_eq!(TraceContext::extract(&headers).unwrap().span_id(), 0x11);
//! ```

mod b3;
#[cfg(feature = "otel")]
mod otel;
mod w3c;

pub use b3::{B3_FLAGS, B3_PARENT_SPAN_ID, B3_SAMPLED, B3_SINGLE, B3_SPAN_ID, B3_TRACE_ID};
pub(crate) use w3c::TRACEPARENT_LEN;
pub use w3c::{MAX_TRACESTATE, MAX_TRACESTATE_MEMBERS, TRACEPARENT, TRACESTATE};

use std::fmt;
use std::ops::BitOr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// How many of the traces that start here are sampled, in percent: Istio's default.
pub const DEFAULT_SAMPLING_PERCENT: f64 = 1.0;

/// In which headers a trace context travels; a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Formats(u8);

/// Where in which trace a request is.
///
/// Bounded in size, whatever came in. A service behind the layer reads its own with [`extract`](Self::extract).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    parent_span_id: Option<u64>,
    sampling: Sampling,
    /// Trace Context level 2: the lower 56 bits of the trace id are random.
    random: bool,
    /// B3 allows trace ids of 64 bits; they are passed on as they came.
    short: bool,
    tracestate: Option<HeaderValue>,
    formats: Formats,
}

/// What was decided about a trace's sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sampling {
    /// Nothing yet; the next hop may decide.
    #[default]
    Undecided,
    /// Not sampled.
    Drop,
    /// Sampled.
    Keep,
    /// B3's debug flag: sampled, whatever any sampler says.
    Debug,
}

/// Which span id a hop sends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Spans {
    /// A new one, child of the one that came in: the hop is a span of its own.
    #[default]
    Child,
    /// The one that came in: right where nobody reports the hop's spans, because a tracing backend would
    /// miss the parents of everything behind it.
    Same,
}

/// How a hop treats trace contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tracing {
    sampling_percent: f64,
    formats: Formats,
    spans: Spans,
}

/// All that a request's headers say.
struct Incoming {
    context: Option<TraceContext>,
    /// What was decided without a context, as `b3: 0` does.
    sampling: Sampling,
    formats: Formats,
}

impl Formats {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// `traceparent` and `tracestate`.
    pub const W3C: Self = Self(1);
    /// `x-b3-traceid`, `x-b3-spanid`, `x-b3-parentspanid`, `x-b3-sampled`, `x-b3-flags`.
    pub const B3_MULTI: Self = Self(2);
    /// `b3`.
    pub const B3_SINGLE: Self = Self(4);

    /// Whether all of `other` are among them.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Formats {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [(Self::W3C, "W3C"), (Self::B3_MULTI, "B3_MULTI"), (Self::B3_SINGLE, "B3_SINGLE")];
        f.debug_set().entries(all.iter().filter(|(one, _)| self.contains(*one)).map(|(_, n)| n)).finish()
    }
}

impl Sampling {
    /// Whether it is decided that the trace is sampled.
    pub const fn is_sampled(self) -> bool {
        matches!(self, Self::Keep | Self::Debug)
    }

    const fn of(sampled: bool) -> Self {
        if sampled { Self::Keep } else { Self::Drop }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self { sampling_percent: DEFAULT_SAMPLING_PERCENT, formats: Formats::W3C, spans: Spans::default() }
    }
}

impl Tracing {
    /// How many of the traces that start here are sampled, in percent. Default:
    /// [`DEFAULT_SAMPLING_PERCENT`]. Traces that come in keep their decision.
    #[must_use]
    pub const fn sampling_percent(mut self, percent: f64) -> Self {
        self.sampling_percent = percent;
        self
    }

    /// In which headers a new trace is written. Default: [`Formats::W3C`].
    #[must_use]
    pub const fn formats(mut self, formats: Formats) -> Self {
        self.formats = formats;
        self
    }

    /// Which span id is sent on. Default: [`Spans::Child`].
    #[must_use]
    pub const fn spans(mut self, spans: Spans) -> Self {
        self.spans = spans;
        self
    }

    /// Whether a trace that starts with this random number is sampled.
    pub fn samples(&self, draw: u64) -> bool {
        // From 0 up to, but not including, 100, in steps of 100/2^53.
        let percent = (draw >> 11) as f64 / (1_u64 << 53) as f64 * 100.0;
        percent < self.sampling_percent
    }

    /// Continues the trace in `headers`, or starts one, and writes what goes on into `headers`.
    ///
    /// `draw` gives random numbers: one for a child span, four or more for a new trace.
    pub fn advance(&self, headers: &mut HeaderMap, draw: &mut impl FnMut() -> u64) -> TraceContext {
        let context = self.next(headers, draw);
        context.inject(headers);
        context
    }

    /// What [`advance`](Self::advance) writes, not yet written.
    pub(crate) fn next(&self, headers: &HeaderMap, draw: &mut impl FnMut() -> u64) -> TraceContext {
        let incoming = Incoming::read(headers);
        let mut context = match incoming.context {
            Some(context) => match self.spans {
                Spans::Child => context.child(not_zero(draw)),
                Spans::Same => context,
            },
            None => {
                let formats = if incoming.formats == Formats::NONE { self.formats } else { incoming.formats };
                let trace_id = u128::from(not_zero(draw)) << 64 | u128::from(not_zero(draw));
                TraceContext::start(trace_id, not_zero(draw), incoming.sampling, formats)
            }
        };
        if context.sampling == Sampling::Undecided {
            context.sampling = Sampling::of(self.samples(draw()));
        }
        context
    }
}

/// An id that is all zeros means no id.
fn not_zero(draw: &mut impl FnMut() -> u64) -> u64 {
    draw().max(1)
}

impl Incoming {
    fn read(headers: &HeaderMap) -> Self {
        // Most requests that start a trace here carry none of the headers: told by one look at each name.
        let tells = |name: &HeaderName| {
            let name = name.as_str();
            name.starts_with("x-b3-") || name == "traceparent" || name == "b3"
        };
        if !headers.keys().any(tells) {
            return Self { context: None, sampling: Sampling::Undecided, formats: Formats::NONE };
        }
        let (w3c, multi, single) = (w3c::read(headers), b3::read_multi(headers), b3::read_single(headers));
        let mut formats = Formats::NONE;
        for (found, format) in [
            (w3c.is_some(), Formats::W3C),
            (multi.is_some(), Formats::B3_MULTI),
            (single.is_some(), Formats::B3_SINGLE),
        ] {
            if found {
                formats = formats | format;
            }
        }
        let mut all = Self { context: None, sampling: Sampling::Undecided, formats };
        for one in [w3c, single, multi].into_iter().flatten() {
            all.context = all.context.or(one.context);
            if all.sampling == Sampling::Undecided {
                all.sampling = one.sampling;
            }
        }
        if let Some(context) = &mut all.context {
            context.formats = formats;
        }
        all
    }
}

impl TraceContext {
    /// A new trace. Ids of zero are not valid; they become 1.
    pub fn start(trace_id: u128, span_id: u64, sampling: Sampling, formats: Formats) -> Self {
        Self {
            trace_id: trace_id.max(1),
            span_id: span_id.max(1),
            parent_span_id: None,
            sampling,
            random: false,
            short: false,
            tracestate: None,
            formats,
        }
    }

    /// The trace that the headers tell of, if any of their forms is valid.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        Incoming::read(headers).context
    }

    /// The context of a child span: the same trace, the span so far as parent.
    #[must_use]
    pub fn child(mut self, span_id: u64) -> Self {
        self.parent_span_id = Some(self.span_id);
        self.span_id = span_id.max(1);
        self
    }

    /// Writes it into `headers`, in the forms in which it travels.
    pub fn inject(&self, headers: &mut HeaderMap) {
        self.inject_with(headers, self.new_traceparent(headers).map(Bytes::from_owner));
    }

    /// The text of the `traceparent` that has to be written; `None` where it is there already, or is not spoken.
    pub(crate) fn new_traceparent(&self, headers: &HeaderMap) -> Option<[u8; TRACEPARENT_LEN]> {
        if !self.formats.contains(Formats::W3C) {
            return None;
        }
        let text = w3c::text(self);
        (!w3c::says(headers, &text)).then_some(text)
    }

    /// [`inject`](Self::inject), with the text of [`new_traceparent`](Self::new_traceparent).
    pub(crate) fn inject_with(&self, headers: &mut HeaderMap, traceparent: Option<Bytes>) {
        if self.formats.contains(Formats::W3C) {
            w3c::write(self, traceparent, headers);
        }
        if self.formats.contains(Formats::B3_MULTI) {
            b3::write_multi(self, headers);
        }
        if self.formats.contains(Formats::B3_SINGLE) {
            b3::write_single(self, headers);
        }
    }

    /// The trace.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The span that this request is (for its receiver: the parent).
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// The span before this one, where it is known.
    pub fn parent_span_id(&self) -> Option<u64> {
        self.parent_span_id
    }

    /// What was decided about sampling.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Whether it is decided that the trace is sampled.
    pub fn is_sampled(&self) -> bool {
        self.sampling.is_sampled()
    }

    /// The vendors' own part (`tracestate`), at most [`MAX_TRACESTATE`] bytes.
    pub fn tracestate(&self) -> Option<&HeaderValue> {
        self.tracestate.as_ref()
    }

    /// The headers in which it travels.
    pub fn formats(&self) -> Formats {
        self.formats
    }

    /// The trace id as 32 hexadecimal digits.
    pub fn trace_id_hex(&self) -> [u8; 32] {
        hex128(self.trace_id)
    }
}

/// Takes any bytes for the headers' values and reads, continues and writes them; for fuzzers.
///
/// Lines of `data` become the values of the headers in turn.
pub fn fuzz(data: &[u8]) {
    let names = [TRACEPARENT, B3_SINGLE, TRACESTATE, B3_TRACE_ID, B3_SPAN_ID, B3_SAMPLED, B3_FLAGS];
    let mut headers = HeaderMap::new();
    for (line, name) in data.split(|b| *b == b'\n').zip(names.into_iter().cycle()).take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    let hop = Tracing::default().advance(&mut headers, &mut || 5);
    let read = TraceContext::extract(&headers);
    assert!(
        read.is_some_and(|r| r.trace_id() == hop.trace_id() && r.span_id() == hop.span_id()),
        "what was written is not what is read"
    );
}

/// The sixteen hexadecimal digits of a number.
pub(crate) fn hex(number: u64) -> [u8; 16] {
    /// One in each byte.
    const EACH: u128 = u128::from_ne_bytes([1; 16]);
    // All sixteen at once: first each nibble into a byte of its own, then the digit for each byte.
    let mut nibbles = u128::from(number);
    nibbles = (nibbles | nibbles << 32) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
    nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    nibbles = (nibbles | nibbles << 4) & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
    // A nibble of ten or more carries into its byte's upper half when six is added; no byte overflows.
    let letters = ((nibbles + EACH * 6) >> 4) & EACH;
    (nibbles + EACH * u128::from(b'0') + letters * u128::from(b'a' - b'0' - 10)).to_be_bytes()
}

fn hex128(number: u128) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    if let ([high, low], _) = digits.as_chunks_mut() {
        *high = hex((number >> 64) as u64);
        *low = hex(number as u64);
    }
    digits
}

/// A number of exactly `digits.len()` hexadecimal digits, at most 32; upper case only where `any_case`.
fn unhex(digits: &[u8], any_case: bool) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    let mut number = 0;
    for digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' if any_case => digit - b'A' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(nibble);
    }
    Some(number)
}

fn unhex64(digits: &[u8], any_case: bool) -> Option<u64> {
    if digits.len() != 16 {
        return None;
    }
    u64::try_from(unhex(digits, any_case)?).ok()
}

#[cfg(test)]
mod tests;
