//! The applications of a workload whose connections are redirected: each port that is called is one.
//!
//! A port that a service declares has one cluster, in which the limits of that service's DestinationRule count
//! everybody's calls. Any other port has one for each connection, and is gone with it, so that whoever tries
//! every port leaves nothing behind.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::body::Body;
use mesh_core::cluster::{Cluster, ClusterKey, ClusterSettings, EndpointSpec, ServiceName};
use mesh_core::store::Inbound;
use mesh_route::pool::Pool;

use crate::client::AppService;
use crate::connect::MeshConnect;
use crate::server::ServerLayer;
use crate::world::app_settings;

/// How many applications (addresses with a declared port) are kept at once; the others are as those whose port
/// nobody declares. A pod has a handful.
pub const MAX_APPS: usize = 256;

/// The clusters of declared ports.
#[derive(Default)]
pub(crate) struct AppClusters(Mutex<Declared>);

#[derive(Default)]
struct Declared {
    ports: HashMap<u16, (ServiceName, ClusterSettings)>,
    clusters: HashMap<SocketAddr, Arc<Cluster>>,
}

/// Hands calls to the applications of this workload; made by [`Mesh::apps`](crate::Mesh::apps). Cheap to clone.
#[derive(Clone)]
pub struct Apps {
    clusters: Arc<AppClusters>,
    server: ServerLayer<Body>,
    pool: Pool<MeshConnect>,
}

impl AppClusters {
    /// Puts what services declare of the workload's ports in force; of several services the oldest decides.
    pub(crate) fn declare(&self, inbound: &Inbound) {
        let mut ports = HashMap::new();
        for port in &inbound.ports {
            ports
                .entry(port.workload_port)
                .or_insert_with(|| (port.service.service_name(), app_settings(port)));
        }
        let mut declared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections that are open keep theirs.
        declared.clusters.retain(|addr, cluster| match ports.get(&addr.port()) {
            Some((service, settings)) if service == cluster.service() => {
                cluster.publish_settings(settings.clone());
                true
            }
            _ => false,
        });
        declared.ports = ports;
    }

    fn at(&self, addr: SocketAddr) -> Arc<Cluster> {
        let mut declared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = declared.clusters.get(&addr) {
            return Arc::clone(cluster);
        }
        let key = ClusterKey::new("app", addr.port(), "inbound");
        let endpoints = vec![EndpointSpec::plaintext(addr)];
        let Some((service, settings)) = declared.ports.get(&addr.port()) else {
            let none = ServiceName::new("app", "app", "");
            return Cluster::detached(key, none, ClusterSettings::default(), endpoints);
        };
        let cluster = Cluster::detached(key, service.clone(), settings.clone(), endpoints);
        if declared.clusters.len() < MAX_APPS {
            declared.clusters.insert(addr, Arc::clone(&cluster));
        }
        cluster
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clusters.len()
    }
}

impl Apps {
    pub(crate) fn new(
        clusters: Arc<AppClusters>,
        server: ServerLayer<Body>,
        pool: Pool<MeshConnect>,
    ) -> Self {
        Self { clusters, server, pool }
    }

    /// The application at `addr`, to which a call was going.
    pub fn at(&self, addr: SocketAddr) -> Arc<Cluster> {
        self.clusters.at(addr)
    }

    /// A service that takes calls through the [server layers](crate::Mesh::server_layer) and hands them to the
    /// application, over pooled plaintext connections from the address that redirection leaves alone.
    pub fn http(&self, app: Arc<Cluster>) -> AppService {
        crate::client::app(self.server.clone(), app, self.pool.clone())
    }
}

impl fmt::Debug for AppClusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppClusters").field("kept", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Apps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apps").field("clusters", &self.clusters).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mesh;
    use crate::outgoing::UnknownDestinations;

    fn mesh(ports: &str, limit: u32) -> (Mesh, crate::Driver) {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: default}}\n\
             spec: {{selector: {{app: a}}, ports: [{ports}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, namespace: default}}\n\
             spec: {{host: a, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {limit}}}}}}}}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: a-1, namespace: default}}\n\
             spec: {{address: 10.0.0.1, labels: {{app: a}}}}\n"
        );
        let objects = mesh_core::yaml::parse_objects("a.yaml", &text).unwrap();
        let builder = Mesh::builder().objects(objects).workload("default", "a-1");
        builder.redirected(UnknownDestinations::Allowed).build().unwrap()
    }

    #[test]
    fn a_declared_port_is_one_application_and_any_other_leaves_nothing() {
        let (mesh, _driver) = mesh("{name: http, port: 80, targetPort: 8080}", 7);
        let apps = mesh.apps(0);
        let at = |addr: &str| apps.at(addr.parse().unwrap());
        let declared = at("10.0.0.1:8080");
        assert!(Arc::ptr_eq(&declared, &at("10.0.0.1:8080")));
        assert_eq!(declared.load_settings().limits.connections, 7);
        assert_eq!(&*declared.service().name, "a");
        for port in 1..2000_u16 {
            let addr = SocketAddr::from(([10, 0, 0, 1], port));
            assert!(!Arc::ptr_eq(&apps.at(addr), &apps.at(addr)), "{port}");
        }
        assert_eq!(apps.clusters.len(), 1);
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let ports: Vec<_> =
            (1..=MAX_APPS + 9).map(|port| format!("{{name: tcp-{port}, port: {port}}}")).collect();
        let (mesh, _driver) = mesh(&ports.join(", "), 7);
        let apps = mesh.apps(0);
        for port in 1..=(MAX_APPS + 9) as u16 {
            // Those beyond work all the same, with the same settings.
            let app = apps.at(SocketAddr::from(([10, 0, 0, 1], port)));
            assert_eq!(app.load_settings().limits.connections, 7);
        }
        assert_eq!(apps.clusters.len(), MAX_APPS);
        let text = mesh.metrics().encode(mesh_telemetry::metrics::Exposition::Classic);
        assert!(text.contains(&format!("\nmesh_redirected_applications {MAX_APPS}")), "{text}");
    }
}
