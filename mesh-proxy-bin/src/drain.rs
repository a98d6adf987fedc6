//! Shutting down without failing what is in flight.
//!
//! Every connection holds a [`Draining`]. When the drain begins, each finishes what it has begun
//! (`connection: close`, GOAWAY) and drops its handle; the drain is over when all are dropped, or at the
//! deadline. Who only has to know (workers, the admin page) holds a [`Watch`], which is not waited for; who takes
//! connections as long as any is there holds an [`Entrance`].
//!
//! Before it drains a sidecar may leave: it is no longer ready, and who calls its workload is told to go elsewhere,
//! while the workload's own calls go on as ever.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Leaving,
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

/// Makes handles as long as the drain is not over.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    watch: Watch,
    alive: mpsc::WeakSender<()>,
}

/// Says that the sidecar leaves.
#[derive(Debug, Clone)]
pub(crate) struct Leave(watch::Sender<Phase>);

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

    /// For who goes on taking connections while others are finished.
    pub(crate) fn entrance(&self) -> Entrance {
        Entrance { watch: self.watch(), alive: self.template._alive.downgrade() }
    }

    /// For who says when to leave.
    pub(crate) fn leave(&self) -> Leave {
        Leave(self.phase.clone())
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

impl Watch {
    /// Whether the sidecar leaves, or has begun to drain.
    pub(crate) fn is_leaving(&self) -> bool {
        *self.0.borrow() >= Phase::Leaving
    }
}

impl Entrance {
    /// A handle for something that must be waited for; `None` once nothing is waited for any more.
    pub(crate) fn handle(&self) -> Option<Draining> {
        Some(Draining { watch: self.watch.clone(), _alive: self.alive.upgrade()? })
    }

    /// Returns once the drain is over.
    pub(crate) async fn over(self) {
        self.watch.over().await;
    }
}

impl Leave {
    /// From now on the sidecar leaves.
    pub(crate) fn leave(&self) {
        self.0.send_if_modified(|phase| {
            let serves = *phase == Phase::Serving;
            if serves {
                *phase = Phase::Leaving;
            }
            serves
        });
    }
}

impl Draining {
    /// Returns once the sidecar leaves, or has begun to drain.
    pub(crate) async fn leaving(&mut self) {
        self.watch.reached(Phase::Leaving).await;
    }

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

    #[tokio::test(start_paused = true)]
    async fn connections_are_taken_as_long_as_one_is_there() {
        let drain = Drain::new();
        let (entrance, leave, watch) = (drain.entrance(), drain.leave(), drain.watch());
        let mut first = entrance.handle().unwrap();
        assert!(!watch.is_leaving());
        leave.leave();
        first.leaving().await;
        assert!(watch.is_leaving());
        let draining = tokio::spawn(drain.drain(Duration::from_secs(5)));
        first.begun().await;
        let second = entrance.handle().unwrap();
        drop(first);
        assert!(entrance.handle().is_some());
        drop(second);
        assert!(draining.await.unwrap());
        assert!(entrance.handle().is_none());
        // It does not lead back.
        leave.leave();
        entrance.over().await;
    }
}
