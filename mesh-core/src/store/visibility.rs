//! Who sees what: `exportTo`, and the egress hosts of a Sidecar.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::hosts::covers;
use super::workloads::Workload;
use crate::resource::{Labels, Resource, Sidecar};

/// The namespaces that see a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Export {
    /// Every one.
    All,
    /// These.
    To(BTreeSet<Arc<str>>),
}

impl Export {
    /// Reads `exportTo` of a resource in `own`: absent or `*` is everybody, `.` the own namespace, `~`
    /// nobody.
    pub(super) fn new<'a>(list: impl IntoIterator<Item = &'a str>, own: &str) -> Self {
        let mut to = BTreeSet::new();
        let mut written = false;
        for namespace in list.into_iter().map(str::trim).filter(|n| !n.is_empty()) {
            written = true;
            match namespace {
                "*" => return Self::All,
                "." => to.insert(own.into()),
                "~" => false,
                name => to.insert(name.into()),
            };
        }
        if written { Self::To(to) } else { Self::All }
    }

    pub(super) fn list(list: &[String], own: &str) -> Self {
        Self::new(list.iter().map(String::as_str), own)
    }

    /// Whether `namespace` sees it.
    pub(super) fn sees(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::To(names) => names.contains(namespace),
        }
    }

    /// Whether only `namespace` sees it.
    pub(super) fn is_private(&self, namespace: &str) -> bool {
        matches!(self, Self::To(names) if names.len() == 1 && names.contains(namespace))
    }

    /// Whether somebody sees both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, Self::All) => true,
            (Self::All, Self::To(names)) | (Self::To(names), Self::All) => !names.is_empty(),
            (Self::To(a), Self::To(b)) => !a.is_disjoint(b),
        }
    }
}

/// An entry `NAMESPACE/HOST` of a Sidecar's egress hosts.
#[derive(Debug)]
struct Entry {
    /// `None` is every namespace.
    namespace: Option<Arc<str>>,
    host: String,
}

/// The egress hosts of a Sidecar, all listeners together.
#[derive(Debug, Default)]
struct Egress {
    include: Vec<Entry>,
    exclude: Vec<Entry>,
}

/// What one namespace sees under one Sidecar.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) namespace: Arc<str>,
    /// `None` is everything that is exported.
    egress: Option<Egress>,
    /// Destinations of VirtualServices that are seen: visible although nobody lists them.
    pulled: HashSet<Arc<str>>,
}

impl Entry {
    fn parse(text: &str, own: &str) -> Option<Self> {
        let (namespace, host) = text.split_once('/')?;
        let namespace = match namespace {
            "~" | "" => return None,
            "*" => None,
            "." => Some(own.into()),
            name => Some(name.into()),
        };
        Some(Self { namespace, host: host.to_ascii_lowercase() })
    }

    fn is_in(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }

    fn covers(&self, namespace: &str, host: &str) -> bool {
        self.is_in(namespace) && covers(&self.host, host)
    }
}

impl Scope {
    /// What `namespace` sees under `sidecar`, without what VirtualServices pull in.
    pub(super) fn new(namespace: &str, sidecar: Option<&Sidecar>) -> Self {
        let egress = sidecar.filter(|s| !s.egress.is_empty()).map(|sidecar| {
            let mut egress = Egress::default();
            for text in sidecar.egress.iter().flat_map(|listener| &listener.hosts) {
                match text.strip_prefix('~') {
                    Some(rest) if !rest.starts_with('/') => {
                        egress.exclude.extend(Entry::parse(rest, namespace))
                    }
                    _ => egress.include.extend(Entry::parse(text, namespace)),
                }
            }
            egress
        });
        Self { namespace: namespace.into(), egress, pulled: HashSet::new() }
    }

    /// Whether a Sidecar narrows what is seen.
    pub(super) fn is_narrowed(&self) -> bool {
        self.egress.is_some()
    }

    /// Adds hosts that VirtualServices lead to.
    pub(super) fn pull(&mut self, hosts: impl IntoIterator<Item = Arc<str>>) {
        self.pulled.extend(hosts);
    }

    /// Whether the Sidecar takes in `host` of a resource in `namespace`.
    pub(super) fn lists(&self, namespace: &str, host: &str) -> bool {
        self.egress.as_ref().is_none_or(|egress| {
            egress.include.iter().any(|e| e.covers(namespace, host)) && !egress.excludes(namespace, host)
        })
    }

    /// Whether a service is seen.
    pub(super) fn sees_service(&self, export: &Export, namespace: &str, host: &str) -> bool {
        if !export.sees(&self.namespace) {
            return false;
        }
        if self.lists(namespace, host) {
            return true;
        }
        let excluded = self.egress.as_ref().is_some_and(|egress| egress.excludes(namespace, host));
        !excluded && self.pulled.contains(host)
    }

    /// Whether a VirtualService with these hosts is seen: the Sidecar takes in one of them, or, where that
    /// is a wildcard, a part of it.
    pub(super) fn sees_routes(&self, export: &Export, namespace: &str, hosts: &[Arc<str>]) -> bool {
        if !export.sees(&self.namespace) {
            return false;
        }
        let Some(egress) = &self.egress else { return true };
        let part = |host: &str| {
            host.starts_with('*')
                && egress.include.iter().any(|e| e.is_in(namespace) && covers(host, &e.host))
        };
        hosts.iter().any(|host| self.lists(namespace, host) || part(host))
    }
}

impl Egress {
    fn excludes(&self, namespace: &str, host: &str) -> bool {
        self.exclude.iter().any(|e| e.covers(namespace, host))
    }
}

/// The Sidecars by namespace, each list by age.
pub(super) type Sidecars = HashMap<String, Vec<Arc<Resource<Sidecar>>>>;

/// The Sidecar of a workload: the oldest of its namespace that selects it, else the oldest there without a
/// selector, else that of the root namespace. They are never merged.
pub(super) fn sidecar_of(
    sidecars: &Sidecars,
    root: &str,
    workload: &Workload,
) -> Option<Arc<Resource<Sidecar>>> {
    let of = |namespace: &str| sidecars.get(namespace).map_or(&[][..], Vec::as_slice);
    let own = of(&workload.namespace);
    let selecting = |s: &&Arc<Resource<Sidecar>>| {
        selector_of(&s.spec).is_some_and(|labels| crate::resource::selects(labels, &workload.labels))
    };
    let plain = |s: &&Arc<Resource<Sidecar>>| selector_of(&s.spec).is_none();
    own.iter()
        .find(selecting)
        .or_else(|| own.iter().find(plain))
        .or_else(|| of(root).iter().find(plain))
        .map(Arc::clone)
}

/// The labels that a Sidecar selects by; an empty selector is none.
pub(super) fn selector_of(sidecar: &Sidecar) -> Option<&Labels> {
    sidecar.workload_selector.as_ref().map(|s| &s.labels).filter(|labels| !labels.is_empty())
}
