//! What the store answers, rule by rule.

mod destination;
mod diagnostics;
mod endpoints;
mod example;
mod inbound;
mod keeper;
mod outbound;
mod told;
mod visibility;
mod world;

use std::sync::Arc;

use super::{Outbound, Store, StoreOptions, Workload};
use crate::cluster::{EndpointSpec, Expect, UpstreamTls};
use crate::resource::Labels;
use crate::yaml::parse_objects;

/// A store of a text.
fn store(yaml: &str) -> Store {
    Store::new(StoreOptions::default(), parse_objects("test.yaml", yaml).unwrap())
}

/// A document. `name` is `NAMESPACE/NAME`, perhaps with `@TIME` behind it: the older, the smaller.
fn doc(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Service" | "Pod" => "v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "PeerAuthentication" | "AuthorizationPolicy" => "security.istio.io/v1",
        "Telemetry" => "telemetry.istio.io/v1",
        _ => "networking.istio.io/v1",
    };
    let (name, age) = name.split_once('@').unwrap_or((name, ""));
    let (namespace, name) = name.split_once('/').unwrap();
    let age =
        if age.is_empty() { "" } else { &format!(", creationTimestamp: \"2024-01-{age:0>2}T00:00:00Z\"") };
    let body = match kind {
        "Pod" | "EndpointSlice" => spec.to_owned(),
        _ => format!("spec: {spec}"),
    };
    // Pods and slices carry labels; `labels:` in front of their body goes to the metadata.
    let (labels, body) = match body.strip_prefix("labels: ").and_then(|rest| rest.split_once('\n')) {
        Some((labels, rest)) => (format!(", labels: {labels}"), rest.to_owned()),
        None => (String::new(), body),
    };
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{age}{labels}}}\n{body}\n"
    )
}

/// A store of documents.
fn docs(documents: &[(&str, &str, &str)]) -> Store {
    store(&documents.iter().map(|(kind, name, spec)| doc(kind, name, spec)).collect::<String>())
}

/// A caller in `namespace` without labels.
fn caller(namespace: &str) -> Arc<Workload> {
    let options = StoreOptions::default();
    Arc::new(Workload::detached(&options, namespace, "caller", "", Labels::new()))
}

fn outbound(store: &Store, namespace: &str, host: &str) -> Option<Outbound> {
    store.outbound(&caller(namespace), host)
}

/// The namespace and name of the VirtualService that applies.
fn route(store: &Store, namespace: &str, host: &str) -> Option<String> {
    let outbound = outbound(store, namespace, host)?;
    outbound.virtual_service().map(|vs| vs.reference().namespaced_name().to_owned())
}

fn addresses(endpoints: &[EndpointSpec]) -> Vec<String> {
    endpoints.iter().map(|e| e.key.address.to_string()).collect()
}

/// Who an endpoint must be: `-` for plaintext.
fn expected(endpoint: &EndpointSpec) -> String {
    match &endpoint.key.tls {
        UpstreamTls::Plaintext => "-".to_owned(),
        UpstreamTls::Mutual { expect: Expect::AnyOf(ids), .. } => {
            ids.iter().map(|id| id.principal()).collect::<Vec<_>>().join(" ")
        }
        UpstreamTls::Mutual { expect: Expect::AnyInTrustDomain, .. } => "*".to_owned(),
    }
}
