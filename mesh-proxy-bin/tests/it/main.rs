//! Sidecars as processes, over real sockets.

mod authorization;
mod closed;
mod mtls;
mod split;
mod stage;
