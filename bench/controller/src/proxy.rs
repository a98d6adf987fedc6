//! A simulated proxy: TLS, a certificate for its token, one delta stream, an ACK for each response.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::stream;
use http::Uri;
use hyper_util::rt::TokioIo;
use mesh_tls::issued::KeyAndRequest;
use mesh_tls::named::NamedServer;
use mesh_xds::ResourceType;
use mesh_xds::ca::{CertificateRequest, request_certificate};
use mesh_xds::client::{Backoff, Bearer, BoxError, Channel, ClientLimits, REQUEST_NAMES, connect};
use mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tonic::Streaming;

use crate::board::Board;

/// How long a certificate may take.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is tried to get a certificate, or a stream.
const TRIES: u32 = 20;

/// Where a proxy puts what it says.
type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

/// Who a proxy is, and what it uses.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its number.
    pub number: usize,
    /// `NAMESPACE/POD`.
    pub workload: String,
    /// Its token.
    pub token: String,
    /// The hosts that it calls.
    pub hosts: Arc<[String]>,
}

impl Plan {
    /// What it asks for, in requests of a bearable size.
    fn requests(&self) -> Vec<DeltaDiscoveryRequest> {
        let node = Node { id: self.workload.clone(), user_agent_name: "bench".into(), ..Node::default() };
        let request = |kind: ResourceType, names: &[String]| DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: names.to_vec(),
            ..Default::default()
        };
        let own = request(ResourceType::Workload, std::slice::from_ref(&self.workload));
        let mut requests = vec![DeltaDiscoveryRequest { node: Some(node), ..own }];
        for kind in [ResourceType::Host, ResourceType::Endpoints] {
            requests.extend(self.hosts.chunks(REQUEST_NAMES).map(|names| request(kind, names)));
        }
        requests
    }
}

/// What proxies share.
#[derive(Debug)]
pub struct Fleet {
    /// Where the controller is.
    pub address: SocketAddr,
    /// Whom they believe to be it.
    pub server: NamedServer,
    /// What is waited for.
    pub board: Board,
    /// Proxies that have everything they asked for.
    pub warm: AtomicUsize,
    /// Told whenever one more is warm, or failed.
    pub told: Notify,
    /// Bytes of resources that came.
    pub bytes: AtomicU64,
    /// Tries that failed, of certificates and streams.
    pub retries: AtomicU64,
}

impl Fleet {
    /// Does something until it succeeds, as often as a proxy would before its pod is given up.
    async fn insist<T, F>(&self, what: &str, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let backoff = Backoff::default();
        for failures in 1.. {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) if failures == TRIES => return Err(error.context(what.to_owned())),
                Err(_) => {
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(backoff.after(failures, fastrand::f64())).await;
                }
            }
        }
        bail!("{what}: never tried")
    }

    /// A new connection.
    ///
    /// # Errors
    /// When there is none.
    pub async fn channel(self: &Arc<Self>) -> Result<Channel> {
        let fleet = Arc::clone(self);
        let connector = tower::service_fn(move |_: Uri| {
            let fleet = Arc::clone(&fleet);
            async move {
                let stream = TcpStream::connect(fleet.address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, BoxError>(TokioIo::new(fleet.server.secure(stream).await?))
            }
        });
        let uri: Uri = format!("http://{}", self.address).parse()?;
        let channel = connect(uri, connector, &ClientLimits::default()).await;
        channel.map_err(|error| anyhow!("no connection: {error}"))
    }

    async fn certificate(self: &Arc<Self>, plan: &Plan) -> Result<()> {
        let asked = KeyAndRequest::generate()?;
        let request = CertificateRequest {
            csr_pem: asked.request_pem().to_owned(),
            token: plan.token.clone(),
            lifetime: Duration::from_secs(86_400),
            timeout: CERTIFICATE_TIMEOUT,
        };
        request_certificate(self.channel().await?, request).await?;
        Ok(())
    }

    async fn stream(self: &Arc<Self>, plan: &Plan) -> Result<(Requests, Streaming<DeltaDiscoveryResponse>)> {
        let channel = Bearer::new(self.channel().await?, &plan.token)?;
        let requests = plan.requests();
        let (say, mut said) = mpsc::channel(16);
        let outgoing = stream::poll_fn(move |cx| said.poll_recv(cx));
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(4 << 20);
        let ask = async {
            for request in requests {
                // The other end is in the call beside this.
                let _ = say.send(request).await;
            }
        };
        let (opened, ()) = tokio::join!(client.delta_aggregated_resources(outgoing), ask);
        Ok((say, opened?.into_inner()))
    }

    /// Lives as a proxy until the stream ends, which is an error.
    pub async fn proxy(self: Arc<Self>, plan: Plan) -> Result<()> {
        self.insist("no certificate", || self.certificate(&plan)).await?;
        let (say, mut responses) = self.insist("no stream", || self.stream(&plan)).await?;
        let mut missing = 1 + 2 * plan.hosts.len();
        while let Some(response) = responses.message().await.context("the stream ended")? {
            let bytes: usize =
                response.resources.iter().filter_map(|r| r.resource.as_ref()).map(|c| c.value.len()).sum();
            self.bytes.fetch_add(u64::try_from(bytes)?, Ordering::Relaxed);
            let brought = self.board.brought(&response);
            if missing > 0 {
                if let Some(name) = response.removed_resources.first() {
                    bail!("{name} is said not to exist");
                }
                missing = missing.saturating_sub(response.resources.len());
                if missing == 0 {
                    self.warm.fetch_add(1, Ordering::AcqRel);
                    self.told.notify_one();
                }
            }
            let ack = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
            say.send(ack).await.map_err(|_| anyhow!("the stream takes no more"))?;
            if let Some(awaited) = brought {
                awaited.acked(plan.number);
            }
        }
        bail!("the controller ended the stream")
    }
}
