//! The layer, and the same for long-lived connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use mesh_core::facts::{Connection, Facts};
use mesh_core::failure::{Failure, is_grpc};
use mesh_core::live::Live;
use tower_layer::Layer;
use tower_service::Service;

use super::rules::{Decision, Rules};
use super::view::{ConnectionView, RequestView};
use crate::future::ResponseFuture;

/// Makes [`Authorization`] services. See the [module](super).
#[derive(Clone)]
pub struct AuthorizationLayer {
    rules: Live<Rules>,
    dry_run: Arc<AtomicU64>,
}

/// Refuses what policy does not admit. See the [module](super).
#[derive(Clone)]
pub struct Authorization<S> {
    inner: S,
    rules: Live<Rules>,
    dry_run: Arc<AtomicU64>,
}

impl AuthorizationLayer {
    /// Enforces the rules in force.
    pub fn new(rules: Live<Rules>) -> Self {
        Self { rules, dry_run: Arc::default() }
    }

    /// How many requests the policies in dry run would have refused since start.
    pub fn dry_run_refusals(&self) -> u64 {
        self.dry_run.load(Ordering::Relaxed)
    }
}

impl<S> Layer<S> for AuthorizationLayer {
    type Service = Authorization<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorization { inner, rules: self.rules.clone(), dry_run: Arc::clone(&self.dry_run) }
    }
}

impl<S, A, B> Service<Request<A>> for Authorization<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let failure = {
            let rules = self.rules.load();
            let view = RequestView::of(&request);
            if let Some(Decision::Refuse(refusal)) = rules.check_dry_run(&view) {
                self.dry_run.fetch_add(1, Ordering::Relaxed);
                tracing::info!(
                    code = refusal.code().as_str(),
                    detail = refusal.detail(),
                    "a policy in dry run would refuse this request"
                );
            }
            match rules.check(&view) {
                Decision::Pass(_) => None,
                Decision::Refuse(refusal) => Some(refusal.failure()),
            }
        };
        match failure {
            None => ResponseFuture::forward(self.inner.call(request)),
            Some(failure) => {
                // Gives back what `poll_ready` has reserved further in.
                let fresh = self.inner.clone();
                self.inner = fresh;
                let response = failure.response(is_grpc(request.headers()));
                if let Some(facts) = Facts::of(&request) {
                    facts.set_failure(failure);
                }
                ResponseFuture::refuse(response)
            }
        }
    }
}

/// Returns as soon as the rules refuse `connection`, and tells why: to be awaited beside the work on a
/// connection that lives longer than one decision, polled first, so that the first check comes before the
/// first byte.
///
/// Every publish is checked: the wait for the next one begins before the check of this one.
///
/// ```
/// use std::sync::Arc;
/// use mesh_core::{facts::Connection, live};
/// use tower_mesh_policy::authorization::{Rules, until_refused};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let (publisher, rules) = live::channel(Rules::default());
/// let connection = Connection::builder().build();
/// tokio::select! {
///     biased;
///     failure = until_refused(rules, Arc::clone(&connection)) => unreachable!("{failure}"),
///     () = async { /* copy bytes */ } => {}
/// }
/// # drop(publisher);
/// # });
/// ```
pub async fn until_refused(rules: Live<Rules>, connection: Arc<Connection>) -> Failure {
    let mut changes = rules.changes();
    loop {
        if let Decision::Refuse(refusal) = rules.load().check_connection(&ConnectionView::of(&connection)) {
            return refusal.failure();
        }
        changes.changed().await;
    }
}

impl fmt::Debug for AuthorizationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationLayer").field("policies", &names(&self.rules)).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug> fmt::Debug for Authorization<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorization")
            .field("inner", &self.inner)
            .field("policies", &names(&self.rules))
            .finish_non_exhaustive()
    }
}

fn names(rules: &Live<Rules>) -> Vec<String> {
    rules.load().policies().map(ToString::to_string).collect()
}
