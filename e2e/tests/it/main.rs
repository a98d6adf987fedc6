//! End-to-end tests in a real cluster: `just cluster up && just e2e`.

mod away;
mod chart;
mod memory;
mod mesh;
mod plain;
mod start;
mod wire;
