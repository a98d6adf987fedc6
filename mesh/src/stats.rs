//! The mesh's own metrics: certificates, configuration, clusters, refused connections.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::cluster::{Cluster, Gauge};
use mesh_core::diagnostic::Effect;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::mesh::Mesh;

/// How many clusters have series of their own; the rest is told in the sum `_overflow`.
pub(crate) const MAX_CLUSTER_SERIES: usize = 500;

type Reason = [(&'static str, &'static str); 1];

/// What is counted as it happens; the rest is read when it is asked for.
#[derive(Clone, Default)]
pub(crate) struct OwnMetrics {
    refused: Family<Reason, Counter>,
    mismatch: Arc<AtomicU64>,
    startup: Arc<OnceLock<Duration>>,
}

impl OwnMetrics {
    /// Reasons are a few fixed words.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Whether the certificate names somebody else than the configuration.
    pub(crate) fn set_mismatch(&self, mismatch: bool) {
        self.mismatch.store(mismatch.into(), Ordering::Relaxed);
    }
}

impl Mesh {
    pub(crate) fn register_metrics(&self) {
        let inner = &self.0;
        inner.metrics.with_registry(|registry| {
            registry.register(
                "mesh_connections_refused",
                "Connections to this workload that were not taken, by reason.",
                inner.own_metrics.refused.clone(),
            );
            registry.register_collector(Box::new(State(Arc::downgrade(&self.0))));
            #[cfg(feature = "control-plane")]
            if let Some(control) = &inner.control {
                registry.register_collector(Box::new(control.scrape(inner.credentials.clone())));
            }
        });
        inner.metrics.with_registry(|registry| inner.access_log.register(registry));
    }

    /// Tells metrics how long the process took until it was [ready](Self::readiness) for the first time.
    pub fn note_startup(&self, took: Duration) {
        let _ = self.0.own_metrics.startup.set(took);
    }

    /// Logs and counts that the certificate names somebody else than the configuration, as long as it does.
    pub(crate) async fn watch_identity(&self) {
        let status = self.0.readiness.configuration();
        let (mut configured, mut issued) = (status.changes(), self.0.credentials.changes());
        let mut told = None;
        loop {
            let credentials = self.0.credentials.load_full();
            let pair = (status.load().identity.clone(), credentials.id().cloned());
            let mismatch = matches!(&pair, (Some(wanted), Some(found)) if wanted != found);
            self.0.own_metrics.set_mismatch(mismatch);
            if let (true, (Some(wanted), Some(found))) = (mismatch, &pair)
                && told.as_ref() != Some(&pair)
            {
                tracing::error!(
                    certificate = %found,
                    configuration = %wanted,
                    "the certificate names somebody else than the workload's service account; the certificate wins"
                );
            }
            told = Some(pair);
            tokio::select! {
                () = configured.changed() => {}
                () = issued.changed() => {}
            }
        }
    }
}

/// Reads the state of a mesh for a scrape. Weak, since the mesh holds the registry.
struct State(std::sync::Weak<crate::mesh::Inner>);

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(mesh) = self.0.upgrade() else { return Ok(()) };
        let e = &mut encoder;
        if let Some(took) = mesh.own_metrics.startup.get() {
            let help = "The time from the start of the process until it was ready.";
            gauge(e, "istio_agent_startup_duration_seconds", help, took.as_secs_f64())?;
        }
        let credentials = mesh.credentials.load();
        let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        if let Some(until) = credentials.not_after() {
            let help = "When the certificate in force expires.";
            gauge(e, "mesh_certificate_expiration_timestamp_seconds", help, seconds(until))?;
        }
        let status = credentials.status();
        let help = "Certificates put in force after the first.";
        counter(e, "mesh_certificate_renewals", help, status.renewals)?;
        let help = "Tries to load or renew the certificate that failed.";
        counter(e, "mesh_certificate_failures", help, status.failures)?;
        let help = "1 while the certificate names somebody else than the configuration.";
        gauge(e, "mesh_identity_mismatch", help, mesh.own_metrics.mismatch.load(Ordering::Relaxed) as f64)?;

        let view = mesh.view.load();
        let mut of_effect = e.encode_descriptor(
            "mesh_config_problems",
            "What is wrong with the configuration, by what follows from it.",
            None,
            MetricType::Gauge,
        )?;
        for (effect, word) in EFFECTS {
            let count = view.diagnostics.iter().filter(|d| d.effect == effect).count();
            of_effect.encode_family(&[("effect", word)])?.encode_gauge(&(count as i64))?;
        }
        let generation = mesh.readiness.configuration().load().generation;
        counter(e, "mesh_config_applied", "Configurations put in force.", generation)?;
        let help =
            "Applications that redirected calls are handed to: addresses with a port that a service has.";
        gauge(e, "mesh_redirected_applications", help, mesh.apps.len() as f64)?;
        clusters(e, &mesh.registry.all())
    }
}

