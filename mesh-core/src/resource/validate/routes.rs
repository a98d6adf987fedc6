//! What the schema forbids in a `VirtualService`.

use std::collections::BTreeSet;

use super::security::check_subset_name;
use super::{Found, Validate, is_ip_or_cidr};
use crate::resource::meta::ObjectMeta;
use crate::resource::object::Problem;
use crate::resource::virtual_service::{
    Destination, HeaderOperations, HttpMatchRequest, HttpRetry, HttpRoute, RouteDestination, VirtualService,
};

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

pub(super) fn destination(found: &mut Found, field: &str, destination: Option<&Destination>) {
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
