//! The workload's own calls: by Host or `:authority`, absolute-form, and CONNECT.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::Either;
use http::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use mesh::core::body::Body;
use mesh::core::facts::{Connection, Direction, Facts};
use mesh::core::failure::{Failure, FailureCode};
use mesh::core::normal::Authority;
use mesh::tcp::{Dialed, TcpTarget};
use mesh::tls::io::Rewind;
use mesh::{Client, ClientBody, Mesh};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;

use crate::accept::accept;
use crate::detect::{Dialing, Patience, SILENCE, Spoken, detect, detect_both};
use crate::drain::Draining;
use crate::relay::{Counted, Side, relay};
use crate::serve;

/// One worker's side of the workload's calls.
#[derive(Clone)]
pub(crate) struct Outbound {
    client: Client,
    /// Apart, because the rest is cloned for each request.
    shared: Arc<Shared>,
}

/// The answer to a CONNECT.
type Connect = Pin<Box<dyn Future<Output = Result<Response<ClientBody>, Infallible>> + Send>>;

struct Shared {
    mesh: Mesh,
    detect_timeout: Duration,
    draining: Draining,
}

impl Outbound {
    pub(crate) fn new(mesh: Mesh, worker: usize, detect_timeout: Duration, draining: Draining) -> Self {
        let client = mesh.client_on(worker);
        Self { client, shared: Arc::new(Shared { mesh, detect_timeout, draining }) }
    }

    /// Accepts until the drain begins.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let mut stop = self.shared.draining.clone();
        accept(listener, async move { stop.begun().await }, |stream, peer| {
            tokio::spawn(self.clone().connection(stream, peer));
        })
        .await;
    }

    async fn connection(self, mut stream: TcpStream, peer: SocketAddr) {
        let Ok(local) = stream.local_addr() else { return };
        let mut first = BytesMut::new();
        // Nobody is kept waiting here for a server that speaks first: a proxy that is spoken to hears first.
        let spoken = detect(&mut stream, &mut first, mesh::serve::HEADER_TIMEOUT).await;
        let Ok(spoken @ (Spoken::Http1 | Spoken::Http2)) = spoken else {
            if !first.is_empty() {
                tracing::warn!(%peer, "what arrives on --outbound is no HTTP; closed (for TCP use CONNECT)");
            }
            return;
        };
        let connection =
            Connection::builder().direction(Direction::Outbound).peer_addr(peer).local_addr(local).build();
        // Boxed: who has not spoken yet takes no room for a request.
        Box::pin(self.http(Rewind::new(stream, first.freeze()), spoken, connection)).await;
    }

    async fn http<I>(self, io: I, spoken: Spoken, connection: Arc<Connection>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut draining = self.shared.draining.clone();
        serve::http(io, spoken, connection, self, async move { draining.begun().await }).await;
    }

    /// Answers a CONNECT; what follows in the tunnel is another task's.
    async fn connect(self, mut request: Request<Body>) -> Response<ClientBody> {
        let facts = Facts::of_or_insert(&mut request);
        let authority = request.uri().authority().map(|a| Authority::parse(a.as_str()));
        let target = match authority {
            Some(Ok(authority)) => {
                let learnt = self.shared.mesh.learn(&authority).await;
                learnt.and_then(|()| self.shared.mesh.tcp_target(&authority))
            }
            _ => Err(Failure::new(FailureCode::BadRequest).detail("CONNECT names no host")),
        };
        let target = match target {
            Ok(target) => target,
            Err(failure) => {
                let (_, record) = self.shared.mesh.connection_record(facts.connection());
                record.fail(failure.clone());
                let body = Body::from(failure.spec().body);
                return failure.response::<()>(false).map(|()| ClientBody::elsewhere(body));
            }
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let connection = Arc::clone(facts.connection());
        tokio::spawn(async move {
            match upgrade.await {
                Ok(io) => self.tunnel(TokioIo::new(io), target, connection).await,
                Err(error) => tracing::debug!(%error, "a tunnel was not taken up"),
            }
        });
        Response::new(ClientBody::elsewhere(Body::empty()))
    }

    async fn tunnel<I>(self, mut io: I, target: TcpTarget, connection: Arc<Connection>)
    where
        I: Side + Send + 'static,
    {
        let mut first = BytesMut::new();
        let mesh = &self.shared.mesh;
        let mut early = None;
        if !target.is_opaque() {
            let patience = Patience { whole: self.shared.detect_timeout, alone: SILENCE };
            let dial = || -> Dialing<'_, Dialed, Facts> {
                Box::pin(async {
                    let facts = Facts::new(Arc::clone(&connection));
                    Some((mesh.dial(&target, &facts).await.ok()?, facts))
                })
            };
            match detect_both(&mut io, &mut first, patience, dial).await {
                Ok((Spoken::Opaque, made)) => early = made,
                Ok((spoken, _)) => {
                    let io = Rewind::new(io, first.freeze());
                    // Boxed: serving a tunnel is serving a connection again, within the first.
                    return Box::pin(self.http(io, spoken, connection)).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a tunnel broke before its first bytes");
                    return;
                }
            }
        }
        // Counts as in flight: a drain waits for it until its deadline.
        let _draining = self.shared.draining.clone();
        let (early, facts) = match early {
            Some((early, facts)) => (Some(early), facts),
            None => (None, Facts::new(connection)),
        };
        let record = Arc::new(mesh.record_of(&facts));
        let dialed = match early {
            Some(early) => Ok(early),
            None => mesh.dial(&target, &facts).await.map(|dialed| Rewind::new(dialed, Bytes::new())),
        };
        match dialed {
            Ok(mut upstream) => {
                record.connected();
                let mut caller = Counted::new(Rewind::new(io, first.freeze()), Arc::clone(&record));
                let _ = relay(&mut caller, &mut upstream).await;
            }
            Err(failure) => {
                tracing::warn!(%failure, %target, "the destination of a tunnel cannot be reached");
                record.fail(failure);
            }
        }
    }
}

impl Service<Request<Body>> for Outbound {
    type Response = Response<ClientBody>;
    type Error = Infallible;
    type Future = Either<<Client as Service<Request<Body>>>::Future, Connect>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.client, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.method() == Method::CONNECT {
            let answer = self.clone().connect(request);
            return Either::Right(Box::pin(async move { Ok(answer.await) }));
        }
        Either::Left(self.client.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each connection is such a future for as long as it lives, and what is left of it in boxes.
    #[tokio::test]
    async fn a_connection_takes_little_room() {
        const MOST: usize = 2048;
        let (mesh, _driver) = Mesh::builder().build().unwrap();
        let draining = crate::drain::Drain::new().handle();
        let outbound = Outbound::new(mesh, 0, Duration::from_secs(1), draining);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let future = outbound.connection(TcpStream::connect(addr).await.unwrap(), addr);
        let size = size_of_val(&future);
        assert!(size <= MOST, "{size} bytes");
    }
}
