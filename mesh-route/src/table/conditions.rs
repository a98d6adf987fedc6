//! From `match` of a VirtualService to a [`Condition`].

use http::HeaderName;
use mesh_core::matcher::{Regex, StringMatcher};
use mesh_core::resource::StringMatch;
use mesh_core::resource::virtual_service::HttpMatchRequest;

use super::compile::Complaints;
use crate::matching::{Condition, ValueMatcher};

/// Compiles what depends on the request; what depends on the caller alone is decided elsewhere.
pub(super) fn condition(written: &HttpMatchRequest, field: &str, complaints: &mut Complaints) -> Condition {
    let mut text = |name: &str, value: &Option<StringMatch>| {
        value.as_ref().and_then(|value| matcher(value, &format!("{field}.{name}"), complaints))
    };
    let uri = text("uri", &written.uri);
    let scheme = text("scheme", &written.scheme);
    let method = text("method", &written.method);
    let authority = text("authority", &written.authority);
    let uri = if written.ignore_uri_case { uri.map(StringMatcher::ignore_case) } else { uri };
    let mut headers = |name: &str, map: &std::collections::BTreeMap<String, StringMatch>| -> Box<[_]> {
        let each = map.iter().filter_map(|(key, value)| {
            let field = format!("{field}.{name}[{key}]");
            let header = header(key, &field, complaints)?;
            Some((header, value_matcher(value, &field, complaints)?))
        });
        each.collect()
    };
    let (with, without) =
        (headers("headers", &written.headers), headers("withoutHeaders", &written.without_headers));
    let query = written.query_params.iter().filter_map(|(key, value)| {
        let field = format!("{field}.queryParams[{key}]");
        Some((key.as_str().into(), value_matcher(value, &field, complaints)?))
    });
    let query_params = query.collect();
    if !written.stat_prefix.is_empty() {
        complaints.no_effect(format!("{field}.statPrefix"), "there are no statistics by route");
    }
    Condition { uri, scheme, method, authority, headers: with, without_headers: without, query_params }
}

fn header(key: &str, field: &str, complaints: &mut Complaints) -> Option<HeaderName> {
    if key.starts_with("@request.auth.claims") {
        complaints.not_applied(field, "matching the claims of a token is not supported yet");
        return None;
    }
    let name = HeaderName::from_bytes(key.as_bytes());
    if name.is_err() {
        complaints.not_applied(field, format!("{key:?} is not the name of a header"));
    }
    name.ok()
}

/// `None` for what asks nothing, or cannot be compiled and was complained about.
fn matcher(value: &StringMatch, field: &str, complaints: &mut Complaints) -> Option<StringMatcher> {
    match value {
        StringMatch::Present => None,
        StringMatch::Exact(text) => Some(StringMatcher::Exact(text.as_str().into())),
        StringMatch::Prefix(text) => Some(StringMatcher::Prefix(text.as_str().into())),
        StringMatch::Regex(text) => match Regex::new(text) {
            Ok(regex) => Some(StringMatcher::Regex(regex)),
            Err(reason) => {
                complaints.not_applied(format!("{field}.regex"), reason.to_string());
                None
            }
        },
    }
}

fn value_matcher(value: &StringMatch, field: &str, complaints: &mut Complaints) -> Option<ValueMatcher> {
    match value {
        StringMatch::Present => Some(ValueMatcher::Present),
        // Istio reads a lone `*` as "any value".
        StringMatch::Regex(text) if text == "*" => Some(ValueMatcher::Present),
        other => matcher(other, field, complaints).map(ValueMatcher::Value),
    }
}
