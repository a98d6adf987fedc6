//! Traces, access logs and metrics.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{Connection, Facts, PeerIdentity, Transport};
use mesh_core::failure::{Failure, FailureCode};
use mesh_telemetry::access_log::{Entry, MAX_EXPLANATION, MAX_FIELD, MAX_PATH};
use mesh_telemetry::metrics::{negotiate, to_classic};
use mesh_telemetry::trace::{
    B3_FLAGS, B3_PARENT_SPAN_ID, B3_SAMPLED, B3_SINGLE, B3_SPAN_ID, B3_TRACE_ID, Formats, MAX_TRACESTATE,
    Spans, TRACEPARENT, TRACESTATE, TraceContext, Tracing, fuzz,
};

/// A trace is read as it was written, in each form, and what goes on is bounded.
///
/// Each line is the value of a header; see [`fuzz`] and the names below.
pub fn trace(data: &[u8]) {
    fuzz(data);
    let names = [
        TRACEPARENT,
        TRACESTATE,
        B3_SINGLE,
        B3_TRACE_ID,
        B3_SPAN_ID,
        B3_PARENT_SPAN_ID,
        B3_SAMPLED,
        B3_FLAGS,
    ];
    let mut headers = HeaderMap::new();
    for (line, name) in data.split(|b| *b == b'\n').zip(names.iter().cycle()).take(64) {
        // An empty line leaves the header out.
        if let (false, Ok(value)) = (line.is_empty(), HeaderValue::from_bytes(line)) {
            headers.append(name, value);
        }
    }
    let Some(context) = TraceContext::extract(&headers) else { return };
    assert!(context.trace_id() != 0 && context.span_id() != 0 && context.parent_span_id() != Some(0));
    assert!(context.formats() != Formats::NONE);
    assert!(context.tracestate().is_none_or(|state| state.len() <= MAX_TRACESTATE));

    let mut written = HeaderMap::new();
    context.inject(&mut written);
    let read = TraceContext::extract(&written).expect("what was written cannot be read");
    let ids = |c: &TraceContext| (c.trace_id(), c.span_id(), c.is_sampled(), c.formats());
    assert_eq!(ids(&read), ids(&context));
    assert_eq!(read.tracestate(), context.tracestate());

    // A hop that is no span changes no id, and leaves nothing behind that was not checked.
    let hop = Tracing::default().spans(Spans::Same).advance(&mut headers, &mut || 7);
    assert_eq!((hop.trace_id(), hop.span_id()), (context.trace_id(), context.span_id()));
    for name in names {
        assert!(headers.get_all(&name).iter().count() <= 1, "{name} goes on twice");
    }
}

