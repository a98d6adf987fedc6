//! Tests with sockets: against a stand-in for the API server, and (ignored) against a real one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

mod cluster;
mod definitions;
mod fake;
mod keeper;
mod log;
mod ports;
mod real;
mod running;
mod tokens;
mod watching;
mod webhooks;
