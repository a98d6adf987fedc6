//! A server with a table of contents, and clients with a record of what they were told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use mesh_core::resource::{Resource, Service};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::transport::Channel;
use tower_mesh_xds::client::{BoxError, Change, Client, ClientLimits, Now, Refusal, connect};
use tower_mesh_xds::server::{Answer, Discovery, Notifier, Peer, ServerLimits, Source, serve_connection};
use tower_mesh_xds::{Encoded, Host, Payload, ResourceType};

/// What a test waits for at most. It never asserts how long anything took.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

type Contents = HashMap<(ResourceType, String), Encoded>;

#[derive(Clone, Default)]
pub(crate) struct Table(Arc<Mutex<Contents>>);

impl Source for Table {
    fn answer(&self, _: &Peer, kind: ResourceType, name: &str) -> Answer {
        let content = self.0.lock().unwrap().get(&(kind, name.to_owned())).cloned();
        content.map_or(Answer::Absent, Answer::Found)
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) discovery: Discovery<Table>,
    pub(crate) limits: ServerLimits,
    table: Table,
    notifier: Notifier,
}

pub(crate) fn peer() -> Peer {
    let identity = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
    Peer { identity, workload: Some("default/web-1".into()) }
}

/// A host with one service, `size` bytes large at least.
pub(crate) fn host(name: &str, size: usize) -> Encoded {
    let mut service = Resource::new("default", name, Service::default());
    service.meta.annotations.insert("filler".into(), "x".repeat(size));
    Payload::from(Host { resources: vec![service.into()] }).encode().unwrap()
}

impl World {
    pub(crate) fn new(limits: ServerLimits) -> Self {
        let table = Table::default();
        let discovery = Discovery::new(table.clone(), limits.clone());
        let notifier = discovery.notifier();
        Self { discovery, limits, table, notifier }
    }

    pub(crate) fn set(&self, kind: ResourceType, name: &str, content: Encoded) {
        self.table.0.lock().unwrap().insert((kind, name.to_owned()), content);
        self.notifier.changed(kind, name);
    }

    pub(crate) fn unset(&self, kind: ResourceType, name: &str) {
        self.table.0.lock().unwrap().remove(&(kind, name.to_owned()));
        self.notifier.changed(kind, name);
    }

    /// Serves on a socket.
    pub(crate) async fn listen(&self, peer: Option<Peer>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = self.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(world.clone().serve(TokioIo::new(socket), peer.clone()));
            }
        });
        address
    }

    /// Serves one connection.
    pub(crate) async fn serve<IO>(self, io: IO, peer: Option<Peer>)
    where
        IO: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    {
        let service = self.discovery.clone().into_service();
        let _ = serve_connection(io, peer, service, &self.limits, std::future::pending()).await;
    }
}

/// A channel to a socket.
pub(crate) async fn dial(address: SocketAddr) -> Result<Channel, BoxError> {
    let connector = tower::service_fn(move |_: Uri| async move {
        Ok::<_, std::io::Error>(TokioIo::new(TcpStream::connect(address).await?))
    });
    connect(Uri::from_static("http://controller"), connector, &ClientLimits::default()).await
}

/// Times that suit a test.
pub(crate) fn quick() -> ClientLimits {
    let mut limits = ClientLimits { wait: PATIENCE, ..ClientLimits::default() };
    limits.backoff.first = Duration::from_millis(10);
    limits
}

/// What a client was told, in order: `name` for content, `-name` for nothing, `~name` for forgotten.
pub(crate) struct Told(watch::Sender<Vec<String>>);

/// A client that runs, refuses hosts with a service `bad`, and records what it is told.
pub(crate) struct Proxy {
    pub(crate) client: Client,
    pub(crate) told: Arc<Told>,
}

impl Told {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Vec::new())))
    }

    pub(crate) fn apply(&self, changes: &[Change]) -> Vec<Refusal> {
        let bad = |change: &&Change| match &change.now {
            Now::Content(payload) => match &**payload {
                Payload::Host(host) => host.resources.iter().any(|object| object.meta().name == "bad"),
                _ => false,
            },
            _ => false,
        };
        let words = changes.iter().map(|change| match change.now {
            Now::Content(_) => change.name.to_string(),
            Now::Absent => format!("-{}", change.name),
            Now::Forgotten => format!("~{}", change.name),
        });
        self.0.send_modify(|told| told.extend(words));
        let refuse = |change: &Change| Refusal { name: Arc::clone(&change.name), reason: "it is bad".into() };
        changes.iter().filter(bad).map(refuse).collect()
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// Waits until so much was told.
    pub(crate) async fn wait(&self, n: usize) -> Vec<String> {
        let mut changes = self.0.subscribe();
        let told = tokio::time::timeout(PATIENCE, changes.wait_for(|told| told.len() >= n)).await;
        told.expect("it was not told in time").unwrap().clone()
    }
}

impl Proxy {
    pub(crate) fn run(address: SocketAddr) -> Self {
        Self::run_client(Client::new("default/web-1", quick()), address)
    }

    pub(crate) fn run_client(client: Client, address: SocketAddr) -> Self {
        let told = Told::new();
        let (runner, record) = (client.clone(), Arc::clone(&told));
        tokio::spawn(async move {
            runner.run(|| dial(address), |changes: &[Change]| record.apply(changes)).await;
        });
        Self { client, told }
    }

    pub(crate) async fn exists(&self, kind: ResourceType, name: &str) -> bool {
        self.client.subscribe(kind, name).await.unwrap().exists()
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}: not in time");
}
