//! Where what applies to calls to a host is found: in one store of everything, or host by host as it was told.

#[cfg(feature = "control-plane")]
use std::sync::Arc;

use mesh_core::store::{Outbound, Store, Workload};

/// See the [module](self).
#[derive(Debug, Clone)]
pub(crate) enum Hosts {
    /// Everything is known.
    Whole(Store),
    /// What was asked for is known.
    #[cfg(feature = "control-plane")]
    Each(Arc<crate::control::Each>),
}

impl Default for Hosts {
    fn default() -> Self {
        Self::Whole(Store::default())
    }
}

impl Hosts {
    /// What applies to calls from `workload` to the host that it calls so.
    pub(crate) fn outbound(&self, workload: &Workload, called: &str) -> Option<Outbound> {
        match self {
            Self::Whole(store) => store.outbound(workload, called),
            #[cfg(feature = "control-plane")]
            Self::Each(each) => each.outbound(workload, called),
        }
    }
}

impl Hosts {
    /// Every workload that is known.
    pub(crate) fn workloads(&self) -> Box<dyn Iterator<Item = &Workload> + '_> {
        match self {
            Self::Whole(store) => Box::new(store.workloads().map(|workload| &**workload)),
            #[cfg(feature = "control-plane")]
            Self::Each(each) => Box::new(each.workloads()),
        }
    }
}
