//! DestinationRules: which apply to calls to a host, and what they come to for a port and a subset.

use std::collections::HashMap;
use std::sync::Arc;

use super::StoreOptions;
use super::hosts::{HostMap, fqdn};
use super::inbound::labels_of;
use super::index::same_list;
use super::visibility::Export;
use crate::diagnostic::ResourceRef;
use crate::failure::{Failure, FailureCode};
use crate::resource::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection,
    ProxyProtocol, RetryBudget, Subset, TrafficPolicy, TunnelSettings,
};
use crate::resource::{DestinationRule, Labels, Resource, selects};

/// The DestinationRules that apply to calls from somewhere to a host, merged. The default has none.
#[derive(Debug, Clone, Default)]
pub struct HostPolicy {
    /// The oldest first: the first that defines a subset, and the first that has a policy, counts.
    rules: Vec<Arc<Resource<DestinationRule>>>,
}

/// What applies to one port of a host, or of a subset: the blocks as the user wrote them, where each
/// stands that applies. An absent block means the built-in defaults.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EffectivePolicy {
    /// How an endpoint is picked.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits on connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS toward the host; absent means automatic mTLS.
    pub tls: Option<ClientTlsSettings>,
    /// A tunnel.
    pub tunnel: Option<TunnelSettings>,
    /// A PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// A limit on concurrent retries.
    pub retry_budget: Option<RetryBudget>,
    /// The DestinationRules that it comes from.
    pub resources: Vec<ResourceRef>,
    /// Set when calls must fail, and why: the subset is not defined (`unknown_subset`), or TLS is asked
    /// for in a way that could not be read or cannot be done (`policy_invalid`).
    pub refuse: Option<Failure>,
}

#[derive(Debug)]
struct Rule {
    resource: Arc<Resource<DestinationRule>>,
    export: Export,
}

/// Every DestinationRule, by namespace and host.
#[derive(Debug, Default)]
pub(super) struct Destinations(HashMap<String, HostMap<Rule>>);

impl Destinations {
    /// Indexes `rules`, which are sorted by age.
    pub(super) fn new(options: &StoreOptions, rules: Vec<Arc<Resource<DestinationRule>>>) -> Self {
        let mut namespaces: HashMap<String, HostMap<Rule>> = HashMap::new();
        for resource in rules {
            let namespace = &resource.meta.namespace;
            let host = fqdn(&resource.spec.host, namespace, &options.cluster_domain);
            let export = Export::list(&resource.spec.export_to, namespace);
            namespaces.entry(namespace.clone()).or_default().insert(&host, Rule { resource, export });
        }
        Self(namespaces)
    }

    /// The rules for calls from `client` to `host`: those of the client's namespace, else of the service's,
    /// else of the root namespace. `labels` are the calling workload's; without them, rules with a
    /// `workloadSelector` do not apply.
    pub(super) fn lookup(
        &self,
        options: &StoreOptions,
        client: &str,
        labels: Option<&Labels>,
        service: Option<&str>,
        host: &str,
    ) -> HostPolicy {
        let root = &*options.root_namespace;
        let sees = |rule: &Rule| rule.export.sees(client);
        // Exported rules of the root namespace are everybody's defaults: for its own workloads they come
        // last, too.
        let own = |rule: &Rule| sees(rule) && (client != root || rule.export.is_private(client));
        self.of_namespace(client, host, labels, &own)
            .or_else(|| self.of_namespace(service?, host, None, &sees))
            .or_else(|| self.of_namespace(root, host, None, &sees))
            .unwrap_or_default()
    }

