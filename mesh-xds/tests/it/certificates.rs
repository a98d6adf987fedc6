//! The certificate service over a socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::{Code, Request};
use tower_mesh_xds::ca::{
    CertificateLimits, CertificateRequest, Certificates, IssueError, IssueRequest, Issuer, RequestError,
    request_certificate,
};
use tower_mesh_xds::proto::certificate::IstioCertificateRequest;
use tower_mesh_xds::proto::certificate::istio_certificate_service_client::IstioCertificateServiceClient;
use tower_mesh_xds::server::{Answer, Discovery, Peer, Routes, ServerLimits, serve_connection};
use tower_mesh_xds::{ResourceType, server};

use crate::world::{PATIENCE, dial, peer};

const LEAF: &str = "-----BEGIN CERTIFICATE-----\nleaf\n-----END CERTIFICATE-----\n";

/// Serves certificates and, beside them, discovery.
async fn listen(issuer: impl Issuer, limits: CertificateLimits, peer: Option<Peer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let nothing = |_: &Peer, _: ResourceType, _: &str| Answer::Absent;
    let discovery = Discovery::new(nothing, server::ServerLimits::default());
    let both = Routes::new(discovery.into_service(), Certificates::new(issuer, limits).into_service());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (both, peer) = (both.clone(), peer.clone());
            tokio::spawn(async move {
                let limits = ServerLimits::default();
                let _ =
                    serve_connection(TokioIo::new(socket), peer, both, &limits, std::future::pending()).await;
            });
        }
    });
    address
}

fn request() -> CertificateRequest {
    CertificateRequest {
        csr_pem: "-----BEGIN CERTIFICATE REQUEST-----".into(),
        token: "good\n".into(),
        lifetime: Duration::from_secs(3600),
        timeout: PATIENCE,
    }
}

async fn ask(address: SocketAddr, request: CertificateRequest) -> Result<Vec<String>, RequestError> {
    request_certificate(dial(address).await.unwrap(), request).await
}

#[tokio::test]
async fn a_request_with_a_token_gets_a_chain() {
    let issuer = |request: IssueRequest| async move {
        assert_eq!(request.token.as_str(), "good");
        assert_eq!(request.csr_pem, "-----BEGIN CERTIFICATE REQUEST-----");
        assert_eq!(request.lifetime, Duration::from_secs(3600));
        assert_eq!(request.peer, None);
        Ok(vec![LEAF.to_owned(), LEAF.to_owned()])
    };
    // Whoever asks for the first certificate has none: no peer.
    let address = listen(issuer, CertificateLimits::default(), None).await;
    assert_eq!(ask(address, request()).await.unwrap(), [LEAF, LEAF]);
}

#[tokio::test]
async fn both_services_answer_on_one_port() {
    let issuer = |request: IssueRequest| async move {
        assert_eq!(request.peer, Some(peer()));
        Ok(vec![LEAF.to_owned()])
    };
    let address = listen(issuer, CertificateLimits::default(), Some(peer())).await;
    assert!(ask(address, request()).await.is_ok());
    let proxy = crate::world::Proxy::run(address);
    assert!(!proxy.exists(ResourceType::Host, "a").await);
}

#[tokio::test]
async fn each_refusal_has_its_code() {
    type Make = fn(String) -> IssueError;
    let table: [(Make, Code, bool); 5] = [
        (IssueError::Unauthenticated, Code::Unauthenticated, true),
        (IssueError::Denied, Code::PermissionDenied, true),
        (IssueError::Request, Code::InvalidArgument, true),
        (IssueError::Unavailable, Code::Unavailable, false),
        (IssueError::Internal, Code::Internal, false),
    ];
    for (make, code, refused) in table {
        let issuer = move |_: IssueRequest| async move { Err::<Vec<String>, _>(make("because".into())) };
        let address = listen(issuer, CertificateLimits::default(), None).await;
        let error = ask(address, request()).await.unwrap_err();
        assert_eq!(matches!(error, RequestError::Refused(_)), refused, "{error}");
        assert!(error.to_string().contains(&format!("{code:?}: because")), "{error}");
    }
}

