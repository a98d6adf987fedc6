//! Takes accepted connections: finds out whether they are the mesh's TLS, terminates it, and says who is
//! on the other end.
//!
//! What is admitted depends on the [`Mode`] of the workload's port, read from a
//! `Live<`[`TlsModes`]`>` once a connection:
//!
//! | first bytes | STRICT | PERMISSIVE | DISABLE |
//! |---|---|---|---|
//! | TLS that offers a protocol name of the mesh | terminated | terminated | passed on |
//! | other TLS | terminated | passed on as bytes | passed on |
//! | no TLS | closed without an answer | plaintext | plaintext |
//! | nothing within the detect timeout | closed after the handshake timeout | plaintext (the server speaks first) | plaintext |
//!
//! Under DISABLE nobody looks: the transport in the facts is plaintext whatever the bytes are.
//! Whoever is terminated has shown a certificate of the trust bundle; there is no way in without one.
//!
//! Readiness: always ready. Writes (into the connection's facts): addresses, transport with SNI and ALPN,
//! the peer's identity. The crate's front page shows it at work. The future is boxed: a handshake costs a
//! thousand times what the box does, and the box keeps it off its owner's stack.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{Connection, Direction, LocalAddr, OriginalDst, PeerAddr, Transport};
use mesh_core::live::Live;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::alpn::Negotiated;
use crate::credentials::Credentials;
use crate::error::LeafError;
use crate::hello::{ClientHello, MAX_CLIENT_HELLO, Sniff, sniff};
use crate::io::{MaybeTls, Rewind};
use crate::modes::{Mode, TlsModes};
use crate::svid::peer_identity;
use crate::verify::told;

/// How long a peer may take from its first byte (in STRICT mode: from the connection) to the end of the
/// handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, in PERMISSIVE mode, the first byte is waited for before the connection counts as plaintext of
/// a protocol in which the server speaks first.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(1);

const FIRST_READ: usize = 1024;

/// An accepted connection, before anybody has looked into it.
#[derive(Debug)]
pub struct AcceptedStream<IO> {
    io: IO,
    peer: PeerAddr,
    local: LocalAddr,
    original_dst: Option<OriginalDst>,
    workload_port: Option<u16>,
}

/// A connection with all that is known of it.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// The bytes: what is inside TLS where it was terminated, else all that the peer sends from its first
    /// byte on.
    pub io: MaybeTls<IO>,
    /// Addresses, transport, and who the peer has proved to be.
    pub connection: Arc<Connection>,
}

/// Terminates the mesh's TLS; see the [module](self).
#[derive(Debug, Clone)]
pub struct TlsAccept {
    credentials: Live<Credentials>,
    modes: Live<TlsModes>,
    detect_timeout: Duration,
    handshake_timeout: Duration,
}

/// Why a connection was not taken. It has been closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// Plaintext where STRICT asks for mutual TLS; closed without an answer.
    #[error("plaintext from {peer} to port {port} was refused: mTLS is STRICT{}", by(.policy.as_ref()))]
    PlaintextRefused {
        /// Who it was.
        peer: PeerAddr,
        /// The workload's port.
        port: u16,
        /// The PeerAuthentication that says so.
        policy: Option<ResourceRef>,
    },
    /// The peer went away before it said anything; what a port check does.
    #[error("{peer} closed the connection before its first byte")]
    Closed {
        /// Who it was.
        peer: PeerAddr,
    },
    /// The connection broke while its first bytes were read.
    #[error("the connection from {peer} broke: {source}")]
    Io {
        /// Who it was.
        peer: PeerAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The ClientHello exceeds [`MAX_CLIENT_HELLO`].
    #[error("the ClientHello of {peer} has more than {MAX_CLIENT_HELLO} bytes, or too many records")]
    ClientHelloTooLarge {
        /// Who it was.
        peer: PeerAddr,
    },
    /// The peer took too long.
    #[error("{peer} did not finish its handshake within {}s", .after.as_secs_f32())]
    HandshakeTimeout {
        /// Who it was.
        peer: PeerAddr,
        /// How long it had.
        after: Duration,
    },
    /// The handshake failed: no certificate, one of another CA, an expired one, no common protocol.
    #[error("the handshake with {peer} failed: {reason}")]
    Handshake {
        /// Who it was.
        peer: PeerAddr,
        /// What is wrong.
        reason: String,
    },
    /// The workload has no certificate yet.
    #[error("{peer} cannot be served with TLS: this workload has no certificate yet")]
    NoIdentity {
        /// Who it was.
        peer: PeerAddr,
    },
}

