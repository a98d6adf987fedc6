//! The control plane: authority, ports and webhooks around a source of configuration.
//!
//! Whoever knows the cluster gives it a [`Discovery`] and a [`Cluster`]; everything else is here. Nothing is
//! served before the cluster is known and the authority is there, but the admin pages, which say what is
//! missing.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use mesh_core::identity::SpiffeId;
use mesh_tls::Clock;
use mesh_xds::ca::{CertificateLimits, Certificates};
use mesh_xds::server::{Discovery, Routes, ServerLimits, Source};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::RunArgs;
use crate::authority::ca::Ca;
use crate::authority::issuer::Authority;
use crate::authority::keeper::{Keeper, KeeperSettings};
use crate::authority::token::{TokenLimits, TokenSettings, Tokens};
use crate::metrics::Metrics;
use crate::serve::accept::{Port, PortLimits};
use crate::serve::admin::Admin;
use crate::serve::drain::Drain;
use crate::serve::identity::{self, Names, ServerTls};
use crate::serve::proxies;
use crate::serve::webhooks::{KnownLabels, Webhooks};
use crate::webhook::bundle;

/// What the control plane has to be told of the cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Whether all that is watched has been read once.
    pub synced: watch::Receiver<bool>,
    /// Whether this replica is the one that writes.
    pub leader: watch::Receiver<bool>,
    /// The labels of the namespaces that are known.
    pub labels: KnownLabels,
}

/// A control plane that does not serve yet.
pub struct Plane<S> {
    args: RunArgs,
    client: kube::Client,
    discovery: Discovery<S>,
    clock: Clock,
    metrics: Arc<Metrics>,
    keeper: Keeper,
}

impl<S: Source> Plane<S> {
    /// Around `discovery`, whose source knows the cluster.
    pub fn new(args: RunArgs, client: kube::Client, discovery: Discovery<S>, clock: Clock) -> Self {
        let metrics = Arc::new(Metrics::of(discovery.counters()));
        let settings = KeeperSettings {
            namespace: args.namespace.clone(),
            made: args.ca_secret.clone(),
            plugged: args.plugged_ca_secret.clone(),
            trust_domain: args.trust_domain.clone(),
        };
        let keeper = Keeper::new(client.clone(), settings, clock.clone(), Arc::clone(&metrics));
        Self { args, client, discovery, clock, metrics, keeper }
    }

    /// The authority in force, for those who spread its roots; none until it is known.
    pub fn authority(&self) -> watch::Receiver<Option<Arc<Ca>>> {
        self.keeper.authority()
    }

