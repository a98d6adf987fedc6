//! What is remembered of a request until its answer has ended, and the writing of it.

use std::any::Any;
use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use mesh_core::clock::now;
use mesh_core::facts::{Direction, Facts};
use mesh_core::failure::{DETAIL_HEADER, Failure, FailureCode, REASON_HEADER, is_grpc};
use tokio::time::Instant;

use super::Config;
use crate::access_log::Entry;
use crate::metrics::{NO_FLAG, Outcome, RequestProtocol};
use crate::request_id::REQUEST_ID_HEADER;

/// The highest number that gRPC gives a meaning; anything above is `UNKNOWN`.
const MAX_GRPC_STATUS: u8 = 16;
const GRPC_UNKNOWN: u8 = 2;
// Looked up by name for each request: a text would be parsed and hashed each time.
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// One request on its way. Written once: by [`finish`](Self::finish), else when dropped, which is when
/// the caller has left.
#[derive(Debug)]
pub(super) struct Record {
    config: Arc<Config>,
    facts: Facts,
    started: Instant,
    logged: Option<Box<Logged>>,
    /// `None` for a request without body, which most are.
    request_bytes: Option<Arc<AtomicU64>>,
    response_bytes: u64,
    grpc: bool,
    /// HEAD and CONNECT: the body of the answer is none of HTTP's, whatever it says of itself.
    bodiless_method: bool,
    code: u16,
    grpc_status: Option<u8>,
    failure: Option<Failure>,
    upstream_time: Option<Duration>,
    /// Whether an answer that is dropped now is an answer that was complete.
    complete: bool,
    written: bool,
}

/// What only the access log wants, kept only where there is one.
#[derive(Debug)]
pub(super) struct Logged {
    start: SystemTime,
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    x_forwarded_for: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    trace_id: Option<[u8; 32]>,
    upstream_reason: Option<FailureCode>,
    upstream_detail: Option<HeaderValue>,
}

impl Logged {
    pub(super) fn of<A>(
        request: &Request<A>,
        start: SystemTime,
        request_id: Option<HeaderValue>,
        trace_id: Option<[u8; 32]>,
    ) -> Self {
        // One look at each, in place of a lookup for each name; the first of several counts.
        let (mut host, mut x_forwarded_for, mut user_agent) = (None, None, None);
        for (name, value) in request.headers() {
            let place = match *name {
                header::HOST => &mut host,
                header::USER_AGENT => &mut user_agent,
                _ if *name == X_FORWARDED_FOR => &mut x_forwarded_for,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        Self {
            start,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: host.cloned(),
            x_forwarded_for: x_forwarded_for.cloned(),
            user_agent: user_agent.cloned(),
            request_id: request_id.or_else(|| request.headers().get(REQUEST_ID_HEADER).cloned()),
            trace_id,
            upstream_reason: None,
            upstream_detail: None,
        }
    }

    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_09 => "HTTP/0.9",
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_3 => "HTTP/3",
            _ => "HTTP/1.1",
        }
    }
}

impl Record {
    pub(super) fn new<A>(
        config: Arc<Config>,
        facts: Facts,
        request: &Request<A>,
        logged: Option<Box<Logged>>,
    ) -> Self {
        Self {
            config,
            facts,
            started: now(),
            logged,
            request_bytes: None,
            response_bytes: 0,
            grpc: is_grpc(request.headers()),
            bodiless_method: matches!(*request.method(), Method::HEAD | Method::CONNECT),
            code: 0,
            grpc_status: None,
            failure: None,
            upstream_time: None,
            complete: false,
            written: false,
        }
    }

    /// A place to count the bytes of a request's body in.
    pub(super) fn count_request(&mut self) -> Arc<AtomicU64> {
        Arc::clone(self.request_bytes.get_or_insert_default())
    }

    /// Takes what the head of the answer says.
    pub(super) fn answer<B>(&mut self, response: &mut Response<B>) {
        let status = response.status();
        self.code = status.as_u16();
        self.failure = response.extensions().get::<Failure>().cloned();
        self.trailers(response.headers());
        self.complete = self.bodiless_method
            || status.is_informational()
            || matches!(status, http::StatusCode::NO_CONTENT | http::StatusCode::NOT_MODIFIED);
        let upstream = self.facts.upstream();
        if upstream.is_some() && self.failure().is_none() {
            self.upstream_time = Some(now().saturating_duration_since(self.started));
        }
        if self.facts.connection().direction() == Direction::Outbound {
            // Hardly any answer has it, and to look at each name is less than to look one up.
            let told = response.headers().keys().any(|name| *name == DETAIL_HEADER);
            let detail = if told { response.headers_mut().remove(DETAIL_HEADER) } else { None };
            // Whoever has not proved who it is may say anything.
            if let Some(logged) = &mut self.logged
                && upstream.is_some_and(|u| u.peer.is_some())
                && self.upstream_time.is_some()
            {
                logged.upstream_reason =
                    response.headers().get(REASON_HEADER).and_then(FailureCode::from_header);
                logged.upstream_detail = detail.filter(|_| logged.upstream_reason.is_some());
                // Where a layer further in has taken it off already.
                if let Some(told) = self.facts.remote_failure() {
                    logged.upstream_reason = Some(told.code());
                    logged.upstream_detail = told.detail_header();
                }
            }
        }
    }

