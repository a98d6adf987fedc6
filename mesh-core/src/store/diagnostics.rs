//! What is wrong between resources that are fine by themselves.

use std::collections::HashSet;
use std::sync::Arc;

use super::Store;
use super::hosts::{covers, fqdn};
use super::inbound::labels_of;
use super::index::{Routes, destinations_of};
use super::services::Origin;
use super::visibility::selector_of;
use super::workloads::Selection;
use crate::diagnostic::{Diagnostic, Effect};
use crate::resource::{Kind, Labels, Resource};

pub(super) fn find(store: &Store) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    rival_claims(store, &mut found);
    lost_destinations(store, &mut found);
    idle_rules(store, &mut found);
    let selection = Selection::new(store.index.workloads.all());
    empty_services(store, &selection, &mut found);
    idle_selectors(store, &selection, &mut found);
    // Files and lines first, so that the same configuration is told in the same order.
    found.sort_by_cached_key(|d| (d.origin.clone(), d.resource.clone(), d.field.clone()));
    found
}

fn warning<T: Kind>(resource: &Resource<T>, field: impl Into<String>, message: String) -> Diagnostic {
    let diagnostic = Diagnostic::new(Effect::NoEffect, message).resource(resource.reference()).field(field);
    match &resource.origin {
        Some(origin) => diagnostic.origin(origin.clone()),
        None => diagnostic,
    }
}

/// Sidecars use one VirtualService for a host: the oldest.
fn rival_claims(store: &Store, found: &mut Vec<Diagnostic>) {
    for routes in &store.index.claims.routes {
        for host in &routes.hosts {
            let claims = store.index.claims.hosts.of(host).iter();
            let mut older = claims.take_while(|claim| !Arc::ptr_eq(claim, routes));
            let Some(older) = older.find(|claim| claim.export.overlaps(&routes.export)) else { continue };
            let message = format!(
                "{} is older and has the host {host} already; for sidecars one VirtualService serves a host, \
                 so put the rules of both into one",
                older.resource.reference()
            );
            found.push(warning(&routes.resource, host_field(routes, host, store), message));
        }
    }
}

fn host_field(routes: &Routes, host: &str, store: &Store) -> String {
    let (meta, spec) = (&routes.resource.meta, &routes.resource.spec);
    let full = |written: &String| fqdn(written, &meta.namespace, &store.options.cluster_domain);
    let at = spec.hosts.iter().position(|written| full(written) == host);
    at.map_or_else(|| "spec.hosts".to_owned(), |at| format!("spec.hosts[{at}]"))
}

/// Destinations that no service answers to, and subsets that no DestinationRule defines.
fn lost_destinations(store: &Store, found: &mut Vec<Diagnostic>) {
    for routes in &store.index.claims.routes {
        let resource = &routes.resource;
        let namespace = resource.meta.namespace.as_str();
        let mut told = HashSet::new();
        for destination in destinations_of(&resource.spec) {
            let host = fqdn(&destination.host, namespace, &store.options.cluster_domain);
            if !told.insert((host.clone(), destination.subset.as_str())) {
                continue;
            }
            if !store.knows(namespace, &host) {
                let message = format!(
                    "no service that namespace {namespace} sees has the host {host}, so what is sent there \
                     fails; correct the destination's host, or add a Service or ServiceEntry for it"
                );
                found.push(warning(resource, "spec", message));
                continue;
            }
            let subset = destination.subset.as_str();
            if !subset.is_empty() && !defines(store, &host, subset) {
                let message = format!(
                    "no DestinationRule for {host} defines the subset {subset:?}, so what is sent there fails \
                     with unknown_subset; define the subset, or correct its name"
                );
                found.push(warning(resource, "spec", message));
            }
        }
    }
}

/// Whether any rule for the host, whoever sees it, defines the subset.
fn defines(store: &Store, host: &str, subset: &str) -> bool {
    store.index.destinations.covering(host).any(|rule| rule.spec.subsets.iter().any(|s| s.name == subset))
}

