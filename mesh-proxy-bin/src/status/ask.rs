//! Asks the application of this pod, from the address that redirection leaves alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh::tls::connect::{HANDOVER_V4, HANDOVER_V6};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;

/// How many redirects are followed: the kubelet's number.
pub(crate) const MAX_REDIRECTS: usize = 10;

/// One request to the application.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) at: SocketAddr,
    pub(crate) tls: bool,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// The most that is read of the answer's body, in bytes.
    pub(crate) most: usize,
}

/// The application's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The body, or what was read of it up to the limit.
    pub(crate) body: Bytes,
    /// Whether the body is longer.
    pub(crate) cut: bool,
}

/// A connection to the application.
pub(crate) async fn connect(at: SocketAddr) -> std::io::Result<TcpStream> {
    let (socket, from) = match at {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from(HANDOVER_V4)),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(HANDOVER_V6)),
    };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(at).await
}

impl Ask {
    /// Asks, and follows redirects to the application itself; any other is the answer. No time limit of its own.
    pub(crate) async fn send(mut self) -> anyhow::Result<Answer> {
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.once().await?;
            match self.redirected(&answer) {
                Some(next) => self = next,
                None => return Ok(answer),
            }
        }
        anyhow::bail!("stopped after {MAX_REDIRECTS} redirects")
    }

    /// Where an answer leads, if that is the application again. Pure.
    fn redirected(&self, answer: &Answer) -> Option<Self> {
        if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return None;
        }
        let to: Uri = answer.headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
        let path = to.path_and_query()?.as_str().to_owned();
        let Some(host) = to.host() else {
            return path.starts_with('/').then(|| Self { path, ..self.clone() });
        };
        let own = self.headers.get(HOST).and_then(|h| h.to_str().ok()).and_then(|h| h.parse().ok());
        let own: Option<http::uri::Authority> = own;
        let ip = self.at.ip().to_string();
        let same = host.trim_matches(['[', ']']) == ip || own.is_some_and(|own| own.host() == host);
        let tls = match to.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return None,
        };
        let port = to.port_u16().unwrap_or(if tls { 443 } else { 80 });
        same.then(|| Self { at: SocketAddr::new(self.at.ip(), port), tls, path, ..self.clone() })
    }

    async fn once(&self) -> anyhow::Result<Answer> {
        let stream = connect(self.at).await?;
        if self.tls {
            let name = self.at.ip().into();
            let config = ANYBODY.clone()?;
            self.over(TlsConnector::from(config).connect(name, stream).await?).await
        } else {
            self.over(stream).await
        }
    }

    async fn over<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        io: I,
    ) -> anyhow::Result<Answer> {
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::get(self.path.as_str()).body(Full::<Bytes>::default())?;
        request.headers_mut().extend(self.headers.clone());
        if !request.headers().contains_key(HOST) {
            request.headers_mut().insert(HOST, HeaderValue::from_str(&self.at.to_string())?);
        }
        request.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        let answer = send.send_request(request).await;
        let answer = match answer {
            Ok(answer) => read(answer, self.most).await,
            Err(error) => Err(error.into()),
        };
        connection.abort();
        answer
    }
}

/// Reads as much of an answer as may be.
async fn read(answer: http::Response<Incoming>, most: usize) -> anyhow::Result<Answer> {
    let (parts, mut body) = answer.into_parts();
    let mut read = bytes::BytesMut::new();
    let mut cut = false;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            let room = most.saturating_sub(read.len());
            cut = data.len() > room;
            read.extend_from_slice(data.get(..room).unwrap_or(&data));
            if cut {
                break;
            }
        }
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body: read.freeze(), cut })
}

/// Asks the gRPC health service; `SERVING` alone is healthy.
pub(crate) async fn health(at: SocketAddr, service: &str) -> anyhow::Result<()> {
    const MOST: usize = 4096;
    let io = TokioIo::new(connect(at).await?);
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{at}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(Bytes::from(question(service))))?;
    let answered = async {
        let answer = send.send_request(request).await?;
        anyhow::ensure!(answer.status() == StatusCode::OK, "HTTP status {}", answer.status());
        const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
        let at_once = answer.headers().get(GRPC_STATUS).cloned();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?;
        let status = body.trailers().and_then(|t| t.get(GRPC_STATUS).cloned()).or(at_once);
        let status = status.as_ref().and_then(|s| s.to_str().ok()).unwrap_or("none");
        anyhow::ensure!(status == "0", "gRPC status {status}");
        anyhow::ensure!(serves(&body.to_bytes()), "the service is not SERVING");
        anyhow::Ok(())
    };
    let answered = answered.await;
    connection.abort();
    answered
}