const EFFECTS: [(Effect, &str); 4] = [
    (Effect::NotApplied, "not_applied"),
    (Effect::LastGoodKept, "last_good_kept"),
    (Effect::ClosedReading, "closed_reading"),
    (Effect::NoEffect, "no_effect"),
];

pub(crate) fn gauge(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    e.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

pub(crate) fn counter(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let mut metric = e.encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// A series of each cluster, by its name; clusters beyond the limit are summed up.
fn clusters(e: &mut DescriptorEncoder<'_>, all: &[Arc<Cluster>]) -> fmt::Result {
    let mut all: Vec<_> = all.iter().map(|c| (c.key().to_string(), c)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut family = |name, help, kind: MetricType, read: &dyn Fn(&Cluster) -> u64| -> fmt::Result {
        let is_counter = matches!(kind, MetricType::Counter);
        let mut metric = e.encode_descriptor(name, help, None, kind)?;
        let mut one = |name: &str, value: u64| {
            let labels = [("cluster", name)];
            let mut of_cluster = metric.encode_family(&labels)?;
            if is_counter {
                of_cluster.encode_counter::<NoLabelSet, _, u64>(&value, None)
            } else {
                of_cluster.encode_gauge(&(value as i64))
            }
        };
        let (told, rest) = all.split_at(all.len().min(MAX_CLUSTER_SERIES));
        for (name, cluster) in told {
            one(name, read(cluster))?;
        }
        if rest.is_empty() { Ok(()) } else { one("_overflow", rest.iter().map(|(_, c)| read(c)).sum()) }
    };
    let now = |gauge: Gauge| move |c: &Cluster| u64::from(c.in_use(gauge));
    let help = "Requests in flight to a cluster.";
    family("mesh_cluster_requests", help, MetricType::Gauge, &now(Gauge::Requests))?;
    let help = "Open connections to a cluster.";
    family("mesh_cluster_connections", help, MetricType::Gauge, &now(Gauge::Connections))?;
    let help = "Requests and connections refused because a limit of the cluster is reached.";
    family("mesh_cluster_overflows", help, MetricType::Counter, &Cluster::overflows)?;
    let help = "Retries refused because the retry budget is used up.";
    family("mesh_cluster_retry_overflows", help, MetricType::Counter, &Cluster::retry_overflows)?;
    let help = "Ejections of endpoints by outlier detection.";
    family("mesh_cluster_ejections", help, MetricType::Counter, &Cluster::ejections)?;
    let ejected = |c: &Cluster| c.load_endpoints().ejected(tokio::time::Instant::now()) as u64;
    family("mesh_cluster_ejected_endpoints", "Endpoints ejected now.", MetricType::Gauge, &ejected)
}

impl fmt::Debug for OwnMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnMetrics")
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::cluster::{ClusterKey, ClusterSettings, ServiceName};
    use mesh_telemetry::metrics::Exposition;

    #[test]
    fn clusters_beyond_the_limit_are_summed_up() {
        let (mesh, _driver) = Mesh::builder().build().unwrap();
        for i in 0..MAX_CLUSTER_SERIES + 7 {
            let host = format!("s{i}.default.svc.cluster.local");
            let service = ServiceName::new(&host, "s", "default");
            mesh.registry().cluster(
                &ClusterKey::new(&host, 80, ""),
                &service,
                ClusterSettings::default(),
                vec![],
            );
        }
        let text = mesh.metrics().encode(Exposition::Classic);
        let series = text.lines().filter(|l| l.starts_with("mesh_cluster_requests{")).count();
        assert_eq!(series, MAX_CLUSTER_SERIES + 1);
        assert!(text.contains("mesh_cluster_requests{cluster=\"_overflow\"} 0"), "{text}");
        assert!(text.contains("# TYPE mesh_cluster_overflows_total counter"));
        assert!(text.contains("mesh_config_applied_total 1"));
        // Not told before it is known.
        assert!(!text.contains("startup"));
        mesh.note_startup(Duration::from_millis(125));
        let text = mesh.metrics().encode(Exposition::Classic);
        assert!(text.contains("\nistio_agent_startup_duration_seconds 0.125\n"), "{text}");
    }
}
