//! Requests that become another protocol: WebSocket and its like.

use std::io;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_core::cluster::InFlight;

use super::wire;

/// The upstream's half of an upgraded request, and the count of it being in flight.
#[derive(Debug)]
pub struct Upgrade {
    on: OnUpgrade,
    in_flight: Option<Arc<InFlight>>,
}

/// Keeps an upgraded request counted at its endpoint; an extension of the 101 response.
#[derive(Debug, Clone)]
pub(super) struct StillInFlight(pub(super) Arc<InFlight>);

impl Upgrade {
    /// Takes the upstream's half from a 101 response that the pool gave; `None` for any other response.
    pub fn take<B>(response: &mut Response<B>) -> Option<Self> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        let in_flight = response.extensions_mut().remove::<StillInFlight>().map(|s| s.0);
        let on = response.extensions_mut().remove::<OnUpgrade>()?;
        Some(Self { on, in_flight })
    }
}

/// Takes the caller's half from a request that asks for an upgrade; `None` for any other request. Do it
/// before the request goes into the stack: what goes in does not come back.
pub fn caller_half<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
    let asks = wire::is_upgrade(request.headers());
    asks.then(|| request.extensions_mut().remove::<OnUpgrade>()).flatten()
}

/// Joins both halves until both sides have ended: returns the bytes from caller to upstream and back.
///
/// Give the 101 response to the caller first and run this beside it (`tokio::spawn`); it waits for both
/// connections to switch.
///
/// # Errors
/// Either connection did not switch, or broke.
pub async fn join_upgrade(caller: OnUpgrade, upstream: Upgrade) -> io::Result<(u64, u64)> {
    let Upgrade { on, in_flight } = upstream;
    // One after the other is as good: both are settled by now or soon, each by its own connection's task.
    let mut on = TokioIo::new(on.await.map_err(io::Error::other)?);
    let mut caller = TokioIo::new(caller.await.map_err(io::Error::other)?);
    let copied = tokio::io::copy_bidirectional(&mut caller, &mut on).await;
    drop(in_flight);
    copied
}
