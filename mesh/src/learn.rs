//! The way of calls to hosts that are not known yet: who can learn of them does, and the call goes on.
//!
//! Where the whole configuration is there from the start, nothing is to be learnt, and this is the router alone.
//! A host that is known costs nothing more than the router does.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::live::Live;
use mesh_core::normal::Authority;
use mesh_route::layer::{Route, RouteLayer};
use mesh_route::table::RouteTable;
use tower_layer::Layer;
use tower_service::Service;

/// A future of somebody who learns.
pub(crate) type Learning<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;

/// Learns what applies to calls to hosts.
pub(crate) trait Learn: Send + Sync {
    /// Returns once what applies to calls to this host is in force.
    fn host(&self, authority: &Authority) -> Learning<()>;
    /// Returns once what stands behind this address is known; nothing may.
    fn address(&self, ip: IpAddr) -> Learning<Option<Arc<LearntAddress>>>;
}

/// What stands behind an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LearntAddress {
    /// The hosts in full, the one that decides first.
    pub hosts: Vec<Arc<str>>,
    /// Whether it is the address of an endpoint rather than that of the whole service.
    pub endpoint: bool,
}

/// Somebody who learns, or nobody.
pub(crate) type Learner = Option<Arc<dyn Learn>>;

/// Makes [`LearnRoute`]s.
#[derive(Clone)]
pub(crate) struct LearnLayer {
    routes: RouteLayer,
    learner: Learner,
}

/// The router, and before it whoever learns of hosts.
///
/// Readiness, facts and answers: the router's; `config_unavailable` and `overflow` 503 where a host could not
/// be learnt.
#[derive(Clone)]
pub struct LearnRoute<S> {
    route: Route<S>,
    learner: Learner,
}

/// The answer of a call whose host had to be learnt.
type Late<R, E> = Pin<Box<dyn Future<Output = Result<Response<R>, E>> + Send>>;

impl LearnLayer {
    pub(crate) fn new(table: Live<RouteTable>, learner: Learner) -> Self {
        Self { routes: RouteLayer::new(table), learner }
    }
}

impl<S> Layer<S> for LearnLayer {
    type Service = LearnRoute<S>;

    fn layer(&self, inner: S) -> LearnRoute<S> {
        LearnRoute { route: self.routes.layer(inner), learner: self.learner.clone() }
    }
}

impl<S, A, R> Service<Request<A>> for LearnRoute<S>
where
    S: Service<Request<A>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    A: Send + 'static,
    R: Default + From<Bytes> + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<mesh_route::layer::ResponseFuture<S::Future, R>, Late<R, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Service::<Request<A>>::poll_ready(&mut self.route, cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let Some(learner) = &self.learner else { return Either::Left(self.route.call(request)) };
        let unknown = match self.route.call_known(request) {
            Ok(answer) => return Either::Left(answer),
            Err(unknown) => unknown,
        };
        let learning = learner.host(&unknown.authority);
        // The one that is ready goes along.
        let fresh = self.route.clone();
        let mut route = std::mem::replace(&mut self.route, fresh);
        let mut request = unknown.request;
        Either::Right(Box::pin(async move {
            match learning.await {
                Err(failure) if failure.code() != FailureCode::UnknownHost => {
                    Ok(Route::<S>::answer(&mut request, failure))
                }
                // What nobody knows is for the router to say.
                _ => route.call(request).await,
            }
        }))
    }
}

impl fmt::Debug for LearnLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LearnLayer").field("learns", &self.learner.is_some()).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug> fmt::Debug for LearnRoute<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let learns = self.learner.is_some();
        f.debug_struct("LearnRoute").field("route", &self.route).field("learns", &learns).finish()
    }
}
