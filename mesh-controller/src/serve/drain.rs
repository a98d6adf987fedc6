//! Shutting down without failing what is in flight.
//!
//! ```
//! use std::time::Duration;
//! use mesh_controller::serve::drain::Drain;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let drain = Drain::new();
//! let mut connection = drain.handle();
//! tokio::spawn(async move { connection.begun().await });
//! assert!(drain.drain(Duration::from_secs(5)).await, "the connection has ended in time");
//! # });
//! ```

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// The side that shuts down.
#[derive(Debug)]
pub struct Drain {
    begun: watch::Sender<bool>,
    /// Never sent on: it closes when the last handle is gone.
    alive: mpsc::Receiver<()>,
    template: Draining,
}

/// Sees a drain begin, and is waited for while it is held.
#[derive(Debug, Clone)]
pub struct Draining {
    begun: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

impl Drain {
    /// Nothing is being drained yet.
    pub fn new() -> Self {
        let (begun, receiver) = watch::channel(false);
        let (sender, alive) = mpsc::channel(1);
        Self { begun, alive, template: Draining { begun: receiver, _alive: sender } }
    }

    /// A handle for something that must be waited for.
    pub fn handle(&self) -> Draining {
        self.template.clone()
    }

    /// Begins, and waits until all handles are dropped or the time is over. Says whether all were.
    pub async fn drain(mut self, within: Duration) -> bool {
        self.begun.send_replace(true);
        drop(self.template);
        tokio::time::timeout(within, self.alive.recv()).await.is_ok()
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Draining {
    /// Returns once the drain has begun.
    pub async fn begun(&mut self) {
        // An error says that the drain itself is gone, which is as good as begun.
        let _ = self.begun.wait_for(|begun| *begun).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_for_ever() {
        let drain = Drain::new();
        let _stuck = drain.handle();
        let started = tokio::time::Instant::now();
        assert!(!drain.drain(Duration::from_secs(5)).await);
        assert_eq!(started.elapsed(), Duration::from_secs(5));
    }
}
