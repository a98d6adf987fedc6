//! Asks for a certificate.

use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::proto::certificate::IstioCertificateRequest;
use crate::proto::certificate::istio_certificate_service_client::IstioCertificateServiceClient;

/// The largest answer, in bytes.
pub const MAX_CHAIN_BYTES: usize = 256 * 1024;

/// What to ask for.
#[derive(Clone)]
pub struct CertificateRequest {
    /// A PKCS #10 request in PEM.
    pub csr_pem: String,
    /// The workload's token.
    pub token: String,
    /// The wanted lifetime; the issuer may give less. Whole seconds count.
    pub lifetime: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The token holds a character that no header may hold, or is empty.
    #[error("the token is no token; is the file right?")]
    Token,
    /// The issuer knows the caller and says no. Asking again with the same token does not help.
    #[error("the issuer refuses: {0}")]
    Refused(String),
    /// The issuer cannot be reached or cannot answer now.
    #[error("the issuer does not answer: {0}")]
    Unavailable(String),
    /// There was no answer in time.
    #[error("the issuer has not answered in {0:?}")]
    TimedOut(Duration),
    /// The answer is none.
    #[error("the issuer's answer is no certificate chain: {0}")]
    Answer(&'static str),
}

impl fmt::Debug for CertificateRequest {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateRequest").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// Asks once over `channel`. The chain in PEM: the leaf first, the root last. Whether it is what was asked
/// for is for whoever holds the key to check.
///
/// # Errors
/// See [`RequestError`]; all are worth another try later, when token, issuer or network may be different.
///
/// ```
/// use std::time::Duration;
/// use tower_mesh_xds::ca::{CertificateRequest, RequestError, request_certificate};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let nowhere = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
/// let request = CertificateRequest {
///     csr_pem: "-----BEGIN CERTIFICATE REQUEST-----...".into(),
///     token: "eyJhbGciOi...".into(),
///     lifetime: Duration::from_secs(86_400),
///     timeout: Duration::from_secs(5),
/// };
/// let error = request_certificate(nowhere, request).await.unwrap_err();
/// assert!(matches!(error, RequestError::Unavailable(_)));
/// # });
/// ```
pub async fn request_certificate<C>(
    channel: C,
    request: CertificateRequest,
) -> Result<Vec<String>, RequestError>
where
    C: GrpcService<Body>,
    C::Error: Into<StdError>,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let token = request.token.trim();
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    let bearer = header.ok().filter(|_| !token.is_empty()).and_then(|mut header| {
        header.set_sensitive(true);
        MetadataValue::try_from(header.as_bytes()).ok()
    });
    let bearer = bearer.ok_or(RequestError::Token)?;
    let wire = IstioCertificateRequest {
        csr: request.csr_pem,
        validity_duration: i64::try_from(request.lifetime.as_secs()).unwrap_or(i64::MAX),
    };
    let mut wire = Request::new(wire);
    wire.metadata_mut().insert("authorization", bearer);
    let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_CHAIN_BYTES);
    let answer = tokio::time::timeout(request.timeout, client.create_certificate(wire)).await;
    let answer = answer.map_err(|_| RequestError::TimedOut(request.timeout))?;
    let chain = answer.map_err(|status| of_status(&status))?.into_inner().cert_chain;
    if chain.is_empty() {
        return Err(RequestError::Answer("it is empty"));
    }
    if chain.iter().any(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
        return Err(RequestError::Answer("a part of it is no certificate in PEM"));
    }
    Ok(chain)
}

fn of_status(status: &Status) -> RequestError {
    let said = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            RequestError::Refused(said)
        }
        _ => RequestError::Unavailable(said),
    }
}
