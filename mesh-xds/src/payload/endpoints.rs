//! The endpoints of a host in their compact form.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use mesh_core::identity::SpiffeId;
use mesh_core::resource::Labels;
use mesh_core::store::{Backend, BackendPort, StoreOptions, Workload, WorkloadAddress};

use super::{DecodeError, MAX_ENDPOINT_ITEMS, MAX_ENDPOINTS, MAX_TEXT_BYTES};
use crate::proto::mesh as wire;
use crate::proto::mesh::endpoint::Address as WireAddress;

/// The endpoints of a host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Endpoints {
    /// Endpoints by what they have in common.
    pub groups: Vec<EndpointGroup>,
}

/// Endpoints that differ in nothing but address and name: the Pods of one Deployment in one zone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EndpointGroup {
    /// Their namespace.
    pub namespace: String,
    /// Their service account; empty where no resource describes them.
    pub service_account: String,
    /// Their SPIFFE ID, where it is known.
    pub identity: Option<SpiffeId>,
    /// Their labels.
    pub labels: Arc<Labels>,
    /// How they serve the host's ports.
    pub ports: Arc<[BackendPort]>,
    /// `region/zone/subzone`; empty where nobody says.
    pub locality: String,
    /// Their share of the load, 1 or more.
    pub weight: u32,
    /// Whether they answer with mutual TLS.
    pub tls: bool,
    /// The name of the cluster that they run in; empty where nobody says.
    pub cluster: String,
    /// They themselves.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is reached.
    pub address: WorkloadAddress,
    /// The name of its Pod or WorkloadEntry; empty where none describes it.
    pub name: String,
    /// Its own host name below that of a headless service; the name for most Pods.
    pub hostname: Option<String>,
}

/// What endpoints have in common, in an order that does not depend on who found them first.
type GroupKey<'a> = (
    &'a str,
    &'a str,
    Option<&'a SpiffeId>,
    &'a Arc<Labels>,
    &'a Arc<[BackendPort]>,
    &'a str,
    (u32, bool, &'a str),
);

impl Endpoints {
    /// Groups endpoints by what they have in common. The order in which they are found makes no difference.
    ///
    /// ```
    /// use mesh_core::resource::Labels;
    /// use mesh_core::store::{Backend, BackendPort, StoreOptions, Workload, WorkloadAddress};
    /// use tower_mesh_xds::Endpoints;
    ///
    /// let options = StoreOptions::default();
    /// let pods = [("reviews-v1-a", "10.0.0.1"), ("reviews-v1-b", "10.0.0.2")].map(|(name, ip)| {
    ///     let mut pod = Workload::detached(&options, "default", name, "reviews", Labels::new());
    ///     pod.address = WorkloadAddress::parse(ip);
    ///     Backend {
    ///         address: pod.address.clone().unwrap(),
    ///         workload: pod.into(),
    ///         hostname: None,
    ///         ports: [BackendPort { service: 80, target: 8080, tls_disabled: false }].into(),
    ///     }
    /// });
    /// let endpoints = Endpoints::collect(&pods);
    /// assert_eq!((endpoints.groups.len(), endpoints.groups[0].endpoints.len()), (1, 2));
    /// assert!(endpoints.backends(&options).eq(pods));
    /// ```
    pub fn collect<'a>(found: impl IntoIterator<Item = &'a Backend>) -> Self {
        let mut groups: BTreeMap<GroupKey<'a>, Vec<Endpoint>> = BTreeMap::new();
        for Backend { workload, address, hostname, ports } in found {
            let key = (
                &*workload.namespace,
                &*workload.service_account,
                workload.identity.as_ref(),
                &workload.labels,
                ports,
                &*workload.locality,
                (workload.weight, workload.tls_capable, &*workload.telemetry.cluster),
            );
            let name = workload.name.to_string();
            let hostname = hostname.as_deref().map(str::to_owned);
            groups.entry(key).or_default().push(Endpoint { address: address.clone(), name, hostname });
        }
        let group = |(key, mut endpoints): (GroupKey<'_>, Vec<Endpoint>)| {
            endpoints.sort_by(|a, b| a.order().cmp(&b.order()));
            let (namespace, service_account, identity, labels, ports, locality, rest) = key;
            EndpointGroup {
                namespace: namespace.to_owned(),
                service_account: service_account.to_owned(),
                identity: identity.cloned(),
                labels: Arc::clone(labels),
                ports: Arc::clone(ports),
                locality: locality.to_owned(),
                weight: rest.0.max(1),
                tls: rest.1,
                cluster: rest.2.to_owned(),
                endpoints,
            }
        };
        Self { groups: groups.into_iter().map(group).collect() }
    }

    /// The endpoints as a store takes them.
    pub fn backends<'a>(&'a self, options: &'a StoreOptions) -> impl Iterator<Item = Backend> + 'a {
        self.groups.iter().flat_map(|group| {
            group.endpoints.iter().map(|endpoint| Backend {
                workload: Arc::new(group.workload(options, endpoint)),
                address: endpoint.address.clone(),
                ports: Arc::clone(&group.ports),
                hostname: endpoint.hostname.as_deref().map(Arc::from),
            })
        })
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.endpoints.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn to_wire(&self) -> wire::Endpoints {
        wire::Endpoints { groups: self.groups.iter().map(EndpointGroup::to_wire).collect() }
    }

    pub(super) fn of_wire(wire: wire::Endpoints) -> Result<Self, DecodeError> {
        let total: usize = wire.groups.iter().map(|group| group.endpoints.len()).sum();
        if total > MAX_ENDPOINTS {
            return Err(DecodeError::new("endpoints", format!("{total} are more than {MAX_ENDPOINTS}")));
        }
        let groups = wire.groups.into_iter().enumerate();
        let groups = groups.map(|(i, group)| {
            EndpointGroup::of_wire(group).map_err(|error| error.below(&format!("groups[{i}]")))
        });
        Ok(Self { groups: groups.collect::<Result<_, _>>()? })
    }
}

