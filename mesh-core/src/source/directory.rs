//! A directory of YAML, and its changes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::merge::{Content, FileContent, State, merge};
use super::scan::{Fingerprint, Scan, read, scan};
use crate::diagnostic::{Diagnostic, Effect};
use crate::live::Publisher;
use crate::resource::Object;

/// The time between two looks at the directory.
pub const POLL: Duration = Duration::from_millis(250);
/// The same where a look takes long: what a look costs is kept to a twentieth of the time, up to here.
pub const POLL_SLOWEST: Duration = Duration::from_millis(700);
/// How long a file must stay as it is before it is read, so that one that is being written, or replaced in two
/// steps, is not taken for its content.
pub const SETTLE: Duration = Duration::from_millis(100);
/// A look may take this share of the time: one part in so many.
const SHARE: u32 = 20;
/// After so many looks a file that never settles is read as it is.
const PATIENCE: u32 = 4;

type Hook = dyn Fn(&Object) -> Vec<Diagnostic> + Send + Sync;

/// Reads resources from a directory and follows its changes.
///
/// Files named `*.yaml`, `*.yml` and `*.json` are read, in subdirectories too; names that start with `.` are
/// skipped. Links are followed, so a mounted ConfigMap works.
///
/// ```
/// # use tower_mesh_core::{live, source::Directory};
/// # let tmp = tempfile::tempdir().unwrap();
/// # let path = tmp.path();
/// std::fs::write(path.join("ns.yaml"), "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").unwrap();
///
/// let mut directory = Directory::new(path);
/// let loaded = directory.load().unwrap();
/// assert_eq!(loaded.objects[0].meta().name, "shop");
/// assert!(loaded.diagnostics.is_empty());
///
/// // Changes: the caller gives the loop a task.
/// let (publisher, resources) = live::channel(loaded);
/// let watching = directory.watch(publisher);
/// # drop((watching, resources));
/// ```
pub struct Directory {
    root: PathBuf,
    validate: Arc<Hook>,
    state: State,
    /// What the files were like when they were last read.
    known: BTreeMap<Arc<Path>, Fingerprint>,
    /// How many looks each file has been unsettled for.
    waiting: BTreeMap<Arc<Path>, u32>,
    /// What the directory itself suffers from, besides its files.
    troubles: Vec<String>,
    /// Whether the directory itself cannot be listed any more.
    lost: bool,
    last: Loaded,
}

/// What a directory gives.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// Everything in force, in the order of the files.
    pub objects: Vec<Object>,
    /// Everything that is wrong, and what is skipped.
    pub diagnostics: Vec<Diagnostic>,
    /// Counts up with every change; the first load is 1.
    pub generation: u64,
}

/// A directory that cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("{}: the directory cannot be read: {source}", path.display())]
pub struct DirectoryError {
    path: PathBuf,
    source: io::Error,
}

