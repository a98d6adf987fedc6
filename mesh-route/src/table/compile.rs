//! From a VirtualService to the rules of one port of one host.

use std::fmt;
use std::sync::Arc;

use mesh_core::cluster::{Cluster, ClusterKey};
use mesh_core::diagnostic::{Diagnostic, Effect, Origin, ResourceRef};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::resource::virtual_service::{Destination as WrittenDestination, HttpMatchRequest, HttpRoute};
use mesh_core::resource::{Labels, Resource, VirtualService, selects};

use super::rule::{Action, Destination, Entry, Forward, Routes, Rule};
use super::split::Weights;
use super::{actions, conditions};
use crate::headers::HeaderOps;
use crate::matching::Condition;
use crate::policy::RoutePolicy;

/// The gateway name that stands for all sidecars.
const MESH: &str = "mesh";
/// The name of a route that nobody named.
const DEFAULT: &str = "default";

/// For whom, and for what, rules are compiled.
#[derive(Clone, Copy)]
pub struct CompileContext<'a> {
    /// The namespace of the calling workload.
    pub namespace: &'a str,
    /// The labels of the calling workload.
    pub labels: &'a Labels,
    /// The domain of services, such as `cluster.local`.
    pub cluster_domain: &'a str,
    /// The full name of the service whose rules these are.
    pub host: &'a str,
    /// The service's port that the rules are for.
    pub port: u16,
    /// Finds destinations.
    pub resolve: &'a dyn Fn(&DestinationRef<'_>) -> Resolved,
}

/// A destination that a rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DestinationRef<'a> {
    /// The full host name.
    pub host: &'a str,
    /// The port, where the rule names one. Otherwise the destination's only port is meant, else
    /// [`default_port`](Self::default_port).
    pub port: Option<u16>,
    /// The port that the rules are compiled for.
    pub default_port: u16,
    /// The subset; empty for the whole service.
    pub subset: &'a str,
}

/// What was found for a destination.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// It exists.
    Cluster(Arc<Cluster>),
    /// It does not; requests get this (usually `unknown_subset`), the resource is applied nevertheless.
    Missing(Failure),
}

/// Compiled rules, and what there is to say about them.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The rules. Where an error stands among the diagnostics these are a service's without VirtualService.
    pub routes: Routes,
    /// What is not supported, wrong, or without effect.
    pub diagnostics: Vec<Diagnostic>,
}

/// Collects diagnostics of one resource.
pub(super) struct Complaints {
    resource: ResourceRef,
    origin: Option<Origin>,
    list: Vec<Diagnostic>,
}

impl Complaints {
    pub(super) fn new(vs: &Resource<VirtualService>) -> Self {
        Self { resource: vs.reference(), origin: vs.origin.clone(), list: Vec::new() }
    }

    fn add(&mut self, effect: Effect, field: String, message: String) {
        let diagnostic = Diagnostic::new(effect, message).resource(self.resource.clone()).field(field);
        self.list.push(match &self.origin {
            Some(origin) => diagnostic.origin(origin.clone()),
            None => diagnostic,
        });
    }

    pub(super) fn not_applied(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Effect::NotApplied, field.into(), message.into());
    }

    pub(super) fn no_effect(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Effect::NoEffect, field.into(), message.into());
    }

    pub(super) fn failed(&self) -> bool {
        self.list.iter().any(Diagnostic::is_error)
    }

    pub(super) fn into_list(self) -> Vec<Diagnostic> {
        self.list
    }
}

impl fmt::Debug for CompileContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompileContext")
            .field("namespace", &self.namespace)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Whether a VirtualService applies to sidecars and embedded clients at all.
pub fn binds_to_mesh(vs: &VirtualService) -> bool {
    vs.gateways.is_empty() || vs.gateways.iter().any(|gateway| gateway == MESH)
}

