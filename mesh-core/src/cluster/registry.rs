//! Keeps every handle whose key survives.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Cluster, ClusterKey, ClusterSettings, Endpoint, EndpointSet, EndpointSpec, ServiceName};

/// The clusters of a process. Only configuration touches it; requests hold the handles themselves.
#[derive(Default)]
pub struct Registry {
    clusters: Mutex<HashMap<ClusterKey, Arc<Cluster>>>,
}

impl Registry {
    /// No clusters.
    pub fn new() -> Self {
        Self::default()
    }

    fn clusters(&self) -> std::sync::MutexGuard<'_, HashMap<ClusterKey, Arc<Cluster>>> {
        // A panic while the map was held leaves it whole: every change is a single insert or remove.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster of `key`, with these settings and endpoints in force: a new one, or the one that is
    /// there already. Endpoints whose keys were there before keep their state.
    pub fn cluster(
        &self,
        key: &ClusterKey,
        service: &ServiceName,
        settings: ClusterSettings,
        endpoints: Vec<EndpointSpec>,
    ) -> Arc<Cluster> {
        let mut clusters = self.clusters();
        if let Some(cluster) = clusters.get(key).filter(|c| c.service == *service) {
            cluster.publish_settings(settings);
            cluster.publish_endpoints(endpoints);
            return Arc::clone(cluster);
        }
        let fresh = endpoints.into_iter().map(|spec| Arc::new(Endpoint::new(spec))).collect();
        let cluster = Arc::new(Cluster::new(key.clone(), service.clone(), settings, fresh));
        clusters.insert(key.clone(), Arc::clone(&cluster));
        cluster
    }

    /// The cluster of `key`, if there is one.
    pub fn get(&self, key: &ClusterKey) -> Option<Arc<Cluster>> {
        self.clusters().get(key).cloned()
    }

    /// Every cluster, in no order.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        self.clusters().values().cloned().collect()
    }

    /// Forgets the clusters that `keep` does not want. Requests in flight keep theirs until they end.
    pub fn retain(&self, mut keep: impl FnMut(&ClusterKey) -> bool) {
        self.clusters().retain(|key, _| keep(key));
    }
}

impl Cluster {
    /// Puts these endpoints in force; those whose keys were there before keep their state. Publishing what
    /// is in force already changes nothing.
    pub fn publish_endpoints(&self, specs: Vec<EndpointSpec>) {
        let before = self.load_endpoints();
        let same = before.members().len() == specs.len()
            && before.members().iter().zip(&specs).all(|(e, spec)| e.spec() == spec);
        if same {
            return;
        }
        let known: HashMap<_, _> = before.members().iter().map(|e| (e.key(), e)).collect();
        let set: EndpointSet = specs
            .into_iter()
            .map(|spec| match known.get(&spec.key) {
                Some(old) if *old.spec() == spec => Arc::clone(old),
                Some(old) => Arc::new(Endpoint::with_state(spec, Arc::clone(old.state()))),
                None => Arc::new(Endpoint::new(spec)),
            })
            .collect();
        self.endpoints.publish(set);
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.clusters().keys()).finish()
    }
}
