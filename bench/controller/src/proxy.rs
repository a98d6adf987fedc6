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
use mesh_xds::client::{Bearer, BoxError, Channel, ClientLimits, REQUEST_NAMES, connect};
use mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::proto::discovery::{DeltaDiscoveryRequest, Node};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use crate::board::Board;

/// How long a certificate may take: with two thousand who ask at once the last wait long.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(120);
/// How often connecting is tried.
const TRIES: u32 = 10;

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
    /// Responses that came.
    pub responses: AtomicU64,
}

impl Fleet {
    async fn channel(self: &Arc<Self>) -> Result<Channel> {
        let limits = ClientLimits { connect: Duration::from_secs(60), ..ClientLimits::default() };
        let connector = || {
            let fleet = Arc::clone(self);
            tower::service_fn(move |_: Uri| {
                let fleet = Arc::clone(&fleet);
                async move {
                    let stream = TcpStream::connect(fleet.address).await?;
                    stream.set_nodelay(true)?;
                    Ok::<_, BoxError>(TokioIo::new(fleet.server.secure(stream).await?))
                }
            })
        };
        let uri: Uri = format!("http://{}", self.address).parse()?;
        for attempt in 1..=TRIES {
            match connect(uri.clone(), connector(), &limits).await {
                Ok(channel) => return Ok(channel),
                Err(error) if attempt == TRIES => bail!("no connection: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100) * attempt).await,
            }
        }
        bail!("no connection")
    }

    /// Lives as a proxy until the stream ends, which is an error.
    pub async fn proxy(self: Arc<Self>, plan: Plan) -> Result<()> {
        let asked = KeyAndRequest::generate()?;
        let request = CertificateRequest {
            csr_pem: asked.request_pem().to_owned(),
            token: plan.token.clone(),
            lifetime: Duration::from_secs(86_400),
            timeout: CERTIFICATE_TIMEOUT,
        };
        request_certificate(self.channel().await?, request).await.context("no certificate")?;

        let channel = Bearer::new(self.channel().await?, &plan.token)?;
        let mut missing = 1 + 2 * plan.hosts.len();
        let rest = plan.requests();
        let (say, mut said) = mpsc::channel(16);
        let outgoing = stream::poll_fn(move |cx| said.poll_recv(cx));
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(4 << 20);
        let ask = async {
            for request in rest {
                // The other end is in the call beside this.
                let _ = say.send(request).await;
            }
        };
        let (opened, ()) = tokio::join!(client.delta_aggregated_resources(outgoing), ask);
        let mut responses = opened.context("no stream")?.into_inner();
        while let Some(response) = responses.message().await.context("the stream ended")? {
            let bytes: usize =
                response.resources.iter().filter_map(|r| r.resource.as_ref()).map(|c| c.value.len()).sum();
            self.bytes.fetch_add(u64::try_from(bytes)?, Ordering::Relaxed);
            self.responses.fetch_add(1, Ordering::Relaxed);
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
