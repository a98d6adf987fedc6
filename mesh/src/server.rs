//! The layers for calls to a workload, in one.

use std::fmt;

use mesh_core::normalize::{Normalize, NormalizeLayer};
use mesh_core::respond::{Respond, RespondLayer};
use mesh_policy::authorization::{Authorization, AuthorizationLayer};
use mesh_telemetry::{Telemetry, TelemetryLayer};
use tower_layer::Layer;

/// A service under the [server layers](crate::Mesh::server_layer).
pub type Server<S, R> = Telemetry<Respond<Normalize<Authorization<S>>, R>>;

/// The layers for calls to a workload; `R` is the body of the responses, which the compiler finds out.
///
/// Outermost first: telemetry (sees every answer, refusals too), [`Respond`] (the last place where an error
/// lives; removes forged reasons), [`Normalize`] (policy and application see the same path), authorization.
pub struct ServerLayer<R> {
    telemetry: TelemetryLayer,
    respond: RespondLayer<R>,
    authorization: AuthorizationLayer,
}

impl<R> ServerLayer<R> {
    pub(crate) fn new(telemetry: TelemetryLayer, authorization: AuthorizationLayer) -> Self
    where
        R: From<bytes::Bytes>,
    {
        Self { telemetry, respond: RespondLayer::with_text(), authorization }
    }
}

impl<S, R> Layer<S> for ServerLayer<R> {
    type Service = Server<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let inner = NormalizeLayer::new().layer(self.authorization.layer(inner));
        self.telemetry.layer(self.respond.layer(inner))
    }
}

impl<R> Clone for ServerLayer<R> {
    fn clone(&self) -> Self {
        Self {
            telemetry: self.telemetry.clone(),
            respond: self.respond,
            authorization: self.authorization.clone(),
        }
    }
}

impl<R> fmt::Debug for ServerLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLayer").field("authorization", &self.authorization).finish_non_exhaustive()
    }
}
