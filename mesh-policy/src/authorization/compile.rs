//! From resources to [`Rules`], and what is wrong with a resource.

use std::sync::Arc;

use http::{HeaderName, header};
use ipnet::IpNet;
use mesh_core::diagnostic::{Diagnostic, Effect, ResourceRef};
use mesh_core::identity::TrustDomain;
use mesh_core::matcher::StringMatcher;
use mesh_core::resource::authorization_policy::{Action, Condition, Operation, Source};
use mesh_core::resource::{AuthorizationPolicy, Resource};

use super::pattern::{Glob, Patterns, Template, parse_block};
use super::rules::{Account, Check, Clause, Policy, Rule, Rules, Test};

/// The annotation of a policy that is evaluated and logged, not enforced.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// What rules mean beyond their own text.
#[derive(Debug, Clone, Default)]
pub struct Context {
    trust_domain: TrustDomain,
    aliases: Vec<TrustDomain>,
}

impl Context {
    /// Rules of a mesh with this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, aliases: Vec::new() }
    }

    /// Further names of the mesh's trust domain (`trustDomainAliases`): a principal that names one of
    /// them, the trust domain itself, or `cluster.local` means all of them.
    #[must_use]
    pub fn aliases(mut self, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        self.aliases = aliases.into_iter().collect();
        self
    }

    fn is_ours(&self, name: &str) -> bool {
        name == "cluster.local" || self.names().any(|td| td == name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.trust_domain).chain(&self.aliases).map(TrustDomain::as_str)
    }
}

impl Rules {
    /// Compiles the policies that select a workload, in any order and of any action.
    ///
    /// A policy that cannot be compiled, or is already in its closed reading, takes part in it: an ALLOW
    /// admits nothing, a DENY or CUSTOM refuses everything. What was found is told beside the rules.
    pub fn compile(
        policies: &[Arc<Resource<AuthorizationPolicy>>],
        context: &Context,
    ) -> (Self, Vec<Diagnostic>) {
        let mut rules = Self::default();
        let mut all = Vec::new();
        for resource in policies {
            let mut found = Found::of(resource);
            if let Some(policy) = found.policy(resource, context) {
                let dry = resource.meta.annotations.get(DRY_RUN).is_some_and(|v| v == "true")
                    && resource.spec.action != Action::Custom;
                let group = if dry { &mut rules.dry } else { &mut rules.enforced };
                match resource.spec.action {
                    Action::Allow => group.allow.push(policy),
                    Action::Deny | Action::Custom | Action::Audit => group.deny.push(policy),
                }
            }
            all.append(&mut found.diagnostics);
        }
        (rules, all)
    }
}

/// What is wrong with a policy: what cannot be read, what is not supported, and what has no effect.
///
/// An [error](Diagnostic::is_error) means that the policy must not be put in force as it stands: keep its
/// last good form, or else its closed reading, which is what [`Rules::compile`] takes.
pub fn validate(resource: &Resource<AuthorizationPolicy>) -> Vec<Diagnostic> {
    let mut found = Found::of(resource);
    found.policy(resource, &Context::default());
    found.diagnostics
}

