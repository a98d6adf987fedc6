//! The workload's own calls, redirected here on their way out, wherever they were going.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh::core::facts::{Connection, Direction, Facts};
use mesh::core::failure::Failure;
use mesh::outgoing::Outgoing;
use mesh::serve::Asleep;
use mesh::tcp::{Dialed, TcpTarget};
use mesh::tls::hello::{ClientHello, MAX_CLIENT_HELLO, Sniff, may_be_tls, sniff};
use mesh::tls::io::Rewind;
use mesh::{Client, Mesh};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::accept::accept;
use crate::detect::{Dialing, Early, Patience, SILENCE, Spoken, detect, detect_both};
use crate::drain::{Draining, Entrance};
use crate::loops::Loops;
use crate::original::canonical;
use crate::relay::{Counted, relay};
use crate::serve;

/// One worker's side of the workload's redirected calls.
#[derive(Clone)]
pub(crate) struct Redirected {
    client: Client,
    mesh: Mesh,
    loops: Loops,
    detect_timeout: Duration,
}

/// What is done with a connection once its first bytes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// Requests, each routed by its host.
    Requests,
    /// Bytes, which are not looked into any further.
    Bytes,
}

/// Decides by what is spoken and how it begins. Pure.
///
/// Who speaks to a forward proxy (CONNECT, or a request with a whole URI to an address that nobody knows) means that
/// proxy, and nobody in between.
fn treatment(spoken: Spoken, first: &[u8], known: bool) -> Treatment {
    if !matches!(spoken, Spoken::Http1 | Spoken::Http2) {
        return Treatment::Bytes;
    }
    let mut words = first.split(|b| *b == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let whole = !target.starts_with(b"/") && target != b"*";
    let to_a_proxy = spoken == Spoken::Http1 && (method == b"CONNECT" || (whole && !known));
    if to_a_proxy { Treatment::Bytes } else { Treatment::Requests }
}

impl Redirected {
    pub(crate) fn new(mesh: Mesh, loops: Loops, worker: usize, detect_timeout: Duration) -> Self {
        Self { client: mesh.client_on(worker), mesh, loops, detect_timeout }
    }

    /// Accepts as long as anything is in flight.
    pub(crate) async fn serve(self, listener: TcpListener, entrance: Entrance) {
        accept(listener, entrance.clone().over(), |stream, peer| {
            if let Some(draining) = entrance.handle() {
                tokio::spawn(self.clone().connection(stream, peer, draining));
            }
        })
        .await;
    }

    async fn connection(self, mut stream: TcpStream, peer: SocketAddr, mut draining: Draining) {
        let Ok(local) = stream.local_addr() else { return };
        let (local, peer) = (canonical(local), canonical(peer));
        let original = match self.loops.original(&stream) {
            Ok(original) => original,
            Err(reason) => {
                self.mesh.count_refused(reason);
                tracing::warn!(%peer, reason, "a connection to the sidecar itself was refused");
                return reset(&stream);
            }
        };
        let outgoing = match Box::pin(self.mesh.outgoing(original)).await {
            Ok(outgoing) => outgoing,
            Err(failure) => {
                tracing::warn!(%failure, %original, "where a connection goes cannot be told");
                return reset(&stream);
            }
        };
        let connection = Connection::builder()
            .direction(Direction::Outbound)
            .peer_addr(peer)
            .local_addr(local)
            .original_dst(original)
            .otherwise(outgoing.otherwise().map(Arc::clone))
            .to_endpoint(outgoing.is_endpoint())
            .build();
        let declared = outgoing.protocol();
        let mut first = BytesMut::new();
        let found = if declared.is_opaque() {
            Ok((Spoken::Opaque, None))
        } else if declared.is_http() {
            // Nobody who speaks HTTP waits for the server to begin.
            detect(&mut stream, &mut first, mesh::serve::HEADER_TIMEOUT).await.map(|spoken| (spoken, None))
        } else {
            let patience = Patience { whole: self.detect_timeout, alone: SILENCE };
            let dial = || -> Dialing<'_, Dialed, Facts> {
                Box::pin(async {
                    let facts = Facts::new(Arc::clone(&connection));
                    let dialed = self.mesh.dial(outgoing.bytes().ok()?, &facts).await.ok()?;
                    Some((dialed, facts))
                })
            };
            detect_both(&mut stream, &mut first, patience, dial).await
        };
        let (spoken, early) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%original, %error, "a connection broke before its first bytes");
                return;
            }
        };
        if treatment(spoken, &first, outgoing.is_known()) == Treatment::Requests {
            let mesh = self.mesh.clone();
            // Lent, since a future lets go of what it holds when it has ended: the drain waits for it until the end.
            let draining = &mut draining;
            let stop = async move {
                tokio::select! {
                    () = draining.begun() => {}
                    () = mesh.outgoing_refused(&outgoing) => {}
                }
            };
            let io = Rewind::new(stream, first.freeze());
            return Box::pin(serve::http(io, spoken, connection, self.client, stop)).await;
        }
        let caller = Caller { stream, first, original, connection };
        Box::pin(bytes(self.mesh, caller, outgoing, early, self.detect_timeout)).await;
    }
}

