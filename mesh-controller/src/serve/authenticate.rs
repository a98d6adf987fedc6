//! Says who asks for discovery: by the workload's token, or by its certificate.
//!
//! | token | Kubernetes | certificate of the mesh's authority | the stream |
//! |---|---|---|---|
//! | good | answers, or vouched for it before | | is the token's |
//! | good or bad | does not answer, and knows nothing of it | good | is the certificate's |
//! | good or bad | does not answer, and knows nothing of it | none | `UNAVAILABLE`: the proxy keeps what it has and comes again |
//! | bad | answers | | `UNAUTHENTICATED` |
//! | good | | another's | `UNAUTHENTICATED` |
//! | none | | good | is the certificate's |
//! | none | | none | `UNAUTHENTICATED` |
//!
//! A certificate of the authority was issued for a token; it tells the pod in its subject.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use mesh_xds::server::Peer;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use crate::authority::token::{Reason, Tokens};

/// How the path of a discovery stream begins.
const DISCOVERY: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/";
/// How long another request may take, from its headers to the last byte of its answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Says who asks; around the gRPC services of one connection.
#[derive(Debug, Clone)]
pub struct Authenticate<S> {
    inner: S,
    tokens: Arc<Tokens>,
    activity: Activity,
}

impl<S> Authenticate<S> {
    /// Believes `tokens`, and tells `activity` of each request.
    pub const fn new(inner: S, tokens: Arc<Tokens>, activity: Activity) -> Self {
        Self { inner, tokens, activity }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Authenticate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let clone = self.inner.clone();
        // The one that was asked whether it is ready.
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let (tokens, active) = (Arc::clone(&self.tokens), self.activity.begin());
        Box::pin(async move {
            if !request.uri().path().starts_with(DISCOVERY) {
                let answer = tokio::time::timeout(REQUEST_TIMEOUT, inner.call(request)).await;
                return answer.unwrap_or_else(|_| {
                    Ok(Status::deadline_exceeded("the request took too long").into_http())
                });
            }
            let shown = request.extensions_mut().remove::<Peer>();
            let peer = match bearer(request.headers()) {
                Ok(token) => who(&tokens, token, shown).await,
                Err(status) => Err(status),
            };
            match peer {
                Ok(peer) => request.extensions_mut().insert(peer),
                Err(status) => return Ok(status.into_http()),
            };
            let answer = inner.call(request).await?;
            Ok(answer.map(|body| Body::new(Counted { body, _active: active })))
        })
    }
}

/// The token of a request, if there is one.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Status> {
    let mut headers = headers.get_all(header::AUTHORIZATION).iter();
    let (one, None) = (headers.next(), headers.next()) else {
        return Err(Status::unauthenticated("there is more than one authorization"));
    };
    let Some(one) = one else { return Ok(None) };
    let token = one.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
    });
    let token = token.ok_or_else(|| Status::unauthenticated("the authorization is not: Bearer TOKEN"))?;
    Ok(Some(token.to_owned()))
}

/// Who asks with this token on a connection that has `shown` this certificate.
async fn who(tokens: &Tokens, token: Option<String>, shown: Option<Peer>) -> Result<Peer, Status> {
    let Some(token) = token else {
        let message = "neither a token (authorization: Bearer TOKEN) nor a certificate says who asks";
        return shown.ok_or_else(|| Status::unauthenticated(message));
    };
    match tokens.who(&token, shown.as_ref().map(|peer| &peer.identity)).await {
        Ok(holder) => {
            let namespace = holder.id.namespace().unwrap_or_default();
            let workload = holder.pod.as_ref().map(|pod| format!("{namespace}/{pod}").into());
            Ok(Peer { identity: holder.id, workload })
        }
        Err(refused) if refused.reason == Reason::Unavailable => {
            shown.ok_or_else(|| Status::unavailable(refused.message))
        }
        Err(refused) => {
            tracing::warn!(reason = refused.reason.as_str(), "a discovery stream is refused: {refused}");
            Err(Status::unauthenticated(refused.message))
        }
    }
}

/// How many requests a connection has; so that one without any can be ended.
#[derive(Debug, Clone)]
pub struct Activity(Arc<watch::Sender<usize>>);

/// A request, from its headers to the end of its answer.
#[derive(Debug)]
pub struct Active(Arc<watch::Sender<usize>>);

impl Activity {
    /// No request yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// A request has begun; it lasts until what is returned is dropped.
    pub fn begin(&self) -> Active {
        self.0.send_modify(|active| *active += 1);
        Active(Arc::clone(&self.0))
    }

    /// Returns when there has been no request for so long.
    pub async fn idle(self, patience: Duration) {
        let mut active = self.0.subscribe();
        loop {
            // The sender is in self.
            let _ = active.wait_for(|active| *active == 0).await;
            let busy = tokio::time::timeout(patience, active.wait_for(|active| *active > 0)).await.is_ok();
            if !busy {
                return;
            }
        }
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active -= 1);
    }
}

pin_project_lite::pin_project! {
    /// An answer that counts as active until its last byte.
    struct Counted {
        #[pin]
        body: Body,
        _active: Active,
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_it_has_had_no_request_for_long_enough() {
        let patience = Duration::from_secs(60);
        let activity = Activity::new();
        let started = tokio::time::Instant::now();
        let idle = tokio::spawn(activity.clone().idle(patience));
        let one = activity.begin();
        let two = activity.begin();
        tokio::time::sleep(patience * 10).await;
        assert!(!idle.is_finished());
        drop(one);
        tokio::time::sleep(patience * 10).await;
        assert!(!idle.is_finished());
        drop(two);
        idle.await.unwrap();
        assert_eq!(started.elapsed(), patience * 21);
        Activity::new().idle(patience).await;
        assert_eq!(started.elapsed(), patience * 22);
    }
}
