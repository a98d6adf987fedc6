//! `PeerAuthentication`: whether callers must speak mTLS.

use std::collections::BTreeMap;

use super::common::Selector;

mesh_types! {
    /// The spec of a `PeerAuthentication`.
    pub struct PeerAuthentication {
        /// The workloads it is for; absent means its namespace (in the root namespace: the mesh).
        pub selector: Option<Selector>,
        /// The mode; absent inherits.
        pub mtls: Option<MutualTls>,
        /// Modes of single workload ports; only together with a selector.
        pub port_level_mtls: BTreeMap<u16, MutualTls>,
    }

    /// A mode, in its own object.
    pub struct MutualTls {
        /// The mode.
        pub mode: MutualTlsMode,
    }
}

mesh_enums! {
    /// Whether callers must speak mTLS.
    pub enum MutualTlsMode {
        /// As the level above says.
        #[default]
        Unset = "UNSET",
        /// They must not.
        Disable = "DISABLE",
        /// They may.
        Permissive = "PERMISSIVE",
        /// They must.
        Strict = "STRICT",
    }
}
