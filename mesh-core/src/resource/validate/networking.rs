//! What the schema forbids in networking resources.

use std::collections::BTreeSet;

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
use crate::resource::virtual_service::{
    Destination, HeaderOperations, HttpMatchRequest, HttpRetry, HttpRoute, RouteDestination, VirtualService,
};
use crate::resource::workload_entry::WorkloadEntry;

const RETRY_CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

impl Validate for VirtualService {
    fn problems(&self, meta: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        if self.hosts.is_empty() {
            let only_http = self.gateways.is_empty() && self.tls.is_empty() && self.tcp.is_empty();
            found.require(
                only_http,
                "spec.hosts",
                "a VirtualService without hosts is a delegate and has http routes only",
            );
        }
        let mesh = self.gateways.is_empty() || self.gateways.iter().any(|g| g == "mesh");
        let mut seen = BTreeSet::new();
        for (i, host) in self.hosts.iter().enumerate() {
            let field = format!("spec.hosts[{i}]");
            if host.parse::<std::net::IpAddr>().is_ok() {
                found.require(
                    !mesh,
                    &field,
                    "an address is allowed only where gateways are named and `mesh` is not",
                );
            } else if host == "*" && mesh {
                found.add(&field, "\"*\" is not allowed for sidecars; name the hosts");
            } else {
                found.host(&field, host, true);
            }
            found.require(seen.insert(host), field, "the host stands here twice");
        }
        found.require(
            !(self.http.is_empty() && self.tls.is_empty() && self.tcp.is_empty()),
            "spec",
            "one of http, tls and tcp is required",
        );
        found.export_to(&meta.namespace, &self.export_to, false);
        for (i, route) in self.http.iter().enumerate() {
            http_route(&mut found, &format!("spec.http[{i}]"), route, self.hosts.is_empty());
        }
        for (i, route) in self.tls.iter().enumerate() {
            let field = format!("spec.tls[{i}]");
            found.require(
                !route.matches.is_empty(),
                format!("{field}.match"),
                "a TLS route needs a match with sniHosts",
            );
            for (j, m) in route.matches.iter().enumerate() {
                let field = format!("{field}.match[{j}]");
                found.require(!m.sni_hosts.is_empty(), format!("{field}.sniHosts"), "sniHosts are required");
                subnets(&mut found, &field, &m.destination_subnets);
                for (k, sni) in m.sni_hosts.iter().enumerate() {
                    let covered = self.hosts.iter().any(|host| covers(host, sni));
                    found.require(
                        covered,
                        format!("{field}.sniHosts[{k}]"),
                        "the name is covered by none of spec.hosts",
                    );
                }
            }
            l4_route(&mut found, &field, &route.route);
        }
        for (i, route) in self.tcp.iter().enumerate() {
            let field = format!("spec.tcp[{i}]");
            for (j, m) in route.matches.iter().enumerate() {
                subnets(&mut found, &format!("{field}.match[{j}]"), &m.destination_subnets);
            }
            l4_route(&mut found, &field, &route.route);
        }
        found.0
    }
}

/// Whether `wide` (a host, perhaps a wildcard) covers `narrow`.
fn covers(wide: &str, narrow: &str) -> bool {
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.ends_with(suffix),
        None => wide == narrow,
    }
}

fn subnets(found: &mut Found, field: &str, list: &[String]) {
    for (i, subnet) in list.iter().enumerate() {
        if !is_ip_or_cidr(subnet) {
            found.add(
                format!("{field}.destinationSubnets[{i}]"),
                format!("{subnet:?} is neither an address nor a block"),
            );
        }
    }
}

fn l4_route(found: &mut Found, field: &str, route: &[RouteDestination]) {
    found.require(!route.is_empty(), format!("{field}.route"), "a destination is required");
    for (i, to) in route.iter().enumerate() {
        destination(found, &format!("{field}.route[{i}].destination"), to.destination.as_ref());
    }
    weights(found, field, route.iter().map(|r| r.weight));
}

fn weights(found: &mut Found, field: &str, weights: impl ExactSizeIterator<Item = u32>) {
    if weights.len() > 1 && weights.map(u64::from).sum::<u64>() == 0 {
        found.add(format!("{field}.route"), "all weights are 0; give at least one destination a share");
    }
}

fn destination(found: &mut Found, field: &str, destination: Option<&Destination>) {
    let Some(destination) = destination else {
        return found.add(field, "the destination is required");
    };
    found.host(&format!("{field}.host"), &destination.host, false);
    if !destination.subset.is_empty() {
        check_subset_name(found, format!("{field}.subset"), &destination.subset);
    }
    if let Some(port) = &destination.port {
        found.require(port.number != 0, format!("{field}.port.number"), "a port is 1 to 65535");
    }
}

