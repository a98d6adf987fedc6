//! Server and client over connections: sockets where the protocol is tested, pipes where time is.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

mod certificates;
mod limits;
mod reconnect;
mod streams;
mod world;
