//! What is counted of a control plane, and read when it is asked for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use mesh_core::live::Live;
use mesh_tls::Credentials;
use mesh_xds::client::Client;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use crate::stats::{counter, gauge};

/// What is counted as it happens.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    first_calls: AtomicU64,
    pub(super) overflow: AtomicU64,
    pub(super) late: AtomicU64,
    /// Whether the control plane has not been there for so long that nobody waits for it.
    away: AtomicBool,
}

impl Counters {
    pub(super) fn first_call(&self) {
        self.first_calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, which: impl FnOnce(&Self) -> &AtomicU64) {
        which(self).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    pub(super) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }
}

/// Reads the state of a client for a scrape.
pub(crate) struct Scrape {
    pub(super) client: Client,
    pub(super) counters: Arc<Counters>,
    pub(super) credentials: Live<Credentials>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let connected = f64::from(u8::from(self.client.is_connected()));
        // Envoy's name.
        let help = "1 while there is a stream to the control plane.";
        gauge(e, "envoy_control_plane_connected_state", help, connected)?;
        if let Some(until) = self.credentials.load().not_after() {
            let left = until
                .duration_since(SystemTime::now())
                .map_or_else(|late| -late.duration().as_secs_f64(), |left| left.as_secs_f64());
            // That of Istio's agent.
            let name = "istio_agent_cert_expiry_seconds";
            let help = "How long the certificate in force is still valid, in seconds.";
            let mut family = e.encode_descriptor(name, help, None, MetricType::Gauge)?;
            family.encode_family(&[("resource_name", "default")])?.encode_gauge(&left)?;
        }
        let counts = self.client.counters().read();
        for (name, help, count) in [
            (
                "mesh_control_plane_connections",
                "Streams to the control plane that were opened.",
                counts.connected,
            ),
            (
                "mesh_control_plane_connect_failures",
                "Connections to the control plane that could not be made.",
                counts.connect_failures,
            ),
            ("mesh_control_plane_updates", "Responses of the control plane.", counts.responses),
            (
                "mesh_control_plane_rejected",
                "Responses of the control plane of which something was refused.",
                counts.nacks,
            ),
            ("mesh_control_plane_resources", "Resources that the control plane sent.", counts.resources),
            ("mesh_control_plane_removals", "Removals that the control plane sent.", counts.removals),
            (
                "mesh_hosts_forgotten",
                "Names that were not used any more, or named nothing.",
                counts.forgotten,
            ),
            (
                "mesh_first_calls",
                "Calls that waited until their host was known.",
                self.counters.first_calls.load(Ordering::Relaxed),
            ),
        ] {
            counter(e, name, help, count)?;
        }
        let help = "Calls whose host was not learnt: too many waited, or there was no answer in time.";
        let mut refused = e.encode_descriptor("mesh_first_calls_refused", help, None, MetricType::Counter)?;
        for (reason, count) in [("overflow", &self.counters.overflow), ("late", &self.counters.late)] {
            let labels = [("reason", reason)];
            let mut of = refused.encode_family(&labels)?;
            of.encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(
                &count.load(Ordering::Relaxed),
                None,
            )?;
        }
        let held = self.client.subscriptions().len();
        gauge(e, "mesh_subscriptions", "Names that the control plane is asked for.", held as f64)
    }
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}