/// A connection that carries bytes.
struct Caller {
    stream: TcpStream,
    /// What has been read of it.
    first: BytesMut,
    original: SocketAddr,
    connection: Arc<Connection>,
}

/// Carries bytes to where they go, over the connection that was made early where there is one. Does not wait for the
/// client to begin.
async fn bytes(
    mesh: Mesh,
    caller: Caller,
    outgoing: Outgoing,
    early: Early<Dialed, Facts>,
    patience: Duration,
) {
    let Caller { mut stream, mut first, original, connection } = caller;
    let mut target: Result<TcpTarget, Failure> = outgoing.bytes().cloned().map_err(Clone::clone);
    let mut by_name = false;
    if !outgoing.is_known()
        && may_be_tls(&first)
        && let Some(hello) = client_hello(&mut stream, &mut first, patience).await
    {
        let found = match hello.sni {
            Some(name) => mesh.outgoing_tls(&name, original.port()).await,
            None => None,
        };
        by_name = found.is_some();
        target = found.map_or_else(|| outgoing.encrypted().cloned().map_err(Clone::clone), Ok);
    }
    let (early, facts) = match early.filter(|_| !by_name) {
        Some((early, facts)) => (Some(early), facts),
        None => (None, Facts::new(connection)),
    };
    let record = Arc::new(mesh.record_of(&facts));
    let dialed = match (&target, early) {
        // Made to where bytes go, which is where TLS of the application's own goes too, unless its name leads elsewhere.
        (Ok(_), Some(early)) => Ok(early),
        (Ok(target), None) => mesh.dial(target, &facts).await.map(|dialed| Rewind::new(dialed, Bytes::new())),
        (Err(failure), _) => {
            mesh.note_black_hole(&facts);
            Err(failure.clone())
        }
    };
    let mut upstream = match dialed {
        Ok(upstream) => upstream,
        Err(failure) => {
            tracing::info!(%failure, %original, "a connection of the application was closed");
            record.fail(failure);
            return reset(&stream);
        }
    };
    record.connected();
    let refused = std::pin::pin!(async {
        if by_name {
            return std::future::pending().await;
        }
        mesh.outgoing_refused(&outgoing).await;
    });
    let mut caller = Counted::new(Rewind::new(stream, first.freeze()), Arc::clone(&record));
    tokio::select! {
        biased;
        _ = relay(&mut caller, &mut upstream) => {}
        () = Asleep::new(refused) => tracing::info!(%original, "a connection is ended: what the mesh does not know is closed now"),
    }
}

/// How the application's own TLS begins, if it is TLS. What is read stays in `first`.
async fn client_hello(
    stream: &mut TcpStream,
    first: &mut BytesMut,
    patience: Duration,
) -> Option<ClientHello> {
    let reading = async {
        loop {
            match sniff(first) {
                Sniff::ClientHello(hello) => return Some(hello),
                Sniff::NeedMore if first.len() < MAX_CLIENT_HELLO => {}
                _ => return None,
            }
            if stream.read_buf(first).await.ok()? == 0 {
                return None;
            }
        }
    };
    tokio::time::timeout(patience, reading).await.ok().flatten()
}

/// Lets the application see that the connection was not taken, rather than that it has ended.
fn reset(stream: &TcpStream) {
    let reset: io::Result<()> = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    if let Err(error) = reset {
        tracing::debug!(%error, "SO_LINGER");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_means_a_proxy_gets_that_proxy() {
        use Spoken::{Http1, Http2, Opaque};
        use Treatment::{Bytes, Requests};
        let table: [(Spoken, &[u8], bool, Treatment); 10] = [
            (Http1, b"GET / HTTP/1.1\r\n", true, Requests),
            (Http1, b"GET / HTTP/1.1\r\n", false, Requests),
            (Http1, b"OPTIONS * HTTP/1.1\r\n", false, Requests),
            (Http1, b"GET http://reviews/ HTTP/1.1\r\n", true, Requests),
            (Http1, b"GET http://example.com/ HTTP/1.1\r\n", false, Bytes),
            (Http1, b"CONNECT example.com:443 HTTP/1.1\r\n", false, Bytes),
            (Http1, b"CONNECT example.com:443 HTTP/1.1\r\n", true, Bytes),
            (Http2, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, Requests),
            (Opaque, b"\x16\x03\x01", true, Bytes),
            (Opaque, b"", false, Bytes),
        ];
        for (spoken, first, known, want) in table {
            assert_eq!(treatment(spoken, first, known), want, "{}", first.escape_ascii());
        }
    }

    /// Each connection is such a future for as long as it lives, and what is left of it in boxes.
    #[tokio::test]
    async fn a_connection_takes_little_room() {
        const MOST: usize = 2048;
        let (mesh, _driver) = Mesh::builder().build().unwrap();
        let draining = crate::drain::Drain::new().handle();
        let redirected = Redirected::new(mesh, Loops([15001, 15006]), 0, Duration::from_secs(1));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let future = redirected.connection(TcpStream::connect(addr).await.unwrap(), addr, draining);
        let size = size_of_val(&future);
        assert!(size <= MOST, "{size} bytes");
    }
}