#[tokio::test]
async fn requests_are_limited() {
    let issuer = |_: IssueRequest| async { Ok(vec![LEAF.to_owned()]) };
    let limits = CertificateLimits { csr_bytes: 100, token_bytes: 10, ..CertificateLimits::default() };
    let address = listen(issuer, limits, None).await;
    let large = CertificateRequest { csr_pem: "x".repeat(101), ..request() };
    let error = ask(address, large).await.unwrap_err().to_string();
    assert!(error.contains("more than 100 bytes"), "{error}");
    let huge = CertificateRequest { csr_pem: "x".repeat(100_000), ..request() };
    assert!(ask(address, huge).await.is_err());
    let long = CertificateRequest { token: "x".repeat(11), ..request() };
    let error = ask(address, long).await.unwrap_err().to_string();
    assert!(error.contains("the token has more than 10 bytes"), "{error}");
    // More than a connection takes of headers at all.
    let endless = CertificateRequest { token: "x".repeat(40_000), ..request() };
    let error = ask(address, endless).await.unwrap_err().to_string();
    assert!(!error.contains("the token has more"), "{error}");
    for token in ["", " \n", "a\nb", "a\0"] {
        let error = ask(address, CertificateRequest { token: token.into(), ..request() }).await.unwrap_err();
        assert!(matches!(error, RequestError::Token), "{error}");
    }
}

#[tokio::test]
async fn without_one_bearer_token_there_is_none() {
    let issuer = |_: IssueRequest| async { Ok(vec![LEAF.to_owned()]) };
    let address = listen(issuer, CertificateLimits::default(), Some(peer())).await;
    let mut client = IstioCertificateServiceClient::new(dial(address).await.unwrap());
    for values in [&[][..], &["Basic YQ=="], &["Bearer"], &["Bearer "], &["good"], &["Bearer a", "Bearer b"]]
    {
        let mut request = Request::new(IstioCertificateRequest::default());
        for value in values {
            request.metadata_mut().append("authorization", value.parse().unwrap());
        }
        let status = client.create_certificate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{values:?}");
    }
}

#[tokio::test]
async fn only_so_many_are_made_at_a_time() {
    let gate = Arc::new(Semaphore::new(0));
    let (started, mut starts) = tokio::sync::mpsc::channel(8);
    let inner = Arc::clone(&gate);
    let issuer = move |_: IssueRequest| {
        let (gate, started) = (Arc::clone(&inner), started.clone());
        async move {
            started.send(()).await.unwrap();
            gate.acquire().await.unwrap().forget();
            Ok(vec![LEAF.to_owned()])
        }
    };
    let limits = CertificateLimits { concurrent: 1, ..CertificateLimits::default() };
    let address = listen(issuer, limits, None).await;
    let first = tokio::spawn(ask(address, request()));
    starts.recv().await.unwrap();
    let error = ask(address, request()).await.unwrap_err();
    assert!(
        matches!(&error, RequestError::Unavailable(said) if said.contains("ResourceExhausted")),
        "{error}"
    );
    // Whoever does not wait is not waited for.
    gate.add_permits(2);
    assert!(first.await.unwrap().is_ok());
    assert!(ask(address, request()).await.is_ok());
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused_and_a_late_one_not_waited_for() {
    let issuer = |_: IssueRequest| async { Ok(vec!["nonsense".to_owned()]) };
    let address = listen(issuer, CertificateLimits::default(), None).await;
    assert!(matches!(ask(address, request()).await, Err(RequestError::Answer(_))));
    let issuer = |_: IssueRequest| async { Ok(Vec::new()) };
    let address = listen(issuer, CertificateLimits::default(), None).await;
    assert!(matches!(ask(address, request()).await, Err(RequestError::Answer(_))));
    let issuer = |_: IssueRequest| std::future::pending::<Result<Vec<String>, IssueError>>();
    let address = listen(issuer, CertificateLimits::default(), None).await;
    let hurried = CertificateRequest { timeout: Duration::from_millis(1), ..request() };
    assert!(matches!(ask(address, hurried).await, Err(RequestError::TimedOut(_))));
}