/// A host name in full: a name without dots belongs to a namespace.
pub fn full_host(host: &str, namespace: &str, cluster_domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.contains('*') {
        return host.strip_suffix('.').map(str::to_owned).unwrap_or(host);
    }
    format!("{host}.{namespace}.svc.{cluster_domain}")
}

/// Compiles the HTTP rules of `vs` for one port of one host; `None`, and a VirtualService that does not apply
/// to sidecars, to this caller or to this port, gives the default route: everything to the service itself.
///
/// A destination that does not exist is no error here: requests for it fail with what
/// [`Resolved::Missing`] says. Pure.
pub fn compile_http(vs: Option<&Resource<VirtualService>>, context: &CompileContext<'_>) -> Compiled {
    let Some(vs) = vs.filter(|vs| binds_to_mesh(&vs.spec)) else {
        return Compiled { routes: default_route(context), diagnostics: Vec::new() };
    };
    let mut complaints = Complaints::new(vs);
    let mut shared = Shared::of(vs);
    let mut entries = Vec::new();
    for (index, route) in vs.spec.http.iter().enumerate() {
        let compiled = rule(vs, route, index, context, |m| applies(m, context), &mut shared, &mut complaints);
        // What comes after a rule that takes everything is never reached.
        let mut all = false;
        for entry in compiled {
            all = entry.is_always();
            entries.push(entry);
            if all {
                break;
            }
        }
        if all {
            break;
        }
    }
    let routes =
        if complaints.failed() || entries.is_empty() { default_route(context) } else { Routes::of(entries) };
    Compiled { routes, diagnostics: complaints.into_list() }
}

/// What is wrong with a VirtualService, or not supported yet, whoever calls and whatever exists: decides when
/// it is loaded whether it is applied. Pure.
pub fn validate(vs: &Resource<VirtualService>) -> Vec<Diagnostic> {
    let mut complaints = Complaints::new(vs);
    let spec = &vs.spec;
    if spec.hosts.is_empty() {
        complaints
            .not_applied("spec.hosts", "delegation to a VirtualService without hosts is not supported yet");
    }
    let mesh = binds_to_mesh(spec);
    for (i, gateway) in spec.gateways.iter().enumerate().filter(|(_, gateway)| *gateway != MESH) {
        let message = format!("the gateway {gateway:?} is not supported yet, only `{MESH}` is");
        match mesh {
            true => complaints.no_effect(format!("spec.gateways[{i}]"), message),
            false => complaints.not_applied(format!("spec.gateways[{i}]"), message),
        }
    }
    if !spec.tls.is_empty() {
        complaints.not_applied("spec.tls", "routing by SNI is not supported yet");
    }
    let labels = Labels::new();
    let missing = |_: &DestinationRef<'_>| Resolved::Missing(FailureCode::UnknownSubset.into());
    let context = CompileContext {
        namespace: &vs.meta.namespace,
        labels: &labels,
        cluster_domain: "cluster.local",
        host: "",
        port: super::DEFAULT_PORT,
        resolve: &missing,
    };
    let mut shared = Shared::of(vs);
    let mut all: Option<usize> = None;
    for (index, route) in spec.http.iter().enumerate() {
        let entries = rule(vs, route, index, &context, |_| true, &mut shared, &mut complaints);
        if let Some(earlier) = all {
            let message = format!("the rule is never reached: spec.http[{earlier}] takes every request");
            complaints.no_effect(format!("spec.http[{index}]"), message);
        }
        let unconditional = |entry: &Entry| {
            let written = entry.index.and_then(|i| route.matches.get(i));
            entry.is_always() && written.is_none_or(for_everybody)
        };
        if all.is_none() && entries.iter().any(unconditional) {
            all = Some(index);
        }
    }
    super::tcp::check(vs, &mut complaints);
    complaints.into_list()
}

fn for_everybody(m: &HttpMatchRequest) -> bool {
    m.port == 0 && m.gateways.is_empty() && m.source_labels.is_empty() && m.source_namespace.is_empty()
}

