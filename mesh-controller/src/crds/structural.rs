//! From a JSON schema to what Kubernetes calls a structural one.
//!
//! Every value has one type; there is no reference, no `null` beside another type, no closed object (what is
//! unknown is dropped by the API server and refused by the webhook, which can say how to mend it).

use serde_json::{Map, Value, json};

/// What is kept as it is, where the type has it.
const KEPT: [&str; 6] = [
    "description",
    "minimum",
    "maximum",
    "enum",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
];
/// The formats that the API server knows of those that a schema may have.
const FORMATS: [&str; 5] = ["int32", "int64", "float", "double", "date-time"];

/// The structural form of a schema whose references are resolved already.
pub(super) fn of(schema: &Value) -> Value {
    let Some(schema) = schema.as_object() else { return anything(None) };
    if schema.contains_key("x-kubernetes-int-or-string") {
        let mut out = kept(schema);
        out.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
        return Value::Object(out);
    }
    if let Some(inner) = beside_null(schema) {
        let mut out = of(inner);
        // What the field says of itself goes before what its type does.
        if let (Some(out), Some(text)) = (out.as_object_mut(), schema.get("description")) {
            out.insert("description".into(), text.clone());
        }
        return out;
    }
    if let Some(values) = constants(schema) {
        let mut out = kept(schema);
        out.insert("type".into(), json!("string"));
        out.insert("enum".into(), json!(values));
        return Value::Object(out);
    }
    let Some(kind) = kind(schema) else { return anything(schema.get("description")) };
    let mut out = kept(schema);
    out.insert("type".into(), json!(kind));
    if let Some(format) = schema.get("format").and_then(Value::as_str).filter(|f| FORMATS.contains(f)) {
        out.insert("format".into(), json!(format));
    }
    match kind {
        "object" => object(schema, &mut out),
        "array" => {
            let items = schema.get("items").map_or_else(|| anything(None), of);
            out.insert("items".into(), items);
        }
        _ => {}
    }
    Value::Object(out)
}

fn object(schema: &Map<String, Value>, out: &mut Map<String, Value>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object).filter(|p| !p.is_empty()) {
        let properties: Map<_, _> =
            properties.iter().map(|(name, field)| (name.clone(), of(field))).collect();
        out.insert("properties".into(), Value::Object(properties));
        return;
    }
    // A map whose keys have a form of their own (numbers, say) is a map.
    let by_pattern = schema.get("patternProperties").and_then(Value::as_object);
    let by_pattern =
        by_pattern.filter(|patterns| patterns.len() == 1).and_then(|patterns| patterns.values().next());
    match by_pattern.or(schema.get("additionalProperties")) {
        Some(values @ Value::Object(_)) => {
            out.insert("additionalProperties".into(), of(values));
        }
        // An object that has no fields yet.
        Some(Value::Bool(false)) => {}
        _ => {
            out.insert("x-kubernetes-preserve-unknown-fields".into(), json!(true));
        }
    }
}

fn kept(schema: &Map<String, Value>) -> Map<String, Value> {
    KEPT.iter().filter_map(|key| Some(((*key).to_owned(), schema.get(*key)?.clone()))).collect()
}

/// A value of any type.
fn anything(description: Option<&Value>) -> Value {
    let mut out = json!({"x-kubernetes-preserve-unknown-fields": true});
    if let (Some(out), Some(text)) = (out.as_object_mut(), description) {
        out.insert("description".into(), text.clone());
    }
    out
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

/// The one thing that an optional value is when it is there.
fn beside_null(schema: &Map<String, Value>) -> Option<&Value> {
    let several = schema.get("anyOf").and_then(Value::as_array)?;
    let mut others = several.iter().filter(|one| !is_null(one));
    match (others.next(), others.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

/// The texts that an enumeration allows.
fn constants(schema: &Map<String, Value>) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(several) = schema.get("oneOf").and_then(Value::as_array) {
        let of = |one: &Value| match (one.get("const"), one.get("enum").and_then(Value::as_array)) {
            (Some(value), _) => Some(vec![text(value)?]),
            (None, Some(values)) => values.iter().map(text).collect(),
            _ => None,
        };
        return Some(several.iter().map(of).collect::<Option<Vec<_>>>()?.concat());
    }
    let values = schema.get("enum").and_then(Value::as_array)?;
    Some(values.iter().filter_map(text).collect())
}

/// The type beside `null`.
fn kind(schema: &Map<String, Value>) -> Option<&str> {
    match schema.get("type")? {
        Value::String(kind) => Some(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        _ => None,
    }
}