fn http_route(found: &mut Found, field: &str, route: &HttpRoute, is_delegate: bool) {
    let ways = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let set: Vec<&str> = ways.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    match set.as_slice() {
        [_] => {}
        [] => found.add(field, "exactly one of route, redirect, directResponse and delegate is required"),
        several => found.add(field, format!("{} exclude one another; keep one", several.join(" and "))),
    }
    if is_delegate && route.delegate.is_some() {
        found.add(format!("{field}.delegate"), "a delegate cannot delegate again");
    }
    if route.redirect.is_some() || route.direct_response.is_some() {
        for (name, set) in [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())] {
            found.require(
                !set,
                format!("{field}.{name}"),
                "it has no place beside redirect or directResponse",
            );
        }
    }
    for (i, m) in route.matches.iter().enumerate() {
        http_match(found, &format!("{field}.match[{i}]"), m);
    }
    for (i, to) in route.route.iter().enumerate() {
        let field = format!("{field}.route[{i}]");
        destination(found, &format!("{field}.destination"), to.destination.as_ref());
        if let Some(headers) = &to.headers {
            operations(found, &format!("{field}.headers.request"), headers.request.as_ref());
            operations(found, &format!("{field}.headers.response"), headers.response.as_ref());
        }
    }
    weights(found, field, route.route.iter().map(|r| r.weight));
    if let Some(headers) = &route.headers {
        operations(found, &format!("{field}.headers.request"), headers.request.as_ref());
        operations(found, &format!("{field}.headers.response"), headers.response.as_ref());
    }
    http_actions(found, field, route);
}

fn http_actions(found: &mut Found, field: &str, route: &HttpRoute) {
    if let Some(redirect) = &route.redirect {
        let field = format!("{field}.redirect");
        let texts = [&redirect.uri, &redirect.prefix_rewrite, &redirect.authority, &redirect.scheme];
        let any =
            texts.iter().any(|t| !t.is_empty()) || redirect.port.is_some() || redirect.derive_port.is_some();
        found.require(
            any,
            &field,
            "at least one of uri, prefixRewrite, authority, scheme and port is required",
        );
        found.require(
            redirect.uri.is_empty() || redirect.prefix_rewrite.is_empty(),
            format!("{field}.prefixRewrite"),
            "uri and prefixRewrite exclude one another",
        );
        found.require(
            redirect.port.is_none() || redirect.derive_port.is_none(),
            format!("{field}.derivePort"),
            "port and derivePort exclude one another",
        );
        found.require(
            matches!(redirect.scheme.as_str(), "" | "http" | "https"),
            format!("{field}.scheme"),
            "the scheme is http or https",
        );
        found.require(
            matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308),
            format!("{field}.redirectCode"),
            "the status is one of 301, 302, 303, 307 and 308",
        );
    }
    if let Some(direct) = &route.direct_response {
        let field = format!("{field}.directResponse");
        found.require(
            (200..=599).contains(&direct.status),
            format!("{field}.status"),
            "the status is 200 to 599",
        );
        if let Some(body) = &direct.body {
            found.require(
                body.string.is_some() != body.bytes.is_some(),
                format!("{field}.body"),
                "exactly one of string and bytes is required",
            );
        }
    }
    if let Some(delegate) = &route.delegate {
        found.require(!delegate.name.is_empty(), format!("{field}.delegate.name"), "the name is required");
    }
    if let Some(rewrite) = &route.rewrite {
        let field = format!("{field}.rewrite");
        let any =
            !rewrite.uri.is_empty() || !rewrite.authority.is_empty() || rewrite.uri_regex_rewrite.is_some();
        found.require(any, &field, "at least one of uri, authority and uriRegexRewrite is required");
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            found.require(
                rewrite.uri.is_empty(),
                format!("{field}.uri"),
                "uri and uriRegexRewrite exclude one another",
            );
            found.regex(&format!("{field}.uriRegexRewrite.match"), &regex.matches);
        }
    }
    // 0 is how Istio writes "no timeout".
    found.least(format!("{field}.timeout"), route.timeout.filter(|t| !t.is_zero()));
    if let Some(retries) = &route.retries {
        http_retry(found, &format!("{field}.retries"), retries);
    }
    if let Some(fault) = &route.fault {
        let field = format!("{field}.fault");
        found.require(
            fault.delay.is_some() || fault.abort.is_some(),
            &field,
            "one of delay and abort is required",
        );
        if let Some(delay) = &fault.delay {
            let field = format!("{field}.delay");
            found.percent(format!("{field}.percentage"), delay.percentage.as_ref());
            found.require(delay.percent <= 100, format!("{field}.percent"), "a percentage is 0 to 100");
            found.require(
                delay.fixed_delay.is_some() != delay.exponential_delay.is_some(),
                format!("{field}.fixedDelay"),
                "a fixedDelay is required",
            );
            found.least(format!("{field}.fixedDelay"), delay.fixed_delay);
        }
        if let Some(abort) = &fault.abort {
            let field = format!("{field}.abort");
            found.percent(format!("{field}.percentage"), abort.percentage.as_ref());
            let set = [abort.http_status.is_some(), abort.grpc_status.is_some(), abort.http2_error.is_some()];
            found.require(
                set.iter().filter(|s| **s).count() == 1,
                &field,
                "exactly one of httpStatus and grpcStatus is required",
            );
            if let Some(status) = abort.http_status {
                found.require(
                    (200..=599).contains(&status),
                    format!("{field}.httpStatus"),
                    "the status is 200 to 599",
                );
            }
        }
    }
    if let Some(mirror) = &route.mirror {
        destination(found, &format!("{field}.mirror"), Some(mirror));
        found.require(
            route.mirrors.is_empty(),
            format!("{field}.mirrors"),
            "mirror and mirrors exclude one another",
        );
    }
    for (i, mirror) in route.mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{i}]");
        destination(found, &format!("{field}.destination"), mirror.destination.as_ref());
        found.percent(format!("{field}.percentage"), mirror.percentage.as_ref());
    }
    found.percent(format!("{field}.mirrorPercentage"), route.mirror_percentage.as_ref());
    found.require(
        route.mirror_percent.is_none_or(|p| p <= 100),
        format!("{field}.mirrorPercent"),
        "a percentage is 0 to 100",
    );
    if let Some(cors) = &route.cors_policy {
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            found.string_match(&format!("{field}.corsPolicy.allowOrigins[{i}]"), origin, false, false);
        }
        if cors.max_age.is_some_and(|age| age.get().subsec_nanos() != 0) {
            found.add(format!("{field}.corsPolicy.maxAge"), "maxAge has whole seconds only");
        }
    }
}

