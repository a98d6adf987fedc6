//! Names that wait to be looked at: each once, in the order in which they came.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Each name at most once, so that it is never longer than the list of subscriptions, however often their
/// content changes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeMap<u64, Arc<str>>,
    places: HashMap<Arc<str>, u64>,
    next: u64,
}

impl Queue {
    /// Puts a name at the end, unless it waits already.
    pub(super) fn push(&mut self, name: &Arc<str>) {
        if !self.places.contains_key(name) {
            self.next += 1;
            self.places.insert(Arc::clone(name), self.next);
            self.order.insert(self.next, Arc::clone(name));
        }
    }

    /// The name that has waited longest; it stays.
    pub(super) fn first(&self) -> Option<&Arc<str>> {
        self.order.first_key_value().map(|(_, name)| name)
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(place) = self.places.remove(name) {
            self.order.remove(&place);
        }
        if self.places.is_empty() {
            // A burst is over: its memory is given back.
            self.places = HashMap::new();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_waits_once_in_the_order_of_coming() {
        let mut queue = Queue::default();
        let names: Vec<Arc<str>> = ["b", "a", "c"].map(Arc::from).into();
        for name in names.iter().chain(&names) {
            queue.push(name);
        }
        assert_eq!(queue.len(), 3);
        queue.remove("a");
        queue.remove("a");
        let mut out = Vec::new();
        while let Some(name) = queue.first().map(Arc::clone) {
            queue.remove(&name);
            out.push(name);
        }
        assert_eq!(out, ["b".into(), "c".into()] as [Arc<str>; 2]);
        assert_eq!(queue.len(), 0);
    }
}
