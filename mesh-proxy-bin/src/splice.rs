//! Bytes that go from socket to socket within the kernel, without being copied through this program: `splice(2)`.
//!
//! It takes two calls of the kernel for what copying takes two for, so it pays where much is carried at once, and only
//! there.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use mesh::telemetry::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::relay::MOST_AT_ONCE;

/// How many pipes the sidecar has at most. Only a direction in which bytes are stuck keeps one, and each worker one to
/// spare; beyond them bytes are copied. The kernel allows the pipes of a user 16,384 pages altogether
/// (`fs.pipe-user-pages-soft`), and these take 64 each.
const MOST_PIPES: usize = 32;

static PIPES: Pipes = Pipes::new();

/// Whether the kernel has refused, or something that filters calls of it: it is not asked again.
static REFUSED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The pipe of the worker, an empty one.
    static SPARE: Cell<Option<Box<Pipe>>> = const { Cell::new(None) };
}

/// Where bytes are between two sockets.
#[derive(Debug)]
pub(crate) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// How many bytes are in it.
    held: usize,
    _place: Place,
}

/// Who counts pipes.
#[derive(Debug)]
struct Pipes {
    open: AtomicUsize,
    /// How often there was none left.
    exhausted: AtomicU64,
}

impl Pipes {
    const fn new() -> Self {
        Self { open: AtomicUsize::new(0), exhausted: AtomicU64::new(0) }
    }

    fn place(&'static self) -> Option<Place> {
        let more = |open: usize| (open < MOST_PIPES).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            self.exhausted.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Place(self))
    }
}

/// One of [`MOST_PIPES`].
#[derive(Debug)]
struct Place(&'static Pipes);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells of the process's pipes in its metrics.
pub(crate) fn register(metrics: &Metrics) {
    metrics.with_registry(|registry| registry.register_collector(Box::new(&PIPES)));
}

impl Collector for &'static Pipes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "Pipes in which bytes are between two sockets.";
        let open = self.open.load(Ordering::Relaxed) as i64;
        encoder.encode_descriptor("mesh_relay_pipes", help, None, MetricType::Gauge)?.encode_gauge(&open)?;
        let help = "Times that bytes were copied because no more pipes were allowed.";
        let exhausted = self.exhausted.load(Ordering::Relaxed);
        encoder
            .encode_descriptor("mesh_relay_pipes_exhausted", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&exhausted, None)
    }
}

impl Pipe {
    /// An empty pipe; `None` where there may be none.
    pub(crate) fn take() -> Option<Box<Self>> {
        if REFUSED.load(Ordering::Relaxed) {
            return None;
        }
        SPARE.take().or_else(|| Self::of(&PIPES))
    }

    fn of(pipes: &'static Pipes) -> Option<Box<Self>> {
        let place = pipes.place()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // A user who has too many pages in pipes gets one that is too small to be of use.
        fcntl_setpipe_size(&writer, MOST_AT_ONCE).ok()?;
        Some(Box::new(Self { reader, writer, held: 0, _place: place }))
    }

    /// Lets it go: the worker's next one that is needed is this, if there is nothing in it.
    pub(crate) fn give_back(self: Box<Self>) {
        if self.held == 0 {
            SPARE.set(Some(self));
        }
    }

    /// Whether the worker has one to spare: it was used.
    #[cfg(test)]
    pub(crate) fn is_spare() -> bool {
        let spare = SPARE.take();
        let is = spare.is_some();
        SPARE.set(spare);
        is
    }

    /// How many bytes are in it.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes what has come, [`MOST_AT_ONCE`] at most; zero when there will be no more. `None` when this cannot be done
    /// here, and nothing was taken. Only for an empty one.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
    ) -> Poll<io::Result<Option<usize>>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || spliced(from, &self.writer, MOST_AT_ONCE)) {
                Ok(taken) => {
                    self.held += taken;
                    return Poll::Ready(Ok(Some(taken)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_refusal(&error) => {
                    REFUSED.store(true, Ordering::Relaxed);
                    return Poll::Ready(Ok(None));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Passes on what is in it, or a part of that.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || spliced(&self.reader, to, self.held)) {
                Ok(passed) => {
                    self.held = self.held.saturating_sub(passed);
                    return Poll::Ready(Ok(passed));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn spliced(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, length: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, length, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
}

/// Whether it was refused to do this at all, rather than with these sockets.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::PERM].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|error| refusals.contains(&error))
}

#[cfg(test)]
mod tests {
    use mesh::telemetry::metrics::{Exposition, OwnWorkload};

    use super::*;

    #[test]
    fn there_are_so_many_pipes_and_no_more_until_one_is_gone() {
        static PIPES: Pipes = Pipes::new();
        let metrics = Metrics::new(OwnWorkload::default());
        metrics.with_registry(|registry| registry.register_collector(Box::new(&PIPES)));
        let mut held: Vec<_> = (0..MOST_PIPES).map(|_| Pipe::of(&PIPES).unwrap()).collect();
        for _ in 0..3 {
            assert!(Pipe::of(&PIPES).is_none());
        }
        let text = metrics.encode(Exposition::Classic);
        assert!(text.contains(&format!("\nmesh_relay_pipes {MOST_PIPES}\n")), "{text}");
        assert!(text.contains("\nmesh_relay_pipes_exhausted_total 3\n"), "{text}");
        held.pop();
        assert!(Pipe::of(&PIPES).is_some());
    }

    #[test]
    fn a_call_that_is_not_allowed_is_told_from_a_connection_that_broke() {
        let is = |errno: Errno| is_refusal(&errno.into());
        for (errno, refused) in [
            (Errno::INVAL, true),
            (Errno::NOSYS, true),
            (Errno::PERM, true),
            (Errno::CONNRESET, false),
            (Errno::PIPE, false),
            (Errno::AGAIN, false),
        ] {
            assert_eq!(is(errno), refused, "{errno:?}");
        }
        assert!(!is_refusal(&io::ErrorKind::WriteZero.into()));
    }
}
