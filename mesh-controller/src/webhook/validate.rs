//! The validating webhook's answers: what `mesh-proxy check` would say of the object.
//!
//! ```
//! use mesh_controller::webhook::validate::validate;
//! use serde_json::json;
//!
//! let review = json!({
//!     "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
//!     "request": {
//!         "uid": "705ab4f5", "namespace": "shop", "operation": "CREATE",
//!         "kind": {"group": "networking.istio.io", "version": "v1", "kind": "VirtualService"},
//!         "object": {
//!             "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
//!             "metadata": {"name": "reviews", "namespace": "shop"},
//!             "spec": {"hosts": ["reviews"], "htpp": []},
//!         },
//!     },
//! });
//! let answer = validate("istio-system", &review)?;
//! assert_eq!(answer["response"]["allowed"], false);
//! let why = answer["response"]["status"]["message"].as_str().unwrap();
//! assert_eq!(why, "VirtualService shop/reviews: spec.htpp: unknown field; did you mean \"http\"?");
//! # Ok::<(), mesh_controller::webhook::NotAReview>(())
//! ```

use std::path::Path;

use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::yaml::read_file;
use serde_json::{Value, json};

use super::{MAX_WARNING, NotAReview, request_uid, shortened};

/// How many complaints an answer names.
pub const MAX_COMPLAINTS: usize = 10;

