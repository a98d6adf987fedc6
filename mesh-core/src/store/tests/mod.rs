//! What the store answers, rule by rule.

mod example;

use std::sync::Arc;

use super::{Outbound, Store, StoreOptions, Workload};
use crate::cluster::{EndpointSpec, Expect, UpstreamTls};
use crate::yaml::parse_objects;

/// A store of a text.
fn store(yaml: &str) -> Store {
    Store::new(StoreOptions::default(), parse_objects("test.yaml", yaml).unwrap())
}

/// A caller in `namespace` without labels.
fn caller(namespace: &str) -> Arc<Workload> {
    let options = StoreOptions::default();
    Arc::new(Workload::detached(&options, namespace, "caller", "", [].into()))
}

#[expect(dead_code, reason = "soon")]
fn outbound(store: &Store, namespace: &str, host: &str) -> Option<Outbound> {
    store.outbound(&caller(namespace), host)
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
