//! Workloads: Pods and WorkloadEntries, and how they are found by labels.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::StoreOptions;
use crate::diagnostic::ResourceRef;
use crate::facts::WorkloadLabels;
use crate::identity::SpiffeId;
use crate::normal::Authority;
use crate::resource::{Kind, Labels, Pod, Resource, WorkloadEntry, selects};

/// The label that says that a workload answers with mTLS, when its value is `istio`.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
/// The account of a workload that names none.
pub const DEFAULT_ACCOUNT: &str = "default";

/// A workload as the configuration describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Workload {
    /// The Pod or WorkloadEntry; `None` for one that no resource describes.
    pub resource: Option<ResourceRef>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The name of its Pod or WorkloadEntry.
    pub name: Arc<str>,
    /// Its labels; those of a WorkloadEntry's metadata win over those of its spec, as in Istio.
    pub labels: Arc<Labels>,
    /// Its service account, `default` where none is named.
    pub service_account: Arc<str>,
    /// The SPIFFE ID of its account; `None` where the names make none.
    pub identity: Option<SpiffeId>,
    /// Where it is reached.
    pub address: Option<WorkloadAddress>,
    /// Its ports by name: a WorkloadEntry's `ports`, a Pod's named container ports.
    pub ports: Arc<BTreeMap<String, u16>>,
    /// `region/zone/subzone`, empty where nobody says.
    pub locality: Arc<str>,
    /// Its share of the load.
    pub weight: u32,
    /// Whether it answers with mTLS (label `security.istio.io/tlsMode: istio`).
    pub tls_capable: bool,
    /// Whether it takes new requests; a WorkloadEntry always does.
    pub ready: bool,
    /// Whether it is to end: somebody has asked for its Pod's deletion, which nobody can take back.
    pub ending: bool,
    /// What telemetry says of it.
    pub telemetry: Arc<WorkloadLabels>,
}

/// Where a workload is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WorkloadAddress {
    /// At an address.
    Ip(IpAddr),
    /// At what a name resolves to.
    Name(Arc<str>),
}

impl WorkloadAddress {
    /// Reads an address or a name; `None` for anything else, sockets of the file system included.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::Ip(ip.to_canonical()));
        }
        let authority = Authority::parse(text).ok()?;
        (authority.port().is_none() && authority.ip().is_none()).then(|| Self::Name(authority.name().into()))
    }
}

impl Workload {
    /// A workload that no resource describes, such as a program that only calls others.
    pub fn detached(
        options: &StoreOptions,
        namespace: &str,
        name: &str,
        service_account: &str,
        labels: impl Into<Arc<Labels>>,
    ) -> Self {
        let labels = labels.into();
        let account = if service_account.is_empty() { DEFAULT_ACCOUNT } else { service_account };
        let identity = SpiffeId::for_account(&options.trust_domain, namespace, account).ok();
        let telemetry = telemetry(namespace, name, &labels, identity.clone());
        Self {
            resource: None,
            namespace: namespace.into(),
            name: name.into(),
            tls_capable: labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio"),
            locality: labels
                .get("topology.istio.io/locality")
                .map_or("", String::as_str)
                .replace('.', "/")
                .into(),
            labels,
            service_account: account.into(),
            identity,
            address: None,
            ports: Arc::default(),
            weight: 1,
            ready: true,
            ending: false,
            telemetry: Arc::new(telemetry),
        }
    }

    pub(super) fn of_pod(options: &StoreOptions, pod: &Resource<Pod>) -> Self {
        let meta = &pod.meta;
        let (spec, status) = (&pod.spec.spec, &pod.spec.status);
        let named = spec.containers.iter().flat_map(|c| &c.ports).filter(|p| !p.name.is_empty());
        Self {
            resource: Some(pod.reference()),
            address: WorkloadAddress::parse(&status.pod_ip),
            ports: named.map(|p| (p.name.clone(), p.container_port)).collect::<BTreeMap<_, _>>().into(),
            ready: status.is_ready() && meta.deletion_timestamp.is_empty(),
            ending: !meta.deletion_timestamp.is_empty(),
            ..Self::detached(
                options,
                &meta.namespace,
                &meta.name,
                &spec.service_account_name,
                Arc::new(meta.labels.clone()),
            )
        }
    }

    pub(super) fn of_entry(options: &StoreOptions, entry: &Resource<WorkloadEntry>) -> Self {
        let mut labels = entry.spec.labels.clone();
        labels.extend(entry.meta.labels.clone());
        Self {
            resource: Some(entry.reference()),
            ..Self::of_spec(options, &entry.meta.namespace, &entry.meta.name, &entry.spec, labels.into())
        }
    }

