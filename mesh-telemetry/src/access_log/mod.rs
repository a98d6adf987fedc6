//! Access logs: one line a request or connection, with Istio's fields and the mesh's reasons.
//!
//! An [`AccessLog`] encodes a line into a bounded buffer ([`MAX_BUFFERED`]) and never waits for a disk or
//! a pipe: lines that do not fit are dropped and counted (`mesh_access_log_dropped_total`). An
//! [`AccessLogWriter`] writes what is buffered, [`FLUSH_INTERVAL`] after the first line of a batch or as soon as
//! [`BATCH`] bytes wait; the caller runs it. Lines of one thread stay in order; lines of several are in order up to one batch.
//!
//! ```
//! use mesh_core::facts::Facts;
//! use tower_mesh_telemetry::access_log::{AccessLog, Entry, Format, Sink};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! let file = dir.path().join("access.log");
//! let (log, writer) = AccessLog::new(Sink::File(file.clone()), Format::Json).unwrap();
//! let writer = tokio::spawn(writer.run());
//!
//! let facts = Facts::default();
//! log.write(&Entry { response_code: 204, ..Entry::new(&facts, std::time::SystemTime::now()) });
//! log.close();
//! writer.await.unwrap();
//! assert!(std::fs::read_to_string(file).unwrap().contains("\"response_code\":204,"));
//! # });
//! ```

mod entry;
mod escape;
mod time;
mod writer;

pub use entry::{Entry, MAX_EXPLANATION, MAX_FIELD, MAX_PATH, MAX_POLICIES};
pub use writer::{AccessLogWriter, Sink};

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

/// How much is buffered at most, in bytes; past it lines are dropped.
pub const MAX_BUFFERED: usize = 4 * 1024 * 1024;
/// How long after the first line of a batch it is written.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// How much is buffered before it is written without waiting for [`FLUSH_INTERVAL`], in bytes. Small, so that a
/// proxy with one core never stands still for long while a batch is copied, and large against the cost of waking
/// the writer.
pub const BATCH: usize = 64 * 1024;
/// Into how many buffers threads are spread at most, so that none waits for another.
const MAX_SHARDS: usize = 16;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// [`Entry::write_json`].
    #[default]
    Json,
    /// [`Entry::write_text`].
    Text,
}

/// Takes the lines of an access log; or takes none ([`AccessLog::off`]). Clones share it.
///
/// The log is closed when its last clone is dropped.
#[derive(Clone, Default)]
pub struct AccessLog(Option<Arc<Handle>>);

/// Closes the log when the last clone goes.
struct Handle(Arc<Shared>);

struct Shared {
    format: Format,
    max_buffered: usize,
    shards: Box<[Mutex<Vec<u8>>]>,
    buffered: AtomicUsize,
    /// Whether the writer has been woken for what is buffered.
    woken: AtomicBool,
    wake: Notify,
    closed: AtomicBool,
    dropped: Counter,
}

impl AccessLog {
    /// Logs nothing, at no cost.
    pub const fn off() -> Self {
        Self(None)
    }

    /// A log, and the writer that the caller runs.
    ///
    /// # Errors
    /// When the file cannot be opened; the error names it.
    pub fn new(sink: Sink, format: Format) -> io::Result<(Self, AccessLogWriter)> {
        Self::with_limit(sink, format, MAX_BUFFERED)
    }

    /// As [`new`](Self::new), with another limit than [`MAX_BUFFERED`].
    ///
    /// # Errors
    /// When the file cannot be opened; the error names it.
    pub fn with_limit(
        sink: Sink,
        format: Format,
        max_buffered: usize,
    ) -> io::Result<(Self, AccessLogWriter)> {
        let shards = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        let shared = Arc::new(Shared {
            format,
            max_buffered,
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            buffered: AtomicUsize::new(0),
            woken: AtomicBool::new(false),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            dropped: Counter::default(),
        });
        let writer = AccessLogWriter::open(Arc::clone(&shared), sink)?;
        Ok((Self(Some(Arc::new(Handle(shared)))), writer))
    }

    /// Whether lines are taken at all; where not, nobody need collect what goes into one.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a line.
    pub fn write(&self, entry: &Entry<'_>) {
        if let Some(handle) = &self.0 {
            handle.0.write(entry);
        }
    }

    /// Asks the writer to write what is buffered and to end. Lines that come later are dropped.
    pub fn close(&self) {
        if let Some(handle) = &self.0 {
            handle.0.close();
        }
    }

    /// How many lines have been dropped.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |h| h.0.dropped.get())
    }

    /// Registers `mesh_access_log_dropped_total`.
    pub fn register(&self, registry: &mut Registry) {
        if let Some(handle) = &self.0 {
            registry.register(
                "mesh_access_log_dropped",
                "Lines of the access log that were dropped, because the buffer was full or the sink failed",
                handle.0.dropped.clone(),
            );
        }
    }
}

/// A number of this thread, from 0.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            mine.set(Some(number));
            number
        })
    })
}

impl Shared {
    fn write(&self, entry: &Entry<'_>) {
        if self.closed.load(Ordering::Relaxed) || self.buffered.load(Ordering::Relaxed) >= self.max_buffered {
            self.dropped.inc();
            return;
        }
        let Some(shard) = self.shards.get(thread_number() % self.shards.len().max(1)) else {
            return;
        };
        // Held by threads that share the shard while they encode a line, and by the writer while it takes
        // the buffer away: never across I/O.
        let mut buffer = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buffer.len();
        match self.format {
            Format::Json => entry.write_json(&mut buffer),
            Format::Text => entry.write_text(&mut buffer),
        }
        let line = buffer.len() - before;
        let waiting = self.buffered.fetch_add(line, Ordering::Relaxed) + line;
        if waiting > self.max_buffered {
            buffer.truncate(before);
            self.buffered.fetch_sub(line, Ordering::Relaxed);
            self.dropped.inc();
            return;
        }
        drop(buffer);
        // Once for the first line of a batch, and once when the batch is worth a write.
        let full = waiting >= BATCH && waiting - line < BATCH;
        if full || !self.woken.load(Ordering::Relaxed) && !self.woken.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Moves all that is buffered to the end of `batch`.
    fn take(&self, batch: &mut Vec<u8>) {
        self.woken.store(false, Ordering::Release);
        for shard in &self.shards {
            let mut buffer = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.buffered.fetch_sub(buffer.len(), Ordering::Relaxed);
            if batch.is_empty() {
                std::mem::swap(batch, &mut *buffer);
            } else {
                batch.append(&mut buffer);
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("AccessLog(off)"),
            Some(handle) => f
                .debug_struct("AccessLog")
                .field("format", &handle.0.format)
                .field("dropped", &self.dropped())
                .finish_non_exhaustive(),
        }
    }
}

#[cfg(test)]
mod tests;