impl EndpointGroup {
    /// One of the endpoints as the workload that it is.
    pub fn workload(&self, options: &StoreOptions, endpoint: &Endpoint) -> Workload {
        let account = &self.service_account;
        let labels = Arc::clone(&self.labels);
        let mut workload = Workload::detached(options, &self.namespace, &endpoint.name, account, labels);
        let mut telemetry = (*workload.telemetry).clone();
        if endpoint.name.is_empty() && account.is_empty() {
            // Nothing describes it: it is not the account `default`, it is unknown.
            workload.service_account = Arc::default();
            telemetry = Default::default();
        }
        telemetry.principal.clone_from(&self.identity);
        telemetry.cluster = self.cluster.as_str().into();
        workload.telemetry = Arc::new(telemetry);
        workload.identity.clone_from(&self.identity);
        workload.address = Some(endpoint.address.clone());
        workload.locality = self.locality.as_str().into();
        workload.weight = self.weight.max(1);
        workload.tls_capable = self.tls;
        workload
    }

    fn to_wire(&self) -> wire::EndpointGroup {
        let port = |port: &BackendPort| wire::EndpointPort {
            service: port.service.into(),
            target: if port.target == port.service { 0 } else { port.target.into() },
            tls_disabled: port.tls_disabled,
        };
        wire::EndpointGroup {
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            identity: self.identity.as_ref().map_or_else(String::new, |id| id.as_str().to_owned()),
            labels: (*self.labels).clone(),
            ports: self.ports.iter().map(port).collect(),
            locality: self.locality.clone(),
            weight: if self.weight == 1 { 0 } else { self.weight },
            tls: self.tls,
            cluster: self.cluster.clone(),
            endpoints: self.endpoints.iter().map(Endpoint::to_wire).collect(),
        }
    }

