//! What the schema forbids in security and telemetry resources.

use super::{Found, Validate, dns_label, is_ip_or_cidr};
use crate::resource::authorization_policy::{Action, AuthorizationPolicy, Condition, Operation, Source};
use crate::resource::meta::ObjectMeta;
use crate::resource::object::Problem;
use crate::resource::peer_authentication::PeerAuthentication;
use crate::resource::telemetry::Telemetry;

impl Validate for PeerAuthentication {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        found.selector(self.selector.as_ref());
        let selects = self.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
        if !self.port_level_mtls.is_empty() && !selects {
            found.add("spec.portLevelMtls", "modes of single ports need a selector");
        }
        for port in self.port_level_mtls.keys() {
            found.require(*port != 0, format!("spec.portLevelMtls[{port}]"), "a port is 1 to 65535");
        }
        found.0
    }
}

impl Validate for AuthorizationPolicy {
    fn problems(&self, meta: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        found.selector(self.selector.as_ref());
        found.target_refs(meta, self.selector.as_ref(), self.target_ref.as_ref(), &self.target_refs);
        if matches!(self.action, Action::Deny | Action::Custom) && self.rules.is_empty() {
            found.add(
                "spec.rules",
                format!("{} without a rule does nothing; add rules", self.action.as_str()),
            );
        }
        match (&self.provider, self.action) {
            (None, Action::Custom) => found.add("spec.provider", "CUSTOM needs a provider"),
            (Some(p), Action::Custom) if p.name.is_empty() => {
                found.add("spec.provider.name", "the name is required");
            }
            (Some(_), action) if action != Action::Custom => {
                found.add("spec.provider", "a provider has a meaning for CUSTOM only");
            }
            _ => {}
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let rule_field = format!("spec.rules[{i}]");
            for (j, from) in rule.from.iter().enumerate() {
                let field = format!("{rule_field}.from[{j}].source");
                match &from.source {
                    None => found.add(field, "the source is required"),
                    Some(source) => check_source(&mut found, &field, source),
                }
            }
            for (j, to) in rule.to.iter().enumerate() {
                let field = format!("{rule_field}.to[{j}].operation");
                match &to.operation {
                    None => found.add(field, "the operation is required"),
                    Some(operation) => check_operation(&mut found, &field, operation),
                }
            }
            for (j, when) in rule.when.iter().enumerate() {
                check_condition(&mut found, &format!("{rule_field}.when[{j}]"), when);
            }
        }
        found.0
    }
}

fn check_values(found: &mut Found, field: &str, name: &str, values: &[String]) {
    for (i, value) in values.iter().enumerate() {
        found.require(!value.is_empty(), format!("{field}.{name}[{i}]"), "the value is empty");
    }
}

fn check_blocks(found: &mut Found, field: &str, name: &str, values: &[String]) {
    for (i, value) in values.iter().enumerate() {
        if !is_ip_or_cidr(value) {
            found.add(
                format!("{field}.{name}[{i}]"),
                format!("{value:?} is neither an address nor a block such as 10.0.0.0/8"),
            );
        }
    }
}

fn check_source(found: &mut Found, field: &str, source: &Source) {
    if *source == Source::default() {
        found.add(field, "the source is empty, which would match everybody; leave `from` out to say that");
    }
    for (name, values) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        check_values(found, field, name, values);
    }
    for (name, values) in
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)]
    {
        for (i, value) in values.iter().enumerate() {
            if value.contains('*') || value.split('/').count() > 2 {
                found.add(
                    format!("{field}.{name}[{i}]"),
                    format!("{value:?} is neither NAMESPACE/ACCOUNT nor ACCOUNT"),
                );
            }
        }
    }
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        found.add(
            format!("{field}.serviceAccounts"),
            "serviceAccounts exclude principals and namespaces in one source; use a `from` of its own",
        );
    }
    for (name, values) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        check_blocks(found, field, name, values);
    }
}

fn check_operation(found: &mut Found, field: &str, operation: &Operation) {
    if *operation == Operation::default() {
        found.add(field, "the operation is empty, which would match everything; leave `to` out to say that");
    }
    for (name, values) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        check_values(found, field, name, values);
    }
    for (name, values) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        for (i, path) in values.iter().enumerate() {
            if let Err(reason) = check_path_template(path) {
                found.add(format!("{field}.{name}[{i}]"), format!("{path:?}: {reason}"));
            }
        }
    }
    for (name, values) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        for (i, value) in values.iter().enumerate() {
            check_port(found, format!("{field}.{name}[{i}]"), value);
        }
    }
}