    /// Takes the status of a gRPC call out of headers or trailers.
    pub(super) fn trailers(&mut self, headers: &HeaderMap) {
        if self.grpc
            && let Some(status) = headers.get(&GRPC_STATUS)
        {
            let number = status.to_str().ok().and_then(|s| s.parse().ok());
            self.grpc_status = number.filter(|n| *n <= MAX_GRPC_STATUS).or(Some(GRPC_UNKNOWN));
        }
    }

    /// Counts bytes of the answer's body.
    pub(super) fn count_response(&mut self, bytes: u64) {
        self.response_bytes = self.response_bytes.saturating_add(bytes);
    }

    /// How many bytes of the answer's body there were.
    pub(super) fn response_bytes(&self) -> u64 {
        self.response_bytes
    }

    /// Says that an answer that is dropped from now on was complete.
    pub(super) fn mark_complete(&mut self) {
        self.complete = true;
    }

    /// Writes the record of an answer that ended well.
    pub(super) fn finish(&mut self) {
        self.complete = true;
        self.write();
    }

    /// Writes the record of a request that ended in an error, in place of an answer or within its body.
    pub(super) fn fail<E: 'static>(&mut self, error: &E) {
        self.failure = failure_in(error).or_else(|| self.failure().cloned()).or_else(|| {
            // Half an answer: whoever sent it has stopped.
            (self.code != 0).then(|| FailureCode::UpstreamReset.into())
        });
        self.finish();
    }

    fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref().or_else(|| self.facts.failure())
    }

    fn write(&mut self) {
        if self.written {
            return;
        }
        self.written = true;
        let left = || Failure::new(FailureCode::DownstreamClosed);
        let gone = (!self.complete && self.failure().is_none()).then(left);
        let failure = gone.as_ref().or_else(|| self.failure());

        let protocol = if self.grpc { RequestProtocol::Grpc } else { RequestProtocol::Http };
        let outcome = Outcome { protocol, code: self.code, grpc_status: self.grpc_status, flags: NO_FLAG }
            .flagged(failure.map_or("", |f| f.spec().flag));
        let duration = now().saturating_duration_since(self.started);
        let request_bytes = self.request_bytes.as_ref().map_or(0, |b| b.load(Ordering::Relaxed));
        self.config.recorder.request(&self.facts, outcome, duration, request_bytes, self.response_bytes);

        if let Some(logged) = &self.logged {
            let path = logged.uri.path_and_query().map(|p| p.as_str().as_bytes());
            let authority = logged.uri.authority().map(|a| a.as_str().as_bytes());
            fn bytes(value: Option<&HeaderValue>) -> Option<&[u8]> {
                value.map(HeaderValue::as_bytes)
            }
            self.config.access_log.write(&Entry {
                method: Some(logged.method.as_str()),
                path,
                protocol: Some(logged.protocol()),
                response_code: outcome.code,
                response_flags: outcome.flags,
                bytes_received: request_bytes,
                bytes_sent: self.response_bytes,
                duration,
                upstream_service_time: self.upstream_time,
                x_forwarded_for: bytes(logged.x_forwarded_for.as_ref()),
                user_agent: bytes(logged.user_agent.as_ref()),
                request_id: bytes(logged.request_id.as_ref()),
                authority: authority.or_else(|| bytes(logged.host.as_ref())),
                failure,
                upstream_reason: logged.upstream_reason,
                upstream_detail: bytes(logged.upstream_detail.as_ref()),
                trace_id: logged.trace_id.as_ref(),
                ..Entry::new(&self.facts, logged.start)
            });
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.write();
    }
}

/// The failure in an error of any type: in the error itself, or in the causes of a boxed or I/O error.
fn failure_in<E: 'static>(error: &E) -> Option<Failure> {
    let any: &dyn Any = error;
    if let Some(failure) = any.downcast_ref::<Failure>() {
        return Some(failure.clone());
    }
    if let Some(boxed) = any.downcast_ref::<Box<dyn StdError + Send + Sync>>() {
        return Failure::find(&**boxed);
    }
    any.downcast_ref::<std::io::Error>().and_then(|e| Failure::find(e))
}
