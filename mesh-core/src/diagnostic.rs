//! What is wrong with a configuration, said so that a person can mend it.
//!
//! Every complaint names the file and line it came from, the resource, the field, and what follows from
//! it. `mesh-proxy check` prints exactly these, and a running proxy logs exactly these.
//!
//! ```
//! use tower_mesh_core::diagnostic::{Diagnostic, Effect, ResourceRef};
//!
//! let d = Diagnostic::new(Effect::NotApplied, "mirror is not supported yet")
//!     .resource(ResourceRef::new("VirtualService", "default", "reviews"))
//!     .field("spec.http[0].mirror");
//! assert_eq!(
//!     d.to_string(),
//!     "VirtualService default/reviews: spec.http[0].mirror: mirror is not supported yet; \
//!      the resource is not applied"
//! );
//! assert!(d.is_error());
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A resource by kind, namespace and name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceRef {
    kind: &'static str,
    /// `NAMESPACE/NAME`, once, so that a log line need not join it.
    full: Arc<str>,
    /// How many bytes of `full` are the namespace.
    namespace: usize,
}

/// Where a document stands: a file and the line on which it starts, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The file, as the user named it.
    pub file: Arc<Path>,
    /// The line, counted from 1.
    pub line: u32,
    /// Which document of the file it is, counted from 0; items of a `List` share their document.
    pub document: u32,
}

/// What follows from a complaint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Effect {
    /// The resource is not applied (and nothing of it was in force before).
    NotApplied,
    /// The form that was in force before stays in force.
    LastGoodKept,
    /// A security resource that could not be read takes its closed reading: it refuses what it selects.
    ClosedReading,
    /// The resource is applied; this field makes no difference.
    NoEffect,
    /// The document is none of the mesh's business.
    Skipped,
}

/// One complaint about a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What follows from it.
    pub effect: Effect,
    /// The resource, when the document could be read that far.
    pub resource: Option<ResourceRef>,
    /// Where the document (or the field, when its line is known) stands.
    pub origin: Option<Origin>,
    /// The field, as a path such as `spec.http[0].mirror`; empty for the whole resource.
    pub field: String,
    /// What is wrong and the way out.
    pub message: String,
}

impl ResourceRef {
    /// Names a resource; `kind` as Kubernetes writes it, such as `VirtualService`.
    pub fn new(kind: &'static str, namespace: &str, name: &str) -> Self {
        Self { kind, full: format!("{namespace}/{name}").into(), namespace: namespace.len() }
    }

    /// The kind, such as `VirtualService`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.full.get(..self.namespace).unwrap_or_default()
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.full.get(self.namespace + 1..).unwrap_or_default()
    }

    /// `NAMESPACE/NAME`, as policies are written in access logs.
    pub fn namespaced_name(&self) -> &str {
        &self.full
    }
}

impl Origin {
    /// A document of `file` that starts on `line` (from 1) and is the file's `document`th (from 0).
    pub fn new(file: impl Into<PathBuf>, line: u32, document: u32) -> Self {
        Self { file: Arc::from(file.into()), line, document }
    }
}

impl Effect {
    /// How the effect is told at the end of a message; empty where there is nothing to add.
    pub const fn told(self) -> &'static str {
        match self {
            Self::NotApplied => "the resource is not applied",
            Self::LastGoodKept => "its last good form stays in force",
            Self::ClosedReading => "until it is mended it refuses all that it selects",
            Self::NoEffect => "it has no effect",
            Self::Skipped => "the document is skipped",
        }
    }
}

impl Diagnostic {
    /// A complaint with nothing but its text.
    pub fn new(effect: Effect, message: impl Into<String>) -> Self {
        Self { effect, resource: None, origin: None, field: String::new(), message: message.into() }
    }

    /// Names the resource.
    #[must_use]
    pub fn resource(mut self, resource: ResourceRef) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// Says where it stands.
    #[must_use]
    pub fn origin(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Whether something that the user wrote is not in force because of it: what makes
    /// `mesh-proxy check` exit with 1.
    pub const fn is_error(&self) -> bool {
        matches!(self.effect, Effect::NotApplied | Effect::LastGoodKept | Effect::ClosedReading)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.message, self.effect.told())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.full)
    }
}

impl fmt::Debug for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