/// What of a match depends on the caller and the port alone.
fn applies(m: &HttpMatchRequest, context: &CompileContext<'_>) -> bool {
    let source = if m.gateways.is_empty() {
        selects(&m.source_labels, context.labels)
            && (m.source_namespace.is_empty() || m.source_namespace == context.namespace)
    } else {
        // Named gateways stand in the place of the caller's properties, as in Istio.
        m.gateways.iter().any(|gateway| gateway == MESH)
    };
    source && (m.port == 0 || m.port == context.port)
}

fn default_route(context: &CompileContext<'_>) -> Routes {
    let to = DestinationRef {
        host: context.host,
        port: Some(context.port),
        default_port: context.port,
        subset: "",
    };
    let destination = destination(&to, context, HeaderOps::default(), HeaderOps::default());
    let rule = Rule {
        resource: None,
        index: 0,
        action: Action::Forward(Forward {
            destinations: Weights::new([(1, destination)]),
            path: None,
            authority: None,
            request_headers: HeaderOps::default(),
        }),
        response_headers: HeaderOps::default(),
        policy: Arc::default(),
    };
    let entry = Entry { condition: None, index: None, name: DEFAULT.into(), rule: Arc::new(rule) };
    Routes::of(vec![entry])
}

pub(super) fn resolve_destination(
    to: &DestinationRef<'_>,
    context: &CompileContext<'_>,
) -> (ClusterKey, Result<Arc<Cluster>, Failure>) {
    match (context.resolve)(to) {
        Resolved::Cluster(cluster) => (cluster.key().clone(), Ok(cluster)),
        Resolved::Missing(failure) => {
            (ClusterKey::new(to.host, to.port.unwrap_or(to.default_port), to.subset), Err(failure))
        }
    }
}

fn destination(
    to: &DestinationRef<'_>,
    context: &CompileContext<'_>,
    request_headers: HeaderOps,
    response_headers: HeaderOps,
) -> Destination {
    let (key, target) = resolve_destination(to, context);
    Destination { key, target, request_headers, response_headers }
}

/// A destination as a rule writes it, with its host in full.
pub(super) fn written<'a>(
    to: &'a WrittenDestination,
    host: &'a str,
    context: &CompileContext<'_>,
) -> DestinationRef<'a> {
    let port = to.port.as_ref().map(|port| port.number).filter(|number| *number != 0);
    DestinationRef { host, port, default_port: context.port, subset: &to.subset }
}

impl Entry {
    fn is_always(&self) -> bool {
        self.condition.as_ref().is_none_or(Condition::is_always)
    }
}

/// What the rules of one VirtualService have in common, so that each need not have its own.
struct Shared {
    resource: ResourceRef,
    /// That of the rule before: most rules of a host have the same.
    policy: Arc<RoutePolicy>,
}

impl Shared {
    fn of(vs: &Resource<VirtualService>) -> Self {
        Self { resource: vs.reference(), policy: Arc::default() }
    }

    fn policy(&mut self, policy: RoutePolicy) -> Arc<RoutePolicy> {
        if *self.policy != policy {
            self.policy = Arc::new(policy);
        }
        Arc::clone(&self.policy)
    }
}

