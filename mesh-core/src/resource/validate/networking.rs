//! What the schema forbids in networking resources other than `VirtualService`.

use std::collections::BTreeSet;

use super::routes::destination;
use super::security::check_subset_name;
use super::{Found, Validate, dns_name, is_ip_or_cidr};
use crate::resource::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings,
    OutlierDetection, TrafficPolicy,
};
use crate::resource::meta::ObjectMeta;
use crate::resource::object::Problem;
use crate::resource::service_entry::{ServiceEntry, ServiceEntryResolution};
use crate::resource::sidecar::Sidecar;
use crate::resource::workload_entry::WorkloadEntry;

impl Validate for DestinationRule {
    fn problems(&self, meta: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        found.host("spec.host", &self.host, true);
        if let Some(policy) = &self.traffic_policy {
            traffic_policy(&mut found, "spec.trafficPolicy", policy);
        }
        let mut names = BTreeSet::new();
        for (i, subset) in self.subsets.iter().enumerate() {
            let field = format!("spec.subsets[{i}]");
            check_subset_name(&mut found, format!("{field}.name"), &subset.name);
            found.require(names.insert(&subset.name), format!("{field}.name"), "two subsets have this name");
            found.labels(&format!("{field}.labels"), &subset.labels);
            if let Some(policy) = &subset.traffic_policy {
                traffic_policy(&mut found, &format!("{field}.trafficPolicy"), policy);
            }
        }
        found.export_to(&meta.namespace, &self.export_to, false);
        if let Some(selector) = &self.workload_selector {
            found.labels("spec.workloadSelector.matchLabels", &selector.match_labels);
            let own = self.export_to.iter().all(|to| to == "." || *to == meta.namespace);
            found.require(
                own,
                "spec.exportTo",
                "a rule with a workloadSelector is for its own namespace only",
            );
        }
        found.0
    }
}

fn traffic_policy(found: &mut Found, field: &str, policy: &TrafficPolicy) {
    blocks(
        found,
        field,
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
    );
    let mut ports = BTreeSet::new();
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{i}]");
        let number = port.port.as_ref().map_or(0, |p| p.number);
        found.require(number != 0, format!("{field}.port.number"), "the port is required, 1 to 65535");
        found.require(ports.insert(number), format!("{field}.port.number"), "the port stands here twice");
        blocks(
            found,
            &field,
            port.load_balancer.as_ref(),
            port.connection_pool.as_ref(),
            port.outlier_detection.as_ref(),
            port.tls.as_ref(),
        );
    }
    if let Some(tunnel) = &policy.tunnel {
        let field = format!("{field}.tunnel");
        found.require(
            policy.proxy_protocol.is_none(),
            &field,
            "tunnel and proxyProtocol exclude one another",
        );
        found.require(
            matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST"),
            format!("{field}.protocol"),
            "the protocol is CONNECT or POST",
        );
        found.require(!tunnel.target_host.is_empty(), format!("{field}.targetHost"), "the host is required");
        found.require(tunnel.target_port != 0, format!("{field}.targetPort"), "the port is required");
    }
    if let Some(budget) = &policy.retry_budget
        && budget.percent.is_some_and(|p| !(0.0..=100.0).contains(&p))
    {
        found.add(format!("{field}.retryBudget.percent"), "a percentage is 0 to 100");
    }
}