fn check_port(found: &mut Found, field: String, value: &str) {
    if !value.parse::<u16>().is_ok_and(|port| port != 0) {
        found.add(field, format!("{value:?} is not a port, 1 to 65535"));
    }
}

/// A path with `{*}` or `{**}` is a template: each operator is a whole segment, `{**}` the last operator,
/// and `*` stands nowhere else.
fn check_path_template(path: &str) -> Result<(), &'static str> {
    if !path.contains("{*}") && !path.contains("{**}") {
        return Ok(());
    }
    let mut rest_seen = false;
    for segment in path.split('/') {
        match segment {
            "{*}" | "{**}" if rest_seen => return Err("nothing that varies may follow {**}"),
            "{*}" => {}
            "{**}" => rest_seen = true,
            literal if literal.contains(['*', '{', '}']) => {
                return Err("in a template, {*} and {**} are whole segments and '*' stands nowhere else");
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_condition(found: &mut Found, field: &str, condition: &Condition) {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        found.add(field, "at least one of values and notValues is required");
    }
    check_values(found, field, "values", &condition.values);
    check_values(found, field, "notValues", &condition.not_values);
    let both = [("values", &condition.values), ("notValues", &condition.not_values)];
    match condition.key.as_str() {
        "" => found.add(format!("{field}.key"), "the key is required"),
        "source.ip" | "remote.ip" | "destination.ip" => {
            for (name, values) in both {
                check_blocks(found, field, name, values);
            }
        }
        "destination.port" => {
            for (name, values) in both {
                for (i, value) in values.iter().enumerate() {
                    check_port(found, format!("{field}.{name}[{i}]"), value);
                }
            }
        }
        "source.namespace"
        | "source.principal"
        | "source.serviceAccount"
        | "source.trustDomain"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter"
        | "connection.sni" => {}
        key => {
            let bracketed = |prefix: &str| {
                let inner = key
                    .strip_prefix(prefix)
                    .and_then(|k| k.strip_prefix('['))
                    .and_then(|k| k.strip_suffix(']'));
                inner.is_some_and(|inner| !inner.is_empty())
            };
            let known = bracketed("request.headers")
                || bracketed("request.auth.claims")
                || key.starts_with("experimental.envoy.filters.");
            if !known {
                found.add(
                    format!("{field}.key"),
                    format!(
                        "{key:?} is not an attribute that can be compared; see Istio's list of conditions"
                    ),
                );
            }
        }
    }
}

impl Validate for Telemetry {
    fn problems(&self, meta: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        found.selector(self.selector.as_ref());
        found.target_refs(meta, self.selector.as_ref(), self.target_ref.as_ref(), &self.target_refs);
        for (i, tracing) in self.tracing.iter().enumerate() {
            let field = format!("spec.tracing[{i}]");
            if tracing.random_sampling_percentage.is_some_and(|p| !(0.0..=100.0).contains(&p)) {
                found.add(format!("{field}.randomSamplingPercentage"), "a percentage is 0 to 100");
            }
            for (name, tag) in &tracing.custom_tags {
                let kinds = [
                    tag.literal.is_some(),
                    tag.environment.is_some(),
                    tag.header.is_some(),
                    tag.formatter.is_some(),
                ];
                if kinds.iter().filter(|set| **set).count() != 1 {
                    found.add(
                        format!("{field}.customTags[{name}]"),
                        "exactly one of literal, environment, header and formatter is required",
                    );
                }
            }
        }
        for (i, metrics) in self.metrics.iter().enumerate() {
            for (j, change) in metrics.overrides.iter().enumerate() {
                let field = format!("spec.metrics[{i}].overrides[{j}]");
                if let Some(matches) = &change.matches
                    && matches.metric.is_some()
                    && matches.custom_metric.is_some()
                {
                    found.add(format!("{field}.match"), "metric and customMetric exclude one another");
                }
            }
            found.least(format!("spec.metrics[{i}].reportingInterval"), metrics.reporting_interval);
        }
        found.0
    }
}

/// The name of a subset: a DNS label.
pub(super) fn check_subset_name(found: &mut Found, field: String, name: &str) {
    if let Err(reason) = dns_label(name) {
        found.add(field, format!("{name:?} is not a subset's name: {reason}"));
    }
}
