//! TLS to a server that is known by its name rather than by an identity: to a control plane, before there is
//! a certificate to show.
//!
//! TLS 1.3, the server verified for its DNS name (or address) with given roots, no certificate of one's own.
//!
//! ```
//! use tower_mesh_tls::dev_ca::DevCa;
//! use tower_mesh_tls::named::NamedServer;
//! use tower_mesh_tls::{Clock, Pem};
//! # let dir = tempfile::tempdir().unwrap();
//!
//! let ca = DevCa::open(dir.path()).unwrap();
//! let roots = Pem::new("root-cert.pem", ca.certificate_pem().as_bytes());
//! let server = NamedServer::new("controller.mesh-system.svc", roots, &Clock::system()).unwrap();
//! // tokio: server.secure(TcpStream::connect(..).await?).await?
//! assert_eq!(server.name(), "controller.mesh-system.svc");
//! assert!(NamedServer::new("not a name", roots, &Clock::system()).is_err());
//! ```

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::bundle::MAX_ROOTS;
use crate::clock::Clock;
use crate::error::MaterialError;
use crate::io::{MaybeTls, Rewind};
use crate::material::provider;
use crate::pem::Pem;

/// The one protocol that is spoken.
const H2: &[u8] = b"h2";

/// A server, its name, and whom one believes that it is who it says. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NamedServer {
    name: Arc<str>,
    server: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl NamedServer {
    /// A server of this name (a DNS name, or an address), verified with `roots`. HTTP/2 is spoken.
    ///
    /// # Errors
    /// When the name is none, or the roots cannot be used: the file is named.
    pub fn new(name: &str, roots: Pem<'_>, clock: &Clock) -> Result<Self, MaterialError> {
        let bad = |reason: String| MaterialError::Malformed { file: roots.name().to_owned(), reason };
        let server = ServerName::try_from(name.to_owned()).map_err(|_| MaterialError::Malformed {
            file: "the control plane's address".to_owned(),
            reason: format!("{name:?} is no DNS name and no address"),
        })?;
        let certificates = roots.certificates()?;
        if certificates.len() > MAX_ROOTS {
            return Err(bad(format!("it holds {} roots, more than {MAX_ROOTS}", certificates.len())));
        }
        let mut store = RootCertStore::empty();
        for certificate in certificates {
            store.add(certificate).map_err(|e| bad(format!("a root of it cannot be used: {e}")))?;
        }
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![H2.to_vec()];
        Ok(Self { name: name.into(), server, config: Arc::new(config) })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Secures a connection, and makes sure that the server is who it should be. Without a timeout of its own.
    ///
    /// # Errors
    /// When the handshake fails: the roots are others, the name is another, TLS 1.3 is not spoken.
    pub async fn secure<IO>(&self, io: IO) -> io::Result<MaybeTls<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let io = Rewind::new(io, Bytes::new());
        let tls = TlsConnector::from(Arc::clone(&self.config)).connect(self.server.clone(), io).await?;
        Ok(MaybeTls::client(tls))
    }
}
