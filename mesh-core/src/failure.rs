//! One table of failures: why the mesh, rather than the application, answered.
//!
//! [`FailureCode::spec`] is the only place that knows status codes, response flags, blame and whether a
//! retry can help. Every answer that the mesh makes carries the code, and nothing else, in
//! [`REASON_HEADER`]; the explanation goes into log and metric, and in [`DETAIL_HEADER`] only between
//! verified sidecars.
//!
//! ```
//! use http::StatusCode;
//! use tower_mesh_core::failure::{Blame, Failure, FailureCode};
//!
//! let spec = FailureCode::NoHealthyEndpoint.spec();
//! assert_eq!((spec.code, spec.flag, spec.status), ("no_healthy_endpoint", "UH", StatusCode::SERVICE_UNAVAILABLE));
//! assert_eq!(spec.blame, Blame::Upstream);
//!
//! let failure = Failure::new(FailureCode::Denied).detail("no ALLOW policy matches");
//! let response = failure.response::<String>(false);
//! assert_eq!(response.status(), 403);
//! assert_eq!(response.headers()["x-mesh-reason"], "denied");
//! ```

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::diagnostic::ResourceRef;

/// Carries the code of a failure on every answer that the mesh makes.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-mesh-reason");
/// Carries the explanation of a failure, between verified sidecars only.
pub const DETAIL_HEADER: HeaderName = HeaderName::from_static("x-mesh-detail");
/// The longest explanation that is sent or believed, in bytes; the rest is cut.
pub const MAX_DETAIL: usize = 512;

/// Why the mesh answered, or why a connection ended: a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FailureCode {
    /// Nobody in the mesh knows the host that was called.
    UnknownHost,
    /// The host is known; none of its routes matches the request.
    NoRoute,
    /// A route names a subset (or service) that does not exist.
    UnknownSubset,
    /// The destination has no endpoint, or all are ejected and panic is off.
    NoHealthyEndpoint,
    /// No connection to the endpoint could be made.
    ConnectFailed,
    /// The TLS handshake with the endpoint failed.
    TlsFailed,
    /// The endpoint is somebody else than the caller expects.
    IdentityMismatch,
    /// The connection broke after the request may have reached the application.
    UpstreamReset,
    /// The endpoint answered something that is no HTTP.
    UpstreamProtocol,
    /// A circuit breaker's limit is reached.
    Overflow,
    /// The time that the route allows is over.
    Timeout,
    /// An AuthorizationPolicy refuses the request.
    Denied,
    /// A credential is needed and missing, or wrong.
    Unauthenticated,
    /// A rate limit is used up.
    RateLimited,
    /// A VirtualService asks for this fault.
    FaultInjected,
    /// A VirtualService answers this itself (`directResponse` or `redirect`); no failure of anyone's.
    DirectResponse,
    /// A security resource could not be read and took its closed reading.
    PolicyInvalid,
    /// The request is not valid HTTP, or has no place to go.
    BadRequest,
    /// Headers exceed their limit.
    HeadersTooLarge,
    /// The body exceeds its limit.
    BodyTooLarge,
    /// The proxy is shutting down.
    Draining,
    /// The caller went away before the answer was complete.
    DownstreamClosed,
    /// The control plane has not told what applies to the host that was called: it cannot be reached, or what
    /// it sent cannot be used.
    ConfigUnavailable,
    /// The mesh itself failed; always a defect worth reporting.
    Internal,
}

/// Who is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The caller asked for something that cannot be.
    Caller,
    /// The called service, or the way to it.
    Upstream,
    /// The mesh.
    Mesh,
    /// A policy that somebody wrote, doing its work.
    Policy,
}

/// A gRPC status, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrpcCode(pub u8);

impl GrpcCode {
    /// `CANCELLED`
    pub const CANCELLED: Self = Self(1);
    /// `INVALID_ARGUMENT`
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// `DEADLINE_EXCEEDED`
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// `PERMISSION_DENIED`
    pub const PERMISSION_DENIED: Self = Self(7);
    /// `RESOURCE_EXHAUSTED`
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// `UNIMPLEMENTED`
    pub const UNIMPLEMENTED: Self = Self(12);
    /// `INTERNAL`
    pub const INTERNAL: Self = Self(13);
    /// `UNAVAILABLE`
    pub const UNAVAILABLE: Self = Self(14);
    /// `UNAUTHENTICATED`
    pub const UNAUTHENTICATED: Self = Self(16);
}