    /// Every rule of which [`lookup`](Self::lookup) chooses, whatever the client's labels are; without
    /// `selecting`, for those without labels.
    pub(super) fn candidates<'s>(
        &'s self,
        options: &StoreOptions,
        client: &str,
        selecting: bool,
        service: Option<&str>,
        host: &str,
    ) -> Vec<&'s Arc<Resource<DestinationRule>>> {
        let root = &*options.root_namespace;
        let sees = |rule: &Rule| rule.export.sees(client);
        let own = |rule: &Rule| sees(rule) && (client != root || rule.export.is_private(client));
        let mut found = Vec::new();
        let _ = self.candidates_of(client, host, selecting, &own, &mut found)
            || service.is_some_and(|service| self.candidates_of(service, host, false, &sees, &mut found))
            || self.candidates_of(root, host, false, &sees, &mut found);
        found
    }

    /// Adds those of one namespace; says whether one of them applies whatever the labels are.
    fn candidates_of<'s>(
        &'s self,
        namespace: &str,
        host: &str,
        selecting: bool,
        sees: &dyn Fn(&Rule) -> bool,
        found: &mut Vec<&'s Arc<Resource<DestinationRule>>>,
    ) -> bool {
        let Some(hosts) = self.0.get(namespace) else { return false };
        hosts.covering(host).any(|rules| {
            let plain = |rule: &Rule| labels_of(rule.resource.spec.workload_selector.as_ref()).is_none();
            let seen = || rules.iter().filter(|rule| sees(rule));
            found.extend(seen().filter(|rule| selecting || plain(rule)).map(|rule| &rule.resource));
            seen().any(plain)
        })
    }

    /// Every rule, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Resource<DestinationRule>>> + Clone {
        self.0.values().flat_map(HostMap::values).map(|rule| &rule.resource)
    }

    /// The rules of every namespace that are or cover `host`.
    pub(super) fn covering<'s>(
        &'s self,
        host: &str,
    ) -> impl Iterator<Item = &'s Arc<Resource<DestinationRule>>> {
        self.0.values().flat_map(|hosts| hosts.covering(host)).flatten().map(|rule| &rule.resource)
    }

    fn of_namespace(
        &self,
        namespace: &str,
        host: &str,
        labels: Option<&Labels>,
        sees: &dyn Fn(&Rule) -> bool,
    ) -> Option<HostPolicy> {
        let claims = self.0.get(namespace)?.covering(host);
        claims.filter_map(|rules| merge(rules, labels, sees)).next()
    }
}

/// Merges the rules of one host in one namespace: those with the selector and the audience of the oldest
/// that applies, one that selects the client before one that selects all.
fn merge(rules: &[Rule], labels: Option<&Labels>, sees: &dyn Fn(&Rule) -> bool) -> Option<HostPolicy> {
    let selector = |rule: &Rule| labels_of(rule.resource.spec.workload_selector.as_ref()).cloned();
    let selected = |rule: &Rule| {
        selector(rule).is_some_and(|wanted| labels.is_some_and(|labels| selects(&wanted, labels)))
    };
    let seen = || rules.iter().filter(|rule| sees(rule));
    let selecting = seen().find(|rule| selected(rule));
    let first = selecting.or_else(|| seen().find(|rule| selector(rule).is_none()))?;
    let wanted = selector(first);
    // A closed reading counts whichever group it would have been in: nobody could read that.
    let closed =
        |rule: &Rule| rule.resource.invalid.is_some() && (selector(rule).is_none() || selected(rule));
    let merged =
        seen().filter(|rule| closed(rule) || (rule.export == first.export && selector(rule) == wanted));
    Some(HostPolicy { rules: merged.map(|rule| Arc::clone(&rule.resource)).collect() })
}

impl PartialEq for HostPolicy {
    fn eq(&self, other: &Self) -> bool {
        same_list(&self.rules, &other.rules)
    }
}

impl HostPolicy {
    /// The DestinationRules, the oldest first; none where nobody wrote one.
    pub fn rules(&self) -> &[Arc<Resource<DestinationRule>>] {
        &self.rules
    }

    /// The subsets of all rules; of several with one name the oldest rule's.
    pub fn subsets(&self) -> Vec<&Subset> {
        let mut subsets: Vec<&Subset> = Vec::new();
        for subset in self.rules.iter().flat_map(|rule| &rule.spec.subsets) {
            if !subsets.iter().any(|seen| seen.name == subset.name) {
                subsets.push(subset);
            }
        }
        subsets
    }

