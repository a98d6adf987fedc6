//! From the actions of a VirtualService's rule to their compiled forms.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use mesh_core::normal::normal_path;
use mesh_core::resource::virtual_service::{
    FaultAbort, FaultDelay, Headers, HttpDirectResponse, HttpFaultInjection, HttpRedirect, HttpRetry,
    HttpRewrite, HttpRoute, RedirectPortSelection,
};
use mesh_core::resource::{Percent, StringMatch};

use super::compile::Complaints;
use crate::fault::{Abort, AbortStatus, Delay, FaultPolicy, Percentage, grpc_code};
use crate::headers::{HeaderOps, InvalidOperation, checked_authority};
use crate::policy::RoutePolicy;
use crate::redirect::{DirectResponse, Redirect, RedirectPath};
use crate::retry::{RetryOn, RetryPolicy};
use crate::rewrite::PathRewrite;

/// The longest body of a `directResponse`, in bytes: Istio's limit.
pub const MAX_DIRECT_BODY: usize = 1024 * 1024;

pub(super) fn policy(route: &HttpRoute, field: &str, complaints: &mut Complaints) -> RoutePolicy {
    let retry = match &route.retries {
        Some(retries) => retry(retries, &format!("{field}.retries"), complaints),
        None => RetryPolicy::default(),
    };
    let fault = match &route.fault {
        Some(written) => fault(written, &format!("{field}.fault"), complaints),
        None => FaultPolicy::default(),
    };
    let timeout = route.timeout.filter(|t| !t.is_zero()).map(|t| t.get());
    RoutePolicy { timeout, retry, fault }
}

fn retry(written: &HttpRetry, field: &str, complaints: &mut Complaints) -> RetryPolicy {
    if written.retry_remote_localities.is_some() {
        complaints.no_effect(
            format!("{field}.retryRemoteLocalities"),
            "retries do not choose among localities yet",
        );
    }
    if written.attempts == 0 {
        return RetryPolicy::off();
    }
    let default = RetryPolicy::default();
    let explicit = !written.retry_on.trim().is_empty();
    let retry_on = match RetryOn::parse(&written.retry_on) {
        Ok(retry_on) if explicit => retry_on,
        Ok(_) => default.retry_on,
        Err(reason) => {
            complaints.not_applied(format!("{field}.retryOn"), reason.to_string());
            default.retry_on
        }
    };
    RetryPolicy {
        attempts: written.attempts,
        counted: true,
        per_try_timeout: written.per_try_timeout.filter(|t| !t.is_zero()).map(|t| t.get()),
        retry_on,
        explicit,
        ignore_previous_hosts: written.retry_ignore_previous_hosts.unwrap_or(true),
        backoff: written.backoff.map_or(default.backoff, |b| b.get()),
    }
}

fn fault(written: &HttpFaultInjection, field: &str, complaints: &mut Complaints) -> FaultPolicy {
    FaultPolicy {
        delay: written.delay.as_ref().and_then(|d| delay(d, &format!("{field}.delay"), complaints)),
        abort: written.abort.as_ref().and_then(|a| abort(a, &format!("{field}.abort"), complaints)),
    }
}

fn percentage(written: &Percent, field: &str, complaints: &mut Complaints) -> Option<Percentage> {
    let found = Percentage::new(written.value);
    if found.is_none() {
        complaints
            .not_applied(format!("{field}.percentage.value"), format!("{} is not 0 to 100", written.value));
    }
    found
}

fn delay(written: &FaultDelay, field: &str, complaints: &mut Complaints) -> Option<Delay> {
    if written.exponential_delay.is_some() {
        complaints.not_applied(
            format!("{field}.exponentialDelay"),
            "exponentialDelay is not supported; use fixedDelay",
        );
    }
    // The old whole-percent field counts where the new one is absent.
    let share = match &written.percentage {
        Some(share) => share.clone(),
        None => Percent { value: f64::from(written.percent) },
    };
    let percentage = percentage(&share, field, complaints)?;
    Some(Delay { percentage, duration: written.fixed_delay?.get() })
}

fn abort(written: &FaultAbort, field: &str, complaints: &mut Complaints) -> Option<Abort> {
    if written.http2_error.is_some() {
        complaints.not_applied(
            format!("{field}.http2Error"),
            "http2Error is not supported; use httpStatus or grpcStatus",
        );
        return None;
    }
    let status = match (&written.http_status, &written.grpc_status) {
        (Some(status), _) => {
            AbortStatus::Http(checked_status(*status, format!("{field}.httpStatus"), complaints)?)
        }
        (None, Some(name)) => {
            let code = grpc_code(name);
            if code.is_none() {
                complaints.not_applied(
                    format!("{field}.grpcStatus"),
                    format!("{name:?} is not the name of a gRPC status, such as UNAVAILABLE"),
                );
            }
            AbortStatus::Grpc(code?)
        }
        (None, None) => return None,
    };
    // Without a percentage it never happens, as in Istio.
    let percentage = percentage(written.percentage.as_ref()?, field, complaints)?;
    Some(Abort { percentage, status })
}

fn checked_status(status: u16, field: String, complaints: &mut Complaints) -> Option<StatusCode> {
    let found = StatusCode::from_u16(status).ok().filter(|_| (200..=599).contains(&status));
    if found.is_none() {
        complaints.not_applied(field, format!("{status} is not a status of 200 to 599"));
    }
    found
}

