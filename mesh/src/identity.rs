//! Where a workload's certificate comes from.

use std::path::PathBuf;

use mesh_core::identity::SpiffeId;
use mesh_core::live::{self, Live, Publisher};
use mesh_tls::dev_ca::DevIdentity;
use mesh_tls::file_identity::FileIdentity;
use mesh_tls::{Clock, Credentials};

/// Where a workload's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IdentitySource {
    /// From nowhere: no TLS is spoken. Calls to endpoints that want mTLS fail, and so do callers of a port
    /// that is STRICT.
    #[default]
    None,
    /// `tls.crt`, `tls.key` and `ca.crt` in a directory, as in a Kubernetes TLS secret. The certificate
    /// decides who the workload is.
    Directory(PathBuf),
    /// A development CA in a directory (`ca.crt`, `ca.key`), made on first use.
    DevCa(PathBuf),
}

/// The running source.
#[derive(Debug)]
pub(crate) enum Source {
    /// The publisher is kept so that the `Live` stays what it is: without identity.
    None(#[expect(dead_code, reason = "held, not read")] Publisher<Credentials>),
    File(Box<FileIdentity>),
    Dev(Box<DevIdentity>),
    #[cfg(feature = "control-plane")]
    Issued(Box<crate::control::ControlIdentity>),
}

impl Source {
    /// Loads the first certificate. Blocks on files.
    pub(crate) fn start(
        from: &IdentitySource,
        workload: Live<Option<SpiffeId>>,
        clock: Clock,
    ) -> (Self, Live<Credentials>) {
        match from {
            IdentitySource::None => {
                let (publisher, live) = live::channel(Credentials::none());
                (Self::None(publisher), live)
            }
            IdentitySource::Directory(dir) => {
                let source = FileIdentity::new(dir, clock);
                let live = source.live();
                (Self::File(Box::new(source)), live)
            }
            IdentitySource::DevCa(dir) => {
                let source = DevIdentity::new(dir, workload, clock);
                let live = source.live();
                (Self::Dev(Box::new(source)), live)
            }
        }
    }

    /// Renews for ever.
    pub(crate) async fn run(self) {
        match self {
            Self::None(_) => std::future::pending().await,
            Self::File(source) => source.run().await,
            Self::Dev(source) => source.run().await,
            #[cfg(feature = "control-plane")]
            Self::Issued(source) => source.run().await,
        }
    }
}
