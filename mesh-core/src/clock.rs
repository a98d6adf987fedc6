//! One look at the clock for all that a task does at a time.
//!
//! Ten layers ask for the time of each request, and each look takes as long as a hundred instructions. Nothing in a proxy
//! waits while its task is polled, so all of them may have the same answer: within [`AtOnce`] the first who asks looks, and
//! time stands still until the task sleeps again. Elsewhere, as around a program whose handlers compute for as long as they
//! like, [`now`] looks each time.
//!
//! ```
//! use tower_mesh_core::clock::{AtOnce, now};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let (first, second, later) = AtOnce::new(async {
//!     let (first, second) = (now(), now());
//!     tokio::task::yield_now().await;
//!     (first, second, now())
//! })
//! .await;
//! assert_eq!(first, second);
//! assert!(later > second);
//! assert!(now() < now());
//! # }
//! ```

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Instant;

thread_local! {
    static TIME: Cell<Time> = const { Cell::new(Time::Runs) };
}

#[derive(Debug, Clone, Copy)]
enum Time {
    Runs,
    /// It will stand still when somebody looks.
    Unseen,
    Stands(Instant),
}

/// What time it is: the clock's, or within [`AtOnce`] what it was when somebody asked first.
#[inline]
pub fn now() -> Instant {
    TIME.with(|time| match time.get() {
        Time::Runs => Instant::now(),
        Time::Stands(now) => now,
        Time::Unseen => {
            let now = Instant::now();
            time.set(Time::Stands(now));
            now
        }
    })
}

pin_project_lite::pin_project! {
    /// A future for which time stands still each time that it is polled. For those that never compute for long.
    #[derive(Debug)]
    pub struct AtOnce<F> {
        #[pin]
        future: F,
    }
}

impl<F> AtOnce<F> {
    /// Within it [`now`] is asked of the clock once a poll.
    pub const fn new(future: F) -> Self {
        Self { future }
    }
}

impl<F: Future> Future for AtOnce<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _running = TIME.get().stopped();
        self.project().future.poll(cx)
    }
}

/// Lets time go on, as it did before.
struct Stopped(Time);

impl Time {
    fn stopped(self) -> Stopped {
        if matches!(self, Self::Runs) {
            TIME.set(Self::Unseen);
        }
        Stopped(self)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if matches!(self.0, Time::Runs) {
            TIME.set(Time::Runs);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_stands_within_a_poll_and_goes_on_between_two() {
        let begun = Instant::now();
        AtOnce::new(async {
            assert_eq!(now(), begun);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(now(), begun + Duration::from_secs(1));
            // One within the other is the outer one's time.
            AtOnce::new(async { assert_eq!(now(), begun + Duration::from_secs(1)) }).await;
            assert!(matches!(TIME.get(), Time::Stands(_)));
        })
        .await;
        assert!(matches!(TIME.get(), Time::Runs));
    }

    #[test]
    fn it_goes_on_after_a_panic() {
        let panics = async { panic!("as a test does") };
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut at_once = Box::pin(AtOnce::new(panics));
            let _: Poll<()> = at_once.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        }));
        assert!(polled.is_err());
        assert!(matches!(TIME.get(), Time::Runs));
    }
}