fn by(policy: Option<&ResourceRef>) -> String {
    policy.map_or_else(String::new, |p| format!(" by {p}"))
}

impl AcceptError {
    /// A short stable word, for a metric's label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::PlaintextRefused { .. } => "plaintext_refused",
            Self::Closed { .. } => "closed",
            Self::Io { .. } => "io",
            Self::ClientHelloTooLarge { .. } => "client_hello_too_large",
            Self::HandshakeTimeout { .. } => "handshake_timeout",
            Self::Handshake { .. } => "handshake_failed",
            Self::NoIdentity { .. } => "no_identity",
        }
    }
}

impl<IO> AcceptedStream<IO> {
    /// A connection that was accepted on `local` from `peer`.
    pub const fn new(io: IO, peer: PeerAddr, local: LocalAddr) -> Self {
        Self { io, peer, local, original_dst: None, workload_port: None }
    }

    /// Where it was going before it was redirected.
    #[must_use]
    pub const fn original_dst(mut self, dst: OriginalDst) -> Self {
        self.original_dst = Some(dst);
        self
    }

    /// The workload's port, where it is neither the original destination's nor the local one.
    #[must_use]
    pub const fn workload_port(mut self, port: u16) -> Self {
        self.workload_port = Some(port);
        self
    }

    /// The port whose mode applies.
    fn port(&self) -> u16 {
        self.workload_port.or(self.original_dst.map(OriginalDst::port)).unwrap_or(self.local.port())
    }

    fn describe(&self) -> mesh_core::facts::ConnectionBuilder {
        let mut facts = Connection::builder()
            .direction(Direction::Inbound)
            .peer_addr(self.peer.0)
            .local_addr(self.local.0)
            .workload_port(self.port());
        if let Some(dst) = self.original_dst {
            facts = facts.original_dst(dst.0);
        }
        facts
    }
}

impl<IO> Accepted<IO> {
    /// What was agreed on in the handshake; `None` without TLS, or where the client named nothing.
    pub fn negotiated(&self) -> Option<Negotiated> {
        match self.connection.transport() {
            Transport::Tls { alpn, .. } => Negotiated::of(alpn.as_deref()),
            _ => None,
        }
    }
}

impl TlsAccept {
    /// Shows the identity of `credentials`, in the modes of `modes`; default timeouts.
    pub const fn new(credentials: Live<Credentials>, modes: Live<TlsModes>) -> Self {
        Self { credentials, modes, detect_timeout: DETECT_TIMEOUT, handshake_timeout: HANDSHAKE_TIMEOUT }
    }

    /// Sets how long PERMISSIVE waits for the first byte. Default: [`DETECT_TIMEOUT`].
    #[must_use]
    pub const fn detect_timeout(mut self, timeout: Duration) -> Self {
        self.detect_timeout = timeout;
        self
    }

    /// Sets how long a handshake may take. Default: [`HANDSHAKE_TIMEOUT`].
    #[must_use]
    pub const fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    async fn accept<IO>(self, stream: AcceptedStream<IO>) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let (mode, policy) = {
            let modes = self.modes.load();
            let found = modes.for_port(stream.port());
            (found.mode, found.source.clone())
        };
        let facts = stream.describe();
        let (peer, port) = (stream.peer, stream.port());
        let mut io = stream.io;
        let first = match mode {
            Mode::Disable => {
                return Ok(Accepted { io: MaybeTls::plain(io), connection: facts.build() });
            }
            Mode::Permissive => Some(self.detect_timeout),
            Mode::Strict => None,
        };

        let (prefix, found, deadline) = self.detect(&mut io, peer, first).await?;
        let io = Rewind::new(io, prefix.freeze());
        let hello = match (found, mode) {
            (None, Mode::Strict) => {
                return Err(AcceptError::PlaintextRefused { peer, port, policy });
            }
            (None, _) => {
                return Ok(Accepted { io: MaybeTls::rewound(io), connection: facts.build() });
            }
            (Some(hello), _) => hello,
        };
        if mode == Mode::Permissive && !hello.mesh {
            let connection = facts.transport(Transport::Passthrough { sni: hello.sni }).build();
            return Ok(Accepted { io: MaybeTls::rewound(io), connection });
        }