pub(super) fn headers(
    written: Option<&Headers>,
    field: &str,
    complaints: &mut Complaints,
) -> (HeaderOps, HeaderOps) {
    let mut ops = |compiled: Result<HeaderOps, InvalidOperation>, way: &str| {
        compiled.unwrap_or_else(|invalid| {
            complaints.not_applied(format!("{field}.headers.{way}.{}", invalid.field), invalid.message);
            HeaderOps::default()
        })
    };
    let request = written.and_then(|h| h.request.as_ref()).map(|h| ops(HeaderOps::request(h), "request"));
    let response = written.and_then(|h| h.response.as_ref()).map(|h| ops(HeaderOps::response(h), "response"));
    (request.unwrap_or_default(), response.unwrap_or_default())
}

/// What a rewrite does to the path, and the new authority.
pub(super) fn rewrite(
    written: &HttpRewrite,
    field: &str,
    complaints: &mut Complaints,
) -> (Option<PathRewrite>, Option<Box<str>>) {
    let path = match &written.uri_regex_rewrite {
        Some(regex) => match PathRewrite::regex(&regex.matches, &regex.rewrite) {
            Ok(rewrite) => Some(rewrite),
            Err(reason) => {
                complaints.not_applied(format!("{field}.uriRegexRewrite"), reason.to_string());
                None
            }
        },
        None if written.uri.is_empty() => None,
        None => {
            checked_path(&written.uri, format!("{field}.uri"), complaints);
            Some(PathRewrite::Replace(written.uri.as_str().into()))
        }
    };
    (path, authority(&written.authority, format!("{field}.authority"), complaints))
}

fn authority(text: &str, field: String, complaints: &mut Complaints) -> Option<Box<str>> {
    if text.is_empty() {
        return None;
    }
    checked_authority(text).map_err(|reason| complaints.not_applied(field, reason)).ok()
}

/// A path that a rule writes has the form that paths of requests get.
fn checked_path(text: &str, field: String, complaints: &mut Complaints) {
    if text.contains('?') {
        complaints.not_applied(field, "the path holds a query; a rewrite changes the path alone");
    } else if let Err(reason) = normal_path(text) {
        complaints.not_applied(field, format!("{text:?} is no path: {reason}"));
    }
}

pub(super) fn redirect(
    route: &HttpRoute,
    written: &HttpRedirect,
    field: &str,
    port: u16,
    complaints: &mut Complaints,
) -> Redirect {
    let path = match (written.uri.as_str(), written.prefix_rewrite.as_str()) {
        ("", "") => None,
        ("", prefix) => {
            let prefixes = route.matches.iter().all(|m| matches!(m.uri, None | Some(StringMatch::Prefix(_))));
            if !prefixes {
                let message = "prefixRewrite needs a match by prefix; use uri for the whole path";
                complaints.not_applied(format!("{field}.prefixRewrite"), message);
            }
            checked_path(prefix, format!("{field}.prefixRewrite"), complaints);
            Some(RedirectPath::Prefix(prefix.into()))
        }
        (uri, _) => {
            if !uri.starts_with('/') || HeaderValue::from_str(uri).is_err() {
                complaints.not_applied(
                    format!("{field}.uri"),
                    format!("{uri:?} does not start with '/', or cannot stand in a header"),
                );
            }
            Some(RedirectPath::Full(uri.into()))
        }
    };
    let port = match (written.port, written.derive_port) {
        (Some(port), _) => Some(port),
        (None, Some(RedirectPortSelection::FromRequestPort)) => Some(port),
        (None, _) => None,
    };
    let scheme = match written.scheme.as_str() {
        "" => None,
        scheme @ ("http" | "https") => Some(scheme.into()),
        other => {
            complaints.not_applied(format!("{field}.scheme"), format!("{other:?} is neither http nor https"));
            None
        }
    };
    let status = match written.redirect_code {
        0 => StatusCode::MOVED_PERMANENTLY,
        code @ (301 | 302 | 303 | 307 | 308) => StatusCode::from_u16(code).unwrap_or_default(),
        other => {
            let message = format!("{other} is none of 301, 302, 303, 307 and 308");
            complaints.not_applied(format!("{field}.redirectCode"), message);
            StatusCode::MOVED_PERMANENTLY
        }
    };
    let authority = authority(&written.authority, format!("{field}.authority"), complaints);
    Redirect { status, scheme, authority, port, path }
}

pub(super) fn direct(
    written: &HttpDirectResponse,
    field: &str,
    complaints: &mut Complaints,
) -> DirectResponse {
    let status = checked_status(written.status, format!("{field}.status"), complaints).unwrap_or_default();
    let mut body = Bytes::new();
    if let Some(text) = written.body.as_ref().and_then(|b| b.string.as_ref()) {
        body = Bytes::from(text.clone());
    } else if let Some(encoded) = written.body.as_ref().and_then(|b| b.bytes.as_ref()) {
        match STANDARD.decode(encoded) {
            Ok(decoded) => body = decoded.into(),
            Err(reason) => {
                complaints.not_applied(format!("{field}.body.bytes"), format!("not base64: {reason}"));
            }
        }
    }
    if body.len() > MAX_DIRECT_BODY {
        let message = format!("the body is longer than {MAX_DIRECT_BODY} bytes");
        complaints.not_applied(format!("{field}.body"), message);
    }
    DirectResponse { status, body }
}
