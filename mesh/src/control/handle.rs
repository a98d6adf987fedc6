//! What a mesh knows of its control plane, and what runs beside it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::live::Live;
use mesh_tls::Credentials;
use mesh_tls::clock::utc;
use mesh_xds::ResourceType;
use mesh_xds::client::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::dial::Dialer;
use super::sink::{Configuration, ConfigurationSink};
use super::state::State;
use super::stats::{Counters, Scrape};
use super::{Address, ControlPlane};
use crate::world::View;

/// How often is looked which hosts are in use, and how the connection is.
const LOOK: Duration = Duration::from_secs(2);

/// What a mesh knows of its control plane.
#[derive(Debug)]
pub(crate) struct Handle {
    address: Address,
    state: Option<std::path::PathBuf>,
    client: Client,
    view: Live<View>,
    counters: Arc<Counters>,
}

/// What follows the configuration.
#[derive(Debug)]
pub(crate) struct Follow {
    pub(super) client: Client,
    pub(super) sink: ConfigurationSink,
    pub(super) configuration: Arc<Configuration>,
    pub(super) dialer: Dialer,
    pub(super) workload: Arc<str>,
    pub(super) state: Option<State>,
    pub(super) delay: Duration,
    pub(super) counters: Arc<Counters>,
}

impl Handle {
    pub(super) fn new(control: &ControlPlane, client: Client, view: Live<View>) -> Self {
        Self {
            address: control.address.clone(),
            state: control.state.clone(),
            client,
            view,
            counters: Arc::default(),
        }
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub(crate) fn scrape(&self, credentials: Live<Credentials>) -> Scrape {
        Scrape { client: self.client.clone(), counters: self.counters(), credentials }
    }

    /// The connection, the subscriptions and what was said of them, for people.
    pub(crate) fn dump(&self) -> Value {
        let (now, day) = (Instant::now(), SystemTime::now());
        let when = |at: Instant| day.checked_sub(now.saturating_duration_since(at)).map(utc);
        let subscriptions = self.client.subscriptions();
        let mut of_type = serde_json::Map::new();
        for kind in ResourceType::ALL {
            let names = subscriptions.iter().filter(|s| s.kind == kind).map(|s| {
                let version = s.version.as_deref();
                (s.name.to_string(), json!({"version": version, "refused": s.refused.as_deref()}))
            });
            of_type.insert(kind.to_string(), Value::Object(names.collect()));
        }
        let verdicts = self.client.verdicts().into_iter().map(|told| {
            let nack = told.last_nack.map(|(at, why)| json!({"at": when(at), "reason": &*why}));
            (told.kind.to_string(), json!({"last_ack": told.last_ack.map(when), "last_nack": nack}))
        });
        json!({
            "address": self.address.to_string(),
            "connected": self.client.is_connected(),
            "last_error": self.client.last_error().as_deref(),
            "state": self.state.as_ref().map(|dir| dir.display().to_string()),
            "subscriptions": of_type,
            "responses": Value::Object(verdicts.collect()),
            "generation": self.view.version(),
        })
    }
}

impl Follow {
    /// Follows the configuration for ever.
    pub(crate) async fn run(self) {
        let Self { client, sink, configuration, dialer, workload, state, delay, counters } = self;
        let connect = || dialer.authenticated();
        // Returns when it is told of or the time is over; it stays subscribed to in any case.
        let own = async {
            let _ = client.keep(ResourceType::Workload, &workload).await;
            std::future::pending::<()>().await;
        };
        let look = look(&client, &configuration, &counters);
        let keep = keep(&client, state, delay);
        tokio::join!(client.run(connect, sink), own, look, keep);
    }
}

/// Looks now and then which hosts are in use, and how the connection is.
async fn look(client: &Client, configuration: &Configuration, counters: &Counters) {
    let mut every = interval(LOOK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected = client.connected();
    let mut lost: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = every.tick() => configuration.touch_used(),
            changed = connected.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
        }
        if client.is_connected() {
            lost = None;
        } else {
            lost.get_or_insert_with(Instant::now);
            if let Some(why) = client.last_error() {
                configuration.tell_problem(format!("no configuration yet: the control plane: {why}"));
            }
        }
        counters.set_away(lost.is_some_and(|since| since.elapsed() >= AWAY));
    }
}

/// After how long without a connection first calls no longer wait for one.
const AWAY: Duration = Duration::from_secs(5);

/// Writes the state, some time after each change.
fn keep(client: &Client, state: Option<State>, delay: Duration) -> impl Future<Output = ()> {
    let (client, mut changes) = (client.clone(), client.changes());
    async move {
        let Some(state) = state else { return std::future::pending().await };
        let mut told = false;
        while changes.changed().await.is_ok() {
            sleep(delay).await;
            changes.borrow_and_update();
            let (client, state) = (client.clone(), state.clone());
            let kept =
                tokio::task::spawn_blocking(move || state.keep_configuration(&client.snapshot())).await;
            match kept {
                Ok(Err(error)) if !told => {
                    told = true;
                    tracing::error!("state: {error}; a restart will need the control plane");
                }
                Ok(Ok(())) => told = false,
                _ => {}
            }
        }
        std::future::pending().await
    }
}
