//! What injection cannot do, said so that a person can mend it.

use std::fmt;

/// Why a pod cannot get a sidecar: the field, what is wrong with it, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The object, as `KIND NAMESPACE/NAME`; empty until somebody who knows it says so.
    pub object: String,
    /// The field, as a path such as `spec.containers[0].ports[1]`.
    pub field: String,
    /// What is wrong and the way out.
    pub message: String,
}

impl Refusal {
    /// About a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { object: String::new(), field: field.into(), message: message.into() }
    }

    /// About an annotation of the pod.
    pub(crate) fn annotation(name: &str, message: impl Into<String>) -> Self {
        Self::new(format!("metadata.annotations[{name}]"), message)
    }

    /// Says whose field it is, where it lies below `prefix` (empty for a Pod).
    #[must_use]
    pub fn of(mut self, object: impl Into<String>, prefix: &str) -> Self {
        self.object = object.into();
        if !prefix.is_empty() {
            self.field = format!("{prefix}.{}", self.field);
        }
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for Refusal {}
