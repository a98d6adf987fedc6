//! Which files a directory holds, and whether they changed. Blocking I/O.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::merge::Content;

/// How many files a directory may hold, with those below it.
pub const MAX_FILES: usize = 10_000;
/// How deep directories may be nested.
pub const MAX_DIRECTORY_DEPTH: usize = 32;
/// The longest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// What tells a file's content from an earlier one without reading it: where it lies, how long it is, and
/// when it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// The files by path, as the user named the directory.
    pub(super) files: BTreeMap<Arc<Path>, Fingerprint>,
    /// What could not be looked at; files below it are there as far as anybody knows.
    pub(super) unseen: BTreeMap<PathBuf, String>,
}

impl Fingerprint {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    fn of(metadata: &Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        let modified = (i64::try_from(since.as_secs()).unwrap_or(0), i64::from(since.subsec_nanos()));
        Self { device: 0, inode: 0, size: metadata.len(), modified, changed: modified }
    }

    /// What a directory is, whichever way leads to it.
    fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// Looks at `root` and everything below it.
///
/// # Errors
///
/// `root` itself cannot be listed.
pub(super) fn scan(root: &Path) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let place = Fingerprint::of(&fs::metadata(root)?).place();
    let entries = fs::read_dir(root)?;
    scan.directory(root, entries, &mut vec![place]);
    Ok(scan)
}

impl Scan {
    fn directory(&mut self, path: &Path, entries: fs::ReadDir, above: &mut Vec<(u64, u64)>) {
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.unseen.insert(path.to_owned(), format!("cannot be listed: {error}"));
                    continue;
                }
            };
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let wanted = is_wanted(&path);
            // A regular file of another name is nobody's business; no need to look at it.
            if !wanted && entry.file_type().is_ok_and(|t| t.is_file()) {
                continue;
            }
            // Follows links: a ConfigMap's files are links into a directory that is replaced as a whole.
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && entry.path().symlink_metadata().is_err() =>
                {
                    continue;
                }
                Err(error) => {
                    if wanted {
                        self.unseen.insert(path, format!("cannot be read: {error}"));
                    }
                    continue;
                }
            };
            let fingerprint = Fingerprint::of(&metadata);
            if metadata.is_dir() {
                self.below(&path, fingerprint, above);
            } else if metadata.is_file() && wanted {
                if self.files.len() >= MAX_FILES {
                    let reason = format!("more than {MAX_FILES} files; the rest is not read");
                    self.unseen.insert(path, reason);
                    return;
                }
                self.files.insert(Arc::from(path), fingerprint);
            }
        }
    }

    fn below(&mut self, path: &Path, fingerprint: Fingerprint, above: &mut Vec<(u64, u64)>) {
        if above.contains(&fingerprint.place()) && cfg!(unix) {
            self.unseen.insert(path.to_owned(), "a link leads back to a directory above it".to_owned());
            return;
        }
        if above.len() >= MAX_DIRECTORY_DEPTH {
            self.unseen
                .insert(path.to_owned(), format!("directories nest more than {MAX_DIRECTORY_DEPTH} deep"));
            return;
        }
        match fs::read_dir(path) {
            Ok(entries) => {
                above.push(fingerprint.place());
                self.directory(path, entries, above);
                above.pop();
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.unseen.insert(path.to_owned(), format!("cannot be listed: {error}"));
            }
        }
    }

    /// Whether nobody can say that `path` is gone, because what holds it could not be looked at.
    pub(super) fn hides(&self, path: &Path) -> bool {
        let overfull = self.files.len() >= MAX_FILES;
        overfull || self.unseen.keys().any(|unseen| path.starts_with(unseen))
    }
}

fn is_wanted(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// Reads a file, within [`MAX_FILE_BYTES`].
pub(super) fn read(path: &Path) -> Content {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Content::Unreadable(format!("cannot be read: {error}")),
        Ok(length) if length as u64 > MAX_FILE_BYTES => {
            Content::Unreadable(format!("the file has more than {MAX_FILE_BYTES} bytes; split it"))
        }
        Ok(_) => match String::from_utf8(bytes) {
            Ok(text) => Content::Text(text),
            Err(error) => Content::Unreadable(format!(
                "not UTF-8 text (byte {}); save it as UTF-8",
                error.utf8_error().valid_up_to()
            )),
        },
    }
}
