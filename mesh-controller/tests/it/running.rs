//! A control plane in this process, and clients of its ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use mesh_controller::args::{Cli, Command, RunArgs};
use mesh_controller::authority::ca::Ca;
use mesh_controller::plane::{Cluster, Plane};
use mesh_core::resource::Labels;
use mesh_tls::Clock;
use mesh_xds::ca::{CertificateRequest, RequestError, request_certificate};
use mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh_xds::server::{Answer, Discovery, Peer, ServerLimits};
use mesh_xds::{Address, Payload, ResourceType};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane that knows of one cluster: each proxy is told its own name.
pub(crate) struct Running {
    pub(crate) args: RunArgs,
    pub(crate) synced: watch::Sender<bool>,
    pub(crate) leader: watch::Sender<bool>,
    ca: watch::Receiver<Option<Arc<Ca>>>,
    stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// Who somebody is on a connection.
pub(crate) struct Identity {
    pub(crate) chain: Vec<String>,
    pub(crate) key: KeyPair,
}

/// An open discovery stream.
pub(crate) struct Stream {
    pub(crate) who: Vec<String>,
    _requests: tokio::sync::mpsc::Sender<DeltaDiscoveryRequest>,
    _responses: tonic::Streaming<DeltaDiscoveryResponse>,
}

impl Running {
    /// One that still waits for its cluster.
    pub(crate) fn start(client: kube::Client, extra: &[&str]) -> Self {
        let ports = [(); 3].map(|()| format!("127.0.0.1:{}", mesh_test::ports::free()));
        let line = [
            "mesh-controller",
            "run",
            "--listen",
            &ports[0],
            "--webhook",
            &ports[1],
            "--admin",
            &ports[2],
            "--drain",
            "100ms",
        ];
        let cli = Cli::parse_from(line.iter().chain(extra));
        let Command::Run(args) = cli.command else { unreachable!() };
        let (synced, synced_rx) = watch::channel(false);
        let (leader, leader_rx) = watch::channel(false);
        // What is behind a name is who asks: a test reads it from the answer.
        let source = |peer: &Peer, kind: ResourceType, _: &str| {
            if kind != ResourceType::Address {
                return Answer::Absent;
            }
            let who = [Some(peer.identity.as_str()), peer.workload.as_deref()];
            let hosts = who.into_iter().flatten().map(|text| text.replace([':', '/'], "-")).collect();
            Answer::Found(Payload::from(Address { hosts, endpoint: false }).encode().unwrap())
        };
        let discovery = Discovery::new(source, ServerLimits::default());
        let labels = |namespace: &str| {
            (namespace == "known")
                .then(|| Labels::from([("istio-injection".to_owned(), "enabled".to_owned())]))
        };
        let cluster = Cluster { synced: synced_rx, leader: leader_rx, labels: Arc::new(labels) };
        let plane = Plane::new((*args).clone(), client, discovery, Clock::system());
        let ca = plane.authority();
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(Box::pin(plane.serve(cluster, async {
            let _ = stopped.await;
        })));
        Self { args: *args, synced, leader, ca, stop: Some(stop), done }
    }

