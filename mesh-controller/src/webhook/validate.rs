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
