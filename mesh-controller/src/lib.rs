//! The mesh in Kubernetes.
//!
//! [`inject`] gives pods their sidecars, and [`webhook`] is the admission webhook's answers around it.
//! [`event`] is what happens to the cluster's objects.

pub mod event;
pub mod inject;
pub mod webhook;
