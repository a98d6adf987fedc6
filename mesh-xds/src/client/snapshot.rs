//! What a client holds, as bytes that outlive it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::state::Held;
use super::{Change, Client, Now, Refusal, Sink};
use crate::proto::mesh as wire;
use crate::{DecodeError, Payload, ResourceType};

/// The largest snapshot that is read, in bytes.
pub const MAX_SNAPSHOT_BYTES: usize = 256 * 1024 * 1024;
/// What a snapshot begins with.
const MAGIC: &[u8] = b"mesh-xds snapshot 1\n";
/// Bytes of the checksum that follows.
const CHECKSUM: usize = 32;

/// Why bytes are no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSnapshot {
    /// They are something else, or of another version.
    #[error("it is no snapshot of this version")]
    Foreign,
    /// They were changed, or are not all there.
    #[error("it is damaged, or cut short")]
    Damaged,
    /// There are too many.
    #[error("it has more than {MAX_SNAPSHOT_BYTES} bytes")]
    TooLarge,
    /// A resource in it cannot be read.
    #[error("{name}: {error}")]
    Resource {
        /// The resource.
        name: String,
        /// What is wrong with it.
        error: DecodeError,
    },
}

impl Client {
    /// Everything that is held, the names behind which there is nothing included, with a checksum. The same content
    /// gives the same bytes.
    ///
    /// ```
    /// use tower_mesh_xds::client::{Change, Client, ClientLimits, InvalidSnapshot, Refusal};
    ///
    /// let client = Client::new("default/web-1", ClientLimits::default());
    /// let bytes = client.snapshot();
    /// let mut sink = |_: &[Change]| Vec::<Refusal>::new();
    /// assert_eq!(client.restore(&bytes, &mut sink), Ok(0));
    /// assert_eq!(client.restore(b"", &mut sink), Err(InvalidSnapshot::Foreign));
    /// ```
    pub fn snapshot(&self) -> Vec<u8> {
        let mut held: Vec<wire::Held> = Vec::new();
        for (kind, name, entry) in self.state().entries() {
            let (version, body, absent) = match &entry.held {
                Held::Content { version, body } => (version.to_string(), body.clone(), false),
                Held::Absent(_) if !entry.pinned => (String::new(), Bytes::new(), true),
                _ => continue,
            };
            held.push(wire::Held {
                type_url: kind.url().to_owned(),
                name: name.to_string(),
                version,
                body,
                pinned: entry.pinned,
                absent,
            });
        }
        held.sort_by(|a, b| (&a.type_url, &a.name).cmp(&(&b.type_url, &b.name)));
        let content = wire::Snapshot { held }.encode_to_vec();
        [MAGIC, Sha256::digest(&content).as_slice(), &content].concat()
    }

    /// Hands what was held in an earlier life to `sink` and subscribes to it, so that the server sends only
    /// what is different. Says how many were taken. What the sink refuses is not kept.
    ///
    /// # Errors
    /// When the bytes are no snapshot; then nothing is taken.
    pub fn restore(&self, snapshot: &[u8], sink: &mut dyn Sink) -> Result<usize, InvalidSnapshot> {
        let held = decode(snapshot)?;
        let now = Instant::now();
        let mut taken = 0;
        for kind in ResourceType::ALL {
            let of = || held.iter().filter(|held| held.kind == kind);
            let changes: Vec<Change> = of().map(|held| held.change.clone()).collect();
            if changes.is_empty() {
                continue;
            }
            let refused: Vec<Refusal> = sink.apply(&changes);
            let mut state = self.state();
            for held in of() {
                let name = &held.change.name;
                if refused.iter().any(|refusal| refusal.name == *name) {
                    tracing::warn!(%kind, %name, "what was kept of an earlier life is of no use any more");
                    continue;
                }
                let kept = match held.change.now {
                    Now::Content(_) => {
                        Held::Content { version: Arc::clone(&held.version), body: held.body.clone() }
                    }
                    Now::Absent | Now::Forgotten => Held::Absent(now),
                };
                taken += usize::from(state.restore(kind, name, held.pinned, kept, now).is_ok());
            }
        }
        self.shared.wake.notify_one();
        Ok(taken)
    }
}

struct Kept {
    kind: ResourceType,
    version: Arc<str>,
    body: Bytes,
    pinned: bool,
    change: Change,
}

fn decode(snapshot: &[u8]) -> Result<Vec<Kept>, InvalidSnapshot> {
    if snapshot.len() > MAX_SNAPSHOT_BYTES {
        return Err(InvalidSnapshot::TooLarge);
    }
    let rest = snapshot.strip_prefix(MAGIC).ok_or(InvalidSnapshot::Foreign)?;
    let (checksum, content) = rest.split_at_checked(CHECKSUM).ok_or(InvalidSnapshot::Damaged)?;
    if Sha256::digest(content).as_slice() != checksum {
        return Err(InvalidSnapshot::Damaged);
    }
    let snapshot = wire::Snapshot::decode(content).map_err(|_| InvalidSnapshot::Damaged)?;
    let one = |held: wire::Held| {
        let kind = ResourceType::of_url(&held.type_url).ok_or(InvalidSnapshot::Foreign)?;
        kind.check_name(&held.name).map_err(|_| InvalidSnapshot::Damaged)?;
        let now = if held.absent {
            Now::Absent
        } else {
            let content = Payload::decode(kind, &held.body)
                .map_err(|error| InvalidSnapshot::Resource { name: held.name.clone(), error })?;
            Now::Content(Box::new(content))
        };
        Ok(Kept {
            kind,
            version: held.version.into(),
            body: held.body,
            pinned: held.pinned,
            change: Change { kind, name: held.name.into(), now },
        })
    };
    snapshot.held.into_iter().map(one).collect()
}
