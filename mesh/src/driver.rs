//! What runs beside a mesh.

use std::fmt;
use std::time::Duration;

use mesh_core::live::Publisher;
use mesh_core::source::{Directory, Loaded};
use mesh_telemetry::AccessLogWriter;

use crate::identity::Source;
use crate::mesh::Mesh;
use crate::world::World;

/// How often connections that have been idle for too long are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// Follows the configuration, renews the certificate, writes the access log, closes what is idle.
///
/// The mesh starts no task of its own: whoever builds it runs this, usually by
/// `tokio::spawn(driver.run())`.
#[must_use = "without it running nothing changes any more, and no access log is written"]
pub struct Driver {
    pub(crate) mesh: Mesh,
    pub(crate) follow: Follow,
    pub(crate) source: Source,
    pub(crate) writer: Option<AccessLogWriter>,
}

/// What follows the configuration.
pub(crate) enum Follow {
    /// A directory, or what was given in code and never changes.
    Files(Box<Files>),
    /// A control plane.
    #[cfg(feature = "control-plane")]
    ControlPlane(Box<crate::control::Follow>),
}

/// A directory with the world that is made of it.
pub(crate) struct Files {
    pub(crate) world: World,
    pub(crate) directory: Option<Directory>,
    pub(crate) updates: Publisher<Loaded>,
}

impl Follow {
    async fn run(self) {
        match self {
            Self::Files(files) => files.run().await,
            #[cfg(feature = "control-plane")]
            Self::ControlPlane(follow) => follow.run().await,
        }
    }
}

impl Files {
    async fn run(self) {
        let Self { mut world, directory, updates } = self;
        let loaded = updates.live();
        let mut changes = loaded.changes();
        let watch = async move {
            match directory {
                Some(directory) => directory.watch(updates).await,
                None => std::future::pending().await,
            }
        };
        let apply = async {
            loop {
                changes.changed().await;
                let now = loaded.load_full();
                world.apply(&now);
                tracing::info!(
                    generation = now.generation,
                    objects = now.objects.len(),
                    "configuration applied"
                );
            }
        };
        tokio::join!(watch, apply);
    }
}

impl Driver {
    /// Runs as long as the mesh is wanted; ends by being dropped, or when there is an access log and it has
    /// been [closed](Mesh::close_access_log) and written.
    pub async fn run(self) {
        let Self { mesh, follow, source, writer } = self;
        let write = async move {
            match writer {
                Some(writer) => writer.run().await,
                None => std::future::pending().await,
            }
        };
        let sweep = async {
            let mut every = tokio::time::interval(SWEEP);
            loop {
                every.tick().await;
                mesh.sweep();
            }
        };
        // Boxed: together they are large, and they run once.
        let rest = Box::pin(async { tokio::join!(follow.run(), sweep, mesh.watch_identity()) });
        tokio::select! {
            _ = rest => {}
            () = Box::pin(source.run()) => {}
            () = Box::pin(write) => {}
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}
