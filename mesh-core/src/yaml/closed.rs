//! The closed reading of security resources that cannot be used as they are written.
//!
//! Whatever of selector and action can be read is kept; the rest becomes a refusal. A reading is never
//! wider in what it lets pass than what the user may have meant.

use serde::Deserialize;

use super::node::Node;
use crate::diagnostic::Origin;
use crate::resource::authorization_policy::{Action, Rule};
use crate::resource::peer_authentication::{MutualTls, MutualTlsMode};
use crate::resource::{
    AuthorizationPolicy, DestinationRule, Invalid, Kind, Object, ObjectMeta, PeerAuthentication, Resource,
    Selector, TargetRef,
};

/// Whether resources of this kind have a closed reading whatever they hold.
pub(crate) fn is_security(kind: &str) -> bool {
    kind == AuthorizationPolicy::KIND || kind == PeerAuthentication::KIND
}

/// The closed reading of a document of `kind`, if it has one; `reason` is what is wrong with it.
pub(crate) fn closed_reading(
    kind: &str,
    meta: &ObjectMeta,
    root: &Node,
    origin: &Origin,
    reason: &str,
) -> Option<Object> {
    let nothing = Node { line: root.line, value: super::node::Value::Null };
    let spec = root.get("spec").unwrap_or(&nothing);
    let meta = meta.clone();
    let origin = Some(origin.clone());
    let invalid = Some(Invalid { reason: reason.to_owned() });
    match kind {
        AuthorizationPolicy::KIND => {
            let spec = authorization_policy(spec);
            Some(Resource { meta, spec, origin, invalid }.into())
        }
        PeerAuthentication::KIND => {
            let spec = peer_authentication(spec);
            Some(Resource { meta, spec, origin, invalid }.into())
        }
        DestinationRule::KIND => {
            let spec = destination_rule(spec)?;
            Some(Resource { meta, spec, origin, invalid }.into())
        }
        _ => None,
    }
}

/// The selector as far as it can be read; nothing (the whole namespace) where it cannot, also where it
/// selects nothing in particular.
fn selector(spec: &Node) -> Option<Selector> {
    let selector = Selector::deserialize(spec.get("selector")?).ok()?;
    let plain = |text: &String| !text.contains('*');
    let readable =
        selector.match_labels.iter().all(|(key, value)| plain(key) && plain(value) && !key.is_empty());
    readable.then_some(selector).filter(|s| !s.match_labels.is_empty())
}

/// Without rules an ALLOW admits nothing; an empty rule matches everything, so a DENY with one refuses all.
fn authorization_policy(spec: &Node) -> AuthorizationPolicy {
    let action = match spec.get("action") {
        None => Action::Allow,
        Some(node) if node.is_null() => Action::Allow,
        Some(node) => match node.as_text() {
            Some("ALLOW") => Action::Allow,
            Some("AUDIT") => Action::Audit,
            _ => Action::Deny,
        },
    };
    let rules = if action == Action::Deny { vec![Rule::default()] } else { Vec::new() };
    let selector = selector(spec);
    let target_refs = match (&selector, spec.get("targetRefs")) {
        (None, Some(node)) => Vec::<TargetRef>::deserialize(node).unwrap_or_default(),
        _ => Vec::new(),
    };
    AuthorizationPolicy { selector, target_refs, action, rules, ..AuthorizationPolicy::default() }
}

fn peer_authentication(spec: &Node) -> PeerAuthentication {
    PeerAuthentication {
        selector: selector(spec),
        mtls: Some(MutualTls { mode: MutualTlsMode::Strict }),
        ..PeerAuthentication::default()
    }
}

/// A rule that speaks of TLS anywhere keeps its host, so that calls to it can be refused; one that does not
/// is not applied.
fn destination_rule(spec: &Node) -> Option<DestinationRule> {
    if !spec.has_key_below("tls") {
        return None;
    }
    let host = spec.get("host")?.as_text().filter(|host| !host.is_empty())?.to_owned();
    let export_to = spec.get("exportTo").and_then(|n| Vec::<String>::deserialize(n).ok()).unwrap_or_default();
    let workload_selector = spec.get("workloadSelector").and_then(|n| Selector::deserialize(n).ok());
    Some(DestinationRule { host, export_to, workload_selector, ..DestinationRule::default() })
}