    /// The subset with this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.rules.iter().flat_map(|rule| &rule.spec.subsets).find(|subset| subset.name == name)
    }

    /// What applies to a port of the host, or of the subset when its name is not empty.
    ///
    /// A subset's block replaces the host's; the settings of a port replace the load balancer, the
    /// connection pool, the outlier detection and the TLS of their level as a whole, so that what they
    /// leave out goes back to the built-in default.
    pub fn effective(&self, port: u16, subset: &str) -> EffectivePolicy {
        let mut policy = EffectivePolicy {
            resources: self.rules.iter().map(|r| r.reference()).collect(),
            ..Default::default()
        };
        if let Some(of_host) = self.rules.iter().find_map(|rule| rule.spec.traffic_policy.as_ref()) {
            policy.apply(of_host, port);
        }
        if let Some(invalid) = self.rules.iter().find(|rule| rule.invalid.is_some()) {
            let reason = invalid.invalid.as_ref().map_or_else(String::new, |i| i.reason.clone());
            policy.refuse =
                Some(Failure::new(FailureCode::PolicyInvalid).detail(reason).resource(invalid.reference()));
            return policy;
        }
        if !subset.is_empty() {
            let Some(found) = self.subset(subset) else {
                let failure = Failure::new(FailureCode::UnknownSubset)
                    .detail(format!("no DestinationRule for this host defines the subset {subset:?}"));
                policy.refuse = Some(match self.rules.first() {
                    Some(rule) => failure.resource(rule.reference()),
                    None => failure,
                });
                return policy;
            };
            if let Some(of_subset) = &found.traffic_policy {
                policy.apply(of_subset, port);
            }
        }
        policy.refuse = self.unsupported_tls(policy.tls.as_ref());
        policy
    }

    fn unsupported_tls(&self, tls: Option<&ClientTlsSettings>) -> Option<Failure> {
        let mode = tls?.mode;
        if matches!(mode, ClientTlsMode::Disable | ClientTlsMode::IstioMutual) {
            return None;
        }
        let failure = Failure::new(FailureCode::PolicyInvalid).detail(format!(
            "tls.mode {} is not supported yet; use ISTIO_MUTUAL, DISABLE or no tls at all",
            mode.as_str()
        ));
        let asks = |policy: &TrafficPolicy| {
            let ports = policy.port_level_settings.iter().map(|p| &p.tls);
            ports.chain([&policy.tls]).flatten().any(|tls| tls.mode == mode)
        };
        let guilty = self.rules.iter().find(|rule| {
            let of_subsets = rule.spec.subsets.iter().map(|subset| &subset.traffic_policy);
            of_subsets.chain([&rule.spec.traffic_policy]).flatten().any(asks)
        });
        Some(match guilty {
            Some(rule) => failure.resource(rule.reference()),
            None => failure,
        })
    }
}

impl EffectivePolicy {
    /// Lays a level over those above it.
    fn apply(&mut self, level: &TrafficPolicy, port: u16) {
        fn replace<T: Clone>(block: &mut Option<T>, by: &Option<T>) {
            if by.is_some() {
                block.clone_from(by);
            }
        }
        replace(&mut self.load_balancer, &level.load_balancer);
        replace(&mut self.connection_pool, &level.connection_pool);
        replace(&mut self.outlier_detection, &level.outlier_detection);
        replace(&mut self.tls, &level.tls);
        replace(&mut self.tunnel, &level.tunnel);
        replace(&mut self.proxy_protocol, &level.proxy_protocol);
        replace(&mut self.retry_budget, &level.retry_budget);
        let of_port = level.port_level_settings.iter();
        let mut of_port = of_port.filter(|p| p.port.as_ref().is_some_and(|selector| selector.number == port));
        if let Some(own) = of_port.next() {
            self.load_balancer.clone_from(&own.load_balancer);
            self.connection_pool.clone_from(&own.connection_pool);
            self.outlier_detection.clone_from(&own.outlier_detection);
            self.tls.clone_from(&own.tls);
        }
    }
}
