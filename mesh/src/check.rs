//! What a directory would do, without running anything.

use std::path::Path;
use std::sync::Arc;

use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::source::{Directory, DirectoryError};
use mesh_core::store::{Store, StoreOptions};
use serde_json::{Value, json};

use crate::dump;
use crate::validate::validate;

/// What [`check`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Everything that is wrong, in the order of the files; what is skipped last.
    pub diagnostics: Vec<Diagnostic>,
    /// How many resources would be in force, closed readings included.
    pub resources: usize,
}

/// Loads a directory as a mesh would, and reports what would not be applied; `root_namespace` is the
/// namespace whose policies are everybody's.
///
/// # Errors
/// When the directory cannot be read at all.
pub fn check(dir: &Path, root_namespace: &str) -> Result<Report, DirectoryError> {
    let root: Arc<str> = root_namespace.into();
    let options = StoreOptions { root_namespace: Arc::clone(&root), ..StoreOptions::default() };
    let loaded = Directory::new(dir).validate(move |object| validate(object, &root)).load()?;
    let resources = loaded.objects.len();
    let mut diagnostics = loaded.diagnostics;
    diagnostics.extend(Store::new(options, loaded.objects).diagnostics());
    diagnostics.sort_by(|a, b| {
        let order = |d: &Diagnostic| (d.effect == Effect::Skipped, d.origin.clone());
        order(a).cmp(&order(b))
    });
    Ok(Report { diagnostics, resources })
}

impl Report {
    /// Whether something that the user wrote would not be in force.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// The report in one line.
    pub fn summary(&self) -> String {
        let count = |wanted: fn(&Diagnostic) -> bool| self.diagnostics.iter().filter(|d| wanted(d)).count();
        let errors = count(Diagnostic::is_error);
        let warnings = count(|d| d.effect == Effect::NoEffect);
        let skipped = count(|d| d.effect == Effect::Skipped);
        format!(
            "{} in force, {}, {}, {} skipped",
            many(self.resources, "resource"),
            many(errors, "error"),
            many(warnings, "warning"),
            many(skipped, "document"),
        )
    }

    /// The report for tools.
    pub fn to_json(&self) -> Value {
        json!({
            "resources": self.resources,
            "errors": self.diagnostics.iter().filter(|d| d.is_error()).count(),
            "problems": self.diagnostics.iter().map(dump::diagnostic).collect::<Vec<_>>(),
        })
    }
}

fn many(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