/// Collects what is found while a policy is compiled.
struct Found<'a> {
    resource: &'a Resource<AuthorizationPolicy>,
    name: ResourceRef,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Found<'a> {
    fn of(resource: &'a Resource<AuthorizationPolicy>) -> Self {
        Self { resource, name: resource.reference(), diagnostics: Vec::new() }
    }

    fn add(&mut self, effect: Effect, field: &str, message: impl Into<String>) {
        let mut diagnostic = Diagnostic::new(effect, message).resource(self.name.clone()).field(field);
        diagnostic.origin.clone_from(&self.resource.origin);
        self.diagnostics.push(diagnostic);
    }

    fn error(&mut self, field: &str, message: impl Into<String>) {
        self.add(Effect::ClosedReading, field, message);
    }

    fn note(&mut self, field: &str, message: impl Into<String>) {
        self.add(Effect::NoEffect, field, message);
    }

    /// `None` where the policy has no part in decisions.
    fn policy(&mut self, resource: &Resource<AuthorizationPolicy>, context: &Context) -> Option<Policy> {
        let spec = &resource.spec;
        let closed = |reason: &str| {
            Some(Policy { name: resource.reference(), closed: Some(reason.into()), rules: Box::default() })
        };
        if spec.action == Action::Audit {
            self.note("spec.action", "AUDIT marks requests for a plugin, and there is none");
            return None;
        }
        if !spec.target_refs.is_empty() || spec.target_ref.is_some() {
            self.note(
                "spec.targetRefs",
                "a policy with targetRefs is for gateways and waypoints, not for sidecars; use a selector",
            );
            return None;
        }
        if let Some(invalid) = &resource.invalid {
            return closed(&invalid.reason);
        }
        match spec.action {
            Action::Custom => {
                self.error("spec.action", "CUSTOM is not supported yet; use ALLOW or DENY");
            }
            Action::Deny if spec.rules.is_empty() => {
                self.error(
                    "spec.rules",
                    "a DENY policy without rules matches nothing; to deny all, write `rules: [{}]`",
                );
            }
            _ => {}
        }
        let rules = spec.rules.iter().enumerate();
        let rules = rules.map(|(i, rule)| self.rule(rule, i, spec.action, context)).collect();
        let first = self.diagnostics.iter().find(|d| d.is_error());
        match first {
            Some(d) => closed(&format!("{}: {}: {}", self.name, d.field, d.message)),
            None => Some(Policy { name: resource.reference(), closed: None, rules }),
        }
    }

    fn rule(
        &mut self,
        rule: &mesh_core::resource::authorization_policy::Rule,
        index: usize,
        action: Action,
        context: &Context,
    ) -> Rule {
        let mut from = Vec::new();
        for (j, entry) in rule.from.iter().enumerate() {
            let field = format!("spec.rules[{index}].from[{j}].source");
            match &entry.source {
                Some(source) if *source != Source::default() => {
                    from.push(self.source(source, &field, action, context));
                }
                _ => {
                    self.error(&field, "an empty source would match everybody; leave `from` out to say that")
                }
            }
        }
        let mut to = Vec::new();
        for (j, entry) in rule.to.iter().enumerate() {
            let field = format!("spec.rules[{index}].to[{j}].operation");
            match &entry.operation {
                Some(operation) if *operation != Operation::default() => {
                    to.push(self.operation(operation, &field));
                }
                _ => self
                    .error(&field, "an empty operation would match everything; leave `to` out to say that"),
            }
        }
        let mut when = Vec::new();
        for (j, condition) in rule.when.iter().enumerate() {
            let field = format!("spec.rules[{index}].when[{j}]");
            self.condition(condition, &field, action, context, &mut when);
        }
        let http = |clause: &[Check]| clause.iter().any(|check| check.test.is_http());
        let needs_http = from.iter().chain(&to).any(|c| http(c)) || http(&when);
        Rule { from: from.into(), to: to.into(), when: when.into(), needs_http }
    }

    fn source(&mut self, source: &Source, field: &str, action: Action, context: &Context) -> Clause {
        let mut checks = Vec::new();
        let s = source;
        for (not, name, values) in
            [(false, "principals", &s.principals), (true, "notPrincipals", &s.not_principals)]
        {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |found, field, values| {
                found.principals(field, values, context)
            });
        }
        for (not, name, values) in [
            (false, "requestPrincipals", &s.request_principals),
            (true, "notRequestPrincipals", &s.not_request_principals),
        ] {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |found, field, _| {
                found.token(field, not, action)
            });
        }
        for (not, name, values) in
            [(false, "namespaces", &s.namespaces), (true, "notNamespaces", &s.not_namespaces)]
        {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |_, _, values| globs(values));
        }
        for (not, name, values) in [
            (false, "serviceAccounts", &s.service_accounts),
            (true, "notServiceAccounts", &s.not_service_accounts),
        ] {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |found, field, values| {
                found.accounts(field, values)
            });
        }
        for (not, name, values) in
            [(false, "trustDomains", &s.trust_domains), (true, "notTrustDomains", &s.not_trust_domains)]
        {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |_, _, values| {
                Test::TrustDomain(patterns(values))
            });
        }
        for (not, name, values) in
            [(false, "ipBlocks", &s.ip_blocks), (true, "notIpBlocks", &s.not_ip_blocks)]
        {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |found, field, values| {
                Test::PeerIp(found.blocks(field, values))
            });
        }
        for (name, values) in
            [("remoteIpBlocks", &s.remote_ip_blocks), ("notRemoteIpBlocks", &s.not_remote_ip_blocks)]
        {
            if !values.is_empty() {
                self.error(
                    &format!("{field}.{name}"),
                    "the address of the original client is not known yet; use ipBlocks, the address of the direct peer",
                );
            }
        }
        let accounts = !s.service_accounts.is_empty() || !s.not_service_accounts.is_empty();
        let others = [&s.principals, &s.not_principals, &s.namespaces, &s.not_namespaces];
        if accounts && others.iter().any(|list| !list.is_empty()) {
            self.error(
                &format!("{field}.serviceAccounts"),
                "serviceAccounts exclude principals and namespaces in one source; use another `from`",
            );
        }
        checks.into()
    }

    fn operation(&mut self, o: &Operation, field: &str) -> Clause {
        let mut checks = Vec::new();
        for (not, name, values) in [(false, "hosts", &o.hosts), (true, "notHosts", &o.not_hosts)] {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |_, _, values| hosts(values));
        }
        for (not, name, values) in [(false, "ports", &o.ports), (true, "notPorts", &o.not_ports)] {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, Self::ports);
        }
        for (not, name, values) in [(false, "methods", &o.methods), (true, "notMethods", &o.not_methods)] {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, |found, field, values| {
                for (i, value) in values.iter().enumerate() {
                    if value.bytes().any(|b| b.is_ascii_lowercase()) {
                        let upper = value.to_ascii_uppercase();
                        found.note(
                            &format!("{field}[{i}]"),
                            format!("methods are case-sensitive, and clients send {upper:?}, not {value:?}"),
                        );
                    }
                }
                Test::Method(patterns(values))
            });
        }
        for (not, name, values) in [(false, "paths", &o.paths), (true, "notPaths", &o.not_paths)] {
            self.push(&mut checks, not, &format!("{field}.{name}"), values, Self::paths);
        }
        checks.into()
    }

    fn condition(
        &mut self,
        condition: &Condition,
        field: &str,
        action: Action,
        context: &Context,
        checks: &mut Vec<Check>,
    ) {
        let key = condition.key.as_str();
        let key_field = format!("{field}.key");
        if condition.values.is_empty() && condition.not_values.is_empty() {
            self.error(field, "one of values and notValues is required");
        }
        let header_name = key.strip_prefix("request.headers[").and_then(|k| k.strip_suffix(']'));
        let header_name = match header_name.map(|name| HeaderName::from_bytes(name.as_bytes())) {
            Some(Ok(name)) => Some(name),
            Some(Err(_)) => {
                self.error(
                    &key_field,
                    format!("{key:?} holds no header name; write request.headers[x-name]"),
                );
                return;
            }
            None => None,
        };
        for (not, name, values) in
            [(false, "values", &condition.values), (true, "notValues", &condition.not_values)]
        {
            let values_field = format!("{field}.{name}");
            self.push(checks, not, &values_field, values, |found, field, values| match (key, &header_name) {
                // HTTP/2 has no `host` header; the authority stands in its place.
                (_, Some(name)) if *name == header::HOST => hosts(values),
                (_, Some(name)) => Test::Header { name: name.clone(), values: matchers(values) },
                ("source.ip", _) => Test::PeerIp(found.blocks(field, values)),
                ("source.namespace", _) => globs(values),
                ("source.principal", _) => found.principals(field, values, context),
                ("source.serviceAccount", _) => found.accounts(field, values),
                ("source.trustDomain", _) => Test::TrustDomain(patterns(values)),
                ("destination.ip", _) => Test::DestinationIp(found.blocks(field, values)),
                ("destination.port", _) => found.ports(field, values),
                ("connection.sni", _) => Test::Sni(any_case(values)),
                ("request.auth.principal" | "request.auth.audiences" | "request.auth.presenter", _) => {
                    found.token(field, not, action)
                }
                (claims, _) if claims.starts_with("request.auth.claims[") => found.token(field, not, action),
                ("remote.ip", _) => {
                    found.error(
                        &key_field,
                        "the address of the original client is not known yet; use source.ip, the direct peer",
                    );
                    Test::Token
                }
                (experimental, _) if experimental.starts_with("experimental.") => {
                    found.error(&key_field, "Envoy's own metadata does not exist here; compare something else");
                    Test::Token
                }
                _ => {
                    found.error(
                        &key_field,
                        format!("{key:?} is no attribute; there are request.headers[NAME], source.*, destination.ip, destination.port, connection.sni"),
                    );
                    Test::Token
                }
            });
        }
    }

    /// Adds a check where the list is written.
    fn push(
        &mut self,
        checks: &mut Vec<Check>,
        not: bool,
        field: &str,
        values: &[String],
        make: impl FnOnce(&mut Self, &str, &[String]) -> Test,
    ) {
        if values.is_empty() {
            return;
        }
        if let Some(i) = values.iter().position(String::is_empty) {
            self.error(
                &format!("{field}[{i}]"),
                "the value is empty; write what it should match, `*` for anything",
            );
        }
        let test = make(self, field, values);
        checks.push(Check { test, not });
    }

    fn principals(&mut self, field: &str, values: &[String], context: &Context) -> Test {
        let mut all = Vec::new();
        for (i, value) in values.iter().enumerate() {
            if let Some(rest) = value.strip_prefix("spiffe://") {
                self.error(
                    &format!("{field}[{i}]"),
                    format!("principals are written without spiffe://: {rest:?}"),
                );
            }
            let inner = value.strip_prefix('*').unwrap_or(value);
            if inner.strip_suffix('*').unwrap_or(inner).contains('*')
                || (inner.len() < value.len() && inner.ends_with('*'))
            {
                self.note(
                    &format!("{field}[{i}]"),
                    "nobody's name holds a `*`, which is a wildcard at one end only",
                );
            }
            match value.split_once('/') {
                Some((domain, path)) if context.is_ours(domain) => {
                    all.extend(context.names().map(|td| StringMatcher::pattern(&format!("{td}/{path}"))));
                }
                _ => all.push(StringMatcher::pattern(value)),
            }
        }
        Test::Principal(Patterns::new(all))
    }

    /// Tokens are not verified, so nothing is known of them. Where that refuses, it is told; where it
    /// would let somebody pass, the policy cannot be used.
    fn token(&mut self, field: &str, not: bool, action: Action) -> Test {
        let lets_pass = (action == Action::Allow) == not;
        if lets_pass {
            self.error(
                field,
                "tokens are not verified yet, so that nobody who shows one would be kept out; remove the field",
            );
        } else {
            self.note(field, "tokens are not verified yet, and a request counts as one without a token");
        }
        Test::Token
    }

    fn accounts(&mut self, field: &str, values: &[String]) -> Test {
        let mut all = Vec::new();
        for (i, value) in values.iter().enumerate() {
            let (namespace, name) = match value.split_once('/') {
                Some(parts) => parts,
                None => (self.resource.meta.namespace.as_str(), value.as_str()),
            };
            if namespace.is_empty() || name.is_empty() || value.contains('*') || name.contains('/') {
                self.error(
                    &format!("{field}[{i}]"),
                    format!(
                        "{value:?} is neither NAMESPACE/ACCOUNT nor ACCOUNT; wildcards go into principals"
                    ),
                );
            }
            all.push(Account { namespace: namespace.into(), name: name.into() });
        }
        Test::Account(all.into())
    }

    fn blocks(&mut self, field: &str, values: &[String]) -> Box<[IpNet]> {
        let mut all = Vec::new();
        for (i, value) in values.iter().enumerate() {
            match parse_block(value) {
                Some(block) => all.push(block),
                None => self.error(
                    &format!("{field}[{i}]"),
                    format!("{value:?} is neither an address nor a block such as 10.0.0.0/8"),
                ),
            }
        }
        all.into()
    }

    fn ports(&mut self, field: &str, values: &[String]) -> Test {
        let mut all = Vec::new();
        for (i, value) in values.iter().enumerate() {
            match value.parse::<u16>() {
                Ok(port) if port != 0 => all.push(port),
                _ => self.error(&format!("{field}[{i}]"), format!("{value:?} is not a port, 1 to 65535")),
            }
        }
        Test::DestinationPort(all.into())
    }

    fn paths(&mut self, field: &str, values: &[String]) -> Test {
        let (mut plain, mut templates) = (Vec::new(), Vec::new());
        for (i, value) in values.iter().enumerate() {
            if !Template::is_template(value) {
                plain.push(StringMatcher::pattern(value));
                continue;
            }
            match Template::parse(value) {
                Ok(template) => templates.push(template),
                Err(reason) => self.error(&format!("{field}[{i}]"), format!("{value:?}: {reason}")),
            }
        }
        Test::Path { patterns: Patterns::new(plain), templates: templates.into() }
    }
}

fn matchers(values: &[String]) -> Box<[StringMatcher]> {
    values.iter().map(|v| StringMatcher::pattern(v)).collect()
}

fn patterns(values: &[String]) -> Patterns {
    Patterns::new(values.iter().map(|v| StringMatcher::pattern(v)))
}

fn globs(values: &[String]) -> Test {
    Test::Namespace(values.iter().map(|v| Glob::new(v)).collect())
}

fn hosts(values: &[String]) -> Test {
    Test::Host(any_case(values))
}

/// Names of the DNS do not tell cases apart.
fn any_case(values: &[String]) -> Box<[StringMatcher]> {
    values.iter().map(|v| StringMatcher::pattern(v).ignore_case()).collect()
}
