//! What the configuration knows of a peer that has proved who it is.

use std::sync::Arc;

use mesh_core::facts::WorkloadLabels;
use mesh_core::identity::SpiffeId;
use mesh_core::store::Store;

/// What telemetry can say of a peer by its identity. Several workloads may run under one account: what they
/// do not agree on is left unknown (empty).
pub(crate) fn labels(store: &Store, id: &SpiffeId) -> Option<WorkloadLabels> {
    let mut of_account = store.workloads().filter(|w| w.identity.as_ref() == Some(id)).map(|w| &w.telemetry);
    let mut common = (**of_account.next()?).clone();
    for other in of_account {
        let fields = [
            (&mut common.workload, &other.workload),
            (&mut common.namespace, &other.namespace),
            (&mut common.canonical_service, &other.canonical_service),
            (&mut common.canonical_revision, &other.canonical_revision),
            (&mut common.app, &other.app),
            (&mut common.version, &other.version),
            (&mut common.cluster, &other.cluster),
        ];
        for (ours, theirs) in fields {
            if *ours != *theirs {
                *ours = Arc::default();
            }
        }
    }
    Some(common)
}
