//! The program as people run it.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

mod inject;
