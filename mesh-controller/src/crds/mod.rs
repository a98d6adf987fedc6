//! The CustomResourceDefinitions of the mesh's kinds, from the types that read them.
//!
//! The API server silently drops what a schema lacks, so the schema is made of the types that read the
//! objects afterwards. Names, versions, short names, columns and status are Istio's: a cluster that has
//! Istio's definitions needs none of these, and the other way round.
//!
//! ```
//! let all = mesh_controller::crds::definitions();
//! let vs = all.iter().find(|crd| crd["metadata"]["name"] == "virtualservices.networking.istio.io").unwrap();
//! assert_eq!(vs["spec"]["names"]["shortNames"][0], "vs");
//! let schema = &vs["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
//! assert_eq!(schema["properties"]["spec"]["properties"]["hosts"]["type"], "array");
//! ```

mod structural;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::process::ExitCode;

use mesh_core::resource::{
    AuthorizationPolicy, DestinationRule, Kind, PeerAuthentication, ServiceEntry, Sidecar, Telemetry,
    VirtualService, WorkloadEntry,
};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// A column of `kubectl get`: its heading and where its value is.
type Column = (&'static str, &'static str);

/// All definitions, as the API takes them.
pub fn definitions() -> Vec<Value> {
    vec![
        definition::<VirtualService>(&["vs"], &[("Gateways", ".spec.gateways"), ("Hosts", ".spec.hosts")]),
        definition::<DestinationRule>(&["dr"], &[("Host", ".spec.host")]),
        definition::<ServiceEntry>(
            &["se"],
            &[("Hosts", ".spec.hosts"), ("Location", ".spec.location"), ("Resolution", ".spec.resolution")],
        ),
        definition::<WorkloadEntry>(&["we"], &[("Address", ".spec.address")]),
        definition::<Sidecar>(&[], &[]),
        definition::<PeerAuthentication>(&["pa"], &[("Mode", ".spec.mtls.mode")]),
        definition::<AuthorizationPolicy>(&["ap"], &[("Action", ".spec.action")]),
        definition::<Telemetry>(&["telemetry"], &[]),
    ]
}

/// Prints them: documents of YAML, each of them JSON.
pub(crate) fn print() -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for crd in definitions() {
        writeln!(out, "---\n{crd:#}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn definition<K: Kind + JsonSchema>(short: &[&str], columns: &[Column]) -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<K>();
    let mut spec = structural::of(schema.as_value());
    aliases(K::KIND, &mut spec);
    let schema = json!({
        "type": "object",
        "properties": {"spec": spec, "status": status(K::KIND)},
    });
    let age = json!({
        "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "How long ago it was made",
    });
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path}))
        .chain([age])
        .collect();
    let versions: Vec<Value> = K::VERSIONS
        .iter()
        .enumerate()
        .map(|(n, version)| {
            json!({
                "name": version,
                "served": true,
                "storage": n == 0,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
            })
        })
        .collect();
    let singular = K::KIND.to_lowercase();
    let mut names = json!({
        "kind": K::KIND,
        "listKind": format!("{}List", K::KIND),
        "plural": K::PLURAL,
        "singular": singular,
        "categories": ["istio-io", K::GROUP.replace('.', "-")],
    });
    if let (Some(names), false) = (names.as_object_mut(), short.is_empty()) {
        names.insert("shortNames".into(), json!(short));
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", K::PLURAL, K::GROUP),
            "labels": {"app.kubernetes.io/part-of": "tower-mesh"},
        },
        "spec": {
            "group": K::GROUP,
            "names": names,
            "scope": if K::NAMESPACED { "Namespaced" } else { "Cluster" },
            "versions": versions,
        },
    })
}

/// Second names of fields that are read too: a schema that lacked them would lose what is written so.
fn aliases(kind: &str, spec: &mut Value) {
    if kind != VirtualService::KIND {
        return;
    }
    let route = spec.pointer_mut("/properties/http/items/properties").and_then(Value::as_object_mut);
    if let Some(route) = route
        && let Some(field) = route.get("mirrorPercent").cloned()
    {
        route.insert("mirror_percent".into(), field);
    }
}

/// Istio's status.
fn status(kind: &str) -> Value {
    let text = json!({"type": "string"});
    let mut status = json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "conditions": {
                "type": "array",
                "description": "What is true of the resource now",
                "items": {
                    "type": "object",
                    "properties": {
                        "type": text, "status": text, "reason": text, "message": text,
                        "lastProbeTime": {"type": "string", "format": "date-time"},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "observedGeneration": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    },
                },
            },
            "validationMessages": {
                "type": "array",
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
            "observedGeneration": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
    });
    if kind == ServiceEntry::KIND
        && let Some(fields) = status.pointer_mut("/properties").and_then(Value::as_object_mut)
    {
        let address = json!({"type": "object", "properties": {"value": text, "host": text}});
        fields.insert("addresses".into(), json!({"type": "array", "items": address}));
    }
    status
}