fn http_match(found: &mut Found, field: &str, m: &HttpMatchRequest) {
    let texts = [("uri", &m.uri), ("scheme", &m.scheme), ("method", &m.method), ("authority", &m.authority)];
    for (name, value) in texts {
        if let Some(value) = value {
            found.string_match(&format!("{field}.{name}"), value, false, name == "uri");
        }
    }
    for (name, map) in [("headers", &m.headers), ("withoutHeaders", &m.without_headers)] {
        for (key, value) in map {
            let field = format!("{field}.{name}[{key}]");
            match key.as_str() {
                "uri" | "scheme" | "method" | "authority" => {
                    found.add(&field, format!("{key} is a field of the match, not a header"));
                }
                claim if claim.starts_with("@request.auth.claims") => {}
                key if http::HeaderName::from_bytes(key.as_bytes()).is_err() => {
                    found.add(&field, "not the name of a header");
                }
                _ => {}
            }
            found.string_match(&field, value, true, false);
        }
    }
    for (key, value) in &m.query_params {
        found.string_match(&format!("{field}.queryParams[{key}]"), value, true, false);
    }
    found.labels(&format!("{field}.sourceLabels"), &m.source_labels);
}

fn operations(found: &mut Found, field: &str, operations: Option<&HeaderOperations>) {
    let Some(operations) = operations else { return };
    let named = operations.set.keys().map(|k| ("set", k)).chain(operations.add.keys().map(|k| ("add", k)));
    for (which, name) in named.chain(operations.remove.iter().map(|k| ("remove", k))) {
        let authority = which != "remove" && name == ":authority";
        if !authority && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            found.add(format!("{field}.{which}[{name}]"), "not the name of a header that can be changed");
        }
    }
    for (which, map) in [("set", &operations.set), ("add", &operations.add)] {
        for (name, value) in map {
            if http::HeaderValue::from_str(value).is_err() {
                found.add(
                    format!("{field}.{which}[{name}]"),
                    "the value has characters that a header cannot carry",
                );
            }
        }
    }
}

fn http_retry(found: &mut Found, field: &str, retry: &HttpRetry) {
    if retry.attempts == 0 && *retry != HttpRetry::default() {
        found.add(
            format!("{field}.attempts"),
            "0 attempts disables retries, so no other field may be set; set attempts",
        );
    }
    found.least(format!("{field}.perTryTimeout"), retry.per_try_timeout.filter(|t| !t.is_zero()));
    found.least(format!("{field}.backoff"), retry.backoff);
    for token in retry.retry_on.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let status = token.parse::<u16>().is_ok_and(|code| (100..=599).contains(&code));
        if !status && !RETRY_CONDITIONS.contains(&token) {
            found.add(
                format!("{field}.retryOn"),
                format!("{token:?} is neither a retry condition nor a status"),
            );
        }
    }
}

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
