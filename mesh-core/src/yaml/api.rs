//! Objects of the Kubernetes API, read as strictly as files are.

use std::path::Path;

use super::file::{ReadResource, Validator, read_node};
use super::node::{Entry, Node, Number, Value};
use crate::diagnostic::{Diagnostic, Effect, ResourceRef};
use crate::resource::Object;

/// An object of the Kubernetes API.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadObject {
    /// Which one.
    pub reference: ResourceRef,
    /// The resource, where nothing is wrong with it.
    pub object: Option<Object>,
    /// Its closed reading, where something is wrong with it and it has one.
    pub closed: Option<Object>,
    /// What is wrong with it, and what is to be said of it besides. An error has the effect
    /// [`Effect::NotApplied`]: whether something takes the resource's place is for the caller, who knows what
    /// was in force.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads an object as the Kubernetes API has it, as strictly as a document of a file. Nothing of what comes of it has
/// an [`Origin`](crate::diagnostic::Origin).
///
/// ```
/// use tower_mesh_core::yaml::read_object;
///
/// let policy = serde_json::json!({
///     "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
///     "metadata": {"name": "web", "namespace": "shop"},
///     "spec": {"action": "DENY", "rules": [{"form": []}]},
/// });
/// let read = read_object(&policy, &|_| Vec::new()).unwrap();
/// assert!(read.object.is_none() && read.closed.is_some());
/// assert_eq!(read.diagnostics[0].field, "spec.rules[0].form");
/// ```
///
/// # Errors
/// When it is of no kind that is read, or does not say which resource it is.
pub fn read_object(object: &serde_json::Value, validate: &Validator<'_>) -> Result<ReadObject, Diagnostic> {
    let mut reading = read_node(Path::new(""), &node(object), validate);
    let unknown = || Diagnostic::new(Effect::Skipped, "the object is of no kind that the mesh reads");
    let complaint = |mut diagnostics: Vec<Diagnostic>| match diagnostics.is_empty() {
        true => unknown(),
        false => placeless(diagnostics.swap_remove(0)),
    };
    let Some(ReadResource { reference, named, object, closed, diagnostics, .. }) = reading.resources.pop()
    else {
        return Err(complaint(reading.diagnostics));
    };
    if !named {
        return Err(complaint(diagnostics));
    }
    Ok(ReadObject {
        reference,
        object: object.map(Object::without_origin),
        closed: closed.map(Object::without_origin),
        diagnostics: diagnostics.into_iter().map(placeless).collect(),
    })
}

fn placeless(mut diagnostic: Diagnostic) -> Diagnostic {
    diagnostic.origin = None;
    diagnostic
}

/// JSON as a tree in which everything stands on the first line.
fn node(value: &serde_json::Value) -> Node {
    use serde_json::Value as Json;
    const LINE: u32 = 1;

    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(node).collect()),
        Json::Object(fields) => {
            let entry =
                |(key, value): (&String, &Json)| Entry { key: key.clone(), line: LINE, value: node(value) };
            Value::Map(fields.iter().map(entry).collect())
        }
        Json::Number(number) => {
            let read = match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Number::Int(int),
                (None, Some(large)) => Number::Large(large),
                (None, None) => Number::Float(number.as_f64().unwrap_or(f64::NAN)),
            };
            Value::Number(read, number.to_string())
        }
    };
    Node { line: LINE, value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(object: &serde_json::Value) -> Result<ReadObject, Diagnostic> {
        read_object(object, &|_| Vec::new())
    }

    #[test]
    fn an_object_is_what_the_same_text_in_a_file_is() {
        let good = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "reviews", "namespace": "shop", "generation": 3, "managedFields": [{"manager": "x"}]},
            "spec": {"hosts": ["reviews"], "http": [{
                "timeout": "1.5s", "fault": {"delay": {"percentage": {"value": 0.5}, "fixedDelay": "1s"}},
                "route": [{"destination": {"host": "reviews", "port": {"number": 80}}, "weight": 100}],
            }]},
            "status": {"observedGeneration": "3"},
        });
        let read = read(&good).unwrap();
        assert_eq!(read.reference.to_string(), "VirtualService shop/reviews");
        let file = crate::yaml::parse_objects("a.yaml", &good.to_string()).unwrap();
        let object = read.object.unwrap();
        assert_eq!(object.to_json(), file[0].to_json());
        assert!(object.origin().is_none() && read.diagnostics.is_empty() && read.closed.is_none());
        assert_eq!(object.meta().generation, 3);
    }

    #[test]
    fn what_is_wrong_has_a_field_and_no_line() {
        let bad = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "reviews", "namespace": "shop"}, "spec": {"hosts": ["reviews"], "htpp": []},
        });
        let read = read(&bad).unwrap();
        assert!(read.object.is_none() && read.closed.is_none());
        assert_eq!(
            read.diagnostics[0].to_string(),
            "VirtualService shop/reviews: spec.htpp: unknown field; did you mean \"http\"?; the resource is not applied"
        );
    }

    #[test]
    fn another_crates_word_counts() {
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"rules": [{}]},
        });
        let refuse = |_: &Object| vec![Diagnostic::new(Effect::NotApplied, "not supported yet")];
        let read = read_object(&policy, &refuse).unwrap();
        let closed = read.closed.unwrap();
        assert_eq!(closed.invalid().unwrap().reason, "AuthorizationPolicy shop/p: not supported yet");
        assert!(closed.origin().is_none());
    }

    #[test]
    fn what_cannot_be_named_is_an_error() {
        for (object, said) in [
            (json!([]), "a resource is an object"),
            (json!({"kind": "VirtualService"}), "has no apiVersion"),
            (
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}),
                "none of the mesh's",
            ),
            (
                json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "spec": {"hosts": ["a"], "htpp": []}}),
                "required",
            ),
            (json!({"apiVersion": "v1", "kind": "ServiceList", "items": []}), "no kind that the mesh reads"),
        ] {
            let error = read(&object).unwrap_err();
            assert!(error.message.contains(said), "{error}");
            assert!(error.origin.is_none());
        }
    }
}
