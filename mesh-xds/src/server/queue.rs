//! Names that wait to be looked at: each once, in the order in which they came.

use std::collections::VecDeque;
use std::sync::Arc;

use super::known::Known;

/// Each name at most once, so that it is never longer than the list of subscriptions, however often their content
/// changes. Whether a name waits is kept with the name itself: when many proxies ask for everything at once, what
/// waits is most of what a stream holds.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<Arc<str>>);

impl Queue {
    /// Puts a name at the end, unless it waits already.
    pub(super) fn push(&mut self, name: &Arc<str>, known: &mut Known) {
        if known.wait() {
            self.0.push_back(Arc::clone(name));
        }
    }

    /// The name that has waited longest; it stays.
    pub(super) fn first(&self) -> Option<&Arc<str>> {
        self.0.front()
    }

    /// Lets go of the name that has waited longest, which has been [looked at](Known::looked_at).
    pub(super) fn pop(&mut self) {
        self.0.pop_front();
        self.give_back();
    }

    /// Lets go of names, in whatever order; they are the very texts that wait.
    pub(super) fn remove(&mut self, names: Vec<Arc<str>>) {
        if names.is_empty() {
            return;
        }
        // A look at each that waits must be cheap: a peer may have thousands wait, and take back one after another.
        let mut places: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        places.sort_unstable();
        self.0.retain(|name| places.binary_search(&name.as_ptr()).is_err());
        self.give_back();
    }

    fn give_back(&mut self) {
        if self.0.is_empty() {
            // A burst is over.
            self.0 = VecDeque::new();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::known::Sent;
    use super::*;

    #[test]
    fn each_name_waits_once_in_the_order_of_coming() {
        let mut queue = Queue::default();
        let names: Vec<Arc<str>> = ["b", "a", "c"].map(Arc::from).into();
        let mut known = vec![Known::new(Sent::Nothing); 3];
        for _ in 0..2 {
            for (name, known) in names.iter().zip(&mut known) {
                queue.push(name, known);
            }
        }
        assert_eq!(queue.len(), 3);
        queue.remove(vec![Arc::clone(&names[1])]);
        let mut out = Vec::new();
        while let Some(name) = queue.first().map(Arc::clone) {
            queue.pop();
            out.push(name);
        }
        assert_eq!(out, ["b".into(), "c".into()] as [Arc<str>; 2]);
        assert_eq!((queue.len(), queue.0.capacity()), (0, 0));
    }
}
