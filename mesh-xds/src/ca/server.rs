//! Answers who asks for a certificate.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::proto::certificate::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use crate::server::Peer;

/// The gRPC service of [`Certificates`].
pub type CertificateService<I> = IstioCertificateServiceServer<Certificates<I>>;

/// What an issuer bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateLimits {
    /// Bytes of a certificate request. Default: 16 KiB; one with an RSA key of 4096 bits has 2 KiB.
    pub csr_bytes: usize,
    /// Bytes of a token. Default: 16 KiB; Kubernetes' have 1 to 2 KiB.
    pub token_bytes: usize,
    /// Requests at the same time. Default: 64. Further ones are refused with `RESOURCE_EXHAUSTED`, and come
    /// again later.
    pub concurrent: usize,
    /// The longest lifetime. Default: 24 hours. Who asks for more, or for nothing, gets this.
    pub longest: Duration,
    /// The shortest lifetime. Default: 1 minute. Who asks for less gets this.
    pub shortest: Duration,
}

impl Default for CertificateLimits {
    fn default() -> Self {
        Self {
            csr_bytes: 16 * 1024,
            token_bytes: 16 * 1024,
            concurrent: 64,
            longest: Duration::from_secs(86_400),
            shortest: Duration::from_secs(60),
        }
    }
}

/// A workload's token; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// What is asked for, within the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssueRequest {
    /// The certificate request in PEM, unread. Only its key counts: the name comes from the token.
    pub csr_pem: String,
    /// The token that says who asks.
    pub token: Token,
    /// The lifetime to give.
    pub lifetime: Duration,
    /// Who the connection proved the peer to be, where it did.
    pub peer: Option<Peer>,
}

/// Why there is no certificate. The text goes to the asker: it holds nothing that is not the asker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The token is not good. `UNAUTHENTICATED`.
    #[error("{0}")]
    Unauthenticated(String),
    /// The token is good, its owner gets no certificate. `PERMISSION_DENIED`.
    #[error("{0}")]
    Denied(String),
    /// The certificate request cannot be used. `INVALID_ARGUMENT`.
    #[error("{0}")]
    Request(String),
    /// Not now: who would vouch for the token does not answer. `UNAVAILABLE`.
    #[error("{0}")]
    Unavailable(String),
    /// It went wrong here. `INTERNAL`.
    #[error("{0}")]
    Internal(String),
}

/// Makes certificates.
pub trait Issuer: Send + Sync + 'static {
    /// The chain in PEM: the leaf first, the root last.
    fn issue(&self, request: IssueRequest) -> impl Future<Output = Result<Vec<String>, IssueError>> + Send;
}

impl<F, O> Issuer for F
where
    F: Fn(IssueRequest) -> O + Send + Sync + 'static,
    O: Future<Output = Result<Vec<String>, IssueError>> + Send,
{
    fn issue(&self, request: IssueRequest) -> impl Future<Output = Result<Vec<String>, IssueError>> + Send {
        self(request)
    }
}

/// Serves certificates from an [`Issuer`]. Cheap to clone; clones are one server.
///
/// ```
/// use tower_mesh_xds::ca::{CertificateLimits, Certificates, IssueError, IssueRequest};
///
/// let issuer = |request: IssueRequest| async move {
///     match request.token.as_str() {
///         "good" => Ok(vec!["-----BEGIN CERTIFICATE-----...".to_owned()]),
///         _ => Err(IssueError::Unauthenticated("the token is not good".to_owned())),
///     }
/// };
/// let certificates = Certificates::new(issuer, CertificateLimits::default());
/// let _grpc = certificates.into_service();
/// ```
pub struct Certificates<I> {
    shared: Arc<Shared<I>>,
}

struct Shared<I> {
    issuer: I,
    limits: CertificateLimits,
    room: Semaphore,
}

impl<I: Issuer> Certificates<I> {
    /// A server that answers from `issuer`.
    pub fn new(issuer: I, limits: CertificateLimits) -> Self {
        let room = Semaphore::new(limits.concurrent);
        Self { shared: Arc::new(Shared { issuer, limits, room }) }
    }

    /// As a gRPC service, with its limit on requests.
    pub fn into_service(self) -> CertificateService<I> {
        // A little more than the request itself may have, so that the message says which is too large.
        let most = self.shared.limits.csr_bytes.saturating_add(16 * 1024);
        IstioCertificateServiceServer::new(self).max_decoding_message_size(most)
    }
}

#[tonic::async_trait]
impl<I: Issuer> IstioCertificateService for Certificates<I> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let limits = &self.shared.limits;
        let token = bearer(&request, limits)?;
        let peer = request.extensions().get::<Peer>().cloned();
        let IstioCertificateRequest { csr, validity_duration } = request.into_inner();
        if csr.len() > limits.csr_bytes {
            let message = format!("the certificate request has more than {} bytes", limits.csr_bytes);
            return Err(Status::invalid_argument(message));
        }
        let Ok(_room) = self.shared.room.try_acquire() else {
            return Err(Status::resource_exhausted("too many certificates are being made; try again later"));
        };
        let lifetime = lifetime(validity_duration, limits);
        let issued = self.shared.issuer.issue(IssueRequest { csr_pem: csr, token, lifetime, peer }).await;
        issued.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain })).map_err(Status::from)
    }
}

fn bearer(request: &Request<IstioCertificateRequest>, limits: &CertificateLimits) -> Result<Token, Status> {
    let mut values = request.metadata().get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Status::unauthenticated("one authorization header with the workload's token is needed"));
    };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
    });
    let token = token.ok_or_else(|| Status::unauthenticated("the authorization is not: Bearer TOKEN"))?;
    if token.len() > limits.token_bytes {
        let message = format!("the token has more than {} bytes", limits.token_bytes);
        return Err(Status::unauthenticated(message));
    }
    Ok(Token(token.to_owned()))
}

fn lifetime(seconds: i64, limits: &CertificateLimits) -> Duration {
    match u64::try_from(seconds) {
        Ok(seconds @ 1..) => Duration::from_secs(seconds).max(limits.shortest).min(limits.longest),
        _ => limits.longest,
    }
}

impl Token {
    /// The token itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl From<IssueError> for Status {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Unauthenticated(why) => Self::unauthenticated(why),
            IssueError::Denied(why) => Self::permission_denied(why),
            IssueError::Request(why) => Self::invalid_argument(why),
            IssueError::Unavailable(why) => Self::unavailable(why),
            IssueError::Internal(why) => Self::internal(why),
        }
    }
}

impl<I> Clone for Certificates<I> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<I> fmt::Debug for Certificates<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_kept_within_limits() {
        let limits = CertificateLimits::default();
        for (asked, given) in
            [(-1, 86_400), (0, 86_400), (1, 60), (60, 60), (3600, 3600), (86_401, 86_400), (i64::MAX, 86_400)]
        {
            assert_eq!(lifetime(asked, &limits), Duration::from_secs(given), "{asked}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        assert_eq!(format!("{:?}", Token("secret".into())), "Token(..)");
    }
}