/// One rule: an entry for each of its matches that `keep` wants.
fn rule(
    vs: &Resource<VirtualService>,
    route: &HttpRoute,
    index: usize,
    context: &CompileContext<'_>,
    keep: impl Fn(&HttpMatchRequest) -> bool,
    shared: &mut Shared,
    complaints: &mut Complaints,
) -> Vec<Entry> {
    let field = format!("spec.http[{index}]");
    unsupported(route, &field, complaints);
    let (request_headers, response_headers) = actions::headers(route.headers.as_deref(), &field, complaints);
    let policy = actions::policy(route, &field, complaints);
    let action = if let Some(redirect) = &route.redirect {
        let field = format!("{field}.redirect");
        Action::Redirect(actions::redirect(route, redirect, &field, context.port, complaints))
    } else if let Some(direct) = &route.direct_response {
        Action::Respond(actions::direct(direct, &format!("{field}.directResponse"), complaints))
    } else {
        Action::Forward(forward(vs, route, &field, context, request_headers, complaints))
    };
    let policy = shared.policy(policy);
    let resource = Some(shared.resource.clone());
    let rule = Rule { resource, index, action, response_headers, policy };
    let rule = Arc::new(rule);
    let entry = |condition, index, name: String| Entry {
        condition,
        index,
        name: name.into(),
        rule: Arc::clone(&rule),
    };
    if route.matches.is_empty() {
        return vec![entry(None, None, name(&route.name, ""))];
    }
    let mut entries = Vec::with_capacity(route.matches.len());
    for (i, m) in route.matches.iter().enumerate() {
        let condition = conditions::condition(m, &format!("{field}.match[{i}]"), complaints);
        if keep(m) {
            entries.push(entry(Some(condition), Some(i), name(&route.name, &m.name)));
        }
    }
    entries
}

fn name(rule: &str, matched: &str) -> String {
    match (rule, matched) {
        ("", "") => DEFAULT.to_owned(),
        (rule, "") => rule.to_owned(),
        ("", matched) => matched.to_owned(),
        (rule, matched) => format!("{rule}.{matched}"),
    }
}

fn forward(
    vs: &Resource<VirtualService>,
    route: &HttpRoute,
    field: &str,
    context: &CompileContext<'_>,
    request_headers: HeaderOps,
    complaints: &mut Complaints,
) -> Forward {
    let mut destinations = Vec::with_capacity(route.route.len());
    for (i, to) in route.route.iter().enumerate() {
        let field = format!("{field}.route[{i}]");
        let (request, response) = actions::headers(to.headers.as_deref(), &field, complaints);
        let Some(named) = &to.destination else {
            complaints.not_applied(format!("{field}.destination"), "the destination is required");
            continue;
        };
        let host = full_host(&named.host, &vs.meta.namespace, context.cluster_domain);
        let to_ref = written(named, &host, context);
        destinations.push((to.weight, destination(&to_ref, context, request, response)));
    }
    let destinations = Weights::new(destinations);
    if destinations.iter().next().is_none() && route.delegate.is_none() {
        complaints.not_applied(
            format!("{field}.route"),
            "no destination gets a share; name one, or a redirect or directResponse",
        );
    }
    let (path, rewritten) = match &route.rewrite {
        Some(rewrite) => actions::rewrite(rewrite, &format!("{field}.rewrite"), complaints),
        None => (None, None),
    };
    if rewritten.is_some() && request_headers.authority().is_some() {
        complaints.not_applied(
            format!("{field}.rewrite.authority"),
            "the authority is set by headers.request as well; keep one",
        );
    }
    let authority = rewritten.or_else(|| request_headers.authority().map(Into::into));
    Forward { destinations, path, authority, request_headers }
}

/// What the schema has and nobody here does yet.
fn unsupported(route: &HttpRoute, field: &str, complaints: &mut Complaints) {
    let fields = [
        ("delegate", route.delegate.is_some()),
        ("mirror", route.mirror.is_some()),
        ("mirrors", !route.mirrors.is_empty()),
        ("corsPolicy", route.cors_policy.is_some()),
    ];
    for (name, _) in fields.iter().filter(|(_, set)| *set) {
        complaints.not_applied(format!("{field}.{name}"), format!("{name} is not supported yet"));
    }
    if route.mirror.is_none() && route.mirrors.is_empty() {
        let shares = [
            ("mirrorPercent", route.mirror_percent.is_some()),
            ("mirrorPercentage", route.mirror_percentage.is_some()),
        ];
        for (name, _) in shares.iter().filter(|(_, set)| *set) {
            complaints.no_effect(format!("{field}.{name}"), "there is no mirror");
        }
    }
}
