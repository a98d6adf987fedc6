//! Writes what an access log has buffered.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{BATCH, FLUSH_INTERVAL, Shared};

/// Where lines go.
pub enum Sink {
    /// Standard output.
    Stdout,
    /// The end of a file. It is created where it does not exist, and opened again when it was renamed,
    /// replaced or removed, as log rotation does.
    File(PathBuf),
    /// Anything else.
    Writer(Box<dyn Write + Send>),
}

/// Writes an access log. Nothing is written unless [`run`](Self::run) runs.
#[must_use = "nothing is written unless it runs"]
#[derive(Debug)]
pub struct AccessLogWriter {
    shared: Arc<Shared>,
    target: Target,
}

enum Target {
    Stdout,
    File(PathBuf, File),
    Writer(Box<dyn Write + Send>),
}

/// A target and a batch, handed to a thread that may block and back.
struct Job {
    target: Target,
    batch: Vec<u8>,
    result: io::Result<()>,
}

impl AccessLogWriter {
    pub(super) fn open(shared: Arc<Shared>, sink: Sink) -> io::Result<Self> {
        let target = match sink {
            Sink::Stdout => Target::Stdout,
            Sink::Writer(writer) => Target::Writer(writer),
            Sink::File(path) => {
                let file = append(&path)?;
                Target::File(path, file)
            }
        };
        Ok(Self { shared, target })
    }

    /// Writes until the log is closed (or its last clone dropped) and everything is written.
    ///
    /// Blocking writes run on the runtime's threads for blocking work: a sink that stalls stops no
    /// traffic. What cannot be written is counted as dropped, told once, and tried again with the next
    /// batch.
    pub async fn run(self) {
        let Self { shared, target } = self;
        let mut job = Job { target, batch: Vec::new(), result: Ok(()) };
        let mut failing = false;
        loop {
            let mut closed = shared.closed.load(Ordering::Acquire);
            if !closed {
                // A line or the close wakes it; a batch then collects for a while, unless it is large enough.
                shared.wake.notified().await;
                let _ = tokio::time::timeout(FLUSH_INTERVAL, due(&shared)).await;
                closed = shared.closed.load(Ordering::Acquire);
            }
            shared.take(&mut job.batch);
            if !job.batch.is_empty() {
                job = match tokio::task::spawn_blocking(move || job.run()).await {
                    Ok(job) => job,
                    Err(error) => {
                        tracing::error!(%error, "the access log has lost its writer; lines are dropped");
                        shared.close();
                        return;
                    }
                };
                if let Err(error) = &job.result {
                    let lines = job.batch.iter().filter(|b| **b == b'\n').count();
                    shared.dropped.inc_by(lines as u64);
                    if !failing {
                        tracing::warn!(%error, sink = ?job.target, "the access log cannot be written");
                    }
                }
                failing = job.result.is_err();
                job.batch.clear();
            }
            if closed {
                return;
            }
        }
    }
}

/// Returns when there is no point in waiting for more lines.
async fn due(shared: &Shared) {
    while !shared.closed.load(Ordering::Acquire) && shared.buffered.load(Ordering::Relaxed) < BATCH {
        shared.wake.notified().await;
    }
}

impl Job {
    fn run(mut self) -> Self {
        self.result = self.target.write(&self.batch);
        self
    }
}

impl Target {
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(batch)?;
                stdout.flush()
            }
            Self::Writer(writer) => {
                writer.write_all(batch)?;
                writer.flush()
            }
            Self::File(path, file) => {
                if !is_same(path, file) {
                    *file = append(path)?;
                }
                file.write_all(batch)
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| io::Error::new(e.kind(), format!("access log {}: {e}", path.display())))
}

/// Whether `path` still leads to `file`.
#[cfg(unix)]
fn is_same(path: &Path, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same(path: &Path, _: &File) -> bool {
    path.exists()
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("Stdout"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Writer(_) => f.write_str("Writer"),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path, _) => path.fmt(f),
            Self::Writer(_) => f.write_str("a writer"),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("format", &self.format).finish_non_exhaustive()
    }
}
