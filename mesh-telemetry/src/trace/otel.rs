//! The trace context as OpenTelemetry's.

use http::HeaderValue;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use super::TraceContext;

impl TraceContext {
    /// This request as a remote parent for the spans of an embedding program. The layer puts it into the
    /// request's extensions when the feature `otel` is on.
    pub fn span_context(&self) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(self.is_sampled());
        let state = self
            .tracestate()
            .map(HeaderValue::to_str)
            .and_then(|text| text.ok()?.parse::<TraceState>().ok())
            .unwrap_or_default();
        SpanContext::new(TraceId::from(self.trace_id()), SpanId::from(self.span_id()), flags, true, state)
    }
}
