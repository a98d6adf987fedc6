//! Makes connections to endpoints, with the mesh's TLS where they carry it, and checks who answers.
//!
//! The chain is verified in the handshake, against the bundle of the trust domain that the endpoint names.
//! After every handshake the endpoint's SPIFFE ID is compared with whom the caller expects. There is no
//! session resumption, so each new connection proves the identity anew; a pooled one may be used only
//! for the same [`UpstreamTls`], which holds the expectation, and so belongs into the pool's key
//! (`mesh_core::cluster::EndpointKey` holds it).
//!
//! In TLS 1.3 a client has finished before the server has looked at the client's certificate: a server that
//! refuses it is seen at the first read, not here.
//!
//! Readiness: always ready. Errors: [`ConnectError`], which becomes a `Failure` of code `connect_failed`,
//! `tls_failed` or `identity_mismatch`. The crate's front page shows it at work. The future is boxed: it is
//! one allocation beside a handshake.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use mesh_core::cluster::{EndpointAddress, Expect, UpstreamTls};
use mesh_core::facts::{LocalAddr, PeerIdentity, UpstreamAddr};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::identity::SpiffeId;
use mesh_core::live::Live;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::accept::handshake_reason;
use crate::alpn::{MeshAlpn, Negotiated};
use crate::credentials::Credentials;
use crate::error::LeafError;
use crate::io::{MaybeTls, Rewind};
use crate::svid::peer_identity;
use crate::verify::leaf_error_in;

/// How long connecting may take, handshake included, unless the call says otherwise: the default of a
/// DestinationRule's `connectTimeout`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The source of connections that a sidecar hands to the application of its own pod: redirection leaves them
/// alone, so that they do not come back. Istio's, too.
pub const HANDOVER_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same in IPv6.
pub const HANDOVER_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Where to connect to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectTo {
    /// Where the endpoint listens.
    pub address: EndpointAddress,
    /// How the connection is secured, and who must answer.
    pub tls: UpstreamTls,
    /// What will be spoken; matters inside TLS only.
    pub alpn: MeshAlpn,
    /// How long it may take, handshake included.
    pub timeout: Duration,
    /// Whether it is handed to the application of this pod: from [`HANDOVER_V4`] or [`HANDOVER_V6`].
    pub handover: bool,
}

/// A connection, and who has answered.
#[derive(Debug)]
pub struct Connected<IO = TcpStream> {
    /// The bytes.
    pub io: MaybeTls<IO>,
    /// What was agreed on; `None` without TLS, or where the server named nothing.
    pub alpn: Option<Negotiated>,
    /// Who the endpoint has proved to be; `None` without TLS.
    pub peer: Option<Arc<PeerIdentity>>,
    /// Where it was reached; `None` for a connection that was not made here.
    pub address: Option<UpstreamAddr>,
    /// This end.
    pub local: Option<LocalAddr>,
}

/// Connects to endpoints; see the [module](self).
#[derive(Debug, Clone)]
pub struct TlsConnect {
    credentials: Live<Credentials>,
}

/// Why there is no connection. The application has seen nothing of the request.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No TCP connection.
    #[error("{address} cannot be reached: {reason}")]
    Connect {
        /// The endpoint.
        address: String,
        /// What the system says.
        reason: String,
        /// The system's word for it.
        kind: io::ErrorKind,
    },
    /// No TCP connection in time.
    #[error("{address} did not answer within {}s", .after.as_secs_f32())]
    ConnectTimeout {
        /// The endpoint.
        address: String,
        /// How long it had.
        after: Duration,
    },
    /// The handshake failed.
    #[error("TLS with {address} failed: {reason}")]
    Tls {
        /// The endpoint.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The handshake did not end in time.
    #[error("{address} did not finish the TLS handshake within {}s", .after.as_secs_f32())]
    TlsTimeout {
        /// The endpoint.
        address: String,
        /// How long it had.
        after: Duration,
    },
    /// Somebody else answered.
    #[error("{address} is {found}, but {} was expected", expected(.expect))]
    IdentityMismatch {
        /// The endpoint.
        address: String,
        /// Who answered, or why that cannot be told.
        found: String,
        /// Who should have.
        expect: Expect,
    },
    /// This workload has nothing to show.
    #[error("TLS with {address} is not possible: this workload has no certificate yet")]
    NoIdentity {
        /// The endpoint.
        address: String,
    },
    /// The configured server name cannot be sent.
    #[error("TLS with {address} is not possible: {sni:?} is no valid server name")]
    InvalidSni {
        /// The endpoint.
        address: String,
        /// The name.
        sni: Arc<str>,
    },
}

