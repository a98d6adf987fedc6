//! The stacks that send requests, read aloud: one line a layer, outermost first.

use std::sync::Arc;

use mesh_core::body::Body;
use mesh_core::cluster::Cluster;
use mesh_core::live::Live;
use mesh_core::respond::{Respond, RespondLayer};
use mesh_policy::breaker::{CircuitBreaker, CircuitBreakerLayer};
use mesh_policy::outlier::{Outlier, OutlierLayer};
use mesh_route::balance::{Balance, BalanceLayer};
use mesh_route::fault::{Fault, FaultLayer};
use mesh_route::pool::Pool;
use mesh_route::retry::{Retry, RetryLayer};
use mesh_route::table::RouteTable;
use mesh_route::timeout::{Timeout, TimeoutLayer};
use mesh_telemetry::layer::Recorded;
use mesh_telemetry::{Telemetry, TelemetryLayer};
use tower::ServiceBuilder;
use tower_layer::layer_fn;

use crate::bodies::{AnyRequest, OneResponse};
use crate::connect::MeshConnect;
use crate::learn::{LearnLayer, LearnRoute, Learner};
use crate::server::{Server, ServerLayer};

/// The body of an answer.
pub type ClientBody = Recorded<Body>;

/// One try at a cluster: circuit breaking, balancing, outlier detection, connections.
type Try = OneResponse<CircuitBreaker<Balance<Outlier<Pool<MeshConnect>>>>>;

/// A client for calls from a workload; made by [`Mesh::client`](crate::Mesh::client).
///
/// A `tower::Service` of requests with any body: an absolute URI or a `Host` header says where to. It never
/// fails: what the mesh cannot do is an answer with `x-mesh-reason`.
pub type Client = Telemetry<Respond<AnyRequest<LearnRoute<Fault<Timeout<Retry<Try>>>>>, Body>>;

/// Hands calls to the application; made by [`Mesh::app_service`](crate::Mesh::app_service).
pub type AppService = Server<AnyRequest<Retry<Try>>, Body>;

pub(crate) fn client(
    telemetry: TelemetryLayer,
    routes: Live<RouteTable>,
    learner: Learner,
    pool: Pool<MeshConnect>,
) -> Client {
    ServiceBuilder::new()
        .layer(telemetry) // counts every answer, the mesh's own too
        .layer(RespondLayer::with_text()) // the last place where an error lives
        .layer(layer_fn(AnyRequest)) // a retry has to be able to keep the body
        .layer(LearnLayer::new(routes, learner)) // draws the split once: a retry stays on its subset
        .layer(FaultLayer::new()) // before the timeout, as in Istio: a delay is not the service's
        .layer(TimeoutLayer::default()) // covers all tries
        .layer(RetryLayer::default()) // under the cluster's budget
        .layer(layer_fn(OneResponse))
        .layer(CircuitBreakerLayer::new()) // each try counts as a request in flight
        .layer(BalanceLayer::new()) // reads ejections
        .layer(OutlierLayer::new()) // writes ejections
        .service(pool)
}

/// The inbound half of a sidecar. What the application drops before it has read a request is sent again, as
/// Istio's sidecars do; nothing is ejected, there is one application.
pub(crate) fn app(server: ServerLayer<Body>, app: Arc<Cluster>, pool: Pool<MeshConnect>) -> AppService {
    ServiceBuilder::new()
        .layer(server)
        .layer(layer_fn(AnyRequest))
        .layer(RetryLayer::default().within(Arc::clone(&app)))
        .layer(layer_fn(OneResponse))
        .layer(CircuitBreakerLayer::for_cluster(Arc::clone(&app)))
        .layer(BalanceLayer::to(app))
        .layer(OutlierLayer::new())
        .service(pool)
}
