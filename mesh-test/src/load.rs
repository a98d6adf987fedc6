//! Many clients in a closed loop, and a report of what they saw.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Call, CallError, Conn, Protocol, Reply};

/// Failures kept with their text; the others are only counted.
const KEPT_ERRORS: usize = 20;

/// Latencies kept for the percentiles; the calls after that are only counted.
const KEPT_LATENCIES: usize = 1_000_000;

/// How often one call moves to a fresh connection because the server provably never took it.
const MOVES: usize = 5;

/// Pause after a failed connection, so that a server that is down is not asked in a busy loop.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What to send: a number of connections, each with one call after the other.
///
/// It behaves as a good client does: a connection that ended before a byte of the next request was written is
/// replaced without a word, and a call that the server provably never took (GOAWAY, refused stream) moves to
/// a fresh connection. Everything else that is not a 2xx counts as failed.
#[derive(Debug, Clone)]
pub struct LoadGen {
    addr: SocketAddr,
    call: Call,
    connections: usize,
    protocol: Protocol,
    pause: Duration,
    tunnel: Option<String>,
    fresh: bool,
    repeat: bool,
}

impl LoadGen {
    /// GET `/` to that address over four HTTP/1.1 connections without a pause.
    pub fn to(addr: SocketAddr) -> Self {
        Self {
            addr,
            call: Call::get("localhost", "/"),
            connections: 4,
            protocol: Protocol::H1,
            pause: Duration::ZERO,
            tunnel: None,
            fresh: false,
            repeat: false,
        }
    }

    /// GET `/` of that host. Replaces the call.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        self.call(Call::get(host, "/"))
    }

    /// What is sent again and again.
    #[must_use]
    pub fn call(mut self, call: Call) -> Self {
        self.call = call;
        self
    }

    /// How many connections.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// What they speak.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// The pause of each connection between two calls.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Speaks through CONNECT tunnels to this target (`HOST:PORT`).
    #[must_use]
    pub fn tunnel(mut self, target: &str) -> Self {
        self.tunnel = Some(target.to_owned());
        self
    }

    /// Opens a new connection for each call.
    #[must_use]
    pub fn fresh_connections(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// Also repeats a call on a fresh connection when a connection that had served calls before ended without
    /// a byte of an answer, as browsers and curl do: a server that closes an idle HTTP/1.1 connection cannot
    /// know that a request is on its way. Without this such a call counts as failed.
    #[must_use]
    pub fn repeat_on_reused(mut self) -> Self {
        self.repeat = true;
        self
    }

    /// Starts on the current runtime.
    pub fn start(self) -> Load {
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            tasks.spawn(worker(self.clone(), Arc::clone(&tally), stopped.clone()));
        }
        Load { tally, stop, tasks }
    }

    /// Runs for that long.
    pub async fn run_for(self, duration: Duration) -> Report {
        let load = self.start();
        tokio::time::sleep(duration).await;
        load.stop().await
    }

    /// Sends about that many calls (each connection finishes the one that it has begun).
    ///
    /// # Panics
    /// When they are not done after two minutes.
    pub async fn run_calls(self, calls: u64) -> Report {
        let load = self.start();
        crate::wait::until_secs(120, "the calls of the load", async || load.snapshot().total >= calls).await;
        load.stop().await
    }

    async fn open(&self) -> Result<Conn, CallError> {
        match &self.tunnel {
            None => Conn::open(self.addr, self.protocol).await,
            Some(target) => Conn::tunnel(self.addr, target, self.protocol).await,
        }
    }

    async fn one(&self, conn: &mut Option<Conn>, tally: &Mutex<Tally>) -> Result<Reply, CallError> {
        if self.fresh {
            *conn = None;
        }
        let mut moves = 0;
        loop {
            let reused = conn.is_some();
            let open = match conn.as_mut() {
                Some(open) => open,
                None => conn.insert(self.open().await?),
            };
            match open.send(&self.call).await {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    *conn = None;
                    let repeat = error.is_unsent() || (self.repeat && reused && error.is_closed());
                    if !repeat || moves == MOVES {
                        return Err(error);
                    }
                    moves += 1;
                    tally.lock().unwrap_or_else(PoisonError::into_inner).reconnects += 1;
                }
            }
        }
    }
}

async fn worker(load: LoadGen, tally: Arc<Mutex<Tally>>, mut stop: watch::Receiver<bool>) {
    let mut conn = None;
    while !*stop.borrow() {
        let begun = Instant::now();
        let outcome = load.one(&mut conn, &tally).await;
        let failed = outcome.is_err();
        tally.lock().unwrap_or_else(PoisonError::into_inner).add(outcome, begun.elapsed());
        let pause = if failed { load.pause.max(AFTER_FAILURE) } else { load.pause };
        if pause.is_zero() {
            // A loopback answer may be there before the next poll: leave others a turn.
            tokio::task::yield_now().await;
        } else {
            let _ = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await;
        }
    }
}

/// Load that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// What was seen so far.
    pub fn snapshot(&self) -> Report {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).report()
    }

    /// What is seen from here on: gives the report up to now and begins a new one.
    pub fn lap(&self) -> Report {
        std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner)).report()
    }

    /// Lets each connection finish its call and gives the report.
    pub async fn stop(mut self) -> Report {
        self.stop.send_replace(true);
        while let Some(done) = self.tasks.join_next().await {
            done.unwrap_or_else(|e| panic!("a connection of the load: {e}"));
        }
        self.snapshot()
    }
}

