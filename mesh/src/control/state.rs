//! What outlives the process: a directory that nobody else can read.
//!
//! `DIR/private/` (mode 0700) holds `identity` (certificate, key and roots) and `configuration`, both of mode
//! 0600 and replaced whole. Each says whose it is: what another workload left is refused.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_tls::issued::Issued;
use mesh_xds::client::MAX_SNAPSHOT_BYTES;
use serde_json::{Value, json};

/// The largest identity that is read, in bytes.
pub const MAX_IDENTITY_BYTES: usize = 4 * 1024 * 1024;
const PRIVATE: &str = "private";
const IDENTITY: &str = "identity";
const CONFIGURATION: &str = "configuration";
/// What a configuration file begins with; the owner and a line's end follow.
const MAGIC: &str = "mesh state 1 ";

/// A directory for what a restart needs. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct State {
    dir: Arc<Path>,
    owner: Arc<str>,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file or the directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else can read or write it.
    #[error("{}: it belongs to another user, or others may enter it; remove it", .0.display())]
    Shared(PathBuf),
}

impl State {
    /// Opens the directory, and makes it where it is missing. `owner` is whose state it is.
    pub(super) fn open(dir: &Path, owner: &str) -> Result<Self, StateError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        if !dir.exists() {
            fs::create_dir_all(dir).map_err(failed(dir))?;
        }
        // Below the given one, which is a volume's and often everybody's.
        let private = dir.join(PRIVATE);
        match DirBuilder::new().mode(0o700).create(&private) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&private)(e)),
            _ => {}
        }
        let found = fs::symlink_metadata(&private).map_err(failed(&private))?;
        let own = found.uid() == rustix::process::geteuid().as_raw();
        if !found.is_dir() || !own || found.mode() & 0o077 != 0 {
            return Err(StateError::Shared(private));
        }
        Ok(Self { dir: private.into(), owner: owner.into() })
    }

    /// The certificate of an earlier life, where there is one and it is one's own.
    pub(super) fn identity(&self) -> Option<Issued> {
        let bytes = self.read(IDENTITY, MAX_IDENTITY_BYTES)?;
        let parsed = serde_json::from_slice::<Value>(&bytes).ok();
        let text = |value: &Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
        let read = || {
            let value = parsed.as_ref()?;
            Some((text(value, "owner")?, text(value, "chain")?, text(value, "key")?, text(value, "roots")?))
        };
        let Some((owner, chain, key, roots)) = read() else {
            self.useless(IDENTITY, "it is damaged");
            return None;
        };
        if owner != *self.owner {
            self.useless(IDENTITY, &format!("it is of {owner:?}, and this is {:?}", self.owner));
            return None;
        }
        Some(Issued::of_parts(chain, key, roots))
    }

    /// Keeps a certificate.
    pub(super) fn keep_identity(&self, issued: &Issued) -> Result<(), StateError> {
        let [chain, key, roots] = issued.parts();
        let value = json!({"owner": &*self.owner, "chain": chain, "key": key, "roots": roots});
        self.write(IDENTITY, &[value.to_string().as_bytes()])
    }

    /// The configuration of an earlier life, where there is one and it is one's own.
    pub(super) fn configuration(&self) -> Option<Vec<u8>> {
        let mut bytes = self.read(CONFIGURATION, MAX_SNAPSHOT_BYTES)?;
        let head = self.head();
        if bytes.get(..head.len()) == Some(head.as_bytes()) {
            bytes.drain(..head.len());
            return Some(bytes);
        }
        self.useless(CONFIGURATION, "it is of another workload, or another version");
        None
    }

    /// Keeps a configuration.
    pub(super) fn keep_configuration(&self, snapshot: &[u8]) -> Result<(), StateError> {
        self.write(CONFIGURATION, &[self.head().as_bytes(), snapshot])
    }

    fn head(&self) -> String {
        format!("{MAGIC}{}\n", self.owner)
    }

    fn useless(&self, name: &str, why: &str) {
        let file = self.dir.join(name);
        tracing::warn!("state: {}: {why}; it is not used", file.display());
    }

    fn read(&self, name: &str, most: usize) -> Option<Vec<u8>> {
        let path = self.dir.join(name);
        let mut bytes = Vec::new();
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(4096);
        match File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
            Ok(_) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.useless(name, &error.to_string());
                None
            }
        }
    }

    /// Puts a whole file in place at once, with its mode from the first byte on.
    fn write(&self, name: &str, parts: &[&[u8]]) -> Result<(), StateError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let put = || {
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        put().map_err(|source| StateError::Io { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued() -> Issued {
        Issued::of_parts("chain".into(), "key".into(), "roots".into())
    }

    #[test]
    fn what_is_kept_comes_back_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "default/web a").unwrap();
        assert!(state.identity().is_none() && state.configuration().is_none());
        state.keep_identity(&issued()).unwrap();
        state.keep_configuration(b"first").unwrap();
        state.keep_configuration(b"second\n").unwrap();

        let again = State::open(dir.path(), "default/web a").unwrap();
        assert_eq!(again.identity(), Some(issued()));
        assert_eq!(again.configuration().as_deref(), Some(b"second\n".as_slice()));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("private")), 0o700);
        for name in [IDENTITY, CONFIGURATION] {
            assert_eq!(mode(&dir.path().join("private").join(name)), 0o600, "{name}");
        }
        let left: Vec<_> = fs::read_dir(dir.path().join("private")).unwrap().collect();
        assert_eq!(left.len(), 2, "nothing half written is left");
    }

    #[test]
    fn foreign_and_damaged_state_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "default/web a").unwrap();
        state.keep_identity(&issued()).unwrap();
        state.keep_configuration(b"x").unwrap();
        let other = State::open(dir.path(), "default/other a").unwrap();
        assert!(other.identity().is_none() && other.configuration().is_none());
        for bytes in [&b""[..], b"{", b"{\"owner\": 1}", &[0xff; 64]] {
            fs::write(dir.path().join("private").join(IDENTITY), bytes).unwrap();
            assert!(state.identity().is_none());
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("private");
        fs::create_dir(&private).unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(State::open(dir.path(), "a"), Err(StateError::Shared(_))));
        fs::remove_dir(&private).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &private).unwrap();
        assert!(matches!(State::open(dir.path(), "a"), Err(StateError::Shared(_))));
    }
}
