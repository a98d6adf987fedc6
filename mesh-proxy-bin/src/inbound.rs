//! Calls to the workload: from the network, through the mesh's TLS and policies, to the application.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh::apps::Apps;
use mesh::core::cluster::Cluster;
use mesh::core::facts::{Facts, LocalAddr, OriginalDst, PeerAddr, Transport};
use mesh::core::failure::Failure;
use mesh::serve::Asleep;
use mesh::tcp::Dialed;
use mesh::tls::alpn::Negotiated;
use mesh::tls::io::Rewind;
use mesh::tls::{AcceptError, AcceptedStream};
use mesh::{AppService, Mesh};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::accept::accept;
use crate::detect::{Dialing, Patience, SILENCE, Spoken, detect_both};
use crate::drain::{Draining, Entrance};
use crate::loops::Loops;
use crate::original::canonical;
use crate::relay::{Counted, Side, relay};
use crate::serve;

/// One worker's side of the calls to the workload.
#[derive(Clone)]
pub(crate) struct Inbound {
    mesh: Mesh,
    to: To,
    detect_timeout: Duration,
}

/// Where calls are handed to.
#[derive(Clone)]
enum To {
    /// The one application; policies compare with `port`.
    One { port: u16, http: AppService },
    /// Where each was going before it was redirected here.
    Each(Apps, Loops),
}

/// Where one connection is handed to.
enum App {
    One(AppService),
    At(Apps, Arc<Cluster>),
}

impl Inbound {
    /// Calls arrive at `port`, which policies compare with. `None` where the mesh knows no application.
    pub(crate) fn new(mesh: Mesh, port: u16, worker: usize, detect_timeout: Duration) -> Option<Self> {
        let http = mesh.app_service(worker)?;
        Some(Self { mesh, to: To::One { port, http }, detect_timeout })
    }

    /// Calls are redirected here from wherever they were going.
    pub(crate) fn redirected(mesh: Mesh, loops: Loops, worker: usize, detect_timeout: Duration) -> Self {
        let apps = mesh.apps(worker);
        Self { mesh, to: To::Each(apps, loops), detect_timeout }
    }

    /// Accepts as long as anything is in flight.
    pub(crate) async fn serve_redirected(self, listener: TcpListener, entrance: Entrance) {
        accept(listener, entrance.clone().over(), |stream, peer| {
            if let Some(draining) = entrance.handle() {
                tokio::spawn(self.clone().connection(stream, peer, draining));
            }
        })
        .await;
    }

    /// Accepts until the drain begins.
    pub(crate) async fn serve(self, listener: TcpListener, draining: Draining) {
        let mut stop = draining.clone();
        accept(listener, async move { stop.begun().await }, |stream, peer| {
            tokio::spawn(self.clone().connection(stream, peer, draining.clone()));
        })
        .await;
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr, mut draining: Draining) {
        let Ok(local) = stream.local_addr() else { return };
        let (local, peer) = (canonical(local), canonical(peer));
        let (port, app, original) = match self.to {
            To::One { port, http } => (port, App::One(http), None),
            To::Each(apps, loops) => match loops.original(&stream) {
                Ok(original) => {
                    let app = apps.at(original);
                    (original.port(), App::At(apps, app), Some(OriginalDst(original)))
                }
                Err(reason) => {
                    self.mesh.count_refused(reason);
                    tracing::info!(%peer, reason, "a connection to the sidecar itself was refused");
                    return;
                }
            },
        };
        let stream = AcceptedStream::new(stream, PeerAddr(peer), LocalAddr(local)).workload_port(port);
        let stream = match original {
            Some(original) => stream.original_dst(original),
            None => stream,
        };
        let begun = Instant::now();
        let accepted = match Box::pin(self.mesh.accept(stream)).await {
            Ok(accepted) => accepted,
            Err(error) => return refused(&self.mesh, &error),
        };
        let negotiated = accepted.negotiated();
        let connection = self.mesh.describe_peer(accepted.connection);
        let mut io = accepted.io;
        let mut first = BytesMut::new();
        let (spoken, early) = match negotiated {
            Some(Negotiated::Http1) => (Spoken::Http1, None),
            Some(Negotiated::Carried) => (Spoken::Carried, None),
            Some(Negotiated::Http2) => (Spoken::Http2, None),
            _ if matches!(connection.transport(), Transport::Passthrough { .. }) => (Spoken::Opaque, None),
            _ if self.mesh.inbound_protocol(port).is_opaque() => (Spoken::Opaque, None),
            other => {
                let protocol = self.mesh.inbound_protocol(port);
                let alone = match other {
                    // Nobody who speaks HTTP waits for the server to begin.
                    _ if protocol.is_http() => self.detect_timeout,
                    // The caller's proxy has found that it is not HTTP, or was told so.
                    Some(Negotiated::Mesh) => Duration::ZERO,
                    // It has been found out already that this is no TLS.
                    _ if matches!(connection.transport(), Transport::Plaintext) => {
                        SILENCE.saturating_sub(begun.elapsed())
                    }
                    _ => SILENCE,
                };
                let patience = Patience { whole: self.detect_timeout, alone };
                let dial = || -> Dialing<'_, Dialed, Facts> {
                    Box::pin(early(&self.mesh, &app, Facts::new(Arc::clone(&connection))))
                };
                match detect_both(&mut io, &mut first, patience, dial).await {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::debug!(%peer, %error, "the connection broke before its first bytes");
                        return;
                    }
                }
            }
        };
        let io = Rewind::new(io, first.freeze());
        // Turning STRICT ends what is not the mesh's TLS.
        let mesh = self.mesh.clone();
        let watched = Arc::clone(&connection);
        let refused = async move { mesh.transport_refused(&watched).await };
        // What follows is boxed, as the handshake is: else each connection would have room for the largest of them.
        // A port that is declared HTTP gets HTTP's answer to what is none.
        let http = spoken != Spoken::Opaque || self.mesh.inbound_protocol(port).is_http();
        if http && !matches!(connection.transport(), Transport::Passthrough { .. }) {
            // Lent, since a future lets go of what it holds when it has ended: the drain waits for it until the end.
            let draining = &mut draining;
            let stop = async move {
                tokio::select! {
                    () = draining.leaving() => {}
                    () = refused => {}
                }
            };
            let http = match app {
                App::One(http) => http,
                App::At(apps, cluster) => apps.http(cluster),
            };
            Box::pin(serve::http(io, spoken, connection, http, stop)).await;
        } else {
            // Bytes cannot be told to end at a good point: they go on until a drain's deadline.
            let (early, facts) = match early {
                Some((early, facts)) => (Some(early), facts),
                None => (None, Facts::new(connection)),
            };
            Box::pin(opaque(self.mesh, app, io, (early, facts), refused)).await;
        }
    }
}