/// DestinationRules for hosts that nobody has.
fn idle_rules(store: &Store, found: &mut Vec<Diagnostic>) {
    for rule in store.index.destinations.all() {
        let host = fqdn(&rule.spec.host, &rule.meta.namespace, &store.options.cluster_domain);
        let known = if host.starts_with('*') {
            let services = store.index.services.all().iter().map(|s| &s.info.host);
            let claims = store.index.claims.routes.iter().flat_map(|routes| &routes.hosts);
            services.chain(claims).any(|known| covers(&host, known))
        } else {
            store.index.services.covering(&host).next().is_some()
                || store.index.claims.hosts.covering(&host).next().is_some()
        };
        if !known {
            let message = format!("no service has the host {host}; correct it, or add the service");
            found.push(warning(rule, "spec.host", message));
        }
    }
}

/// Services that select nothing.
fn empty_services(store: &Store, selection: &Selection<'_>, found: &mut Vec<Diagnostic>) {
    let message = |namespace: &str, labels: &Labels| {
        format!(
            "no Pod and no WorkloadEntry of namespace {namespace} has the labels {}, so the service has no \
             endpoint",
            told(labels)
        )
    };
    let mut seen = HashSet::new();
    for service in store.index.services.all().iter().filter(|service| service.backends.is_empty()) {
        let namespace = &*service.info.namespace;
        match &service.origin {
            Origin::Service(of) => {
                let labels = &of.spec.selector;
                let idle = !labels.is_empty() && service.alias.is_none();
                if idle && selection.select(namespace, labels).next().is_none() {
                    found.push(warning(of, "spec.selector", message(namespace, labels)));
                }
            }
            Origin::Entries(entries) => {
                for entry in entries {
                    let Some(selector) = &entry.spec.workload_selector else { continue };
                    let idle = selection.select(namespace, &selector.labels).next().is_none();
                    if idle && seen.insert(entry.reference()) {
                        let text = message(namespace, &selector.labels);
                        found.push(warning(entry, "spec.workloadSelector", text));
                    }
                }
            }
        }
    }
}

/// Policies that select nobody.
fn idle_selectors(store: &Store, selection: &Selection<'_>, found: &mut Vec<Diagnostic>) {
    let root = &*store.options.root_namespace;
    let own = |namespace: &str, labels: &Labels| selection.select(namespace, labels).next().is_some();
    let own_or_mesh = |namespace: &str, labels: &Labels| {
        if namespace == root { selection.anywhere(labels) } else { own(namespace, labels) }
    };
    let index = &store.index;
    idle(
        index.authorization.iter(),
        |r| labels_of(r.selector.as_ref()),
        "spec.selector",
        &own_or_mesh,
        found,
    );
    idle(index.peers.iter(), |r| labels_of(r.selector.as_ref()), "spec.selector", &own, found);
    idle(index.telemetry.iter(), |r| labels_of(r.selector.as_ref()), "spec.selector", &own, found);
    let rules = index.destinations.all();
    idle(rules, |r| labels_of(r.workload_selector.as_ref()), "spec.workloadSelector", &own, found);
    let sidecars = index.sidecars.values().flatten();
    idle(sidecars, selector_of, "spec.workloadSelector", &own, found);
}

fn idle<'a, T: Kind>(
    resources: impl Iterator<Item = &'a Arc<Resource<T>>>,
    labels: impl Fn(&'a T) -> Option<&'a Labels>,
    field: &str,
    reaches: &dyn Fn(&str, &Labels) -> bool,
    found: &mut Vec<Diagnostic>,
) {
    for resource in resources {
        let Some(labels) = labels(&resource.spec) else { continue };
        if !reaches(&resource.meta.namespace, labels) {
            let message = format!("no workload in its reach has the labels {}", told(labels));
            found.push(warning(resource, field, message));
        }
    }
}

fn told(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
