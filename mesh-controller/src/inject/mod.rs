//! Injection: a pod goes in, and the same pod with a sidecar comes out.
//!
//! All of it is a function of the pod, the labels of its namespace and the mesh's [`Settings`]: the webhook of
//! the controller and `meshctl inject` call the same one. An object is handled as a JSON value of which only
//! the parts concerned are looked at, rather than through types: what a newer Kubernetes knows and we do not
//! must come out as it went in.
//!
//! What is added, and why, is told in `docs/injection.md`.
//!
//! ```
//! use mesh_controller::inject::{Outcome, Settings, Skip, Target, inject};
//! use serde_json::json;
//!
//! let labels = [("istio-injection".to_owned(), "enabled".to_owned())].into();
//! let target = Target { namespace: "default", namespace_labels: &labels, workload: "reviews" };
//! let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "app", "image": "reviews:1"}]}});
//!
//! let Outcome::Injected(done) = inject(&Settings::default(), &target, &pod)? else { panic!("not injected") };
//! assert_eq!(done.pod["spec"]["initContainers"][1]["name"], "mesh-proxy");
//! assert_eq!(done.pod["spec"]["containers"][0]["image"], "reviews:1");
//!
//! // Once is enough.
//! let again = inject(&Settings::default(), &target, &done.pod)?;
//! assert_eq!(again, Outcome::Skipped(Skip::AlreadyInjected));
//! # Ok::<(), mesh_controller::inject::Refusal>(())
//! ```

mod annotations;
mod capture;
mod conflicts;
mod container;
mod decide;
mod merge;
mod object;
mod pod;
mod probes;
mod refusal;
mod settings;
mod stop;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use serde_json::Value;

pub use capture::{Capture, MAX_ENTRIES, Selection};
pub use decide::{Decision, Labels, NAMESPACE_SWITCH, OWN_SWITCH, POD_SWITCH, REVISION, Skip, decide};
pub use object::{Injection, inject_object};
pub use probes::{MAX_BYTES as MAX_PROBES_BYTES, VARIABLE as PROBES_VARIABLE};
pub use refusal::Refusal;
pub use settings::{
    ADMIN_PORT, INBOUND_PORT, INIT_CONTAINER, METRICS_PORT, OUTBOUND_PORT, PROXY_CONTAINER, PROXY_ID,
    READY_PORT, Resources, STATUS_PORT, Settings, TOKEN_SECONDS,
};

/// The annotation of a pod with a sidecar: what was added, as JSON. Tools that know Istio's look for it too.
pub const STATUS_ANNOTATION: &str = "sidecar.istio.io/status";

/// Where a pod runs and what it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The labels of its namespace.
    pub namespace_labels: &'a Labels,
    /// The workload that it is part of (a Deployment's name, say); may be empty.
    pub workload: &'a str,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected(Injected),
    /// It is left as it is.
    Skipped(Skip),
}

/// A pod with its sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Value,
    /// What the pod asks for that makes no difference here.
    pub warnings: Vec<String>,
}

/// Gives `pod` (a Pod, or the template of one) its sidecar where it is to have one.
///
/// # Errors
///
/// When it is to have one and cannot: a value that cannot be read, a name or port that is taken, a wish that
/// is not supported.
pub fn inject(settings: &Settings, target: &Target<'_>, pod: &Value) -> Result<Outcome, Refusal> {
    match decide(settings, target.namespace, target.namespace_labels, pod)? {
        Decision::Skip(why) => Ok(Outcome::Skipped(why)),
        Decision::Inject => pod::with_sidecar(settings, target, pod).map(Outcome::Injected),
    }
}
