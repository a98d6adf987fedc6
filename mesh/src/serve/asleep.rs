//! Futures that sleep nearly always, beside others that do not.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Polls a future only when it has been woken itself. Beside a relay, which is polled for each piece of bytes, what
/// says that a connection is to end would else be asked as often, and that costs a third of what the relay does.
pub struct Asleep<'a, F> {
    future: Pin<&'a mut F>,
    bell: Bell,
}

impl<'a, F: Future> Asleep<'a, F> {
    /// Polls it for the first time when this is.
    pub fn new(future: Pin<&'a mut F>) -> Self {
        Self { future, bell: Bell::new() }
    }
}

impl<F: Future> Future for Asleep<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        if this.bell.has_rung(cx) {
            return this.future.as_mut().poll(&mut this.bell.context());
        }
        Poll::Pending
    }
}

impl<F> fmt::Debug for Asleep<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asleep").finish_non_exhaustive()
    }
}

/// What a future is polled with that is asked again only when it has woken its task.
pub(super) struct Bell {
    shared: Arc<Shared>,
    rung_by: Waker,
    /// Whom it wakes.
    known: Option<Waker>,
}

/// Remembers that it rang, and wakes the task.
struct Shared {
    rung: AtomicBool,
    /// Locked when it rings, and when another task asks.
    task: Mutex<Option<Waker>>,
}

impl Bell {
    /// One that has rung: the future is yet to be asked.
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared { rung: AtomicBool::new(true), task: Mutex::new(None) });
        let rung_by = Waker::from(Arc::clone(&shared));
        Self { shared, rung_by, known: None }
    }

    /// Whether it has rung since this was asked; whoever asks is woken when it rings.
    pub(super) fn has_rung(&mut self, cx: &Context<'_>) -> bool {
        if !self.known.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            let waker = cx.waker().clone();
            *self.shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
            self.known = Some(waker);
            // It may have rung for another task.
            self.shared.rung.store(true, Ordering::Relaxed);
        }
        // Taken back before the future is polled, so that no ring is lost. Read alone first: that is the usual end.
        self.shared.rung.load(Ordering::Acquire) && self.shared.rung.swap(false, Ordering::AcqRel)
    }

    /// What rings it.
    pub(super) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.rung_by)
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task {
            task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_else() {
        let (first, second) = (Notify::new(), Notify::new());
        let mut polls = 0;
        let mut both = pin!(async {
            first.notified().await;
            second.notified().await;
            "over"
        });
        let mut counted = pin!(poll_fn(|cx| {
            polls += 1;
            both.as_mut().poll(cx)
        }));
        let mut asleep = Asleep::new(counted.as_mut());
        for _ in 0..5 {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut asleep).poll(cx))).await.is_pending());
        }
        first.notify_one();
        for _ in 0..5 {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut asleep).poll(cx))).await.is_pending());
        }
        // The task sleeps now, and is woken through the bell.
        let ring = async {
            tokio::task::yield_now().await;
            second.notify_one();
        };
        let (over, ()) = tokio::join!(&mut asleep, ring);
        assert_eq!((over, polls), ("over", 3));
    }

    /// Whoever polls is whom it wakes, though another has polled it before.
    #[tokio::test]
    async fn another_task_that_polls_it_is_woken() {
        let notify = Arc::new(Notify::new());
        let waited = Arc::clone(&notify);
        let mut over = Box::pin(async move { waited.notified().await });
        {
            let mut asleep = Asleep::new(over.as_mut());
            let polled = Pin::new(&mut asleep).poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
            let ring = async {
                tokio::task::yield_now().await;
                notify.notify_one();
            };
            tokio::join!(asleep, ring);
        }
    }
}
