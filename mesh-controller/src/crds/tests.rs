use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::definitions;

const FIELDS: &str = include_str!("fields.txt");

/// A line of the list: how far in it is, and its words.
type Line<'a> = (usize, Vec<&'a str>);

fn blocks() -> BTreeMap<&'static str, Vec<Line<'static>>> {
    let mut blocks: BTreeMap<&str, Vec<Line<'_>>> = BTreeMap::new();
    let mut name = "";
    for line in FIELDS.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let depth = line.len() - line.trim_start().len();
        if depth == 0 {
            name = line.trim_end_matches(':');
            assert!(blocks.insert(name, Vec::new()).is_none(), "{name} is there twice");
        } else {
            blocks.get_mut(name).unwrap().push((depth, line.split_whitespace().collect()));
        }
    }
    blocks
}

/// The paths of a block, below `at`.
fn expand(blocks: &BTreeMap<&str, Vec<Line<'_>>>, name: &str, at: &str, out: &mut BTreeSet<String>) {
    let join = |at: &str, field: &str| if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") };
    let mut stack = vec![(0, at.to_owned())];
    for (depth, words) in &blocks[name] {
        stack.retain(|(of, _)| of < depth);
        let at = stack.last().unwrap().1.clone();
        match words.as_slice() {
            [field, block] if block.starts_with('@') => {
                let path = join(&at, field);
                expand(blocks, block.trim_start_matches('@'), &path, out);
                out.insert(path);
            }
            [field] if field.ends_with(':') => {
                let path = join(&at, field.trim_end_matches(':'));
                out.insert(path.clone());
                stack.push((*depth, path));
            }
            fields => out.extend(fields.iter().map(|field| join(&at, field))),
        }
    }
}

/// The paths of a schema, marked as in the list.
fn paths(schema: &Value, at: &str, out: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let mut path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let mut field = field;
        if field["type"] == "array" {
            path.push_str("[]");
            field = &field["items"];
        } else if field.get("additionalProperties").is_some() {
            path.push_str("{}");
            field = &field["additionalProperties"];
        }
        paths(field, &path, out);
        out.insert(path);
    }
}

fn each_version() -> Vec<(String, Value, Value)> {
    let mut all = Vec::new();
    for crd in definitions() {
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
            all.push((kind.to_owned(), crd.clone(), version.clone()));
        }
    }
    all
}

#[test]
fn the_api_server_keeps_every_field_and_knows_no_other() {
    let blocks = blocks();
    let mut kinds = BTreeSet::new();
    for (kind, _, version) in each_version() {
        let mut wanted = BTreeSet::new();
        expand(&blocks, &kind, "", &mut wanted);
        let mut found = BTreeSet::new();
        paths(&version["schema"]["openAPIV3Schema"]["properties"]["spec"], "", &mut found);
        let lacking: Vec<_> = wanted.difference(&found).collect();
        let unknown: Vec<_> = found.difference(&wanted).collect();
        assert!(
            lacking.is_empty() && unknown.is_empty(),
            "{kind}: lacks {lacking:?}, has {unknown:?} besides"
        );
        assert!(found.len() > 2, "{kind}");
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 8);
}

/// The rules of the API server for a schema that prunes.
fn is_structural(schema: &Value, at: &str) {
    let fields = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema}"));
    let known = [
        "type",
        "format",
        "description",
        "properties",
        "items",
        "additionalProperties",
        "enum",
        "minimum",
        "maximum",
        "anyOf",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ];
    for key in fields.keys() {
        assert!(known.contains(&key.as_str()), "{at}: {key}");
    }
    let any = fields.contains_key("x-kubernetes-preserve-unknown-fields");
    if fields.contains_key("x-kubernetes-int-or-string") {
        assert!(!fields.contains_key("type"), "{at}");
        assert_eq!(fields["anyOf"], serde_json::json!([{"type": "integer"}, {"type": "string"}]), "{at}");
        return;
    }
    assert!(!fields.contains_key("anyOf"), "{at}");
    let kind = fields.get("type").and_then(Value::as_str);
    assert!(kind.is_some() || any, "{at} has no type");
    assert!(!(fields.contains_key("properties") && fields.contains_key("additionalProperties")), "{at}");
    if kind == Some("object") {
        let says = any || fields.contains_key("properties") || fields.contains_key("additionalProperties");
        assert!(says, "{at}: all that is in it would be dropped");
    }
    assert_eq!(kind == Some("array"), fields.contains_key("items"), "{at}");
    if let Some(values) = fields.get("enum") {
        assert!(values.as_array().is_some_and(|v| !v.is_empty()) && kind == Some("string"), "{at}");
    }
    for (name, field) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
        is_structural(field, &format!("{at}.{name}"));
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get(inner) {
            is_structural(inner, &format!("{at}[]"));
        }
    }
}

#[test]
fn the_schemas_are_structural() {
    for (kind, _, version) in each_version() {
        is_structural(&version["schema"]["openAPIV3Schema"], &kind);
    }
}

#[test]
fn names_versions_and_columns_are_istios() {
    type Row = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);
    let table: [Row; 8] = [
        (
            "virtualservices.networking.istio.io",
            &["vs"],
            &["v1", "v1beta1", "v1alpha3"],
            &["Gateways", "Hosts", "Age"],
        ),
        ("destinationrules.networking.istio.io", &["dr"], &["v1", "v1beta1", "v1alpha3"], &["Host", "Age"]),
        (
            "serviceentries.networking.istio.io",
            &["se"],
            &["v1", "v1beta1", "v1alpha3"],
            &["Hosts", "Location", "Resolution", "Age"],
        ),
        ("workloadentries.networking.istio.io", &["we"], &["v1", "v1beta1", "v1alpha3"], &["Address", "Age"]),
        ("sidecars.networking.istio.io", &[], &["v1", "v1beta1", "v1alpha3"], &["Age"]),
        ("peerauthentications.security.istio.io", &["pa"], &["v1", "v1beta1"], &["Mode", "Age"]),
        ("authorizationpolicies.security.istio.io", &["ap"], &["v1", "v1beta1"], &["Action", "Age"]),
        ("telemetries.telemetry.istio.io", &["telemetry"], &["v1", "v1alpha1"], &["Age"]),
    ];
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    for ((name, short, versions, columns), crd) in table.into_iter().zip(definitions()) {
        assert_eq!(crd["metadata"]["name"], name);
        assert_eq!(texts(&crd["spec"]["names"]["shortNames"]), short);
        assert_eq!(crd["spec"]["scope"], "Namespaced");
        let all = crd["spec"]["versions"].as_array().unwrap();
        assert_eq!(all.iter().map(|v| v["name"].as_str().unwrap()).collect::<Vec<_>>(), versions);
        assert_eq!(all.iter().filter(|v| v["storage"] == true).count(), 1);
        for version in all {
            assert_eq!(version["served"], true);
            assert_eq!(version["subresources"]["status"], serde_json::json!({}));
            let shown: Vec<_> = version["additionalPrinterColumns"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c["name"].clone())
                .collect();
            assert_eq!(shown, columns);
            let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
            for field in ["conditions", "validationMessages", "observedGeneration"] {
                assert!(status.get(field).is_some(), "{name} {field}");
            }
        }
    }
}
