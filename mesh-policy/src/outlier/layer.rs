//! The layer that watches, and the act of ejecting.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use mesh_core::body::BoxError;
use mesh_core::clock::now;
use mesh_core::cluster::{Cluster, Dispatch, Endpoint, Outcome, OutlierSettings, TryDeadline, UpstreamTls};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode, REASON_HEADER, is_grpc};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::decide::{Counts, Verdict, allowed, classify, decide, is_refusal, reason};

/// Makes [`Outlier`] services. See the [module](super).
#[derive(Debug, Clone, Copy, Default)]
pub struct OutlierLayer(());

/// Watches tries. See the [module](super).
#[derive(Debug, Clone)]
pub struct Outlier<S> {
    inner: S,
}

pin_project! {
    /// What an [`Outlier`] returns.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        watch: Watch,
    }
}

/// A try whose outcome is not known yet.
#[derive(Debug)]
struct Watch {
    target: Option<(Arc<Cluster>, Arc<Endpoint>)>,
    facts: Option<Facts>,
    deadline: Option<TryDeadline>,
}

impl OutlierLayer {
    /// A layer for any cluster; each try brings its own.
    pub const fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for OutlierLayer {
    type Service = Outlier<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Outlier { inner }
    }
}

impl<S, A, B> Service<Dispatch<A>> for Outlier<S>
where
    S: Service<Dispatch<A>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(|e| Failure::of(e.into()))
    }

    fn call(&mut self, dispatch: Dispatch<A>) -> Self::Future {
        let watched = dispatch.cluster.load_settings().outlier.is_some();
        let watch = Watch {
            target: watched.then(|| (Arc::clone(&dispatch.cluster), Arc::clone(&dispatch.endpoint))),
            facts: if watched { Facts::of(&dispatch.request).cloned() } else { None },
            deadline: dispatch.request.extensions().get().copied(),
        };
        ResponseFuture { inner: self.inner.call(dispatch), watch }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<B>, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx)).map_err(|e| Failure::of(e.into()));
        if let Some((cluster, endpoint)) = this.watch.target.take() {
            let outcome = match &result {
                Ok(response) => outcome_of(response.status(), response.headers(), &endpoint),
                Err(failure) => Outcome::Failed(failure.code()),
            };
            observe(&cluster, &endpoint, outcome, now());
        }
        Poll::Ready(result)
    }
}

/// A try that is abandoned because its time (or the route's) is over has failed; one whose caller went away has not.
impl Drop for Watch {
    fn drop(&mut self) {
        let Some((cluster, endpoint)) = self.target.take() else { return };
        let now = now();
        let late = self.deadline.is_some_and(|TryDeadline(deadline)| deadline <= now);
        let code = self.facts.as_ref().and_then(Facts::failure).map(Failure::code);
        if late || code == Some(FailureCode::Timeout) {
            observe(&cluster, &endpoint, Outcome::Failed(FailureCode::Timeout), now);
        }
    }
}

fn outcome_of(status: StatusCode, headers: &HeaderMap, endpoint: &Endpoint) -> Outcome {
    // Only a sidecar that has proved who it is can say that the application did not answer.
    if endpoint.key().tls != UpstreamTls::Plaintext
        && let Some(code) = headers.get(REASON_HEADER).and_then(FailureCode::from_header)
        && is_refusal(code)
    {
        return Outcome::Failed(code);
    }
    if status == StatusCode::OK && is_grpc(headers) {
        let grpc = headers.get("grpc-status").and_then(|v| v.to_str().ok()?.parse::<u8>().ok());
        return Outcome::Status(grpc.map_or(status, http_status_of));
    }
    Outcome::Status(status)
}

/// The HTTP status to which a gRPC status corresponds, as
/// [gRPC's gateway](https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto) maps them.
fn http_status_of(grpc: u8) -> StatusCode {
    match grpc {
        2 | 13 | 15 => StatusCode::INTERNAL_SERVER_ERROR,
        4 => StatusCode::GATEWAY_TIMEOUT,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    }
}

/// Counts what became of a try at `endpoint`, and ejects the endpoint when it failed too often in a row.
///
/// For layers of one's own, and for TCP, where a connection that comes about is
/// `Outcome::Status(StatusCode::OK)` and one that does not is `Outcome::Failed`.
pub fn observe(cluster: &Cluster, endpoint: &Endpoint, outcome: Outcome, now: Instant) {
    let settings = cluster.load_settings();
    let Some(settings) = &settings.outlier else { return };
    let state = endpoint.state();
    // What was on its way before the ejection says nothing about the time after it.
    if state.is_ejected(now) {
        return;
    }
    let (errors, gateway, local) =
        (state.consecutive_5xx(), state.consecutive_gateway(), state.consecutive_local());
    let mut counts = Counts::default();
    match classify(outcome, settings) {
        Verdict::Neutral => return,
        Verdict::Success => {
            for counter in [errors, gateway, local] {
                // A read is cheaper than a write that changes nothing.
                if counter.load(Relaxed) != 0 {
                    counter.store(0, Relaxed);
                }
            }
            return;
        }
        Verdict::Error => {
            counts.consecutive_5xx = errors.fetch_add(1, Relaxed).saturating_add(1);
            gateway.store(0, Relaxed);
            local.store(0, Relaxed);
        }
        Verdict::Gateway => {
            counts.consecutive_5xx = errors.fetch_add(1, Relaxed).saturating_add(1);
            counts.consecutive_gateway = gateway.fetch_add(1, Relaxed).saturating_add(1);
            if matches!(outcome, Outcome::Status(_)) {
                local.store(0, Relaxed);
            }
        }
        Verdict::GatewayOnly => {
            counts.consecutive_gateway = gateway.fetch_add(1, Relaxed).saturating_add(1);
            errors.store(0, Relaxed);
            local.store(0, Relaxed);
        }
        Verdict::Local => {
            counts.consecutive_local = local.fetch_add(1, Relaxed).saturating_add(1);
        }
    }
    if reason(&counts, settings).is_some() {
        eject(cluster, endpoint, counts, settings, now);
    }
}

fn eject(
    cluster: &Cluster,
    endpoint: &Endpoint,
    mut counts: Counts,
    settings: &OutlierSettings,
    now: Instant,
) {
    let state = endpoint.state();
    // Whatever is decided, the row begins anew: the next decision needs a whole row again.
    for counter in [state.consecutive_5xx(), state.consecutive_gateway(), state.consecutive_local()] {
        counter.store(0, Relaxed);
    }
    let endpoints = cluster.load_endpoints();
    counts.endpoints = endpoints.members().len();
    counts.ejected = endpoints.ejected(now);
    counts.ejections = state.ejections().load(Relaxed);
    counts.healthy_for =
        state.ejected_until().map_or(Duration::MAX, |end| now.saturating_duration_since(end));
    let Some(ejection) = decide(&counts, settings) else { return };
    let until = now.checked_add(ejection.duration).unwrap_or(now);
    if !state.eject(now, until) {
        return;
    }
    // Another endpoint may have been ejected meanwhile; rather none than one too many.
    if endpoints.ejected(now) > allowed(counts.endpoints, settings) {
        state.uneject();
        return;
    }
    state.ejections().store(ejection.number, Relaxed);
    cluster.count_ejection();
    tracing::warn!(
        endpoint = %endpoint.key().address,
        cluster = %cluster.key(),
        reason = %ejection.reason,
        seconds = ejection.duration.as_secs_f64(),
        ejected = counts.ejected + 1,
        endpoints = counts.endpoints,
        "endpoint ejected"
    );
}