/// Connects to the application before it is known what is spoken, where policy would admit the peer's bytes.
async fn early(mesh: &Mesh, app: &App, facts: Facts) -> Option<(Dialed, Facts)> {
    // It is watched again when the connection is used.
    let mut refused = std::pin::pin!(mesh.connection_refused(Arc::clone(facts.connection())));
    tokio::select! {
        biased;
        _ = refused.as_mut() => None,
        dialed = dial(mesh, app, &facts) => dialed.ok().map(|dialed| (dialed, facts)),
    }
}

/// Carries bytes to the application, as long as policy admits the peer; over the connection that was made early where
/// there is one.
async fn opaque<I>(
    mesh: Mesh,
    app: App,
    io: I,
    (early, facts): (Option<Rewind<Dialed>>, Facts),
    ended: impl Future<Output = ()>,
) where
    I: Side,
{
    let record = Arc::new(mesh.record_of(&facts));
    // Watched from before the first check, so that no change of policy slips between.
    let mut refused = std::pin::pin!(mesh.connection_refused(Arc::clone(facts.connection())));
    let connected = async {
        match early {
            Some(early) => Ok(early),
            None => dial(&mesh, &app, &facts).await.map(|dialed| Rewind::new(dialed, Bytes::new())),
        }
    };
    let dialed = tokio::select! {
        biased;
        failure = refused.as_mut() => Err(failure),
        connected = connected => connected,
    };
    let failure = match dialed {
        Err(failure) => Some(failure),
        Ok(mut dialed) => {
            record.connected();
            let mut caller = Counted::new(io, Arc::clone(&record));
            let over = std::pin::pin!(async {
                tokio::select! {
                    biased;
                    failure = refused => Some(failure),
                    () = ended => None,
                }
            });
            tokio::select! {
                biased;
                failure = Asleep::new(over) => failure,
                _ = relay(&mut caller, &mut dialed) => None,
            }
        }
    };
    if let Some(failure) = failure {
        tracing::info!(%failure, peer = facts.connection().peer_addr().map(tracing::field::display),
            "a connection was ended");
        record.fail(failure);
    }
}

fn refused(mesh: &Mesh, error: &AcceptError) {
    mesh.count_refused(error.reason());
    match error {
        AcceptError::Closed { .. } => tracing::debug!(%error, "a connection was not taken"),
        _ => tracing::warn!(%error, "a connection was refused"),
    }
}

async fn dial(mesh: &Mesh, app: &App, facts: &Facts) -> Result<Dialed, Failure> {
    match app {
        App::One(_) => mesh.dial_app(facts).await,
        App::At(_, app) => mesh.hand_over(app, facts).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each connection is such a future for as long as it lives, and what is left of it in boxes.
    #[tokio::test]
    async fn a_connection_takes_little_room() {
        const MOST: usize = 3328;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (mesh, _driver) = Mesh::builder().app(addr).build().unwrap();
        let draining = crate::drain::Drain::new().handle();
        let inbound = Inbound::new(mesh, addr.port(), 0, Duration::from_secs(1)).unwrap();
        let future = inbound.connection(TcpStream::connect(addr).await.unwrap(), addr, draining);
        let size = size_of_val(&future);
        assert!(size <= MOST, "{size} bytes");
    }
}
