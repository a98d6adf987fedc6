//! Accepts connections, within limits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::drain::Draining;
use crate::metrics::{Metrics, OpenConnection};

/// What a port bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortLimits {
    /// Connections at the same time; further ones are closed at once.
    pub connections: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a connection may be open without a request.
    pub idle: Duration,
}

impl PortLimits {
    /// For proxies: as many connections as the discovery server has streams by default (10,000), and some
    /// that only want a certificate; 10 s for a handshake, a minute without a request.
    pub const PROXIES: Self =
        Self { connections: 12_000, handshake: Duration::from_secs(10), idle: Duration::from_secs(60) };
    /// For API servers: 256 connections. They keep a few open, for longer than the minute that others get.
    pub const WEBHOOKS: Self =
        Self { connections: 256, handshake: Duration::from_secs(10), idle: Duration::from_secs(300) };
    /// For probes, Prometheus and people: 64 connections.
    pub const ADMIN: Self =
        Self { connections: 64, handshake: Duration::from_secs(10), idle: Duration::from_secs(60) };
}

/// A port, as those see it who serve its connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Port {
    /// Its name in metrics.
    pub name: &'static str,
    /// What it bears.
    pub limits: PortLimits,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

/// A connection's place among those that the port bears.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _open: OpenConnection,
}

/// Accepts until the drain begins. `serve` gets each connection with its place, and spawns what serves it.
pub async fn accept<F>(listener: TcpListener, port: &Port, mut drain: Draining, mut serve: F)
where
    F: FnMut(TcpStream, SocketAddr, Place),
{
    let room = Arc::new(Semaphore::new(port.limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: they come back when connections end.
                tracing::warn!(port = port.name, %error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            port.metrics.closed(port.name, "too_many");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let place = Place { _permit: permit, _open: port.metrics.connection(port.name) };
        serve(stream, peer, place);
    }
}

/// The TLS handshake of a connection, in its time; what fails is counted.
pub async fn handshake(
    port: &Port,
    config: Arc<ServerConfig>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    let accepted = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(port.limits.handshake, accepted).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(port = port.name, %peer, %error, "a handshake failed");
            port.metrics.closed(port.name, "handshake_failed");
            None
        }
        Err(_) => {
            port.metrics.closed(port.name, "handshake_timeout");
            None
        }
    }
}
