//! Tests with sockets: against a stand-in for the API server, and (ignored) against a real one.

mod certificates;
mod client;
mod cluster;
mod definitions;
mod fake;
mod keeper;
mod ports;
mod real;
mod tokens;
mod webhooks;
