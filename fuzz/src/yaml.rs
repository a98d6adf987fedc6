//! Configuration as users write it.

use std::path::Path;

use mesh_core::diagnostic::Diagnostic;
use mesh_core::yaml::{
    MAX_DEPTH, MAX_DOCUMENTS, MAX_NODES, Node, Number, Value, documents, parse_objects, read_file,
};

/// Documents are bounded and on lines that exist, JSON is read as JSON, one document says nothing about
/// another, and each resource is either read or has an error that says why not.
pub fn yaml(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let found = documents(text);
    assert!(found.len() <= MAX_DOCUMENTS + 1);
    // The parser ends lines at a lone carriage return, too.
    let lines = 1 + text.bytes().filter(|b| matches!(b, b'\n' | b'\r')).count();
    for (index, document) in found.iter().enumerate() {
        assert_eq!(document.index as usize, index);
        match &document.root {
            Ok(root) => {
                let mut count = 0;
                bounded(root, lines, 0, &mut count);
                assert!(count <= MAX_NODES);
            }
            Err(error) => {
                assert!(!error.message.is_empty());
                assert!(error.line >= 1 && error.line as usize <= lines + 1, "{error} of {lines}");
            }
        }
    }
    if let (Ok(json), [document]) = (serde_json::from_str(text), &*found)
        && let Ok(root) = &document.root
    {
        assert!(same(root, &json), "JSON is read as {root:?}");
    }
    if !text.contains('%') {
        let twice = documents(&format!("{text}\n---\n{text}"));
        assert_eq!(twice.len(), (2 * found.len()).min(MAX_DOCUMENTS + 1), "documents are not apart");
        for (first, again) in found.iter().zip(&twice) {
            assert_eq!(first.root.is_ok(), again.root.is_ok());
        }
    }
    resources(text);
}

fn bounded(node: &Node, lines: usize, depth: usize, count: &mut usize) {
    assert!(depth <= MAX_DEPTH);
    assert!(node.line >= 1 && node.line as usize <= lines + 1, "line {} of {lines}", node.line);
    *count += 1;
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| bounded(item, lines, depth + 1, count)),
        Value::Map(entries) => {
            for (at, entry) in entries.iter().enumerate().take(100) {
                assert!(!entries[..at].iter().any(|e| e.key == entry.key), "{:?} stands twice", entry.key);
            }
            entries.iter().for_each(|entry| bounded(&entry.value, lines, depth + 1, count));
        }
        _ => {}
    }
}

fn same(node: &Node, json: &serde_json::Value) -> bool {
    use serde_json::Value as Json;
    match (&node.value, json) {
        (Value::Null, Json::Null) => true,
        (Value::Bool(ours), Json::Bool(theirs)) => ours == theirs,
        (Value::Text(ours), Json::String(theirs)) => ours == theirs,
        (Value::Number(ours, _), Json::Number(theirs)) => match ours {
            Number::Int(n) => theirs.as_i64() == Some(*n) || theirs.as_f64() == Some(*n as f64),
            Number::Large(n) => theirs.as_u64() == Some(*n),
            Number::Float(n) => theirs.as_f64().is_some_and(|t| t == *n || (t - n).abs() <= t.abs() * 1e-15),
        },
        (Value::List(ours), Json::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| same(a, b))
        }
        (Value::Map(ours), Json::Object(theirs)) => {
            // `<<` is an ordinary key of JSON; in quotes it is one of ours, too.
            ours.len() == theirs.len()
                && ours.iter().all(|e| theirs.get(&e.key).is_some_and(|value| same(&e.value, value)))
        }
        _ => false,
    }
}

fn resources(text: &str) {
    let reading = read_file(Path::new("fuzz.yaml"), text, &mesh_policy::validate);
    for resource in &reading.resources {
        let errors = resource.diagnostics.iter().any(Diagnostic::is_error);
        assert_eq!(resource.object.is_none(), errors, "{:?}", resource.diagnostics);
        assert!(resource.closed.is_none() || errors, "a closed reading without an error");
        for diagnostic in &resource.diagnostics {
            assert!(!diagnostic.message.is_empty());
            assert_eq!(diagnostic.resource.as_ref(), Some(&resource.reference));
        }
        if let Some(object) = &resource.object {
            assert_eq!(object.reference(), resource.reference);
            assert!(object.validate().is_empty(), "a resource that is read is not valid");
        }
    }
    let errors = reading.diagnostics.iter().any(Diagnostic::is_error);
    // A resource without a name may be one that was given before.
    let nameless = reading.resources.iter().any(|r| !r.named && r.object.is_none());
    assert!(reading.whole || errors || nameless, "a file is not whole and nothing says why");
    // Without another crate's word, there is at most as much to complain of.
    if !errors && reading.resources.iter().all(|r| r.object.is_some()) {
        let objects = parse_objects("fuzz.yaml", text).expect("read without errors before");
        assert_eq!(objects.len(), reading.resources.len());
    }
}
