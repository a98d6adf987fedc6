//! Which ConfigMaps are to be written, decided without I/O.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::queue::Queue;

/// What is known by name, with lists that take away what they do not hold.
#[derive(Debug)]
pub(super) struct Listed<V> {
    known: HashMap<String, (V, u64)>,
    list: u64,
    whole: bool,
}

impl<V> Default for Listed<V> {
    fn default() -> Self {
        Self { known: HashMap::new(), list: 0, whole: false }
    }
}

impl<V> Listed<V> {
    /// A list begins. Until it ends, what is known stays.
    pub(super) fn begin(&mut self) {
        self.list += 1;
    }

    /// The list is whole. Gives what it does not hold.
    fn end(&mut self) -> Vec<String> {
        self.whole = true;
        let list = self.list;
        let gone: Vec<_> =
            self.known.iter().filter(|(_, (_, l))| *l != list).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| drop(self.known.remove(name)));
        gone
    }

    fn put(&mut self, name: &str, value: V) {
        self.known.insert(name.to_owned(), (value, self.list));
    }

    fn get(&self, name: &str) -> Option<&V> {
        self.known.get(name).map(|(value, _)| value)
    }
}

/// What a ConfigMap is.
#[derive(Debug, Clone, Copy)]
pub(super) enum MapState<'a> {
    /// It is there, with this.
    Is(Option<&'a str>),
    /// It was deleted.
    Gone,
}

/// Namespaces, their ConfigMaps and what these should hold.
#[derive(Debug, Default)]
pub(super) struct World {
    roots: String,
    /// Each namespace, and whether it is to stay.
    pub(super) namespaces: Listed<bool>,
    /// The namespaces that have the ConfigMap, and whether it holds what it should.
    pub(super) maps: Listed<bool>,
    due: Queue<String>,
}

impl World {
    /// What is to be written now, with how often that has failed; else when there is something to write. Nothing is as
    /// long as it is not known what is there.
    pub(super) fn take(&mut self, now: Instant) -> Result<(String, String, u32), Option<Instant>> {
        if !self.is_known() {
            return Err(None);
        }
        loop {
            let (namespace, failures) = self.due.take(now)?;
            if self.is_wanted(&namespace) {
                return Ok((namespace, self.roots.clone(), failures));
            }
        }
    }

    /// The roots are these from now on.
    pub(super) fn roots(&mut self, roots: String, now: Instant) {
        if self.roots != roots {
            self.roots = roots;
            self.maps.known.values_mut().for_each(|(right, _)| *right = false);
            self.look_at_all(now);
        }
    }

    /// A namespace is there.
    pub(super) fn namespace(&mut self, name: &str, stays: bool, now: Instant) {
        self.namespaces.put(name, stays);
        self.look(name, now);
    }

    /// A namespace was deleted.
    pub(super) fn namespace_gone(&mut self, name: &str) {
        self.namespaces.known.remove(name);
    }

    /// The list of namespaces is whole.
    pub(super) fn namespaces_whole(&mut self, now: Instant) {
        self.namespaces.end();
        self.look_at_all(now);
    }

    /// What the ConfigMap of `namespace` is.
    pub(super) fn map(&mut self, namespace: &str, state: MapState<'_>, now: Instant) {
        match state {
            MapState::Is(roots) => self.maps.put(namespace, roots == Some(&self.roots)),
            MapState::Gone => drop(self.maps.known.remove(namespace)),
        }
        self.look(namespace, now);
    }

    /// The list of ConfigMaps is whole.
    pub(super) fn maps_whole(&mut self, now: Instant) {
        self.maps.end();
        self.look_at_all(now);
    }

    /// Writing failed for the `failures`th time.
    pub(super) fn failed(&mut self, namespace: String, failures: u32, now: Instant) {
        self.due.again(namespace, failures, now);
    }

    fn is_known(&self) -> bool {
        self.namespaces.whole && self.maps.whole && !self.roots.is_empty()
    }