    fn of_wire(wire: wire::EndpointGroup) -> Result<Self, DecodeError> {
        let text = |field: &str, text: &str| match text.len() {
            0..=MAX_TEXT_BYTES => Ok(()),
            _ => Err(DecodeError::new(field, format!("longer than {MAX_TEXT_BYTES} bytes"))),
        };
        text("namespace", &wire.namespace)?;
        text("service_account", &wire.service_account)?;
        text("locality", &wire.locality)?;
        text("cluster", &wire.cluster)?;
        if wire.labels.len() > MAX_ENDPOINT_ITEMS || wire.ports.len() > MAX_ENDPOINT_ITEMS {
            return Err(DecodeError::new("labels and ports", format!("more than {MAX_ENDPOINT_ITEMS}")));
        }
        for (key, value) in &wire.labels {
            text("labels", key)?;
            text("labels", value)?;
        }
        let identity = match wire.identity.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|e| DecodeError::new("identity", format!("{e}")))?),
        };
        let port = |port: &wire::EndpointPort| {
            let number = |n: u32| u16::try_from(n).ok().filter(|n| *n > 0);
            let target = if port.target == 0 { port.service } else { port.target };
            let wrong = || DecodeError::new("ports", "a port is a number from 1 to 65535");
            Ok(BackendPort {
                service: number(port.service).ok_or_else(wrong)?,
                target: number(target).ok_or_else(wrong)?,
                tls_disabled: port.tls_disabled,
            })
        };
        let endpoints = wire.endpoints.into_iter().enumerate();
        let endpoints = endpoints.map(|(i, endpoint)| {
            Endpoint::of_wire(endpoint).map_err(|error| error.below(&format!("endpoints[{i}]")))
        });
        Ok(Self {
            namespace: wire.namespace,
            service_account: wire.service_account,
            identity,
            labels: Arc::new(wire.labels),
            ports: wire.ports.iter().map(port).collect::<Result<_, _>>()?,
            locality: wire.locality,
            weight: wire.weight.max(1),
            tls: wire.tls,
            cluster: wire.cluster,
            endpoints: endpoints.collect::<Result<_, _>>()?,
        })
    }
}

impl Endpoint {
    fn order(&self) -> (Option<IpAddr>, &str, &str) {
        let (ip, dns) = match &self.address {
            WorkloadAddress::Ip(ip) => (Some(*ip), ""),
            WorkloadAddress::Name(name) => (None, &**name),
        };
        (ip, dns, &self.name)
    }

    fn to_wire(&self) -> wire::Endpoint {
        let address = match &self.address {
            WorkloadAddress::Ip(IpAddr::V4(ip)) => WireAddress::Ip(Bytes::copy_from_slice(&ip.octets())),
            WorkloadAddress::Ip(IpAddr::V6(ip)) => WireAddress::Ip(Bytes::copy_from_slice(&ip.octets())),
            WorkloadAddress::Name(name) => WireAddress::Dns(name.to_string()),
        };
        wire::Endpoint {
            address: Some(address),
            name: self.name.clone(),
            hostname: match &self.hostname {
                None => String::new(),
                // One that has the same host name as name, as most Pods, does not say it twice.
                Some(hostname) if *hostname == self.name => "=".to_owned(),
                Some(hostname) => hostname.clone(),
            },
        }
    }

    fn of_wire(wire: wire::Endpoint) -> Result<Self, DecodeError> {
        let wrong = |message: &str| DecodeError::new("address", message);
        let address = match wire.address {
            None => return Err(wrong("missing")),
            Some(WireAddress::Ip(ip)) => {
                let v4 = || <[u8; 4]>::try_from(&*ip).ok().map(|ip| IpAddr::V4(Ipv4Addr::from(ip)));
                let v6 = || <[u8; 16]>::try_from(&*ip).ok().map(|ip| IpAddr::V6(Ipv6Addr::from(ip)));
                let ip = v4().or_else(v6).ok_or_else(|| wrong("an address has 4 or 16 bytes"))?;
                WorkloadAddress::Ip(ip.to_canonical())
            }
            Some(WireAddress::Dns(name)) => match WorkloadAddress::parse(&name) {
                Some(WorkloadAddress::Name(name)) if name.len() <= MAX_TEXT_BYTES => {
                    WorkloadAddress::Name(name)
                }
                _ => return Err(wrong("no host name")),
            },
        };
        if wire.name.len() > MAX_TEXT_BYTES || wire.hostname.len() > MAX_TEXT_BYTES {
            return Err(DecodeError::new("name", format!("longer than {MAX_TEXT_BYTES} bytes")));
        }
        let hostname = match wire.hostname.as_str() {
            "" => None,
            "=" => Some(wire.name.clone()),
            _ => Some(wire.hostname),
        };
        Ok(Self { address, name: wire.name, hostname })
    }
}