/// Whatever a peer sends, an entry is one line; in JSON it holds what was sent, in text no field ends
/// before its end.
///
/// Fields are separated by `|`.
pub fn access_log(data: &[u8]) {
    let mut fields = data.split(|b| *b == b'|');
    let mut next = || fields.next().filter(|f| !f.is_empty());
    let (path, forwarded, agent, id, authority, detail) = (next(), next(), next(), next(), next(), next());
    let (method, sni, explained) = (next(), next(), next());
    let method = method.map(String::from_utf8_lossy);
    let as_text = |bytes: &[u8]| Arc::<str>::from(String::from_utf8_lossy(bytes));

    let peer = PeerIdentity::new("spiffe://cluster.local/ns/default/sa/web".parse().expect("an identity"));
    let connection = Connection::builder()
        .peer(peer)
        .peer_addr(([0, 0, 0, 0, 0, 0, 0, 1], 1).into())
        .local_addr(([127, 0, 0, 1], 2).into())
        .transport(Transport::Tls { sni: sni.map(as_text), alpn: None });
    let facts = Facts::new(connection.build());
    let failure = explained.map(|explained| {
        let code = if explained.len() % 2 == 0 { FailureCode::Denied } else { FailureCode::TlsFailed };
        let name = as_text(explained);
        let policies = vec![ResourceRef::new("AuthorizationPolicy", &name, &name); explained.len() % 40];
        Failure::new(code).detail(name.to_string()).policies(policies)
    });
    let seconds = data.iter().fold(0_u64, |all, b| all.wrapping_mul(257).wrapping_add((*b).into())) >> 20;
    let start = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(seconds));
    let entry = Entry {
        method: method.as_deref(),
        path,
        x_forwarded_for: forwarded,
        user_agent: agent,
        request_id: id,
        authority,
        failure: failure.as_ref(),
        upstream_detail: detail,
        response_code: 200,
        ..Entry::new(&facts, start.unwrap_or(SystemTime::UNIX_EPOCH))
    };

    let line = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        let text = String::from_utf8(out).expect("a line is no UTF-8");
        let line = text.strip_suffix('\n').expect("a line has no end").to_owned();
        assert!(!line.contains(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')), "{line:?}");
        // Escapes take at most six bytes for one.
        assert!(line.len() < 6 * (MAX_PATH + 4 * MAX_EXPLANATION + 50 * MAX_FIELD));
        line
    };
    let json = line(&|out| entry.write_json(out));
    let json: serde_json::Value = serde_json::from_str(&json).expect("a line is no JSON");
    for (key, sent, max) in [
        ("path", path, MAX_PATH),
        ("method", method.as_deref().map(str::as_bytes), MAX_FIELD),
        ("x_forwarded_for", forwarded, MAX_FIELD),
        ("user_agent", agent, MAX_FIELD),
        ("request_id", id, MAX_FIELD),
        ("authority", authority, MAX_FIELD),
        ("requested_server_name", sni.map(as_text).as_deref().map(str::as_bytes), MAX_FIELD),
    ] {
        let logged = json.get(key).unwrap_or_else(|| panic!("{key} is missing")).as_str();
        match sent {
            Some(sent) if sent.len() <= max => assert_eq!(logged, Some(&*String::from_utf8_lossy(sent))),
            Some(_) => assert!(logged.is_some_and(|l| l.ends_with("..."))),
            None => assert_eq!(logged, None),
        }
    }

    /// The quotation marks around the fields of Istio's text format.
    const MARKS: usize = 14;
    let text = line(&|out| entry.write_text(out));
    assert_eq!(text.matches('"').count(), MARKS, "a field ended early: {text}");
    let bare =
        text.split('"').step_by(2).map(|part| part.matches(char::is_whitespace).count()).sum::<usize>();
    let nothing = line(&|out| Entry::new(&facts, SystemTime::UNIX_EPOCH).write_text(out));
    let wanted = nothing.split('"').step_by(2).map(|part| part.matches(' ').count()).sum::<usize>();
    assert_eq!(bare, wanted, "a bare field has a space: {text}");
}

/// The classic form has no line more than OpenMetrics, and none of what only OpenMetrics has.
pub fn exposition(data: &[u8]) {
    let mut lines = data.splitn(2, |b| *b == b'\n');
    let accept = lines.next().and_then(|l| HeaderValue::from_bytes(l).ok());
    let content_type = negotiate(accept.as_ref()).content_type();
    assert!(content_type.to_str().is_ok());

    let Some(text) = crate::text(data) else { return };
    let classic = to_classic(text);
    assert!(classic.is_empty() || classic.ends_with('\n'));
    assert!(classic.lines().count() <= text.lines().count(), "{classic:?}");
    // `_total` after each name of a family is the most that is added.
    assert!(classic.len() <= 2 * text.len() + 16 * text.lines().count());
    let mut samples = text.lines().filter(|line| !line.starts_with('#'));
    for line in classic.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            let known = comment.starts_with(" HELP ") || comment.starts_with(" TYPE ");
            assert!(known, "{line:?} is no comment of the classic format");
        } else {
            // Samples stay in their order, with their names and labels.
            let series = line.split(' ').next().unwrap_or_default();
            assert!(samples.any(|sample| sample.starts_with(series)), "{line:?} comes from nowhere");
        }
    }
}
