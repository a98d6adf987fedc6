//! What all clones of a pool share: who waits for room, and which endpoints have connections.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mesh_core::cluster::{Cluster, EndpointState};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) open: AtomicUsize,
    pub(super) draining: AtomicBool,
    pub(super) shards: usize,
    waiting: AtomicUsize,
    tickets: AtomicU64,
    waiters: Mutex<HashMap<usize, VecDeque<Waiter>>>,
    endpoints: Mutex<Vec<Weak<EndpointState>>>,
}

/// A cluster and an endpoint, told apart from others that exist at the same time by where they live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    cluster: usize,
    endpoint: usize,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    endpoint: usize,
    wake: oneshot::Sender<()>,
}

/// A place in the queue for room; leaves it when dropped.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    shared: &'a Shared,
    place: Place,
    number: u64,
    woken: oneshot::Receiver<()>,
}

/// A short lock whose holder never panics half way through a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    pub(super) fn new(cluster: &Arc<Cluster>, endpoint: &Arc<EndpointState>) -> Self {
        Self { cluster: Arc::as_ptr(cluster).addr(), endpoint: Arc::as_ptr(endpoint).addr() }
    }
}

impl Shared {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            open: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            shards: shards.max(1),
            waiting: AtomicUsize::new(0),
            tickets: AtomicU64::new(0),
            waiters: Mutex::default(),
            endpoints: Mutex::default(),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Joins the queue. Look for room once more before waiting: what came free before was not heard.
    pub(super) fn queue(&self, place: Place) -> Ticket<'_> {
        let number = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (wake, woken) = oneshot::channel();
        let mut waiters = lock(&self.waiters);
        waiters.entry(place.cluster).or_default().push_back(Waiter {
            ticket: number,
            endpoint: place.endpoint,
            wake,
        });
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Ticket { shared: self, place, number, woken }
    }

    /// Something came free: wakes who has waited longest for this endpoint, else for this cluster.
    pub(super) fn wake_one(&self, place: Place) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut waiters = lock(&self.waiters);
        let Some(queue) = waiters.get_mut(&place.cluster) else { return };
        while !queue.is_empty() {
            let same = queue.iter().position(|w| w.endpoint == place.endpoint).unwrap_or(0);
            let Some(waiter) = queue.remove(same) else { return };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if waiter.wake.send(()).is_ok() {
                break;
            }
        }
        if queue.is_empty() {
            waiters.remove(&place.cluster);
        }
    }

    fn leave(&self, place: Place, ticket: u64) {
        let mut waiters = lock(&self.waiters);
        let Some(queue) = waiters.get_mut(&place.cluster) else { return };
        if let Some(at) = queue.iter().position(|w| w.ticket == ticket) {
            queue.remove(at);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if queue.is_empty() {
            waiters.remove(&place.cluster);
        }
    }

    pub(super) fn remember(&self, endpoint: &Arc<EndpointState>) {
        lock(&self.endpoints).push(Arc::downgrade(endpoint));
    }

    /// The endpoints that still exist.
    pub(super) fn endpoints(&self) -> Vec<Arc<EndpointState>> {
        let mut found = Vec::new();
        lock(&self.endpoints).retain(|weak| match weak.upgrade() {
            Some(endpoint) => {
                found.push(endpoint);
                true
            }
            None => false,
        });
        found
    }
}

impl Ticket<'_> {
    pub(super) async fn woken(&mut self) {
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.place, self.number);
        // Woken, and gone before it could use that: the next one may.
        if self.woken.try_recv().is_ok() {
            self.shared.wake_one(self.place);
        }
    }
}
