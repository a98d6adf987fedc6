//! The ports: discovery and certificates for proxies, webhooks for the API server, admin pages for people.
//!
//! Each is bounded in connections, in handshakes and in silence. A drain lets what has begun end.

pub mod accept;
pub mod admin;
pub mod authenticate;
pub mod clients;
pub mod drain;
pub mod http;
pub mod identity;
pub mod proxies;
pub mod webhooks;

#[cfg(test)]
mod tests;
