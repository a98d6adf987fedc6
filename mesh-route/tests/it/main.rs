//! The client stack over real sockets.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests, and so are their helpers"
)]

mod carried;
mod limits;
mod pool;
mod stack;
mod support;
mod upgrade;
