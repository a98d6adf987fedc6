//! Writes statuses while the replica leads.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use mesh_core::diagnostic::ResourceRef;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Report, Reports, decide};
use crate::leader::while_leading;
use crate::metrics::Writes;
use crate::watch::follow::with_causes;

/// How much time lies between two writes.
pub const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// How long the API server may take for one.
const ANSWER: Duration = Duration::from_secs(10);
/// As whom statuses are written.
const MANAGER: &str = "mesh-controller";

/// Writes what `reports` hold while `leader` is true; for ever, or until nobody says any more who leads.
pub async fn run(client: Client, reports: Reports, leader: watch::Receiver<bool>, metrics: Writes) {
    while_leading(leader, || write_all(&client, &reports, &metrics)).await;
}

async fn write_all(client: &Client, reports: &Reports, metrics: &Writes) {
    // What was under way when this replica last led.
    reports.all_again();
    let mut pace = interval(WRITE_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let (reference, report, failures) = reports.next().await;
        match write(client, &reference, &report).await {
            Ok(()) => metrics.written(),
            Err(Failure::Outdated) => {}
            Err(Failure::Failed(error)) => {
                metrics.failed();
                if failures == 0 {
                    tracing::warn!(resource = %reference, %error, "a status could not be written; it is tried again");
                }
                reports.again(reference, failures + 1);
            }
        }
    }
}

enum Failure {
    /// The resource is another by now, or gone: the watch brings what it is.
    Outdated,
    Failed(String),
}

async fn write(client: &Client, reference: &ResourceRef, report: &Report) -> Result<(), Failure> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let Some(status) = decide(report, &now) else { return Ok(()) };
    // Lists are replaced as a whole: what somebody else wrote meanwhile would be lost without the version.
    let patch = json!({"metadata": {"resourceVersion": report.version}, "status": status});
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), reference.namespace(), &report.resource);
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(patch);
    match timeout(ANSWER, api.patch_status(reference.name(), &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Err(Failure::Outdated),
        Ok(Err(error)) => Err(Failure::Failed(with_causes(&error))),
        Err(_) => Err(Failure::Failed(format!("no answer in {} s", ANSWER.as_secs()))),
    }
}
