//! Measures `mesh-controller` with a real API server and simulated proxies. `bench/README.md` says what and how.

pub mod api;
pub mod args;
pub mod board;
pub mod controller;
pub mod herd;
pub mod proxy;
pub mod run;
pub mod world;
