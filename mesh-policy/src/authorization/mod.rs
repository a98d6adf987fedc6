//! Istio's `AuthorizationPolicy`: who may do what.
//!
//! [`Rules`] are the policies of one workload, compiled; [`Rules::check`] is the whole decision. A DENY
//! that matches refuses; then, where ALLOW policies exist, one of them must match. [`AuthorizationLayer`]
//! asks per request, [`until_refused`] watches a connection on which no HTTP is spoken.
//!
//! Rules cannot be dodged by the form of a request. What a client can say in several ways (a repeated or
//! comma-joined header, an escaped path, two hosts) must match in every reading to be let in, and in any to be
//! kept out; what cannot be read at all does not let in and does keep out. What is absent matches nothing,
//! so `not…` lists hold for it: as in Istio, `notPrincipals` alone admits a caller without identity, and
//! a rule that means "somebody, but not X" needs `principals: ["*"]` beside it.
//!
//! Readiness: may refuse; a refusal gives back what the inner service reserved.
//! Reads: [`Facts`](mesh_core::facts::Facts)' connection (peer, addresses, port, SNI); without facts the
//! caller is unknown. Writes: `failure`. Answers 403 `denied`, or `policy_invalid` where a policy that
//! could not be read decides; a gRPC call is answered `PERMISSION_DENIED`.
//!
//! ```
//! use std::sync::Arc;
//! use http::{Request, Response};
//! use mesh_core::facts::{Connection, Facts, PeerIdentity};
//! use mesh_core::live::Live;
//! use mesh_core::resource::{AuthorizationPolicy, Resource};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_policy::authorization::{AuthorizationLayer, Context, Rules};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let spec: AuthorizationPolicy = serde_json::from_str(r#"{"rules": [{
//!     "from": [{"source": {"principals": ["cluster.local/ns/default/sa/web"]}}],
//!     "to": [{"operation": {"methods": ["GET"]}}]
//! }]}"#).unwrap();
//! let policy = Arc::new(Resource::new("default", "reviews-viewer", spec));
//! let (rules, diagnostics) = Rules::compile(&[policy], &Context::default());
//! assert!(diagnostics.is_empty());
//!
//! let app = service_fn(|_: Request<()>| async { Ok::<_, std::convert::Infallible>(Response::new(String::from("hi"))) });
//! let service = ServiceBuilder::new().layer(AuthorizationLayer::new(Live::fixed(rules))).service(app);
//!
//! let web = PeerIdentity::new("spiffe://cluster.local/ns/default/sa/web".parse().unwrap());
//! let connection = Connection::builder().peer(web).build();
//! let mut request = Request::new(());
//! Facts::new(connection).insert(&mut request);
//! assert_eq!(service.clone().oneshot(request).await.unwrap().status(), 200);
//!
//! let nobody = service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(nobody.status(), 403);
//! assert_eq!(nobody.headers()["x-mesh-reason"], "denied");
//! # });
//! ```

mod compile;
mod layer;
mod pattern;
mod rules;
mod view;

pub use crate::future::ResponseFuture;
pub use compile::{Context, DRY_RUN, validate};
pub use layer::{Authorization, AuthorizationLayer, until_refused};
pub use rules::{Decision, Matched, Pass, Refusal, Rules};
pub use view::{ConnectionView, RequestView};

#[cfg(test)]
mod tests;
