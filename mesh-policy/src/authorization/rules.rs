//! Compiled rules, and the decision.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;
use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{LocalAddr, OriginalDst, PeerAddr};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::identity::SpiffeId;
use mesh_core::matcher::{Reading, StringMatcher};

use super::pattern::{Glob, Patterns, Template};
use super::view::{ConnectionView, Http, Path, RequestView, unfold};

/// The AuthorizationPolicies of one workload, compiled. Immutable; publish it in a
/// [`Live`](mesh_core::live::Live).
///
/// The default has no policy and admits everything, as Istio does where no policy selects a workload.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub(super) enforced: Policies,
    /// Those with the annotation `istio.io/dry-run`.
    pub(super) dry: Policies,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    pub(super) deny: Vec<Policy>,
    pub(super) allow: Vec<Policy>,
}

#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) name: ResourceRef,
    /// Why it is in force in its closed reading.
    pub(super) closed: Option<Arc<str>>,
    pub(super) rules: Box<[Rule]>,
}

/// Any of `from`, any of `to`, all of `when`.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule {
    pub(super) from: Box<[Clause]>,
    pub(super) to: Box<[Clause]>,
    pub(super) when: Clause,
    /// It asks for something that a TCP connection does not have.
    pub(super) needs_http: bool,
}

/// Tests that must all hold.
pub(super) type Clause = Box<[Check]>;

