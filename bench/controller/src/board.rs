//! A change that is waited for: who has to ACK it, and when the last did.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mesh_core::store::WorkloadAddress;
use mesh_xds::proto::discovery::{DeltaDiscoveryResponse, Resource};
use mesh_xds::{Payload, ResourceType};
use tokio::sync::Notify;
use tokio::time::Instant;

/// By what a change is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// An endpoint with this address.
    Endpoint(Ipv4Addr),
    /// A text somewhere in the resources.
    Text(String),
}

/// What is waited for.
#[derive(Debug)]
pub struct Awaited {
    kind: ResourceType,
    name: String,
    mark: Mark,
    done: Vec<AtomicBool>,
    left: AtomicUsize,
    last: Mutex<Instant>,
    finished: Notify,
}

/// Where proxies look what is waited for.
#[derive(Debug, Default)]
pub struct Board(RwLock<Option<Arc<Awaited>>>);

impl Board {
    /// Waits for this change from now on. `proxies` are all, of which `subscribed` have to ACK it.
    pub fn put(
        &self,
        kind: ResourceType,
        name: String,
        mark: Mark,
        proxies: usize,
        subscribed: usize,
    ) -> Arc<Awaited> {
        let awaited = Arc::new(Awaited {
            kind,
            name,
            mark,
            done: (0..proxies).map(|_| AtomicBool::new(false)).collect(),
            left: AtomicUsize::new(subscribed),
            last: Mutex::new(Instant::now()),
            finished: Notify::new(),
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&awaited));
        awaited
    }

    /// What is waited for now, if the response brings it.
    pub fn brought(&self, response: &DeltaDiscoveryResponse) -> Option<Arc<Awaited>> {
        let awaited = self.0.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let found = response.type_url == awaited.kind.url()
            && response.resources.iter().any(|r| r.name == awaited.name && awaited.marks(r));
        found.then_some(awaited)
    }
}

impl Awaited {
    fn marks(&self, resource: &Resource) -> bool {
        let Some(content) = &resource.resource else { return false };
        match &self.mark {
            Mark::Text(text) => content.value.windows(text.len()).any(|part| part == text.as_bytes()),
            Mark::Endpoint(ip) => match Payload::decode(self.kind, &content.value) {
                Ok(Payload::Endpoints(endpoints)) => {
                    let is_it = |address: &WorkloadAddress| *address == WorkloadAddress::Ip((*ip).into());
                    endpoints.groups.iter().flat_map(|g| &g.endpoints).any(|e| is_it(&e.address))
                }
                _ => false,
            },
        }
    }

    /// This proxy has sent its ACK.
    pub fn acked(&self, proxy: usize) {
        let Some(done) = self.done.get(proxy) else { return };
        if done.swap(true, Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = now.max(*last);
        drop(last);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finished.notify_one();
        }
    }

    /// When the last of all has sent its ACK.
    pub async fn finished(&self) -> Instant {
        self.finished.notified().await;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many have not.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use mesh_xds::proto::discovery::Any;

    fn response(kind: ResourceType, name: &str, body: &'static [u8]) -> DeltaDiscoveryResponse {
        let content = Any { type_url: kind.url().into(), value: Bytes::from_static(body) };
        let resource = Resource { name: name.into(), resource: Some(content), ..Default::default() };
        DeltaDiscoveryResponse {
            type_url: kind.url().into(),
            resources: vec![resource],
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_change_is_over_when_everybody_has_it() {
        let board = Board::default();
        assert!(board.brought(&response(ResourceType::Host, "a", b"x-mark-7")).is_none());
        let awaited = board.put(ResourceType::Host, "a".into(), Mark::Text("mark-7".into()), 3, 2);
        for (kind, name, body) in [
            (ResourceType::Endpoints, "a", &b"x-mark-7"[..]),
            (ResourceType::Host, "b", b"x-mark-7"),
            (ResourceType::Host, "a", b"x-mark-6"),
            (ResourceType::Host, "a", b""),
        ] {
            assert!(board.brought(&response(kind, name, body)).is_none());
        }
        let brought = board.brought(&response(ResourceType::Host, "a", b"x-mark-7")).unwrap();
        brought.acked(2);
        brought.acked(2);
        assert_eq!(awaited.left(), 1);
        brought.acked(0);
        assert!(awaited.finished().await <= Instant::now());
    }
}
