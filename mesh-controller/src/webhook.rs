//! The webhooks' answers: what the API server asks goes in, what it is told comes out.
//!
//! [`mutate`] gives pods their sidecars, [`validate`] refuses what would not be in force, and
//! [`bundle`] tells the API server whom to believe.
//!
//! ```
//! use mesh_controller::{inject::{Labels, Settings}, webhook::mutate};
//! use serde_json::json;
//!
//! let review = json!({
//!     "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
//!     "request": {
//!         "uid": "705ab4f5", "namespace": "shop", "operation": "CREATE",
//!         "kind": {"group": "", "version": "v1", "kind": "Pod"},
//!         "object": {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}},
//!     },
//! });
//! let enabled = |_: &str| Some(Labels::from([("istio-injection".into(), "enabled".into())]));
//! let answer = mutate(&Settings::default(), enabled, &review)?;
//! assert_eq!(answer["response"]["uid"], "705ab4f5");
//! assert_eq!(answer["response"]["patchType"], "JSONPatch");
//! # Ok::<(), mesh_controller::webhook::NotAReview>(())
//! ```

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::inject::{Injection, Labels, Refusal, Settings, inject_object};

pub mod bundle;
#[cfg(test)]
mod tests;
pub mod validate;

/// Where in the API server's audit log the outcome stands (after the webhook's name).
const AUDIT: &str = "injection";
/// The longest warning that the API server passes on whole, in bytes.
const MAX_WARNING: usize = 256;

/// Why a body is no question that could be answered. Belongs in a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an AdmissionReview of admission.k8s.io/v1: {0}")]
pub struct NotAReview(&'static str);

/// Answers an AdmissionReview: a Pod that is being made and is to have a sidecar gets it by a JSON patch, one
/// that cannot have it is refused with the reason, everything else is allowed as it is.
///
/// `labels_of` gives the labels of a namespace, or nothing when it is not known. A pod there is refused, unless it
/// is left alone in any case: that its namespace asks for a sidecar cannot be ruled out, and its owner tries again.
///
/// # Errors
///
/// When `review` is not an AdmissionReview: it has no `uid` to which an answer could be given.
pub fn mutate(
    settings: &Settings,
    labels_of: impl FnOnce(&str) -> Option<Labels>,
    review: &Value,
) -> Result<Value, NotAReview> {
    let uid = request_uid(review)?;
    let mut response = respond(settings, labels_of, review);
    if let Some(response) = response.as_object_mut() {
        response.insert("uid".into(), json!(uid));
    }
    Ok(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

/// What an answer has to name.
fn request_uid(review: &Value) -> Result<&str, NotAReview> {
    let text = |pointer: &str| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if (text("/apiVersion"), text("/kind")) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(NotAReview("apiVersion and kind are others"));
    }
    match text("/request/uid") {
        "" => Err(NotAReview("request.uid is missing")),
        uid => Ok(uid),
    }
}

fn respond(settings: &Settings, labels_of: impl FnOnce(&str) -> Option<Labels>, review: &Value) -> Value {
    let text = |pointer: &str| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let is_pod = (text("/request/kind/group"), text("/request/kind/kind")) == ("", "Pod");
    if !is_pod || text("/request/operation") != "CREATE" || !text("/request/subResource").is_empty() {
        return allowed("not a new pod");
    }
    let Some(pod) = review.pointer("/request/object").filter(|o| o.is_object()) else {
        return refused(&Refusal::new("request.object", "is missing"));
    };
    let namespace = text("/request/namespace");
    // The API server leaves them out of what is inside of a request, or has them: the request decides.
    let mut named = pod.clone();
    if let Some(named) = named.as_object_mut() {
        named.insert("apiVersion".into(), json!("v1"));
        named.insert("kind".into(), json!("Pod"));
        if let Some(metadata) = named.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".into(), json!(namespace));
        }
    }
    let labels = labels_of(namespace);
    let known = labels.is_some();
    match inject_object(settings, namespace, |_| labels.unwrap_or_default(), &named) {
        // Left alone whatever the namespace says; what else there is depends on it.
        Ok(Injection::Skipped(why)) if why.whatever_the_namespace_says() => allowed(&why.to_string()),
        _ if !known => {
            let message = format!("namespace {namespace:?} is not known to the controller yet; try again");
            refused(&Refusal::new("metadata.namespace", message))
        }
        Err(refusal) => refused(&refusal),
        Ok(Injection::NoPod) => allowed("not a pod"),
        Ok(Injection::Skipped(why)) => allowed(&why.to_string()),
        Ok(Injection::Injected { object, warnings }) => {
            // Against what was rather than what was asked about: no operation touches what is the same.
            let patch = json!(json_patch::diff(&named, &object));
            let warnings: Vec<_> = warnings.iter().map(|w| shortened(w, MAX_WARNING)).collect();
            json!({
                "allowed": true,
                "patchType": "JSONPatch",
                "patch": BASE64_STANDARD.encode(patch.to_string()),
                "warnings": warnings,
                "auditAnnotations": {AUDIT: "injected"},
            })
        }
    }
}

fn allowed(why: &str) -> Value {
    json!({"allowed": true, "auditAnnotations": {AUDIT: format!("skipped: {why}")}})
}

fn refused(refusal: &Refusal) -> Value {
    let message = format!("no sidecar can be added: {refusal}");
    json!({
        "allowed": false,
        "status": {"status": "Failure", "code": 422, "reason": "Invalid", "message": message},
        "auditAnnotations": {AUDIT: "refused"},
    })
}

fn shortened(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
