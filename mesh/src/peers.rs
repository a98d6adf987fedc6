//! What the configuration knows of peers that have proved who they are.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::facts::WorkloadLabels;
use mesh_core::identity::SpiffeId;
use mesh_core::store::Workload;

/// What telemetry can say of a peer by its identity. Several workloads may run under one account: what they
/// do not agree on is left unknown (empty).
pub(crate) fn labels<'a>(
    workloads: impl IntoIterator<Item = &'a Workload>,
) -> HashMap<SpiffeId, Arc<WorkloadLabels>> {
    let mut of_account: HashMap<SpiffeId, WorkloadLabels> = HashMap::new();
    for workload in workloads {
        let Some(id) = &workload.identity else { continue };
        match of_account.get_mut(id) {
            Some(common) => keep_common(common, &workload.telemetry),
            None => {
                of_account.insert(id.clone(), (*workload.telemetry).clone());
            }
        }
    }
    of_account.into_iter().map(|(id, labels)| (id, Arc::new(labels))).collect()
}

fn keep_common(common: &mut WorkloadLabels, other: &WorkloadLabels) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::store::{Store, StoreOptions};

    #[test]
    fn what_the_workloads_of_an_account_do_not_agree_on_is_unknown() {
        let text = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec: {address: 10.0.0.1, serviceAccount: reviews, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v2, namespace: default}
spec: {address: 10.0.0.2, serviceAccount: reviews, labels: {app: reviews, version: v2}}
";
        let objects = mesh_core::yaml::parse_objects("a.yaml", text).unwrap();
        let store = Store::new(StoreOptions::default(), objects);
        let all = labels(store.workloads().map(|w| &**w));
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        let reviews = &all[&id];
        assert_eq!((&*reviews.app, &*reviews.version, &*reviews.workload), ("reviews", "", ""));
        assert_eq!(&*reviews.namespace, "default");
    }
}