fn expected(expect: &Expect) -> String {
    const SHOWN: usize = 3;
    match expect {
        Expect::AnyInTrustDomain => "an identity of the own trust domain".to_owned(),
        Expect::AnyOf(ids) => match ids.as_ref() {
            [] => "nobody".to_owned(),
            ids => {
                let mut text = ids.iter().take(SHOWN).map(SpiffeId::as_str).collect::<Vec<_>>().join(" or ");
                if ids.len() > SHOWN {
                    text.push_str(" or another");
                }
                text
            }
        },
    }
}

impl ConnectError {
    /// The code under which the mesh answers for it.
    pub const fn code(&self) -> FailureCode {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => FailureCode::ConnectFailed,
            Self::IdentityMismatch { .. } => FailureCode::IdentityMismatch,
            Self::Tls { .. }
            | Self::TlsTimeout { .. }
            | Self::NoIdentity { .. }
            | Self::InvalidSni { .. } => FailureCode::TlsFailed,
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(error.code()).source(error)
    }
}

/// Whether `found` is whom `expect` names; `own` is the caller.
pub fn admits(expect: &Expect, found: &SpiffeId, own: &SpiffeId) -> bool {
    match expect {
        Expect::AnyOf(ids) => ids.contains(found),
        Expect::AnyInTrustDomain => found.trust_domain() == own.trust_domain(),
    }
}

impl ConnectTo {
    /// Plaintext HTTP/1.1 to `address`, within [`CONNECT_TIMEOUT`].
    pub const fn new(address: EndpointAddress) -> Self {
        Self {
            address,
            tls: UpstreamTls::Plaintext,
            alpn: MeshAlpn::Http1,
            timeout: CONNECT_TIMEOUT,
            handover: false,
        }
    }

    /// As [`new`](Self::new), for an address.
    pub const fn socket(address: UpstreamAddr) -> Self {
        Self::new(EndpointAddress::Socket(address))
    }

    /// Sets how the connection is secured.
    #[must_use]
    pub fn tls(mut self, tls: UpstreamTls) -> Self {
        self.tls = tls;
        self
    }

    /// Sets what will be spoken.
    #[must_use]
    pub const fn alpn(mut self, alpn: MeshAlpn) -> Self {
        self.alpn = alpn;
        self
    }

    /// Sets that it is handed to the application of this pod.
    #[must_use]
    pub const fn handover(mut self, is: bool) -> Self {
        self.handover = is;
        self
    }

    /// Sets how long it may take, handshake included.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// Connects to an application of this pod, from the address that redirection leaves alone.
async fn hand_over(to: SocketAddr) -> io::Result<TcpStream> {
    let (socket, from) = match to {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from(HANDOVER_V4)),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(HANDOVER_V6)),
    };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

fn told(address: &EndpointAddress) -> String {
    match address {
        EndpointAddress::Socket(addr) => addr.to_string(),
        EndpointAddress::Name(name, port) => format!("{name}:{port}"),
    }
}

impl TlsConnect {
    /// Shows the identity of `credentials` to whoever is called with mutual TLS.
    pub const fn new(credentials: Live<Credentials>) -> Self {
        Self { credentials }
    }

