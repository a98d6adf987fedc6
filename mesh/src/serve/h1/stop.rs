//! Whether a connection is to end, asked twice for each request, and told once.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::super::asleep::Bell;

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
    bell: Bell,
}

impl<'a, F: Future<Output = ()>> Stop<'a, F> {
    pub(super) fn new(future: Pin<&'a mut F>, linger: Duration) -> Self {
        Self { future, linger, lingering: None, phase: Phase::Serving, bell: Bell::new() }
    }

    /// How far it has come; whoever asks is woken when that changes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Phase {
        if self.phase != Phase::Over && self.bell.has_rung(cx) {
            let _ = self.poll_rung();
        }
        self.phase
    }

    fn poll_rung(&mut self) -> Poll<()> {
        let mut cx = self.bell.context();
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