    fn is_wanted(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace) == Some(&true) && self.maps.get(namespace) != Some(&true)
    }

    fn look(&mut self, namespace: &str, now: Instant) {
        if self.is_known() && self.is_wanted(namespace) {
            self.due.add(namespace.to_owned(), now);
        } else {
            self.due.remove(&namespace.to_owned());
        }
    }

    fn look_at_all(&mut self, now: Instant) {
        let names: Vec<_> = self.namespaces.known.keys().cloned().collect();
        names.iter().for_each(|name| self.look(name, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that is to be written now.
    fn due(world: &mut World, now: Instant) -> Vec<String> {
        let mut due: Vec<_> = std::iter::from_fn(|| world.take(now).ok()).map(|(name, ..)| name).collect();
        due.sort();
        due
    }

    /// Namespaces `a` and `b` with the right ConfigMap.
    fn settled(now: Instant) -> World {
        let mut world = World::default();
        world.roots("R".into(), now);
        world.namespaces.begin();
        world.maps.begin();
        for name in ["a", "b"] {
            world.namespace(name, true, now);
            world.map(name, MapState::Is(Some("R")), now);
        }
        world.namespaces_whole(now);
        world.maps_whole(now);
        assert!(due(&mut world, now).is_empty());
        world
    }

    #[test]
    fn nothing_is_written_before_it_is_known_what_is_there() {
        let now = Instant::now();
        let mut world = World::default();
        world.roots("R".into(), now);
        world.namespaces.begin();
        world.namespace("a", true, now);
        world.namespace("ends", false, now);
        world.namespaces_whole(now);
        assert!(due(&mut world, now).is_empty());
        world.maps.begin();
        world.maps_whole(now);
        assert_eq!(due(&mut world, now), ["a"]);
        let mut rootless = settled(now);
        rootless.roots(String::new(), now);
        assert!(due(&mut rootless, now).is_empty(), "no roots are never written");
    }

    #[test]
    fn what_somebody_changes_is_put_right() {
        let now = Instant::now();
        for state in [MapState::Gone, MapState::Is(None), MapState::Is(Some("other")), MapState::Is(Some(""))]
        {
            let mut world = settled(now);
            world.map("a", state, now);
            assert_eq!(due(&mut world, now), ["a"], "{state:?}");
            world.map("a", MapState::Is(Some("R")), now);
            assert!(due(&mut world, now).is_empty());
        }
        let mut world = settled(now);
        world.map("a", MapState::Gone, now);
        world.map("a", MapState::Is(Some("R")), now);
        assert!(due(&mut world, now).is_empty(), "somebody else was faster");
    }

    #[test]
    fn a_namespace_that_ends_is_left_alone() {
        let now = Instant::now();
        let mut world = settled(now);
        world.map("a", MapState::Gone, now);
        world.namespace("a", false, now);
        assert!(due(&mut world, now).is_empty());
        world.namespace_gone("b");
        world.map("b", MapState::Gone, now);
        assert!(due(&mut world, now).is_empty());
    }

    #[test]
    fn new_roots_are_written_everywhere() {
        let now = Instant::now();
        let mut world = settled(now);
        world.roots("S".into(), now);
        let (first, roots, _) = world.take(now).unwrap();
        assert_eq!(roots, "S");
        world.map(&first, MapState::Is(Some("S")), now);
        world.roots("S".into(), now);
        assert_eq!(due(&mut world, now), [if first == "a" { "b" } else { "a" }]);
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_hold() {
        let now = Instant::now();
        let mut world = settled(now);
        world.maps.begin();
        world.map("a", MapState::Is(Some("R")), now);
        assert!(due(&mut world, now).is_empty(), "not before it is whole");
        world.maps_whole(now);
        assert_eq!(due(&mut world, now), ["b"]);
    }

    #[test]
    fn what_failed_is_tried_later() {
        let now = Instant::now();
        let mut world = settled(now);
        world.map("a", MapState::Gone, now);
        let (name, _, failures) = world.take(now).unwrap();
        world.failed(name, failures + 1, now);
        let at = world.take(now).unwrap_err().unwrap();
        assert_eq!((at - now).as_secs(), 1);
        assert_eq!(world.take(at).unwrap().2, 1);
    }
}