/// Answers an AdmissionReview: an object of the mesh's kinds that would not be in force as it is written is
/// refused, with every complaint; of what makes no difference it is warned. Other kinds, and deletions, are
/// allowed. `root` is the mesh's root namespace.
///
/// # Errors
///
/// When `review` is not an AdmissionReview.
pub fn validate(root: &str, review: &Value) -> Result<Value, NotAReview> {
    let uid = request_uid(review)?;
    let text = |pointer: &str| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let concerned =
        matches!(text("/request/operation"), "CREATE" | "UPDATE") && text("/request/subResource").is_empty();
    let complaints = match review.pointer("/request/object").filter(|_| concerned) {
        Some(object) => complaints(root, text("/request/namespace"), object),
        None => Vec::new(),
    };
    let (errors, warnings): (Vec<_>, Vec<_>) = complaints.iter().partition(|c| c.is_error());
    let mut response = json!({"uid": uid, "allowed": errors.is_empty()});
    if let Some(response) = response.as_object_mut() {
        if !errors.is_empty() {
            let message = told(&errors);
            let status = json!({"status": "Failure", "code": 422, "reason": "Invalid", "message": message});
            response.insert("status".into(), status);
        }
        if !warnings.is_empty() {
            let warnings: Vec<_> = warnings
                .iter()
                .take(MAX_COMPLAINTS)
                .map(|warning| shortened(&warning.to_string(), MAX_WARNING).to_owned())
                .collect();
            response.insert("warnings".into(), json!(warnings));
        }
    }
    Ok(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

/// All complaints, as far as there is room, without what follows for a running mesh: it does not come to run.
fn told(errors: &[&Diagnostic]) -> String {
    let lines: Vec<_> = errors
        .iter()
        .take(MAX_COMPLAINTS)
        .map(|error| {
            let text = error.to_string();
            let end = format!("; {}", error.effect.told());
            text.strip_suffix(&end).unwrap_or(&text).to_owned()
        })
        .collect();
    let mut message = lines.join("\n");
    if let Some(more @ 1..) = errors.len().checked_sub(MAX_COMPLAINTS) {
        message.push_str(&format!("\nand {more} more"));
    }
    message
}

/// What is wrong with an object as its user wrote it.
fn complaints(root: &str, namespace: &str, object: &Value) -> Vec<Diagnostic> {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        // Written by controllers, not by the user.
        fields.remove("status");
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
        if !namespace.is_empty() {
            meta.entry("namespace").or_insert_with(|| json!(namespace));
        }
        // The API server makes the rest of the name up after this.
        let prefix = meta.get("generateName").and_then(Value::as_str).map(|prefix| format!("{prefix}x"));
        if let (Some(name), false) = (prefix, meta.contains_key("name")) {
            meta.insert("name".into(), json!(name));
        }
    }
    let text = object.to_string();
    let reading = read_file(Path::new(""), &text, &|object| mesh::validate(object, root));
    let of_resources = reading.resources.into_iter().flat_map(|resource| resource.diagnostics);
    reading
        .diagnostics
        .into_iter()
        .chain(of_resources)
        .filter(|complaint| complaint.effect != Effect::Skipped)
        .map(|mut complaint| {
            // There is no file.
            complaint.origin = None;
            complaint
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(operation: &str, object: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "7", "namespace": "shop", "operation": operation, "object": object},
        })
    }

    fn answer(review: &Value) -> Value {
        let answer = validate("istio-system", review).unwrap();
        assert_eq!(answer["response"]["uid"], "7");
        answer["response"].clone()
    }

    fn object(kind: &str, spec: &Value) -> Value {
        let group = match kind {
            "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io",
            _ => "networking.istio.io",
        };
        json!({
            "apiVersion": format!("{group}/v1"), "kind": kind, "spec": spec,
            "metadata": {
                "name": "a", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "9",
                "creationTimestamp": "2024-05-01T00:00:00Z",
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
                "ownerReferences": [{"kind": "Application", "name": "shop", "uid": "o", "apiVersion": "a/v1"}],
                "finalizers": ["a.example/b"],
            },
            "status": {"conditions": [{"type": "Reconciled", "status": "True"}], "observedGeneration": 3},
        })
    }

    #[test]
    fn what_would_be_in_force_is_allowed_whatever_else_the_api_server_sends() {
        let good = object(
            "VirtualService",
            &json!({
                "hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}],
            }),
        );
        for operation in ["CREATE", "UPDATE"] {
            assert_eq!(answer(&review(operation, &good))["allowed"], true, "{operation}");
        }
        // One whose name is made up later.
        let mut generated = good.clone();
        generated["metadata"] = json!({"generateName": "reviews-"});
        assert_eq!(answer(&review("CREATE", &generated))["allowed"], true);
        let empty = object("PeerAuthentication", &json!({}));
        assert_eq!(answer(&review("CREATE", &empty))["allowed"], true);
    }

    #[test]
    fn what_would_not_is_refused_with_resource_and_field() {
        for (kind, spec, field) in [
            (
                "VirtualService",
                json!({"hosts": ["a"], "http": [{"timeout": "soon"}]}),
                "spec.http[0].timeout",
            ),
            ("VirtualService", json!({"hosts": "a"}), "spec.hosts"),
            ("AuthorizationPolicy", json!({"action": "PERMIT"}), "spec.action"),
            ("PeerAuthentication", json!({"mtls": {"mode": "STRCT"}}), "spec.mtls.mode"),
            (
                "DestinationRule",
                json!({"host": "a", "subsets": [{"name": "v1"}, {"name": "v1"}]}),
                "spec.subsets",
            ),
        ] {
            let said = answer(&review("CREATE", &object(kind, &spec)));
            assert_eq!(said["allowed"], false, "{kind} {spec}");
            assert_eq!(said["status"]["code"], 422);
            let message = said["status"]["message"].as_str().unwrap();
            assert!(message.starts_with(&format!("{kind} shop/a: {field}")), "{message}");
            assert!(!message.contains("is not applied") && !message.contains("refuses all"), "{message}");
        }
    }

    #[test]
    fn complaints_are_bounded() {
        let routes: Vec<_> = (0..1000).map(|_| json!({"timeout": "soon"})).collect();
        let said =
            answer(&review("CREATE", &object("VirtualService", &json!({"hosts": ["a"], "http": routes}))));
        let message = said["status"]["message"].as_str().unwrap();
        assert!(message.lines().count() <= MAX_COMPLAINTS + 1, "{message}");
    }

    #[test]
    fn what_is_none_of_its_business_is_allowed() {
        let bad = object("VirtualService", &json!({"hosts": 7}));
        assert_eq!(answer(&review("DELETE", &bad))["allowed"], true);
        assert_eq!(answer(&review("DELETE", &Value::Null))["allowed"], true);
        assert_eq!(answer(&review("CONNECT", &bad))["allowed"], true);
        let mut status = review("UPDATE", &bad);
        status["request"]["subResource"] = json!("status");
        assert_eq!(answer(&status)["allowed"], true);
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        assert_eq!(answer(&review("CREATE", &deployment))["allowed"], true);
        assert!(validate("istio-system", &json!({"kind": "Pod"})).is_err());
    }

    #[test]
    fn of_what_makes_no_difference_it_is_warned() {
        let spec = json!({"hosts": ["a"], "http": [{
            "route": [{"destination": {"host": "a"}}], "match": [{"statPrefix": "x"}],
        }]});
        let said = answer(&review("CREATE", &object("VirtualService", &spec)));
        assert_eq!(said["allowed"], true, "{said}");
        for warning in said["warnings"].as_array().into_iter().flatten() {
            assert!(warning.as_str().unwrap().len() <= MAX_WARNING);
        }
    }
}
