//! The only way to change while running: build a whole new value, publish it once.
//!
//! A [`Live<T>`] is the read side: cheap to clone, one lock-free [`load`](Live::load) a request. A
//! [`Publisher<T>`] is the write side, one owner. A reader takes a snapshot once and passes it down, so
//! that everything that a request meets comes from one configuration.
//!
//! ```
//! use tower_mesh_core::live;
//!
//! let (publisher, rules) = live::channel(vec!["allow reviews"]);
//! assert_eq!(rules.load().len(), 1);
//!
//! publisher.publish(vec!["allow reviews", "deny all"]);
//! assert_eq!(rules.load().len(), 2);
//!
//! // Publishing what is in force already wakes nobody.
//! assert!(!publisher.publish_if_changed(vec!["allow reviews", "deny all"]));
//! ```

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

struct Cell<T> {
    value: ArcSwap<T>,
    version: watch::Sender<u64>,
}

/// The read side of a value that changes while the program runs.
///
/// Clones share one cell. A `Live` whose [`Publisher`] is gone keeps its last value for ever, which is
/// what a mesh that outlives its control plane wants.
pub struct Live<T> {
    cell: Arc<Cell<T>>,
}

/// The write side of a [`Live`]; one owner, so that two writers cannot interleave.
pub struct Publisher<T> {
    cell: Arc<Cell<T>>,
}

/// A snapshot of a [`Live`]: dereferences to the value and costs no reference count.
///
/// Do not hold one across an `.await` for long; take [`Live::load_full`] for that.
pub type Snapshot<T> = Guard<Arc<T>>;

/// Waits for the next publish of a [`Live`]; made by [`Live::changes`].
#[derive(Debug, Clone)]
pub struct Changes(watch::Receiver<u64>);

/// A publisher and a reader of `value`.
pub fn channel<T>(value: T) -> (Publisher<T>, Live<T>) {
    let publisher = Publisher::new(value);
    let live = publisher.live();
    (publisher, live)
}

impl<T> Live<T> {
    /// A value that never changes, for a layer that is configured once from plain values.
    pub fn fixed(value: T) -> Self {
        Publisher::new(value).live()
    }

    /// The value in force now. Lock-free; meant for once a request.
    pub fn load(&self) -> Snapshot<T> {
        self.cell.value.load()
    }

    /// The value in force now, to be kept as long as wanted.
    pub fn load_full(&self) -> Arc<T> {
        self.cell.value.load_full()
    }

    /// A handle that waits for publishes after this call.
    pub fn changes(&self) -> Changes {
        Changes(self.cell.version.subscribe())
    }

    /// How many values have been published after the first.
    pub fn version(&self) -> u64 {
        *self.cell.version.borrow()
    }
}

impl<T> Publisher<T> {
    /// Starts with `value` in force.
    pub fn new(value: T) -> Self {
        let version = watch::Sender::new(0);
        Self { cell: Arc::new(Cell { value: ArcSwap::from_pointee(value), version }) }
    }

    /// A reader of this publisher's value.
    pub fn live(&self) -> Live<T> {
        Live { cell: Arc::clone(&self.cell) }
    }

    /// The value in force now.
    pub fn load(&self) -> Snapshot<T> {
        self.cell.value.load()
    }

    /// Puts `next` in force and wakes every [`Changes`].
    pub fn publish(&self, next: T) {
        self.publish_arc(Arc::new(next));
    }

    /// As [`publish`](Self::publish), for a value that is shared already.
    pub fn publish_arc(&self, next: Arc<T>) {
        self.cell.value.store(next);
        self.cell.version.send_modify(|v| *v = v.wrapping_add(1));
    }

    /// Publishes `next` unless it equals what is in force; says whether it did.
    pub fn publish_if_changed(&self, next: T) -> bool
    where
        T: PartialEq,
    {
        let changed = **self.load() != next;
        if changed {
            self.publish(next);
        }
        changed
    }
}

impl Changes {
    /// Returns once a value was published since the last call; never again once the publisher and every
    /// reader are gone (it then stays pending, so that a `select!` loop does not spin).
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell) }
    }
}

impl<T: Default> Default for Live<T> {
    fn default() -> Self {
        Self::fixed(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&**self.load()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Publisher").field(&**self.load()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_sees_each_publish_and_is_woken_once() {
        let (publisher, live) = channel(1);
        let mut changes = live.changes();
        publisher.publish(2);
        changes.changed().await;
        assert_eq!(**live.load(), 2);
        assert!(!publisher.publish_if_changed(2));
        let woken = tokio::time::timeout(std::time::Duration::ZERO, changes.changed()).await;
        assert!(woken.is_err(), "an equal value must not wake readers");
    }

    #[tokio::test]
    async fn the_last_value_outlives_the_publisher() {
        let (publisher, live) = channel("good");
        let mut changes = live.changes();
        drop(publisher);
        assert_eq!(**live.load(), "good");
        let woken = tokio::time::timeout(std::time::Duration::ZERO, changes.changed()).await;
        assert!(woken.is_err());
    }
}
