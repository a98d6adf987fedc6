//! The port for proxies: discovery and certificates, gRPC over TLS.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper_util::rt::TokioIo;
use mesh_xds::server::{ServerLimits, serve_connection};
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::body::Body;
use tower_service::Service;

use super::accept::{Port, accept, handshake};
use super::authenticate::{Activity, Authenticate};
use super::drain::Draining;
use super::identity::ServerTls;
use crate::authority::token::Tokens;

/// Serves `service` (the gRPC services) until the drain begins; connections then end with their last request.
pub async fn serve<S>(
    listener: TcpListener,
    port: Port,
    limits: ServerLimits,
    tls: watch::Receiver<Option<ServerTls>>,
    tokens: Arc<Tokens>,
    service: S,
    drain: Draining,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let (limits, of) = (Arc::new(limits), port.clone());
    accept(listener, &of, drain.clone(), |stream, peer, place| {
        let Some(ServerTls { proxies, clients, .. }) = tls.borrow().clone() else { return };
        let (port, limits) = (port.clone(), Arc::clone(&limits));
        let activity = Activity::new();
        let service = Authenticate::new(service.clone(), Arc::clone(&tokens), activity.clone());
        let (mut drain, alive) = (drain.clone(), drain.clone());
        tokio::spawn(async move {
            let _held = (place, alive);
            let Some(stream) = handshake(&port, proxies, stream, peer).await else { return };
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let who = clients.peer(chain, UnixTime::now());
            let idle = port.limits.idle;
            // Who does not even begin with HTTP/2, or does not go when told to, is left.
            let over = activity.clone().idle(idle + port.limits.handshake);
            let ended = async move {
                tokio::select! {
                    () = activity.idle(idle) => {}
                    () = drain.begun() => {}
                }
            };
            let served = Box::pin(serve_connection(TokioIo::new(stream), who, service, &limits, ended));
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::debug!(%peer, %error, "a proxy's connection ended early");
                },
                () = over => port.metrics.closed(port.name, "idle"),
            }
        });
    })
    .await;
}
