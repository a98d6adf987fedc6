//! The words that every part of the mesh shares.
//!
//! This crate has no layer that decides anything: it holds the resources as their users write them, the
//! identities, the facts that travel with a request, the table of failures, the registry of clusters and
//! endpoints, and the store that knows the whole configuration.

pub mod body;
pub mod clock;
pub mod cluster;
pub mod diagnostic;
pub mod facts;
pub mod failure;
pub mod http1;
pub mod identity;
pub mod live;
pub mod matcher;
pub mod normal;
pub mod normalize;
pub mod protocol;
pub mod resource;
pub mod respond;
pub mod source;
pub mod store;
pub mod yaml;