#[derive(Debug, Default)]
struct Tally {
    total: u64,
    failed: u64,
    reconnects: u64,
    by_backend: BTreeMap<String, u64>,
    by_status: BTreeMap<u16, u64>,
    errors: Vec<String>,
    micros: Vec<u32>,
}

impl Tally {
    fn add(&mut self, outcome: Result<Reply, CallError>, took: Duration) {
        self.total += 1;
        if self.micros.len() < KEPT_LATENCIES {
            self.micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
        let error = match outcome {
            Ok(reply) => {
                *self.by_status.entry(reply.status).or_default() += 1;
                if let Some(name) = reply.served_by() {
                    *self.by_backend.entry(name.to_owned()).or_default() += 1;
                }
                if (200..300).contains(&reply.status) {
                    return;
                }
                let reason = reply.reason().unwrap_or("none");
                let who = reply.served_by().unwrap_or("the mesh");
                format!("{} from {who} (x-mesh-reason: {reason}): {}", reply.status, reply.text().trim_end())
            }
            Err(error) => error.to_string(),
        };
        self.failed += 1;
        if self.errors.len() < KEPT_ERRORS {
            self.errors.push(error);
        }
    }

    fn report(&self) -> Report {
        let mut micros = self.micros.clone();
        micros.sort_unstable();
        Report {
            total: self.total,
            failed: self.failed,
            reconnects: self.reconnects,
            by_backend: self.by_backend.clone(),
            by_status: self.by_status.clone(),
            errors: self.errors.clone(),
            p50: percentile(&micros, 50),
            p99: percentile(&micros, 99),
        }
    }
}

/// The nearest-rank percentile of sorted values.
fn percentile(sorted: &[u32], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    Duration::from_micros(sorted.get(rank - 1).copied().unwrap_or(0).into())
}

/// What a load saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Calls that ended, well or not.
    pub total: u64,
    /// Calls without an answer, or with one that is not 2xx.
    pub failed: u64,
    /// Calls that moved to a fresh connection, no failures: the server never took them, or
    /// [`LoadGen::repeat_on_reused`] allowed it.
    pub reconnects: u64,
    /// Answers by `x-served-by`.
    pub by_backend: BTreeMap<String, u64>,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// The first failures in words.
    pub errors: Vec<String>,
    /// Median time of a call, connecting included.
    pub p50: Duration,
    /// 99th percentile of the time of a call, connecting included.
    pub p99: Duration,
}

impl Report {
    /// Answers of one backend.
    pub fn of(&self, backend: &str) -> u64 {
        self.by_backend.get(backend).copied().unwrap_or(0)
    }

    /// Ends the test unless there were calls and each one was answered with 2xx.
    ///
    /// # Panics
    /// With the report.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.total > 0, "the load sent nothing");
        assert!(self.failed == 0, "failed requests under load\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, failed, reconnects, by_backend, by_status, errors, p50, p99 } = self;
        writeln!(f, "{total} calls, {failed} failed, {reconnects} moved, p50 {p50:?}, p99 {p99:?}")?;
        writeln!(f, "by backend {by_backend:?}, by status {by_status:?}")?;
        errors.iter().try_for_each(|error| writeln!(f, "  {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::ports;

    #[test]
    fn percentiles_by_nearest_rank() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&values, 50), Duration::from_micros(50));
        assert_eq!(percentile(&values, 99), Duration::from_micros(99));
        assert_eq!(percentile(&[7], 99), Duration::from_micros(7));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_graceful_restart_is_no_failure_but_a_crash_is() {
        for protocol in [Protocol::H1, Protocol::H2] {
            let addr = ports::free_addr();
            let one = Backend::bind("one", addr).await;
            let load = LoadGen::to(addr).host("x").protocol(protocol).pause(Duration::from_millis(1));
            let load = load.repeat_on_reused().start();
            crate::wait::until_secs(10, "load on one", async || load.snapshot().of("one") > 20).await;
            // Between the two nobody listens: calls that meet the closed port fail, and nothing else does.
            one.stop_graceful().await;
            let two = Backend::bind("two", addr).await;
            crate::wait::until_secs(10, "load on two", async || load.snapshot().of("two") > 20).await;
            let report = load.lap();
            assert!(report.errors.iter().all(|e| e.contains("onnection refused")), "{report}");

            two.stop_abrupt().await;
            crate::wait::until_secs(10, "failures", async || load.snapshot().failed > 0).await;
            let report = load.stop().await;
            assert!(report.failed > 0, "{report}");
        }
    }

    #[tokio::test]
    async fn counts_by_backend_and_status() {
        let backend = Backend::start("b").await;
        let report = LoadGen::to(backend.addr())
            .call(Call::get("x", "/status/503"))
            .connections(2)
            .run_calls(30)
            .await;
        assert_eq!(report.failed, report.total);
        assert_eq!(report.by_status.get(&503), Some(&report.total));
        assert_eq!(report.of("b"), report.total);
        assert!(report.errors[0].contains("503 from b"), "{report}");
        assert_eq!(backend.accepted_connections(), 2);
        let fresh = LoadGen::to(backend.addr()).host("x").fresh_connections().run_calls(10).await;
        fresh.assert_clean();
        assert_eq!(backend.accepted_connections(), 2 + fresh.total);
    }
}
