//! Shutting down without failing what is in flight.
//!
//! Every connection holds a [`Draining`]. When the drain begins, each finishes what it has begun
//! (`connection: close`, GOAWAY) and drops its handle; the drain is over when all are dropped, or at the
//! deadline. Who only has to know (workers, the admin page) holds a [`Watch`], which is not waited for.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Over,
}

/// The side that shuts down.
#[derive(Debug)]
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
    /// Never sent on: it closes when the last connection is gone.
    alive: mpsc::Receiver<()>,
    template: Draining,
}

/// Sees a drain begin and end.
#[derive(Debug, Clone)]
pub(crate) struct Watch(watch::Receiver<Phase>);

/// Sees a drain begin, and is waited for; held by whatever must be finished.
#[derive(Debug, Clone)]
pub(crate) struct Draining {
    watch: Watch,
    _alive: mpsc::Sender<()>,
}

impl Drain {
    pub(crate) fn new() -> Self {
        let (phase, receiver) = watch::channel(Phase::Serving);
        let (sender, alive) = mpsc::channel(1);
        Self { phase, alive, template: Draining { watch: Watch(receiver), _alive: sender } }
    }

    /// A handle for something that must be waited for.
    pub(crate) fn handle(&self) -> Draining {
        self.template.clone()
    }

    /// A handle for something that only has to know.
    pub(crate) fn watch(&self) -> Watch {
        self.template.watch.clone()
    }

    /// Begins, and waits until all are done or the time is over. Says whether all were done.
    pub(crate) async fn drain(mut self, within: Duration) -> bool {
        let _ = self.phase.send(Phase::Draining);
        drop(self.template);
        let whole = tokio::time::timeout(within, self.alive.recv()).await.is_ok();
        let _ = self.phase.send(Phase::Over);
        whole
    }
}

impl Watch {
    async fn reached(&mut self, phase: Phase) {
        // An error says that the drain itself is gone, which is as good as over.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }

    /// Returns once the drain is over.
    pub(crate) async fn over(mut self) {
        self.reached(Phase::Over).await;
    }
}

impl Draining {
    /// Returns once the drain has begun.
    pub(crate) async fn begun(&mut self) {
        self.watch.reached(Phase::Draining).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_every_handle_but_not_for_ever() {
        let drain = Drain::new();
        let mut one = drain.handle();
        let over = tokio::spawn(drain.watch().over());
        let task = tokio::spawn(async move {
            one.begun().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        assert!(drain.drain(Duration::from_secs(5)).await);
        task.await.unwrap();
        over.await.unwrap();

        let drain = Drain::new();
        let mut stuck = drain.handle();
        let started = tokio::time::Instant::now();
        assert!(!drain.drain(Duration::from_secs(5)).await);
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        stuck.begun().await;
    }
}