#[derive(Debug, Clone)]
pub(super) struct Check {
    pub(super) test: Test,
    pub(super) not: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Test {
    Principal(Patterns),
    Namespace(Box<[Glob]>),
    Account(Box<[Account]>),
    TrustDomain(Patterns),
    /// What a token says. Tokens are not verified, so nothing is known of them.
    Token,
    PeerIp(Box<[IpNet]>),
    DestinationIp(Box<[IpNet]>),
    DestinationPort(Box<[u16]>),
    Sni(Box<[StringMatcher]>),
    Method(Patterns),
    Host(Box<[StringMatcher]>),
    Path {
        patterns: Patterns,
        templates: Box<[Template]>,
    },
    Header {
        name: HeaderName,
        values: Box<[StringMatcher]>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

/// What a match leads to. Where an attribute can be read in more than one way (a repeated header, an
/// escaped path), what lets in must match in every reading, and what keeps out in any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    LetIn,
    KeepOut,
}

/// What [`Rules::check`] decides. Borrows from the rules and allocates nothing.
#[derive(Debug, Clone, Copy)]
pub enum Decision<'r> {
    /// The request may pass.
    Pass(Pass<'r>),
    /// It may not.
    Refuse(Refusal<'r>),
}

/// Why a request may pass.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'r>(Option<Matched<'r>>);

/// Why a request may not pass.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'r>(Why<'r>);

/// The rule that decided: a policy and the number of its rule, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'r> {
    /// The policy.
    pub policy: &'r ResourceRef,
    /// Which of its rules, from 0.
    pub rule: usize,
}

#[derive(Debug, Clone, Copy)]
enum Why<'r> {
    Deny(Matched<'r>),
    Closed(&'r Policy, &'r str),
    NoAllow(&'r [Policy]),
}

impl Rules {
    /// Decides about a request. Pure: no I/O, no clock, no log.
    pub fn check(&self, request: &RequestView<'_>) -> Decision<'_> {
        self.enforced.check(request)
    }

    /// Decides about a connection on which no HTTP is spoken. A rule of an ALLOW policy that asks for
    /// something of HTTP never matches; in a DENY policy what is asked of HTTP is left out, which makes
    /// the rule wider.
    pub fn check_connection(&self, connection: &ConnectionView<'_>) -> Decision<'_> {
        self.enforced.check(&connection.view())
    }

    /// What the policies in dry run (annotation `istio.io/dry-run: "true"`) would decide; `None` where
    /// there are none.
    pub fn check_dry_run(&self, request: &RequestView<'_>) -> Option<Decision<'_>> {
        (!self.dry.is_empty()).then(|| self.dry.check(request))
    }

    /// Whether no policy is in force, not even in dry run.
    pub fn is_empty(&self) -> bool {
        self.enforced.is_empty() && self.dry.is_empty()
    }

    /// The policies in force: DENY first, then ALLOW. Those in dry run are not among them.
    pub fn policies(&self) -> impl Iterator<Item = &ResourceRef> {
        self.enforced.deny.iter().chain(&self.enforced.allow).map(|p| &p.name)
    }
}

impl Policies {
    fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    fn check(&self, view: &RequestView<'_>) -> Decision<'_> {
        for policy in &self.deny {
            if let Some(reason) = &policy.closed {
                return Decision::Refuse(Refusal(Why::Closed(policy, reason)));
            }
            if let Some(matched) = policy.find(view, Purpose::KeepOut) {
                return Decision::Refuse(Refusal(Why::Deny(matched)));
            }
        }
        if self.allow.is_empty() {
            return Decision::Pass(Pass(None));
        }
        if let Some(matched) = self.allow.iter().find_map(|p| p.find(view, Purpose::LetIn)) {
            return Decision::Pass(Pass(Some(matched)));
        }
        // The one that could not be read might have admitted it: that is what its owner must hear.
        let closed = self.allow.iter().find_map(|p| Some((p, p.closed.as_deref()?)));
        Decision::Refuse(Refusal(match closed {
            Some((policy, reason)) => Why::Closed(policy, reason),
            None => Why::NoAllow(&self.allow),
        }))
    }
}

impl Policy {
    fn find(&self, view: &RequestView<'_>, purpose: Purpose) -> Option<Matched<'_>> {
        let rule = self.rules.iter().position(|rule| rule.matches(view, purpose))?;
        Some(Matched { policy: &self.name, rule })
    }
}

impl Rule {
    fn matches(&self, view: &RequestView<'_>, purpose: Purpose) -> bool {
        if view.http.is_none() && self.needs_http && purpose == Purpose::LetIn {
            return false;
        }
        let all = |clause: &Clause| clause.iter().all(|check| check.holds(view, purpose));
        let any = |clauses: &[Clause]| clauses.is_empty() || clauses.iter().any(all);
        any(&self.from) && any(&self.to) && all(&self.when)
    }
}

impl Check {
    fn holds(&self, view: &RequestView<'_>, purpose: Purpose) -> bool {
        if view.http.is_none() && self.test.is_http() {
            return true;
        }
        // In "admit unless X", X keeps out; in "refuse unless X", X lets in.
        let purpose = if self.not { purpose.other() } else { purpose };
        self.test.matches(view, purpose) != self.not
    }
}

impl Purpose {
    fn other(self) -> Self {
        match self {
            Self::LetIn => Self::KeepOut,
            Self::KeepOut => Self::LetIn,
        }
    }

    fn reading(self) -> Reading {
        match self {
            Self::LetIn => Reading::Every,
            Self::KeepOut => Reading::Any,
        }
    }
}

impl Test {
    /// Whether it asks for something that only an HTTP request has.
    pub(super) fn is_http(&self) -> bool {
        matches!(
            self,
            Self::Token | Self::Method(_) | Self::Host(_) | Self::Path { .. } | Self::Header { .. }
        )
    }

    /// What is absent matches nothing.
    fn matches(&self, view: &RequestView<'_>, purpose: Purpose) -> bool {
        let id = || view.connection.and_then(|c| c.peer()).map(|p| p.id());
        match self {
            Self::Principal(patterns) => id().is_some_and(|id| patterns.matches(id.principal())),
            Self::Namespace(globs) => id()
                .and_then(|id| namespace(id, purpose))
                .is_some_and(|ns| globs.iter().any(|g| g.matches(ns))),
            Self::Account(accounts) => {
                id().is_some_and(|id| accounts.iter().any(|account| account.is(id, purpose)))
            }
            Self::TrustDomain(patterns) => id().is_some_and(|id| patterns.matches(id.trust_domain())),
            Self::Token => false,
            Self::PeerIp(blocks) => {
                in_blocks(blocks, view.connection.and_then(|c| c.peer_addr()).map(PeerAddr::ip))
            }
            Self::DestinationIp(blocks) => {
                let ip = view.connection.and_then(|c| {
                    c.original_dst().map(OriginalDst::ip).or_else(|| c.local_addr().map(LocalAddr::ip))
                });
                in_blocks(blocks, ip)
            }
            Self::DestinationPort(ports) => {
                view.connection.and_then(|c| c.workload_port()).is_some_and(|port| ports.contains(&port))
            }
            Self::Sni(names) => view
                .connection
                .and_then(|c| c.sni())
                .is_some_and(|sni| names.iter().any(|name| name.matches(sni))),
            Self::Method(_) | Self::Host(_) | Self::Path { .. } | Self::Header { .. } => {
                view.http.as_ref().is_some_and(|http| self.matches_http(http, purpose))
            }
        }
    }

    fn matches_http(&self, http: &Http<'_>, purpose: Purpose) -> bool {
        match self {
            Self::Method(patterns) => patterns.matches(http.method.as_str()),
            Self::Host(matchers) => matches_host(matchers, http, purpose),
            Self::Path { patterns, templates } => {
                let matches =
                    |path: &str| patterns.matches(path) || templates.iter().any(|t| t.matches(path));
                matches_path(matches, &http.path, purpose)
            }
            Self::Header { name, values } => {
                values.iter().any(|v| v.matches_header(http.headers, name, purpose.reading()))
            }
            _ => false,
        }
    }
}

fn in_blocks(blocks: &[IpNet], ip: Option<IpAddr>) -> bool {
    ip.is_some_and(|ip| blocks.iter().any(|block| block.contains(&ip)))
}

fn matches_host(matchers: &[StringMatcher], http: &Http<'_>, purpose: Purpose) -> bool {
    let one = |host: &str| matchers.iter().any(|m| m.matches(host));
    let mut hosts = http.hosts();
    match purpose {
        Purpose::LetIn => {
            let mut some = false;
            let every = hosts.all(|host| {
                some = true;
                host.is_some_and(one)
            });
            every && some
        }
        Purpose::KeepOut => hosts.any(|host| match host {
            None => true,
            // `example.com.` is the same name as `example.com`.
            Some(host) => one(host) || without_dot(host).is_some_and(|host| one(&host)),
        }),
    }
}

/// The authority without the dot that ends its name; `None` where there is no such dot.
fn without_dot(host: &str) -> Option<String> {
    if let Some(name) = host.strip_suffix('.') {
        return Some(name.to_owned());
    }
    host.contains(".:").then(|| host.replacen(".:", ":", 1))
}

fn matches_path(matches: impl Fn(&str) -> bool, path: &Path<'_>, purpose: Purpose) -> bool {
    let (text, unfolded) = match path {
        Path::Absent => return false,
        Path::Unreadable => return purpose == Purpose::KeepOut,
        Path::Normal { text, unfolded } => (text, unfolded),
    };
    let direct = matches(text);
    let unfolded = || unfolded.get_or_init(|| unfold(text)).as_ref();
    match purpose {
        // A path that turns into another one when it is decoded says nothing that could be relied on: where
        // it leads depends on whether its reader decodes, merges slashes or resolves dots first.
        Purpose::LetIn => direct && !unfolded().is_some_and(|u| u.climbs),
        Purpose::KeepOut => direct || unfolded().is_some_and(|u| u.climbs || matches(&u.text)),
    }
}

/// What follows `ns` in an identity's path. To let somebody in, the path must have Istio's exact form.
fn namespace(id: &SpiffeId, purpose: Purpose) -> Option<&str> {
    match purpose {
        Purpose::LetIn => id.namespace(),
        Purpose::KeepOut => id.path().strip_prefix("/ns/")?.split('/').next(),
    }
}

impl Account {
    fn is(&self, id: &SpiffeId, purpose: Purpose) -> bool {
        match purpose {
            Purpose::LetIn => {
                id.namespace() == Some(&*self.namespace) && id.service_account() == Some(&*self.name)
            }
            // Segments between namespace and account change nothing about who it is.
            Purpose::KeepOut => {
                namespace(id, purpose) == Some(&*self.namespace)
                    && id.path().split("/sa/").skip(1).any(|rest| rest.split('/').next() == Some(&*self.name))
            }
        }
    }
}

impl<'r> Decision<'r> {
    /// Why the request may not pass; `None` when it may.
    pub fn refusal(&self) -> Option<&Refusal<'r>> {
        match self {
            Self::Pass(_) => None,
            Self::Refuse(refusal) => Some(refusal),
        }
    }

    /// Whether the request may pass.
    pub fn passes(&self) -> bool {
        self.refusal().is_none()
    }
}

impl<'r> Pass<'r> {
    /// The rule that admits the request; `None` where no ALLOW policy is in force.
    pub fn matched(&self) -> Option<Matched<'r>> {
        self.0
    }
}

impl<'r> Refusal<'r> {
    /// `denied`, or `policy_invalid` when a policy in its closed reading decided.
    pub fn code(&self) -> FailureCode {
        match self.0 {
            Why::Deny(_) | Why::NoAllow(_) => FailureCode::Denied,
            Why::Closed(..) => FailureCode::PolicyInvalid,
        }
    }

    /// The rule of a DENY policy that refuses the request.
    pub fn matched(&self) -> Option<Matched<'r>> {
        match self.0 {
            Why::Deny(matched) => Some(matched),
            _ => None,
        }
    }

    /// The policies that decided: the DENY that matches, the ALLOW policies of which none does, or the
    /// one in its closed reading.
    pub fn policies(&self) -> impl Iterator<Item = &'r ResourceRef> + use<'r> {
        let (one, many): (Option<&'r ResourceRef>, &'r [Policy]) = match self.0 {
            Why::Deny(matched) => (Some(matched.policy), &[]),
            Why::Closed(policy, _) => (Some(&policy.name), &[]),
            Why::NoAllow(policies) => (None, policies),
        };
        one.into_iter().chain(many.iter().map(|p| &p.name))
    }

    /// The explanation, such as `DENY default/no-delete rule[0] matches`.
    pub fn detail(&self) -> String {
        match self.0 {
            Why::Deny(Matched { policy, rule }) => {
                format!("DENY {} rule[{rule}] matches", policy.namespaced_name())
            }
            Why::Closed(_, reason) => {
                format!("a policy could not be read: {reason}")
            }
            Why::NoAllow(policies) => {
                let names: Vec<&str> = policies.iter().map(|p| p.name.namespaced_name()).collect();
                format!("no ALLOW policy matches ({})", names.join(", "))
            }
        }
    }

    /// The failure that explains itself in logs and answers the caller.
    pub fn failure(&self) -> Failure {
        let failure =
            Failure::new(self.code()).detail(self.detail()).policies(self.policies().cloned().collect());
        match self.0 {
            Why::Closed(policy, _) => failure.resource(policy.name.clone()),
            Why::Deny(matched) => failure.resource(matched.policy.clone()),
            Why::NoAllow(_) => failure,
        }
    }
}