fn blocks(
    found: &mut Found,
    field: &str,
    balancer: Option<&LoadBalancerSettings>,
    pool: Option<&ConnectionPoolSettings>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTlsSettings>,
) {
    if let Some(balancer) = balancer {
        let field = format!("{field}.loadBalancer");
        found.require(
            balancer.simple.is_none() || balancer.consistent_hash.is_none(),
            &field,
            "simple and consistentHash exclude one another",
        );
        if let Some(hash) = &balancer.consistent_hash {
            let keys = [
                hash.http_header_name.is_some(),
                hash.http_cookie.is_some(),
                hash.use_source_ip.is_some(),
                hash.http_query_parameter_name.is_some(),
            ];
            found.require(
                keys.iter().filter(|k| **k).count() == 1,
                format!("{field}.consistentHash"),
                "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is required",
            );
        }
        if let Some(locality) = &balancer.locality_lb_setting {
            let field = format!("{field}.localityLbSetting");
            found.require(
                locality.distribute.is_empty() || locality.failover.is_empty(),
                &field,
                "distribute and failover exclude one another",
            );
            for (i, distribute) in locality.distribute.iter().enumerate() {
                let sum: u64 = distribute.to.values().copied().map(u64::from).sum();
                found.require(
                    sum == 100,
                    format!("{field}.distribute[{i}].to"),
                    "the shares do not sum up to 100",
                );
            }
            for (i, failover) in locality.failover.iter().enumerate() {
                found.require(
                    failover.from != failover.to,
                    format!("{field}.failover[{i}].to"),
                    "a region cannot fail over to itself",
                );
            }
        }
    }
    if let Some(pool) = pool {
        connection_pool(found, &format!("{field}.connectionPool"), pool);
    }
    if let Some(outlier) = outlier {
        let field = format!("{field}.outlierDetection");
        found.least(format!("{field}.interval"), outlier.interval);
        found.least(format!("{field}.baseEjectionTime"), outlier.base_ejection_time);
        found.require(
            outlier.max_ejection_percent <= 100,
            format!("{field}.maxEjectionPercent"),
            "a percentage is 0 to 100",
        );
        found.require(
            outlier.min_health_percent <= 100,
            format!("{field}.minHealthPercent"),
            "a percentage is 0 to 100",
        );
        for (i, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
            found.require(
                (100..=599).contains(code),
                format!("{field}.outlierDetectionHttpErrorCodes[{i}]"),
                "a status is 100 to 599",
            );
        }
    }
    if let Some(tls) = tls {
        client_tls(found, &format!("{field}.tls"), tls);
    }
}

fn connection_pool(found: &mut Found, field: &str, pool: &ConnectionPoolSettings) {
    found.require(pool.tcp.is_some() || pool.http.is_some(), field, "one of tcp and http is required");
    if let Some(tcp) = &pool.tcp {
        found.least(format!("{field}.tcp.connectTimeout"), tcp.connect_timeout);
        found.least(format!("{field}.tcp.maxConnectionDuration"), tcp.max_connection_duration);
    }
    if let Some(http) = &pool.http
        && let Some(keep_alive) = &http.http2_keep_alive
    {
        let field = format!("{field}.http.http2KeepAlive");
        found.require(
            keep_alive.interval.is_some() && keep_alive.timeout.is_some(),
            &field,
            "interval and timeout are both required",
        );
    }
}

fn client_tls(found: &mut Found, field: &str, tls: &ClientTlsSettings) {
    let files =
        !tls.client_certificate.is_empty() || !tls.private_key.is_empty() || !tls.ca_certificates.is_empty();
    found.require(
        !files || tls.credential_name.is_empty(),
        format!("{field}.credentialName"),
        "credentialName and files exclude one another",
    );
    match tls.mode {
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            found.require(
                !tls.client_certificate.is_empty(),
                format!("{field}.clientCertificate"),
                "MUTUAL needs a certificate",
            );
            found.require(!tls.private_key.is_empty(), format!("{field}.privateKey"), "MUTUAL needs a key");
        }
        ClientTlsMode::IstioMutual => {
            let none = !files && tls.credential_name.is_empty() && tls.ca_crl.is_empty();
            found.require(none, field, "ISTIO_MUTUAL uses the mesh's certificates; leave the others out");
        }
        _ => {}
    }
}

