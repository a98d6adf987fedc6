//! The metadata that every resource has.

use super::common::Labels;

/// The annotation in which `kubectl` remembers what was applied.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The namespace of a document that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

thin_types! {
    /// The metadata of a resource, as far as the mesh uses it; the rest is ignored.
    pub struct ObjectMeta {
        /// The name.
        pub name: String,
        /// The namespace; [`DEFAULT_NAMESPACE`] for a document that names none, empty for kinds that live
        /// in no namespace.
        pub namespace: String,
        /// Labels.
        pub labels: Labels,
        /// Annotations.
        pub annotations: Labels,
        /// When it was made, in RFC 3339 and UTC as Kubernetes writes it, so that the order of the texts is
        /// the order of the times; empty where nobody says.
        pub creation_timestamp: String,
        /// When its deletion was asked for, in the same form; empty for what is to stay.
        pub deletion_timestamp: String,
        /// How often its spec has changed.
        pub generation: i64,
        /// Its version in the Kubernetes API.
        pub resource_version: String,
        /// What tells it from an earlier one of the same name.
        pub uid: String,
    }
}

impl ObjectMeta {
    /// Metadata with nothing but a namespace and a name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { name: name.to_owned(), namespace: namespace.to_owned(), ..Self::default() }
    }

    /// Leaves out what changes although nothing that the mesh uses has changed: the version, the uid, what
    /// `kubectl` remembers.
    pub(crate) fn drop_restless(&mut self) {
        self.generation = 0;
        self.resource_version = String::new();
        self.uid = String::new();
        self.annotations.remove(LAST_APPLIED);
    }

    /// What resources of one kind are ordered by where the oldest wins: age, then name, then namespace.
    /// A resource without a time counts as the youngest.
    pub fn age_order(&self) -> (bool, &str, &str, &str) {
        (self.creation_timestamp.is_empty(), &self.creation_timestamp, &self.name, &self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_and_the_dateless_last() {
        let at = |time: &str, name: &str| ObjectMeta {
            creation_timestamp: time.to_owned(),
            ..ObjectMeta::new("default", name)
        };
        let mut metas = [
            at("", "a"),
            at("2024-05-01T00:00:00Z", "c"),
            at("2024-05-01T00:00:00Z", "b"),
            at("2023-01-01T00:00:00Z", "z"),
        ];
        metas.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
        assert_eq!(metas.map(|m| m.name), ["z", "b", "c", "a"]);
    }
}
