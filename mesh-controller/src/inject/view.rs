//! Small views into an object of Kubernetes that is otherwise left as it is.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// A label of a pod.
pub(crate) fn label<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.pointer("/metadata/labels")?.get(name)?.as_str()
}

/// An annotation of a pod.
pub(crate) fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.pointer("/metadata/annotations")?.get(name)?.as_str()
}

/// The list at a JSON pointer; empty where there is none.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The name of a container, volume or variable.
pub(crate) fn name(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The object under `key` (as a field `at`), made where it is missing or null.
pub(crate) fn object<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
    at: &str,
) -> Result<&'a mut Map<String, Value>, Refusal> {
    let slot = parent.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().ok_or_else(|| Refusal::new(at, "must be an object"))
}

/// The list under `key` (as a field `at`), made where it is missing or null.
pub(crate) fn array<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
    at: &str,
) -> Result<&'a mut Vec<Value>, Refusal> {
    let slot = parent.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut().ok_or_else(|| Refusal::new(at, "must be a list"))
}