        let config = match self.credentials.load().material() {
            Some(material) => Arc::clone(material.server_config()),
            None => return Err(AcceptError::NoIdentity { peer }),
        };
        let failed = |reason| AcceptError::Handshake { peer, reason };
        let tls = match timeout_at(deadline, TlsAcceptor::from(config).accept(io)).await {
            Err(_) => return Err(AcceptError::HandshakeTimeout { peer, after: self.handshake_timeout }),
            Ok(Err(error)) => return Err(failed(handshake_reason(&error))),
            Ok(Ok(tls)) => tls,
        };
        let session = tls.get_ref().1;
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let identity = leaf.ok_or(LeafError::NoUri).and_then(peer_identity);
        let identity = identity.map_err(|e| failed(format!("the peer's certificate: {e}")))?;
        let transport = Transport::Tls {
            sni: session.server_name().map(Arc::from),
            alpn: session.alpn_protocol().map(Arc::from),
        };
        let connection = facts.transport(transport).peer(identity).build();
        Ok(Accepted { io: MaybeTls::server(tls), connection })
    }

    /// Reads until it is clear whether the connection is TLS. With `first`, no byte within that time means
    /// that it is not; without, silence is a timeout. Gives what was read, and until when the handshake
    /// must end.
    async fn detect<IO: AsyncRead + Unpin>(
        &self,
        io: &mut IO,
        peer: PeerAddr,
        first: Option<Duration>,
    ) -> Result<(BytesMut, Option<ClientHello>, Instant), AcceptError> {
        let mut seen = BytesMut::with_capacity(FIRST_READ);
        let mut deadline = Instant::now() + self.handshake_timeout;
        let broke = |source| AcceptError::Io { peer, source };
        let late = AcceptError::HandshakeTimeout { peer, after: self.handshake_timeout };
        let patience = first.map_or(deadline, |first| Instant::now() + first);
        let n = match timeout_at(patience, io.read_buf(&mut seen)).await {
            Ok(read) => read.map_err(broke)?,
            Err(_) if first.is_some() => return Ok((seen, None, deadline)),
            Err(_) => return Err(late),
        };
        if n == 0 {
            return Err(AcceptError::Closed { peer });
        }
        if first.is_some() {
            deadline = Instant::now() + self.handshake_timeout;
        }
        loop {
            match sniff(&seen) {
                Sniff::NotTls => return Ok((seen, None, deadline)),
                Sniff::ClientHello(hello) => return Ok((seen, Some(hello), deadline)),
                Sniff::TooLarge => return Err(AcceptError::ClientHelloTooLarge { peer }),
                Sniff::NeedMore => {}
            }
            let room = MAX_CLIENT_HELLO.saturating_sub(seen.len());
            let mut rest = (&mut seen).limit(room);
            let n = match timeout_at(deadline, io.read_buf(&mut rest)).await {
                Ok(read) => read.map_err(broke)?,
                Err(_) => return Err(late),
            };
            if n == 0 {
                // The peer has said all that it wants to say, and it is no whole ClientHello.
                return Ok((seen, None, deadline));
            }
        }
    }
}

/// What a failed handshake tells: our own reason where the peer's certificate was refused.
pub(crate) fn handshake_reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(refused @ rustls::Error::InvalidCertificate(_)) => {
            format!("the peer's certificate was refused: {}", told(refused))
        }
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

/// The future of [`TlsAccept`].
pub struct AcceptFuture<IO>(Pin<Box<dyn Future<Output = Result<Accepted<IO>, AcceptError>> + Send>>);

impl<IO> fmt::Debug for AcceptFuture<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AcceptFuture")
    }
}

impl<IO> Future for AcceptFuture<IO> {
    type Output = Result<Accepted<IO>, AcceptError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<IO> Service<AcceptedStream<IO>> for TlsAccept
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Response = Accepted<IO>;
    type Error = AcceptError;
    type Future = AcceptFuture<IO>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), AcceptError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: AcceptedStream<IO>) -> Self::Future {
        AcceptFuture(Box::pin(self.clone().accept(stream)))
    }
}
