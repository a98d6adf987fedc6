//! `WorkloadEntry`: a workload that is no Pod.

use std::collections::BTreeMap;

use super::common::Labels;

mesh_types! {
    /// The spec of a `WorkloadEntry`; also an endpoint of a `ServiceEntry`.
    pub struct WorkloadEntry {
        /// An IP address, `unix://` path, or (with DNS resolution) a name.
        pub address: String,
        /// Port numbers by the names of the service's ports.
        pub ports: BTreeMap<String, u16>,
        /// Its labels.
        pub labels: Labels,
        /// The network it lives in; the same network is reachable directly.
        pub network: String,
        /// `region/zone/subzone`.
        pub locality: String,
        /// Its share of the load; 0 means 1.
        pub weight: u32,
        /// The account that it runs as, in its own namespace.
        pub service_account: String,
    }
}
