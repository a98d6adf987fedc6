//! Sidecars as processes, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

mod authorization;
mod carried;
mod closed;
mod control;
mod demo;
mod interception;
mod interop;
mod lifecycle;
mod limits;
mod mtls;
#[path = "../../src/original.rs"]
mod original;
mod plane;
mod pod;
mod reload;
mod resilience;
mod rotation;
mod split;
mod stage;
mod tcp;
mod telemetry;
mod three_ways;