    async fn connect(self, to: ConnectTo) -> Result<Connected, ConnectError> {
        let deadline = Instant::now() + to.timeout;
        let dial = async {
            match &to.address {
                EndpointAddress::Socket(addr) if to.handover => hand_over(addr.0).await,
                EndpointAddress::Socket(addr) => TcpStream::connect(addr.0).await,
                EndpointAddress::Name(name, port) => TcpStream::connect((&**name, *port)).await,
            }
        };
        let failed = |e: io::Error| ConnectError::Connect {
            address: told(&to.address),
            reason: e.to_string(),
            kind: e.kind(),
        };
        let late = |_| ConnectError::ConnectTimeout { address: told(&to.address), after: to.timeout };
        let io = timeout_at(deadline, dial).await.map_err(late)?.map_err(failed)?;
        // Small requests must not wait for acknowledgements of earlier ones.
        io.set_nodelay(true).map_err(failed)?;
        let (address, local) = (io.peer_addr().map_err(failed)?, io.local_addr().map_err(failed)?);
        let secured = timeout_at(deadline, self.secure(io, &to)).await;
        let mut connected = secured
            .map_err(|_| ConnectError::TlsTimeout { address: told(&to.address), after: to.timeout })??;
        connected.address = Some(UpstreamAddr(address));
        connected.local = Some(LocalAddr(local));
        Ok(connected)
    }

    /// Secures a connection that was made elsewhere, as `to` says. Without a timeout of its own.
    ///
    /// # Errors
    /// When there is no identity to show, the handshake fails, or somebody else answers.
    pub async fn secure<IO>(&self, io: IO, to: &ConnectTo) -> Result<Connected<IO>, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let UpstreamTls::Mutual { sni, expect } = &to.tls else {
            let io = MaybeTls::plain(io);
            return Ok(Connected { io, alpn: None, peer: None, address: None, local: None });
        };
        let address = || told(&to.address);
        let (config, own) = match self.credentials.load().material() {
            Some(material) => (Arc::clone(material.client_config(to.alpn)), material.svid().id().clone()),
            None => return Err(ConnectError::NoIdentity { address: address() }),
        };
        let name = ServerName::try_from(sni.to_string())
            .map_err(|_| ConnectError::InvalidSni { address: address(), sni: Arc::clone(sni) })?;
        let mismatch =
            |found| ConnectError::IdentityMismatch { address: address(), found, expect: expect.clone() };
        let io = Rewind::new(io, Bytes::new());
        let tls =
            TlsConnector::from(config).connect(name, io).await.map_err(|error| match nameless(&error) {
                Some(leaf) => mismatch(format!("without an identity ({leaf})")),
                None => ConnectError::Tls { address: address(), reason: handshake_reason(&error) },
            })?;
        let session = tls.get_ref().1;
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let peer = leaf
            .ok_or(LeafError::NoUri)
            .and_then(peer_identity)
            .map_err(|e| mismatch(format!("without an identity ({e})")))?;
        if !admits(expect, peer.id(), &own) {
            return Err(mismatch(peer.id().to_string()));
        }
        let alpn = Negotiated::of(session.alpn_protocol());
        Ok(Connected {
            io: MaybeTls::client(tls),
            alpn,
            peer: Some(Arc::new(peer)),
            address: None,
            local: None,
        })
    }
}

/// The reason, where the chain was good and the leaf names no workload.
fn nameless(error: &io::Error) -> Option<&LeafError> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    leaf_error_in(tls).filter(|e| {
        use LeafError::{NoUri, NoWorkload, NotSpiffe, SeveralUris, Signing};
        matches!(e, NoUri | SeveralUris(_) | NotSpiffe(_) | NoWorkload | Signing)
    })
}

/// The future of [`TlsConnect`].
pub struct ConnectFuture(Pin<Box<dyn Future<Output = Result<Connected, ConnectError>> + Send>>);

impl fmt::Debug for ConnectFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectFuture")
    }
}

impl Future for ConnectFuture {
    type Output = Result<Connected, ConnectError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl Service<ConnectTo> for TlsConnect {
    type Response = Connected;
    type Error = ConnectError;
    type Future = ConnectFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: ConnectTo) -> Self::Future {
        ConnectFuture(Box::pin(self.clone().connect(to)))
    }
}