/// All that follows from a [`FailureCode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// The stable code, as in `x-mesh-reason`, logs and metrics.
    pub code: &'static str,
    /// Envoy's response flag; empty where Envoy has none.
    pub flag: &'static str,
    /// The HTTP status of the answer.
    pub status: StatusCode,
    /// The gRPC status of the answer to a gRPC call.
    pub grpc: GrpcCode,
    /// Who is to blame.
    pub blame: Blame,
    /// Whether the request provably did not reach the application, so that any method may be repeated.
    pub unsent: bool,
    /// Whether another try, perhaps at another endpoint, can help at all.
    pub retry_helps: bool,
    /// The body of the answer to an HTTP call.
    pub body: &'static str,
}

impl FailureCode {
    /// Every code, for tables in documentation and tests.
    pub const ALL: &'static [Self] = &[
        Self::UnknownHost,
        Self::NoRoute,
        Self::UnknownSubset,
        Self::NoHealthyEndpoint,
        Self::ConnectFailed,
        Self::TlsFailed,
        Self::IdentityMismatch,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::Overflow,
        Self::Timeout,
        Self::Denied,
        Self::Unauthenticated,
        Self::RateLimited,
        Self::FaultInjected,
        Self::DirectResponse,
        Self::PolicyInvalid,
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::BodyTooLarge,
        Self::Draining,
        Self::DownstreamClosed,
        Self::ConfigUnavailable,
        Self::Internal,
    ];

    /// What follows from the code.
    pub const fn spec(self) -> Spec {
        use Blame::{Caller, Mesh, Policy, Upstream};
        use GrpcCode as G;
        use StatusCode as S;
        const fn row(
            code: &'static str,
            flag: &'static str,
            status: StatusCode,
            grpc: GrpcCode,
            blame: Blame,
            (unsent, retry_helps): (bool, bool),
            body: &'static str,
        ) -> Spec {
            Spec { code, flag, status, grpc, blame, unsent, retry_helps, body }
        }
        const NO: (bool, bool) = (false, false);
        const UNSENT: (bool, bool) = (true, true);
        const AGAIN: (bool, bool) = (false, true);
        let s503 = S::SERVICE_UNAVAILABLE;
        match self {
            Self::UnknownHost => {
                row("unknown_host", "", S::BAD_GATEWAY, G::UNAVAILABLE, Caller, NO, "unknown host\n")
            }
            Self::NoRoute => {
                row("no_route", "NR", S::NOT_FOUND, G::UNIMPLEMENTED, Caller, NO, "no route matches\n")
            }
            Self::UnknownSubset => {
                row("unknown_subset", "NC", s503, G::UNAVAILABLE, Mesh, NO, "no such destination\n")
            }
            Self::NoHealthyEndpoint => {
                row("no_healthy_endpoint", "UH", s503, G::UNAVAILABLE, Upstream, NO, "no healthy endpoint\n")
            }
            Self::ConnectFailed => row(
                "connect_failed",
                "UF",
                s503,
                G::UNAVAILABLE,
                Upstream,
                UNSENT,
                "no connection upstream\n",
            ),
            Self::TlsFailed => {
                row("tls_failed", "UF", s503, G::UNAVAILABLE, Upstream, UNSENT, "TLS upstream failed\n")
            }
            Self::IdentityMismatch => row(
                "identity_mismatch",
                "UF",
                s503,
                G::UNAVAILABLE,
                Upstream,
                UNSENT,
                "the upstream is somebody else than expected\n",
            ),
            Self::UpstreamReset => row(
                "upstream_reset",
                "UC",
                s503,
                G::UNAVAILABLE,
                Upstream,
                AGAIN,
                "upstream connection broke\n",
            ),
            Self::UpstreamProtocol => row(
                "upstream_protocol",
                "UPE",
                S::BAD_GATEWAY,
                G::UNAVAILABLE,
                Upstream,
                NO,
                "the upstream does not speak HTTP\n",
            ),
            Self::Overflow => row(
                "overflow",
                "UO",
                s503,
                G::UNAVAILABLE,
                Policy,
                NO,
                "too many requests in flight upstream\n",
            ),
            Self::Timeout => row(
                "timeout",
                "UT",
                S::GATEWAY_TIMEOUT,
                G::DEADLINE_EXCEEDED,
                Upstream,
                AGAIN,
                "upstream request timeout\n",
            ),
            // Istio's own body, which people search for.
            Self::Denied => {
                row("denied", "", S::FORBIDDEN, G::PERMISSION_DENIED, Policy, NO, "RBAC: access denied")
            }
            Self::Unauthenticated => row(
                "unauthenticated",
                "",
                S::UNAUTHORIZED,
                G::UNAUTHENTICATED,
                Caller,
                NO,
                "authentication is required\n",
            ),
            Self::RateLimited => row(
                "rate_limited",
                "RL",
                S::TOO_MANY_REQUESTS,
                G::RESOURCE_EXHAUSTED,
                Policy,
                NO,
                "rate limited\n",
            ),
            Self::FaultInjected => {
                row("fault_injected", "FI", s503, G::UNAVAILABLE, Policy, NO, "fault injected\n")
            }
            Self::DirectResponse => row("direct_response", "", S::OK, G(0), Policy, NO, ""),
            Self::PolicyInvalid => row(
                "policy_invalid",
                "",
                S::FORBIDDEN,
                G::PERMISSION_DENIED,
                Policy,
                NO,
                "a policy for this could not be read\n",
            ),
            Self::BadRequest => {
                row("bad_request", "DPE", S::BAD_REQUEST, G::INVALID_ARGUMENT, Caller, NO, "bad request\n")
            }
            Self::HeadersTooLarge => row(
                "too_large",
                "DPE",
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                G::RESOURCE_EXHAUSTED,
                Caller,
                NO,
                "the headers are too large\n",
            ),
            Self::BodyTooLarge => row(
                "too_large",
                "DPE",
                S::PAYLOAD_TOO_LARGE,
                G::RESOURCE_EXHAUSTED,
                Caller,
                NO,
                "the body is too large\n",
            ),
            Self::Draining => {
                row("draining", "", s503, G::UNAVAILABLE, Mesh, UNSENT, "the proxy is shutting down\n")
            }
            // Never sent to anyone: the caller is gone. The status stands in logs only.
            Self::DownstreamClosed => {
                row("downstream_closed", "DC", S::BAD_REQUEST, G::CANCELLED, Caller, NO, "")
            }
            Self::ConfigUnavailable => row(
                "config_unavailable",
                "",
                s503,
                G::UNAVAILABLE,
                Mesh,
                UNSENT,
                "what applies to this host is not known yet\n",
            ),
            Self::Internal => {
                row("internal", "", S::INTERNAL_SERVER_ERROR, G::INTERNAL, Mesh, NO, "the mesh failed\n")
            }
        }
    }

    /// The stable code, as in `x-mesh-reason`.
    pub const fn as_str(self) -> &'static str {
        self.spec().code
    }

    /// The code that a sidecar sent in `x-mesh-reason`.
    pub fn from_header(value: &HeaderValue) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.as_str().as_bytes() == value.as_bytes())
    }
}