    /// Where the control plane counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Serves until `stop` is ready, then lets end what has begun.
    ///
    /// # Errors
    /// When a port cannot be bound, or the controller's names are none.
    pub async fn serve(self, cluster: Cluster, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { args, client, discovery, clock, metrics, keeper } = self;
        let id = SpiffeId::for_account(&args.trust_domain, &args.namespace, &args.service_account)
            .context("namespace and service account are no identity")?;
        let names = Names { id, dns: args.server_names(), trust_domain: args.trust_domain.clone() };
        let drain = Drain::new();
        let port = |name, limits| Port { name, limits, metrics: Arc::clone(&metrics) };

        let ca = keeper.authority();
        let (tls_sender, tls) = watch::channel(None::<ServerTls>);
        let (missing_sender, missing) = watch::channel(vec!["it has just started".to_owned()]);
        let proxies_of = discovery.clone();
        let admin = Admin::new(Arc::clone(&metrics), missing, move || proxies_of.proxies());
        let listener = bind(args.admin, "--admin").await?;
        // Its pages are worth reading during a drain: it is not waited for, and ends with the process.
        let pages = Drain::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(admin.serve(listener, port("admin", PortLimits::ADMIN), pages.handle()));
        tasks.spawn(keeper.run());
        let kept = identity::keep(ca.clone(), names, clock.clone(), Arc::clone(&metrics), tls_sender);
        tasks.spawn(kept);
        // Where no configuration is ours to look after, somebody else has seen to it.
        let (believed, is_believed) = watch::channel(args.webhook_configuration.is_empty());
        tasks.spawn(told(cluster.synced.clone(), tls.clone(), is_believed, missing_sender.clone()));
        tasks.spawn(follow(cluster.leader.clone(), Arc::clone(&metrics)));
        if !args.webhook_configuration.is_empty() {
            let name = args.webhook_configuration.clone();
            tasks.spawn(bundle::keep(client.clone(), name, tls.clone(), cluster.leader.clone(), believed));
        }

        let mut stop = std::pin::pin!(stop);
        let ready = async {
            let (mut synced, mut tls) = (cluster.synced.clone(), tls.clone());
            let known = synced.wait_for(|synced| *synced).await.is_ok();
            let shown = tls.wait_for(Option::is_some).await.is_ok();
            known && shown
        };
        tokio::select! {
            ready = ready => anyhow::ensure!(ready, "whoever watches the cluster has ended"),
            () = stop.as_mut() => return Ok(()),
        }

        let settings = TokenSettings {
            audience: args.token_audience.clone(),
            trust_domain: args.trust_domain.clone(),
            allow_unbound: args.allow_unbound_tokens,
            limits: TokenLimits::default(),
        };
        let tokens = Tokens::new(client.clone(), settings, clock.clone(), Arc::clone(&metrics));
        let tokens = Arc::new(tokens);
        let authority = Authority::new(ca, Arc::clone(&tokens), clock, Arc::clone(&metrics));
        let limits = CertificateLimits { longest: args.max_certificate_life, ..CertificateLimits::default() };
        let certificates = Certificates::new(authority, limits);
        let grpc = Routes::new(discovery.clone().into_service(), certificates.into_service());
        let webhooks = Webhooks::new(args.injection(), cluster.labels, client, Arc::clone(&metrics));

        let for_proxies = bind(args.listen, "--listen").await?;
        let for_webhooks = bind(args.webhook, "--webhook").await?;
        tasks.spawn(proxies::serve(
            for_proxies,
            port("proxies", PortLimits::PROXIES),
            ServerLimits::default(),
            tls.clone(),
            tokens,
            grpc,
            drain.handle(),
        ));
        let port = port("webhooks", PortLimits::WEBHOOKS);
        tasks.spawn(webhooks.serve(for_webhooks, port, tls, drain.handle()));
        tracing::info!(proxies = %args.listen, webhooks = %args.webhook, admin = %args.admin, "serving");

        stop.await;
        // The API server, and whoever opens a connection, learn only now that this replica goes: for half of
        // the time it answers as before.
        missing_sender.send_replace(vec![ENDING.to_owned()]);
        tracing::info!("ending");
        tokio::time::sleep(args.drain / 2).await;
        discovery.close();
        if !drain.drain(args.drain / 2).await {
            tracing::warn!("not everything has ended in time");
        }
        Ok(())
    }
}

const ENDING: &str = "it is ending";

/// Says what keeps the controller from being ready.
async fn told(
    mut synced: watch::Receiver<bool>,
    mut tls: watch::Receiver<Option<ServerTls>>,
    mut believed: watch::Receiver<bool>,
    missing: watch::Sender<Vec<String>>,
) {
    loop {
        let mut list = Vec::new();
        if !*synced.borrow_and_update() {
            list.push("the cluster has not been read yet".to_owned());
        }
        if tls.borrow_and_update().is_none() {
            list.push("there is no CA yet".to_owned());
        }
        let known = *believed.borrow_and_update();
        if !known {
            list.push("the webhook configurations do not hold the CA bundle yet".to_owned());
        }
        missing.send_if_modified(|current| {
            let ending = current.iter().any(|why| why == ENDING);
            let changes = !ending && *current != list;
            if changes {
                *current = list;
            }
            changes
        });
        tokio::select! {
            changed = synced.changed() => if changed.is_err() { return },
            changed = tls.changed() => if changed.is_err() { return },
            // It does not change back.
            changed = believed.changed(), if !known => if changed.is_err() { return },
        }
    }
}

async fn follow(mut leader: watch::Receiver<bool>, metrics: Arc<Metrics>) {
    loop {
        metrics.leader(*leader.borrow_and_update());
        if leader.changed().await.is_err() {
            return;
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag}: cannot listen on {address}"))
}

impl<S> fmt::Debug for Plane<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").field("args", &self.args).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("synced", &*self.synced.borrow()).finish_non_exhaustive()
    }
}