    /// An endpoint that stands in a ServiceEntry of `namespace`.
    pub(super) fn of_inline(options: &StoreOptions, namespace: &str, spec: &WorkloadEntry) -> Self {
        Self::of_spec(options, namespace, "", spec, spec.labels.clone().into())
    }

    fn of_spec(
        o: &StoreOptions,
        namespace: &str,
        name: &str,
        spec: &WorkloadEntry,
        labels: Arc<Labels>,
    ) -> Self {
        let workload = Self::detached(o, namespace, name, &spec.service_account, labels);
        Self {
            address: WorkloadAddress::parse(&spec.address),
            ports: spec.ports.clone().into(),
            locality: if spec.locality.is_empty() {
                workload.locality
            } else {
                spec.locality.as_str().into()
            },
            weight: spec.weight.max(1),
            ..workload
        }
    }

    /// One of which only the namespace is known.
    pub(super) fn nobody(namespace: &str) -> Self {
        Self { address: None, ..Self::unknown(namespace, WorkloadAddress::Name(Arc::default())) }
    }

    /// An address of which nothing else is known.
    pub(super) fn unknown(namespace: &str, address: WorkloadAddress) -> Self {
        Self {
            resource: None,
            namespace: namespace.into(),
            name: Arc::default(),
            labels: Arc::default(),
            service_account: Arc::default(),
            identity: None,
            address: Some(address),
            ports: Arc::default(),
            locality: Arc::default(),
            weight: 1,
            tls_capable: false,
            ready: true,
            ending: false,
            telemetry: Arc::default(),
        }
    }

    pub(super) fn is_pod(&self) -> bool {
        self.resource.as_ref().is_some_and(|r| r.kind() == Pod::KIND)
    }
}

/// Istio's canonical names of a workload.
fn telemetry(namespace: &str, name: &str, labels: &Labels, principal: Option<SpiffeId>) -> WorkloadLabels {
    let label = |key: &str| labels.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let workload = label("service.istio.io/workload-name").unwrap_or_else(|| owner(name, labels));
    let service = label("service.istio.io/canonical-name")
        .or_else(|| label("app.kubernetes.io/name"))
        .or_else(|| label("app"))
        .unwrap_or(workload);
    let revision = label("service.istio.io/canonical-revision")
        .or_else(|| label("app.kubernetes.io/version"))
        .or_else(|| label("version"))
        .unwrap_or("latest");
    WorkloadLabels {
        workload: workload.into(),
        namespace: namespace.into(),
        canonical_service: service.into(),
        canonical_revision: revision.into(),
        app: label("app").unwrap_or_default().into(),
        version: label("version").unwrap_or_default().into(),
        cluster: Arc::default(),
        principal,
    }
}

/// The Deployment of a Pod whose name was made from it: `reviews` for `reviews-5d4f-abcde` with the label
/// `pod-template-hash: 5d4f`.
fn owner<'a>(name: &'a str, labels: &Labels) -> &'a str {
    let hash = labels.get("pod-template-hash").filter(|hash| !hash.is_empty());
    hash.and_then(|hash| name.rsplit_once('-')?.0.strip_suffix(hash.as_str())?.strip_suffix('-'))
        .filter(|owner| !owner.is_empty())
        .unwrap_or(name)
}

/// Values by namespace and name.
type ByName<T> = HashMap<Arc<str>, OfNamespace<T>>;
/// Values by name.
type OfNamespace<T> = HashMap<Arc<str>, T>;
/// Names of workloads by namespace.
pub(super) type Touched = HashMap<Arc<str>, HashSet<Arc<str>>>;

/// Every workload.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    /// The Pods by age, then the WorkloadEntries by age.
    all: Vec<Arc<Workload>>,
    /// Each namespace is shared with the store before, where nothing there has changed.
    by_name: HashMap<Arc<str>, Arc<OfNamespace<Arc<Workload>>>>,
    /// What the WorkloadEntries were made from.
    entries: ByName<Arc<Resource<WorkloadEntry>>>,
}