/// A failure with its explanation. Cheap to clone.
///
/// It is an error (layers that fail return it, boxed or not), and it is what [`crate::facts::Facts`]
/// remembers for telemetry.
#[derive(Clone)]
pub struct Failure(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    code: FailureCode,
    unsent: bool,
    status: Option<StatusCode>,
    detail: Cow<'static, str>,
    resource: Option<ResourceRef>,
    policies: Vec<ResourceRef>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure without explanation.
    pub fn new(code: FailureCode) -> Self {
        Self(Arc::new(Inner {
            code,
            unsent: code.spec().unsent,
            status: None,
            detail: Cow::Borrowed(""),
            resource: None,
            policies: Vec::new(),
            source: None,
        }))
    }

    /// `timeout`, of a request or its answer that took longer than this.
    pub fn too_late(limit: Duration) -> Self {
        Self::new(FailureCode::Timeout).detail(format!("the request took longer than {limit:?}"))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Explains it: which policy, rule, field or address. Goes into logs, never to applications.
    #[must_use]
    pub fn detail(self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.with(|i| i.detail = detail.into())
    }

    /// Names the resource at fault.
    #[must_use]
    pub fn resource(self, resource: ResourceRef) -> Self {
        self.with(|i| i.resource = Some(resource))
    }

    /// Names the policies that decided: the matching DENY, or the ALLOW policies of which none matched.
    #[must_use]
    pub fn policies(self, policies: Vec<ResourceRef>) -> Self {
        self.with(|i| i.policies = policies)
    }

    /// Answers with another status than the table's, as an injected fault does.
    #[must_use]
    pub fn status(self, status: StatusCode) -> Self {
        self.with(|i| i.status = Some(status))
    }

    /// Says whether the request provably never reached the application, where more is known than the code
    /// alone tells.
    #[must_use]
    pub fn unsent(self, unsent: bool) -> Self {
        self.with(|i| i.unsent = unsent)
    }

    /// Keeps the error that led here.
    #[must_use]
    pub fn source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source: Arc<dyn StdError + Send + Sync> = Arc::from(source.into());
        self.with(|i| i.source = Some(source))
    }

    /// Whether the request provably never reached the application, so that any method may be repeated.
    pub fn is_unsent(&self) -> bool {
        self.0.unsent
    }

    /// The code.
    pub fn code(&self) -> FailureCode {
        self.0.code
    }

    /// What follows from the code.
    pub fn spec(&self) -> Spec {
        self.0.code.spec()
    }

    /// The HTTP status of the answer.
    pub fn http_status(&self) -> StatusCode {
        self.0.status.unwrap_or_else(|| self.spec().status)
    }

    /// The explanation; empty when there is none. The cause, if any, is told after it.
    pub fn explanation(&self) -> Cow<'_, str> {
        match &self.0.source {
            None => Cow::Borrowed(&*self.0.detail),
            Some(source) if self.0.detail.is_empty() => Cow::Owned(source.to_string()),
            Some(source) => Cow::Owned(format!("{}: {source}", self.0.detail)),
        }
    }

    /// The resource at fault.
    pub fn at_fault(&self) -> Option<&ResourceRef> {
        self.0.resource.as_ref()
    }

    /// The policies that decided.
    pub fn deciding_policies(&self) -> &[ResourceRef] {
        &self.0.policies
    }

    /// Finds the failure in an error or its causes; anything else is [`FailureCode::Internal`].
    pub fn of(error: Box<dyn StdError + Send + Sync>) -> Self {
        Self::find(&*error).unwrap_or_else(|| Self::new(FailureCode::Internal).source(error))
    }

    /// Finds the failure in an error or its causes, if there is one.
    pub fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(e) = cause {
            if let Some(failure) = e.downcast_ref::<Self>() {
                return Some(failure.clone());
            }
            // An I/O error tells its inner error's cause, not the inner error itself.
            let inner = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            cause = inner.map(|i| i as _).or_else(|| e.source());
        }
        None
    }

    /// The answer to the caller, with an empty body: a gRPC call gets status 200 and its error in the
    /// headers (a trailers-only response), anything else the HTTP status.
    ///
    /// Puts the failure into the response's extensions, for layers further out.
    pub fn response<B: Default>(&self, grpc: bool) -> Response<B> {
        let spec = self.spec();
        let mut response = Response::new(B::default());
        let headers = response.headers_mut();
        headers.insert(REASON_HEADER, HeaderValue::from_static(spec.code));
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(u16::from(spec.grpc.0)));
            headers.insert("grpc-message", HeaderValue::from_static(spec.code));
        } else {
            *response.status_mut() = self.http_status();
        }
        response.extensions_mut().insert(self.clone());
        response
    }

    /// The explanation as a header value, cut to [`MAX_DETAIL`] bytes; `None` when there is none.
    pub fn detail_header(&self) -> Option<HeaderValue> {
        let text = self.explanation();
        let clean: String = text.chars().filter(|c| matches!(c, ' '..='~')).take(MAX_DETAIL).collect();
        if clean.is_empty() { None } else { HeaderValue::from_str(&clean).ok() }
    }
}

/// Whether a request is a gRPC call, by its content type.
#[inline]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    // To look at each name of a head is less than to look one up, which is hashed.
    headers
        .iter()
        .find(|(name, _)| **name == header::CONTENT_TYPE)
        .is_some_and(|(_, value)| is_grpc_type(value))
}

/// Whether this is the `content-type` of gRPC.
#[inline]
pub fn is_grpc_type(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

impl From<FailureCode> for Failure {
    fn from(code: FailureCode) -> Self {
        Self::new(code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.code.as_str())?;
        if let Some(resource) = &self.0.resource {
            write!(f, " ({resource})")?;
        }
        let text = self.explanation();
        if text.is_empty() { Ok(()) } else { write!(f, ": {text}") }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({self})")
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests;
