//! The mesh in Kubernetes.
//!
//! For now it is one room: [`inject`], which gives pods their sidecars, and the admission webhook's answers
//! around it ([`webhook`]).

pub mod inject;
pub mod webhook;