impl Loaded {
    /// Whether something that the user wrote is not in force.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

impl Directory {
    /// The directory `root`; nothing is read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            validate: Arc::new(|_| Vec::new()),
            state: State::default(),
            known: BTreeMap::new(),
            waiting: BTreeMap::new(),
            troubles: Vec::new(),
            lost: false,
            last: Loaded::default(),
        }
    }

    /// Asks `validate` about each resource that can be read: a diagnostic that
    /// [is an error](Diagnostic::is_error) refuses the resource, any other is passed on. Meant for the crates
    /// that compile resources.
    #[must_use]
    pub fn validate(mut self, validate: impl Fn(&Object) -> Vec<Diagnostic> + Send + Sync + 'static) -> Self {
        self.validate = Arc::new(validate);
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at the directory and reads what is new. Blocks on the file system: call it at the start of a
    /// program, or from [`spawn_blocking`](tokio::task::spawn_blocking).
    ///
    /// # Errors
    ///
    /// The directory is missing or cannot be listed. What is wrong with its files is no error here but
    /// among the [diagnostics](Loaded::diagnostics).
    pub fn load(&mut self) -> Result<Loaded, DirectoryError> {
        let seen = scan(&self.root).map_err(|source| DirectoryError { path: self.root.clone(), source })?;
        self.apply(&seen, &seen);
        Ok(self.last.clone())
    }

    /// Follows the changes of the directory for ever; the caller spawns this, and stops it by dropping it.
    /// To be called after [`load`](Self::load), with a publisher of what that gave.
    ///
    /// A change is published at the latest a second after it; a look that finds nothing new publishes
    /// nothing. The file system is read on tokio's blocking threads. When the directory itself vanishes,
    /// everything stays in force, and a diagnostic says so.
    pub async fn watch(mut self, publisher: Publisher<Loaded>) {
        let mut pause = POLL;
        loop {
            tokio::time::sleep(pause).await;
            let start = Instant::now();
            let Some((back, first)) = blocking(self, Self::look).await else { return };
            let cost = start.elapsed();
            pause = (cost * SHARE).clamp(POLL, POLL_SLOWEST);
            self = back;
            let Some(first) = first else { continue };
            tokio::time::sleep(SETTLE).await;
            let Some((back, changed)) = blocking(self, move |directory| directory.take(first)).await else {
                return;
            };
            self = back;
            if changed {
                publisher.publish(self.last.clone());
            }
            if !self.waiting.is_empty() {
                pause = SETTLE;
            }
        }
    }

    /// What the directory holds, if that is not what it held.
    fn look(&mut self) -> Option<io::Result<Scan>> {
        match scan(&self.root) {
            Ok(seen) if seen.files == self.known && self.told(&seen) == self.troubles => None,
            Err(error) if self.troubles == [self.loss(&error)] => None,
            seen => Some(seen),
        }
    }

    /// Looks again, reads what has settled since `first`, and says whether anything is different now.
    fn take(&mut self, first: io::Result<Scan>) -> bool {
        let generation = self.last.generation;
        match (first, scan(&self.root)) {
            (Ok(first), Ok(second)) => self.apply(&first, &second),
            (Err(_), Err(error)) => {
                self.troubles = vec![self.loss(&error)];
                self.lost = true;
                let known = self.known.keys().cloned();
                let files = known.map(|path| FileContent { path, content: Content::Same }).collect();
                self.merge(files);
            }
            // It came or went in between; the next look will tell.
            _ => {}
        }
        self.last.generation != generation
    }

    /// What is said of a directory that cannot be listed any more.
    fn loss(&self, error: &io::Error) -> String {
        format!("{}: the directory cannot be read any more: {error}", self.root.display())
    }

    fn told(&self, seen: &Scan) -> Vec<String> {
        seen.unseen.iter().map(|(path, reason)| format!("{}: {reason}", path.display())).collect()
    }

    /// Reads what changed and is the same in two looks, and leaves the rest for later.
    fn apply(&mut self, first: &Scan, second: &Scan) {
        let mut files = Vec::new();
        let mut known = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        for (path, fingerprint) in &second.files {
            let before = self.known.get(path);
            let content = if before == Some(fingerprint) {
                Content::Same
            } else {
                let waited = self.waiting.get(path).copied().unwrap_or(0);
                if first.files.get(path) != Some(fingerprint) && waited < PATIENCE {
                    waiting.insert(Arc::clone(path), waited + 1);
                    if let Some(before) = before {
                        known.insert(Arc::clone(path), *before);
                        files.push(FileContent { path: Arc::clone(path), content: Content::Same });
                    }
                    continue;
                }
                read(path)
            };
            known.insert(Arc::clone(path), *fingerprint);
            files.push(FileContent { path: Arc::clone(path), content });
        }
        // A file is gone when two looks in a row miss it and nothing hides it.
        for (path, fingerprint) in &self.known {
            if second.files.contains_key(path) {
                continue;
            }
            if first.files.contains_key(path) || second.hides(path) {
                known.insert(Arc::clone(path), *fingerprint);
                files.push(FileContent { path: Arc::clone(path), content: Content::Same });
            }
        }
        self.troubles = self.told(second);
        self.lost = false;
        self.known = known;
        self.waiting = waiting;
        self.merge(files);
    }

    fn merge(&mut self, files: Vec<FileContent>) {
        let (state, mut diagnostics) = merge(&self.state, files, &*self.validate);
        self.state = state;
        let effect = if self.lost { Effect::LastGoodKept } else { Effect::NotApplied };
        diagnostics.extend(self.troubles.iter().map(|trouble| Diagnostic::new(effect, trouble)));
        let objects: Vec<Object> = self.state.objects().cloned().collect();
        if self.last.generation == 0 || objects != self.last.objects || diagnostics != self.last.diagnostics {
            self.last = Loaded { objects, diagnostics, generation: self.last.generation + 1 };
        }
    }
}

/// Runs `work` on a blocking thread; `None` when the runtime is shutting down. A panic goes on in the caller.
async fn blocking<T: Send + 'static>(
    mut directory: Directory,
    work: impl FnOnce(&mut Directory) -> T + Send + 'static,
) -> Option<(Directory, T)> {
    let done = tokio::task::spawn_blocking(move || {
        let out = work(&mut directory);
        (directory, out)
    });
    match done.await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("root", &self.root)
            .field("files", &self.known.len())
            .field("generation", &self.last.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
