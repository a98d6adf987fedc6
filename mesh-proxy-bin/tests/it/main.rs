//! Sidecars as processes, over real sockets.

mod authorization;
mod closed;
mod demo;
mod interop;
mod lifecycle;
mod limits;
mod mtls;
mod reload;
mod resilience;
mod rotation;
mod split;
mod stage;
mod tcp;
mod telemetry;
mod three_ways;
