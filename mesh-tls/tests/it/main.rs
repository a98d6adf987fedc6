//! The crate against real sockets, real handshakes and real files.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

mod accept;
mod certificates;
mod files;
mod interop;
mod mtls;
mod support;