/// A `HealthCheckRequest` as one gRPC message: field 1 is the service's name.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// Whether a gRPC message is a `HealthCheckResponse` that says SERVING: field 1 is 1. Other fields are none of the
/// service's definition.
fn serves(framed: &[u8]) -> bool {
    framed.get(5..).is_some_and(|message| message == [0x08, 1])
}

/// TLS with whoever answers: probes do not check who that is, as the kubelet's do not.
static ANYBODY: LazyLock<Result<Arc<rustls::ClientConfig>, rustls::Error>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(Arc::clone(&provider)));
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
});

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Bounds how long asking takes.
pub(crate) async fn within<T>(
    time: Duration,
    asking: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(time, asking).await {
        Ok(answer) => answer,
        Err(_) => anyhow::bail!("no answer within {time:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_protocol_is_two_short_messages() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = question(&"x".repeat(200));
        assert_eq!(long.get(..8), Some(&[0, 0, 0, 0, 203, 0x0a, 0xc8, 1][..]));
        assert!(serves(&[0, 0, 0, 0, 2, 8, 1]));
        for other in [&[0, 0, 0, 0, 2, 8, 2][..], &[0, 0, 0, 0, 0], &[], &[0, 0, 0, 0, 2, 8]] {
            assert!(!serves(other), "{other:?}");
        }
    }

    #[test]
    fn redirects_are_followed_to_the_application_itself() {
        let headers = [(HOST, HeaderValue::from_static("app.test"))].into_iter().collect();
        let ask = Ask { at: "10.0.0.1:80".parse().unwrap(), tls: false, path: "/".into(), headers, most: 9 };
        for (status, location, want) in [
            (302, "/next?a=b", Some(("10.0.0.1:80", false, "/next?a=b"))),
            (301, "https://10.0.0.1:8443/x", Some(("10.0.0.1:8443", true, "/x"))),
            (308, "https://app.test/x", Some(("10.0.0.1:443", true, "/x"))),
            (302, "http://example.com/", None),
            (302, "ftp://10.0.0.1/", None),
            (302, "", None),
            (304, "/next", None),
            (200, "/next", None),
        ] {
            let headers = [(LOCATION, HeaderValue::from_str(location).unwrap())].into_iter().collect();
            let status = StatusCode::from_u16(status).unwrap();
            let answer = Answer { status, headers, body: Bytes::new(), cut: false };
            let next = ask.redirected(&answer).map(|n| (n.at.to_string(), n.tls, n.path));
            let want = want.map(|(at, tls, path)| (at.to_owned(), tls, path.to_owned()));
            assert_eq!(next, want, "{location}");
        }
    }

    fn ask(at: SocketAddr, tls: bool, path: &str, most: usize) -> Ask {
        Ask { at, tls, path: path.into(), headers: HeaderMap::new(), most }
    }

    #[tokio::test]
    async fn the_application_is_asked_with_and_without_tls_and_not_listened_to_for_ever() {
        let app = mesh_test::backend::Backend::start("app").await;
        let answer = ask(app.addr(), false, "/", 100).send().await.unwrap();
        assert_eq!((answer.status, &*answer.body, answer.cut), (StatusCode::OK, &b"app\n"[..], false));
        assert_eq!(
            ask(app.addr(), false, "/status/404", 100).send().await.unwrap().status,
            StatusCode::NOT_FOUND
        );
        let long = ask(app.addr(), false, "/bytes/100000", 1000).send().await.unwrap();
        assert_eq!((long.body.len(), long.cut), (1000, true));
        assert!(within(Duration::ZERO, ask(app.addr(), false, "/delay/60000", 1).send()).await.is_err());

        // A certificate of nobody that anybody knows.
        let leaf = mesh_test::ca::TestCa::new().leaf("spiffe://elsewhere/ns/a/sa/b");
        let config = mesh_test::tls::server_config(&leaf, None, &["http/1.1"]);
        let app = mesh_test::backend::Backend::start_tls("own-tls", config).await;
        assert_eq!(&*ask(app.addr(), true, "/", 100).send().await.unwrap().body, b"own-tls\n");
        assert!(ask(app.addr(), false, "/", 100).send().await.is_err());
    }

    #[tokio::test]
    async fn a_health_service_is_asked_over_http2() {
        use http_body_util::StreamBody;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let serving = if asked == question("down") { 2 } else { 1 };
                    let status = if asked == question("unknown") { "5" } else { "0" };
                    let trailers =
                        [(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))];
                    let frames = [
                        hyper::body::Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving])),
                        hyper::body::Frame::trailers(trailers.into_iter().collect()),
                    ];
                    let body =
                        StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>)));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        health(at, "").await.unwrap();
        health(at, "up").await.unwrap();
        let failed = async |service: &str| health(at, service).await.unwrap_err().to_string();
        assert_eq!(failed("down").await, "the service is not SERVING");
        assert_eq!(failed("unknown").await, "gRPC status 5");
    }
}
