//! The record of a connection whose bytes are relayed without being looked into.
//!
//! ```
//! use mesh_core::facts::Facts;
//! use tower_mesh_telemetry::metrics::{Exposition, Metrics, OwnWorkload};
//! use tower_mesh_telemetry::{AccessLog, ConnectionRecord};
//!
//! let metrics = Metrics::new(OwnWorkload::default());
//! let record = ConnectionRecord::new(&metrics, AccessLog::off(), &Facts::default());
//! record.connected();
//! record.received(10);
//! record.sent(300);
//! assert!(metrics.encode(Exposition::Classic).contains("# TYPE istio_tcp_sent_bytes_total counter\n"));
//!
//! drop(record);
//! assert!(metrics.encode(Exposition::Classic).contains("istio_tcp_connections_closed_total{"));
//! ```

use std::sync::OnceLock;
use std::time::SystemTime;

use mesh_core::facts::Facts;
use mesh_core::failure::Failure;
use tokio::time::Instant;

use crate::access_log::{AccessLog, Entry};
use crate::metrics::{Recorder, TcpRecorder};

/// Counts one relayed connection while it is open, and logs it when it is dropped.
///
/// Reads [`Facts`]: connection, route, upstream, failure. The two directions of a relay share it by
/// reference.
#[derive(Debug)]
pub struct ConnectionRecord {
    recorder: Recorder,
    access_log: AccessLog,
    facts: Facts,
    started: Instant,
    start: SystemTime,
    tcp: OnceLock<TcpRecorder>,
}

impl ConnectionRecord {
    /// A connection that was accepted now.
    pub fn new(metrics: impl Into<Recorder>, access_log: AccessLog, facts: &Facts) -> Self {
        Self::with_start(metrics, access_log, facts, SystemTime::now())
    }

    /// As [`new`](Self::new), by another wall clock than the system's.
    pub fn with_start(
        metrics: impl Into<Recorder>,
        access_log: AccessLog,
        facts: &Facts,
        start: SystemTime,
    ) -> Self {
        Self {
            recorder: metrics.into(),
            access_log,
            facts: facts.clone(),
            started: Instant::now(),
            start,
            tcp: OnceLock::new(),
        }
    }

    fn tcp(&self) -> &TcpRecorder {
        self.tcp.get_or_init(|| self.recorder.connection(&self.facts))
    }

    /// Says that the facts know the endpoint by now: the connection counts as opened to it. Without this
    /// it does so with the first bytes, or at its end.
    pub fn connected(&self) {
        self.tcp();
    }

    /// Counts bytes that went to the caller; by one task at a time.
    pub fn sent(&self, bytes: u64) {
        self.tcp().sent(bytes);
    }

    /// Counts bytes that came from the caller; by one task at a time.
    pub fn received(&self, bytes: u64) {
        self.tcp().received(bytes);
    }

    /// Says why the connection ends; the first reason wins, and one in the facts came before.
    pub fn fail(&self, failure: Failure) {
        self.facts.set_failure(failure);
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.tcp();
        let Some(mut tcp) = self.tcp.take() else {
            return;
        };
        let failure = self.facts.failure();
        let flags = failure.map_or("-", |f| f.spec().flag);
        tcp.fail(flags);
        self.access_log.write(&Entry {
            response_flags: if flags.is_empty() { "-" } else { flags },
            bytes_received: tcp.total_received(),
            bytes_sent: tcp.total_sent(),
            duration: self.started.elapsed(),
            failure,
            ..Entry::new(&self.facts, self.start)
        });
    }
}

#[cfg(test)]
mod tests;
