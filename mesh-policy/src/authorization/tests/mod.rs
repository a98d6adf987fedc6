mod dodge;
mod layer;
mod semantics;
mod validate;

use std::sync::Arc;

use http::Request;
use mesh_core::diagnostic::Diagnostic;
use mesh_core::facts::{Connection, ConnectionBuilder, Facts, PeerIdentity, Transport};
use mesh_core::resource::{AuthorizationPolicy, Resource};

use super::*;

type Policy = Arc<Resource<AuthorizationPolicy>>;

/// A policy `default/NAME` from the JSON of its spec.
fn policy(name: &str, spec: &str) -> Policy {
    let spec: AuthorizationPolicy = serde_json::from_str(spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    Arc::new(Resource::new("default", name, spec))
}

fn compile(policies: &[Policy]) -> Rules {
    let (rules, found) = Rules::compile(policies, &Context::default());
    assert!(!found.iter().any(Diagnostic::is_error), "{found:?}");
    rules
}

/// One policy `default/p` of `action` with one rule.
fn one(action: &str, rule: &str) -> Rules {
    compile(&[policy("p", &format!(r#"{{"action": "{action}", "rules": [{rule}]}}"#))])
}

fn id(text: &str) -> PeerIdentity {
    PeerIdentity::new(format!("spiffe://{text}").parse().unwrap())
}

fn connection() -> ConnectionBuilder {
    Connection::builder()
        .peer_addr("10.1.2.3:40000".parse().unwrap())
        .local_addr("10.0.0.9:15006".parse().unwrap())
        .original_dst("10.0.0.9:9080".parse().unwrap())
        .transport(Transport::Tls { sni: Some("reviews.default".into()), alpn: None })
}

fn web() -> Arc<Connection> {
    connection().peer(id("cluster.local/ns/default/sa/web")).build()
}

fn nobody() -> Arc<Connection> {
    connection().transport(Transport::Plaintext).build()
}

fn get(connection: &Arc<Connection>, uri: &str) -> Request<()> {
    let mut request = Request::builder().uri(uri).body(()).unwrap();
    Facts::new(Arc::clone(connection)).insert(&mut request);
    request
}

fn passes(rules: &Rules, request: &Request<()>) -> bool {
    rules.check(&RequestView::of(request)).passes()
}

/// Whether a rule matches, asked through an ALLOW and through a DENY policy, which must agree on
/// everything that can be read in one way only.
fn matches(rule: &str, request: &Request<()>) -> bool {
    let allowed = passes(&one("ALLOW", rule), request);
    let denied = !passes(&one("DENY", rule), request);
    assert_eq!(allowed, denied, "{rule}");
    allowed
}