impl Validate for ServiceEntry {
    fn problems(&self, meta: &ObjectMeta) -> Vec<Problem> {
        use ServiceEntryResolution as Resolution;

        let mut found = Found::default();
        found.require(!self.hosts.is_empty(), "spec.hosts", "at least one host is required");
        for (i, host) in self.hosts.iter().enumerate() {
            let field = format!("spec.hosts[{i}]");
            if host == "*" {
                found.add(field, "a bare \"*\" is not allowed");
            } else {
                found.host(&field, host, true);
            }
        }
        for (i, address) in self.addresses.iter().enumerate() {
            if !is_ip_or_cidr(address) {
                found.add(
                    format!("spec.addresses[{i}]"),
                    format!("{address:?} is neither an address nor a block"),
                );
            }
        }
        found.require(
            !self.ports.is_empty() || self.workload_selector.is_some(),
            "spec.ports",
            "at least one port is required",
        );
        for (i, port) in self.ports.iter().enumerate() {
            let field = format!("spec.ports[{i}]");
            found.require(port.number != 0, format!("{field}.number"), "the port is required, 1 to 65535");
            found.require(!port.name.is_empty(), format!("{field}.name"), "the name is required");
            let earlier = || self.ports.iter().take(i);
            found.require(
                !earlier().any(|p| p.name == port.name),
                format!("{field}.name"),
                "two ports have this name",
            );
            found.require(
                !earlier().any(|p| p.number == port.number),
                format!("{field}.number"),
                "two ports have this number",
            );
        }
        if self.workload_selector.is_some() && !self.endpoints.is_empty() {
            found.add("spec.endpoints", "endpoints and workloadSelector exclude one another");
        }
        match self.resolution {
            Resolution::None => found.require(
                self.endpoints.is_empty(),
                "spec.endpoints",
                "resolution NONE has no endpoints; use STATIC",
            ),
            Resolution::DnsRoundRobin => found.require(
                self.endpoints.len() <= 1,
                "spec.endpoints",
                "DNS_ROUND_ROBIN has one endpoint at most",
            ),
            Resolution::Dns if self.endpoints.is_empty() => {
                let wild = self.hosts.iter().any(|h| h.contains('*'));
                found.require(!wild, "spec.hosts", "a wildcard cannot be resolved; name endpoints");
            }
            Resolution::DynamicDns => {
                found.require(
                    self.addresses.is_empty() && self.endpoints.is_empty(),
                    "spec",
                    "DYNAMIC_DNS has neither addresses nor endpoints",
                );
            }
            _ => {}
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let field = format!("spec.endpoints[{i}]");
            workload(&mut found, &field, endpoint, self.resolution == Resolution::Static);
            for name in endpoint.ports.keys() {
                let known = self.ports.iter().any(|p| p.name == *name);
                found.require(known, format!("{field}.ports[{name}]"), "no port of this entry has that name");
            }
        }
        found.export_to(&meta.namespace, &self.export_to, true);
        found.0
    }
}

fn workload(found: &mut Found, field: &str, workload: &WorkloadEntry, needs_ip: bool) {
    let address = workload.address.as_str();
    if address.is_empty() {
        found.require(!workload.network.is_empty(), format!("{field}.address"), "the address is required");
    } else if let Some(path) = address.strip_prefix("unix://") {
        found.require(
            path.starts_with(['/', '@']),
            format!("{field}.address"),
            "the socket's path must be absolute",
        );
        found.require(workload.ports.is_empty(), format!("{field}.ports"), "a unix socket has no ports");
    } else if address.parse::<std::net::IpAddr>().is_err() {
        if needs_ip {
            found.add(
                format!("{field}.address"),
                format!("{address:?} is not an address; a name needs resolution DNS"),
            );
        } else if let Err(reason) = dns_name(address) {
            found.add(
                format!("{field}.address"),
                format!("{address:?} is neither an address nor a name: {reason}"),
            );
        }
    }
    for (name, port) in &workload.ports {
        found.require(*port != 0, format!("{field}.ports[{name}]"), "a port is 1 to 65535");
    }
    found.labels(&format!("{field}.labels"), &workload.labels);
}

impl Validate for WorkloadEntry {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        workload(&mut found, "spec", self, false);
        found.0
    }
}

impl Validate for Sidecar {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        if let Some(selector) = &self.workload_selector {
            found.labels("spec.workloadSelector.labels", &selector.labels);
        }
        for (i, ingress) in self.ingress.iter().enumerate() {
            let number = ingress.port.as_ref().map_or(0, |p| p.number);
            found.require(number != 0, format!("spec.ingress[{i}].port"), "the port is required");
        }
        for (i, egress) in self.egress.iter().enumerate() {
            let field = format!("spec.egress[{i}]");
            found.require(
                !egress.hosts.is_empty(),
                format!("{field}.hosts"),
                "at least one host is required, such as \"./*\"",
            );
            if egress.port.is_none() && i + 1 != self.egress.len() {
                found.add(&field, "a listener without a port takes the rest, so it must be the last");
            }
            for (j, host) in egress.hosts.iter().enumerate() {
                let field = format!("{field}.hosts[{j}]");
                match host.split_once('/') {
                    Some((namespace, name)) if !namespace.is_empty() => found.host(&field, name, true),
                    _ => found.add(
                        field,
                        format!("{host:?} is not NAMESPACE/HOST, such as \"./*\" or \"istio-system/*\""),
                    ),
                }
            }
        }
        if let Some(pool) = &self.inbound_connection_pool {
            connection_pool(&mut found, "spec.inboundConnectionPool", pool);
        }
        if let Some(policy) = &self.outbound_traffic_policy
            && let Some(proxy) = &policy.egress_proxy
        {
            destination(&mut found, "spec.outboundTrafficPolicy.egressProxy", Some(proxy));
        }
        found.0
    }
}
