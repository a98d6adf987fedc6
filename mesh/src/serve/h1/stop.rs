//! Whether a connection is to end, asked twice for each request, and told once.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not been asked for.
    Serving,
    /// It has, and idle connections are kept.
    Lingering,
    /// Nothing new is waited for.
    Over,
}

/// A future that says when to stop. What it waits for is asked again only when it has rung: to poll it costs more than
/// most of what a connection does between two requests.
pub(super) struct Stop<'a, F> {
    future: Pin<&'a mut F>,
    linger: Duration,
    lingering: Option<Pin<Box<Sleep>>>,
    phase: Phase,
    bell: Arc<Bell>,
    /// Of the bell.
    rung_by: Waker,
    /// Whom the bell wakes.
    known: Option<Waker>,
}

/// Remembers that it rang, and wakes the connection.
struct Bell {
    rung: AtomicBool,
    connection: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = &*connection {
            connection.wake_by_ref();
        }
    }
}

impl<'a, F: Future<Output = ()>> Stop<'a, F> {
    pub(super) fn new(future: Pin<&'a mut F>, linger: Duration) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), connection: Mutex::new(None) });
        let rung_by = Waker::from(Arc::clone(&bell));
        Self { future, linger, lingering: None, phase: Phase::Serving, bell, rung_by, known: None }
    }

    /// How far it has come; whoever asks is woken when that changes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Phase {
        if !self.known.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            let waker = cx.waker().clone();
            *self.bell.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
            self.known = Some(waker);
            // It may have rung for somebody else.
            self.bell.rung.store(true, Ordering::Relaxed);
        }
        // Looked at before the future is, so that no ring is lost.
        if self.phase != Phase::Over
            && self.bell.rung.load(Ordering::Acquire)
            && self.bell.rung.swap(false, Ordering::AcqRel)
        {
            let _ = self.poll_rung();
        }
        self.phase
    }

    fn poll_rung(&mut self) -> Poll<()> {
        let mut cx = Context::from_waker(&self.rung_by);
        if self.phase == Phase::Serving {
            ready!(self.future.as_mut().poll(&mut cx));
            self.phase = Phase::Lingering;
        }
        if !self.linger.is_zero() {
            let linger = self.linger;
            let lingering = self.lingering.get_or_insert_with(|| Box::pin(sleep(linger)));
            ready!(lingering.as_mut().poll(&mut cx));
        }
        self.phase = Phase::Over;
        Poll::Ready(())
    }
}
