//! End-to-end tests in a real cluster: `just cluster up && just e2e`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

mod in_cluster;
