//! What a stream subscribes to, in as little memory as it can be.

use std::sync::Arc;

/// Names in order, each with a value. A server keeps one entry for each subscription of each proxy, millions
/// of them: a list in order takes 32 bytes for each, half of what a hash table does. Clients subscribe to long
/// lists in order, so entries are put at the end.
#[derive(Debug)]
pub(super) struct Table<T>(Vec<(Arc<str>, T)>);

impl<T> Table<T> {
    fn place(&self, name: &str) -> Result<usize, usize> {
        if self.0.last().is_some_and(|(last, _)| **last < *name) {
            return Err(self.0.len());
        }
        self.0.binary_search_by(|(other, _)| (**other).cmp(name))
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<(&Arc<str>, &mut T)> {
        let place = self.place(name).ok()?;
        self.0.get_mut(place).map(|(name, value)| (&*name, value))
    }

    /// Puts in a name that is new; one that is not keeps its value.
    pub(super) fn insert(&mut self, name: Arc<str>, value: T) {
        if let Err(place) = self.place(&name) {
            self.0.insert(place, (name, value));
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<(Arc<str>, T)> {
        let place = self.place(name).ok()?;
        let removed = self.0.remove(place);
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to_fit();
        }
        Some(removed)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Gives back what was taken in advance, once a long list has been put in.
    pub(super) fn shrink(&mut self) {
        if self.0.capacity() - self.0.len() > self.0.len() / 8 {
            self.0.shrink_to_fit();
        }
    }

    /// Names and values, in order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut T)> {
        self.0.iter_mut().map(|(name, value)| (&*name, value))
    }

    /// The names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|(name, _)| name)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((any::<bool>(), "[a-c]{0,2}"), 0..60)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (i, (put, name)) in steps.iter().enumerate() {
                if *put {
                    table.insert(name.as_str().into(), i);
                    map.entry(name.clone()).or_insert(i);
                } else {
                    let removed = table.remove(name).map(|(name, value)| (name.to_string(), value));
                    prop_assert_eq!(removed, map.remove_entry(name));
                }
                let found = table.get_mut(name).map(|(_, value)| *value);
                prop_assert_eq!(found, map.get(name).copied());
                table.shrink();
            }
            prop_assert_eq!(table.len(), map.len());
            prop_assert!(table.names().map(|name| &**name).eq(map.keys()));
        }
    }

    #[test]
    fn an_entry_takes_32_bytes() {
        assert_eq!(size_of::<(Arc<str>, crate::server::known::Known)>(), 32);
    }
}