impl Workloads {
    /// Both lists are in order. `touched` are the workloads that are not what they were `before`.
    pub(super) fn new(
        pods: Vec<Arc<Workload>>,
        entries: Vec<(Arc<Workload>, Arc<Resource<WorkloadEntry>>)>,
        before: &Self,
        touched: &Touched,
    ) -> Self {
        let mut workloads = Self { all: pods, ..Self::default() };
        for (workload, entry) in entries {
            let of_namespace = workloads.entries.entry(Arc::clone(&workload.namespace)).or_default();
            of_namespace.insert(Arc::clone(&workload.name), entry);
            workloads.all.push(workload);
        }
        let mut changed: ByName<Arc<Workload>> = HashMap::new();
        for workload in workloads.all.iter().filter(|workload| touched.contains_key(&workload.namespace)) {
            let names = changed.entry(Arc::clone(&workload.namespace)).or_default();
            names.entry(Arc::clone(&workload.name)).or_insert_with(|| Arc::clone(workload));
        }
        let unchanged = before.by_name.iter().filter(|(namespace, _)| !touched.contains_key(*namespace));
        let unchanged = unchanged.map(|(namespace, names)| (Arc::clone(namespace), Arc::clone(names)));
        let changed = changed.into_iter().map(|(namespace, names)| (namespace, Arc::new(names)));
        workloads.by_name = unchanged.chain(changed).collect();
        workloads
    }

    /// Every workload of both that is not in the other as it is, those of namespaces that they share aside.
    pub(super) fn apart<'a>(&'a self, other: &'a Self) -> Vec<&'a Arc<Workload>> {
        let mut apart = Vec::new();
        for (one, two) in [(self, other), (other, self)] {
            for (namespace, names) in &one.by_name {
                let known = two.by_name.get(namespace);
                if known.is_some_and(|known| Arc::ptr_eq(known, names)) {
                    continue;
                }
                let same = |workload: &Arc<Workload>| {
                    let known = known.and_then(|known| known.get(&workload.name));
                    known.is_some_and(|known| Arc::ptr_eq(known, workload))
                };
                apart.extend(names.values().filter(|workload| !same(workload)));
            }
        }
        apart
    }

    pub(super) fn all(&self) -> &[Arc<Workload>] {
        &self.all
    }

    /// The workload of this name; of a Pod and a WorkloadEntry the Pod.
    pub(super) fn of(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.by_name.get(namespace)?.get(name)
    }

    /// Whether there is any Pod.
    pub(super) fn has_pods(&self) -> bool {
        self.all.first().is_some_and(|workload| workload.is_pod())
    }

    /// Whether there is any WorkloadEntry.
    pub(super) fn has_entries(&self) -> bool {
        !self.entries.is_empty()
    }

    /// What a WorkloadEntry was made from.
    pub(super) fn entry(&self, namespace: &str, name: &str) -> Option<&Arc<Resource<WorkloadEntry>>> {
        self.entries.get(namespace)?.get(name)
    }
}

/// Finds workloads of a namespace by labels without looking at each.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    workloads: &'a [Arc<Workload>],
    namespaces: HashMap<&'a str, Vec<&'a Arc<Workload>>>,
    labels: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Arc<Workload>>>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(workloads: &'a [Arc<Workload>]) -> Self {
        let mut namespaces: HashMap<_, Vec<_>> = HashMap::new();
        let mut labels: HashMap<_, Vec<_>> = HashMap::new();
        for workload in workloads {
            let namespace = &*workload.namespace;
            namespaces.entry(namespace).or_default().push(workload);
            for (key, value) in &*workload.labels {
                labels.entry((namespace, key.as_str(), value.as_str())).or_default().push(workload);
            }
        }
        Self { workloads, namespaces, labels }
    }

    /// The workloads of `namespace` that carry all of `wanted`, in the store's order.
    pub(super) fn select<'s>(
        &'s self,
        namespace: &'s str,
        wanted: &'s Labels,
    ) -> impl Iterator<Item = &'a Arc<Workload>> + 's {
        let of = |key: &'s str, value: &'s str| {
            self.labels.get(&(namespace, key, value)).map_or(&[][..], Vec::as_slice)
        };
        let fewest = wanted.iter().map(|(key, value)| of(key, value)).min_by_key(|found| found.len());
        let found = fewest.unwrap_or_else(|| self.namespaces.get(namespace).map_or(&[][..], Vec::as_slice));
        found.iter().copied().filter(move |workload| selects(wanted, &workload.labels))
    }

    /// Whether any workload of any namespace carries all of `wanted`.
    pub(super) fn anywhere(&self, wanted: &Labels) -> bool {
        self.workloads.iter().any(|workload| selects(wanted, &workload.labels))
    }
}
