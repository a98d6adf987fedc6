//! `ServiceEntry`: a service that Kubernetes does not know.

use super::common::WorkloadSelector;
use super::workload_entry::WorkloadEntry;

mesh_types! {
    /// The spec of a `ServiceEntry`.
    pub struct ServiceEntry {
        /// Its names; wildcards are allowed, a bare `*` is not.
        pub hosts: Vec<String>,
        /// Its virtual addresses.
        pub addresses: Vec<String>,
        /// Its ports.
        pub ports: Vec<ServiceEntryPort>,
        /// Whether it is part of the mesh.
        pub location: ServiceEntryLocation,
        /// How its endpoints are found.
        pub resolution: ServiceEntryResolution,
        /// Its endpoints.
        pub endpoints: Vec<WorkloadEntry>,
        /// Its endpoints by the labels of Pods and WorkloadEntries of its namespace.
        pub workload_selector: Option<WorkloadSelector>,
        /// The namespaces that see it; empty means all.
        pub export_to: Vec<String>,
        /// Names of which a server's certificate must carry one.
        pub subject_alt_names: Vec<String>,
    }

    /// A port of a `ServiceEntry`.
    pub struct ServiceEntryPort {
        /// The number that callers use.
        pub number: u16,
        /// The protocol, such as `HTTP`, `TCP` or `TLS`.
        pub protocol: String,
        /// A name, unique in the entry.
        pub name: String,
        /// The number at the endpoints; 0 means the same.
        pub target_port: u16,
    }
}

mesh_enums! {
    /// Whether a service is part of the mesh.
    pub enum ServiceEntryLocation {
        /// No: no automatic mTLS.
        #[default]
        MeshExternal = "MESH_EXTERNAL",
        /// Yes.
        MeshInternal = "MESH_INTERNAL",
    }

    /// How endpoints are found.
    pub enum ServiceEntryResolution {
        /// They are where the caller meant to go.
        #[default]
        None = "NONE",
        /// They are listed or selected.
        Static = "STATIC",
        /// All addresses of a name.
        Dns = "DNS",
        /// One address of a name for each connection.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        /// The name that is called, which a wildcard covers.
        DynamicDns = "DYNAMIC_DNS",
    }
}