    /// One that serves.
    pub(crate) async fn ready(client: kube::Client, extra: &[&str]) -> Self {
        let running = Self::start(client, extra);
        running.synced.send_replace(true);
        mesh_test::wait::until(PATIENCE, "the ports", async || {
            running.admin("/ready").await.0 == StatusCode::OK
                && TcpStream::connect(running.args.webhook).await.is_ok()
        })
        .await;
        running
    }

    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, &mut self.done).await.unwrap().unwrap().unwrap();
    }

    /// The roots of the authority in force.
    pub(crate) fn roots(&self) -> String {
        self.ca.borrow().as_ref().unwrap().roots().to_string()
    }

    /// A page of the admin port; status 0 while it does not answer.
    pub(crate) async fn admin(&self, path: &str) -> (StatusCode, String) {
        let Ok(stream) = TcpStream::connect(self.args.admin).await else {
            return (StatusCode::IM_A_TEAPOT, String::new());
        };
        let request = Request::get(path).header("host", "x").body(Full::default()).unwrap();
        send(stream, request).await
    }

    /// The value of a line of the metrics; 0 where there is none.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.admin("/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    fn tls(&self, alpn: &[u8], identity: Option<&Identity>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.roots().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { chain, key }) => {
                let shown = chain[..chain.len() - 1].iter();
                let shown =
                    shown.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(shown, key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// A gRPC channel to the port for proxies, by the Service's name.
    pub(crate) async fn channel(&self, identity: Option<&Identity>) -> Channel {
        let (tls, address) = (self.tls(b"h2", identity), self.args.listen);
        let connect = tower::service_fn(move |_: http::Uri| {
            let tls = tls.clone();
            async move {
                let name = ServerName::try_from("mesh-controller.mesh-system.svc").unwrap();
                let stream = tls.connect(name, TcpStream::connect(address).await?).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("https://mesh-controller.mesh-system.svc:15012");
        tokio::time::timeout(PATIENCE, endpoint.connect_with_connector(connect)).await.unwrap().unwrap()
    }

    /// Asks for a certificate with a request that asks for much else.
    pub(crate) async fn certificate(
        &self,
        token: &str,
        life: Duration,
        shown: Option<&Identity>,
    ) -> Result<Identity, RequestError> {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["kubernetes.default.svc".to_owned()]).unwrap();
        let uri = "spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:admin");
        let request = CertificateRequest {
            csr_pem: params.serialize_request(&key).unwrap().pem().unwrap(),
            token: token.to_owned(),
            lifetime: life,
            timeout: PATIENCE,
        };
        let chain = request_certificate(self.channel(shown).await, request).await?;
        Ok(Identity { chain, key })
    }

    /// Who the controller takes the owner of a token or a certificate for.
    pub(crate) async fn who(
        &self,
        token: Option<&str>,
        shown: Option<&Identity>,
    ) -> Result<Vec<String>, Status> {
        self.stream(token, shown).await.map(|stream| stream.who)
    }

    /// As [`who`](Self::who), with the stream that has told it.
    pub(crate) async fn stream(
        &self,
        token: Option<&str>,
        shown: Option<&Identity>,
    ) -> Result<Stream, Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel(shown).await);
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        let subscribe = DeltaDiscoveryRequest {
            // What a proxy says of itself is for people.
            node: Some(Node { id: "kube-system/admin-0".into(), ..Node::default() }),
            type_url: ResourceType::Address.url().into(),
            resource_names_subscribe: vec!["10.0.0.1".into()],
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(subscribe).await.unwrap();
        let stream = Requests(receiver);
        let mut request = tonic::Request::new(stream);
        if let Some(token) = token {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
        let response: DeltaDiscoveryResponse = responses.message().await?.unwrap();
        let content = &response.resources[0].resource.as_ref().unwrap().value;
        let Ok(Payload::Address(address)) = Payload::decode(ResourceType::Address, content) else {
            panic!("no address")
        };
        let who = address.hosts.iter().map(ToString::to_string).collect();
        Ok(Stream { who, _requests: requests, _responses: responses })
    }

    /// Posts to the port of the webhooks, as the API server does.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let stream = TcpStream::connect(self.args.webhook).await.unwrap();
        let name = ServerName::try_from("mesh-controller.mesh-system.svc").unwrap();
        let stream = self.tls(b"http/1.1", None).connect(name, stream).await.unwrap();
        let request = Request::post(path)
            .header("host", "x")
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap();
        send(stream, request).await
    }

    pub(crate) async fn review(&self, path: &str, review: &Value) -> Value {
        let (status, body) = self.post(path, review.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn proxies_address(&self) -> SocketAddr {
        self.args.listen
    }
}

/// What a stream asks.
struct Requests(tokio::sync::mpsc::Receiver<DeltaDiscoveryRequest>);

impl futures_util::Stream for Requests {
    type Item = DeltaDiscoveryRequest;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<DeltaDiscoveryRequest>> {
        self.0.poll_recv(cx)
    }
}

pub(crate) fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn send<IO>(io: IO, request: Request<Full<Bytes>>) -> (StatusCode, String)
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    let driver = tokio::spawn(connection);
    let response: Response<_> = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driver.abort();
    (parts.status, String::from_utf8(body.to_vec()).unwrap())
}
