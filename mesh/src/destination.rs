//! What a DestinationRule asks of a cluster, brought together from the crates that do it.

use mesh_core::cluster::{Balance, ClusterSettings, RetryBudget};
use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::protocol::Protocol;
use mesh_core::resource::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, H2UpgradePolicy, LoadBalancerSettings,
    OutlierDetection, SimpleLb, TrafficPolicy,
};
use mesh_core::resource::{DestinationRule, Resource};
use mesh_core::store::EffectivePolicy;

/// The settings of one cluster.
pub(crate) fn settings(policy: &EffectivePolicy, protocol: Protocol) -> ClusterSettings {
    let mut settings = ClusterSettings { protocol, refuse: policy.refuse.clone(), ..Default::default() };
    if let Some(lb) = &policy.load_balancer {
        settings.balance = balance(lb);
    }
    if let Some(pool) = &policy.connection_pool {
        settings.limits = mesh_policy::breaker::limits(pool);
        connections(pool, &mut settings);
    }
    settings.outlier = policy.outlier_detection.as_ref().map(|o| mesh_policy::outlier::settings(o, "").0);
    if let Some(budget) = &policy.retry_budget {
        let default = RetryBudget::default();
        settings.retry_budget = RetryBudget {
            percent: budget.percent.unwrap_or(default.percent),
            min_concurrent: budget.min_retry_concurrency.unwrap_or(default.min_concurrent),
        };
    }
    settings
}

fn balance(lb: &LoadBalancerSettings) -> Balance {
    match lb.simple {
        Some(SimpleLb::RoundRobin) => Balance::RoundRobin,
        Some(SimpleLb::Random) => Balance::Random,
        _ => Balance::LeastRequest,
    }
}

fn connections(pool: &ConnectionPoolSettings, settings: &mut ClusterSettings) {
    if let Some(timeout) = pool.tcp.as_ref().and_then(|tcp| tcp.connect_timeout) {
        settings.connect_timeout = timeout.get();
    }
    let Some(http) = &pool.http else { return };
    if let Some(idle) = http.idle_timeout {
        settings.idle_timeout = Some(idle.get()).filter(|t| !t.is_zero());
    }
    settings.carry = http.h2_upgrade_policy != H2UpgradePolicy::DoNotUpgrade;
    if http.h2_upgrade_policy == H2UpgradePolicy::Upgrade && settings.protocol == Protocol::Http1 {
        settings.protocol = Protocol::Http2;
    }
    if http.use_client_protocol && settings.protocol.is_http() {
        settings.protocol = Protocol::Auto;
    }
}

/// What cannot be done of a DestinationRule.
pub(crate) fn validate(rule: &Resource<DestinationRule>) -> Vec<Diagnostic> {
    let mut found = Found::default();
    let spec = &rule.spec;
    if let Some(policy) = &spec.traffic_policy {
        found.policy("spec.trafficPolicy", policy);
    }
    for (i, subset) in spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            found.policy(&format!("spec.subsets[{i}].trafficPolicy"), policy);
        }
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<Diagnostic>);

impl Found {
    /// Left out it would change where requests go or how: the resource is not applied.
    fn refuse(&mut self, field: String, what: &str) {
        let message = format!("{what} is not supported yet; leave it out");
        self.0.push(Diagnostic::new(Effect::NotApplied, message).field(field));
    }

    /// Left out it costs an optimization only.
    fn ignore(&mut self, field: String, what: &str) {
        self.0.push(Diagnostic::new(Effect::NoEffect, format!("{what} is not supported yet")).field(field));
    }

    fn policy(&mut self, at: &str, policy: &TrafficPolicy) {
        self.blocks(
            at,
            policy.load_balancer.as_ref(),
            policy.connection_pool.as_ref(),
            policy.outlier_detection.as_ref(),
            policy.tls.as_ref(),
        );
        for (i, port) in policy.port_level_settings.iter().enumerate() {
            self.blocks(
                &format!("{at}.portLevelSettings[{i}]"),
                port.load_balancer.as_ref(),
                port.connection_pool.as_ref(),
                port.outlier_detection.as_ref(),
                port.tls.as_ref(),
            );
        }
        if policy.tunnel.is_some() {
            self.refuse(format!("{at}.tunnel"), "a tunnel");
        }
        if policy.proxy_protocol.is_some() {
            self.refuse(format!("{at}.proxyProtocol"), "the PROXY protocol");
        }
        if policy.retry_budget.as_ref().is_some_and(|b| b.budget_interval.is_some()) {
            self.ignore(format!("{at}.retryBudget.budgetInterval"), "an interval of the budget");
        }
    }

    fn blocks(
        &mut self,
        at: &str,
        lb: Option<&LoadBalancerSettings>,
        pool: Option<&ConnectionPoolSettings>,
        outlier: Option<&OutlierDetection>,
        tls: Option<&ClientTlsSettings>,
    ) {
        if let Some(lb) = lb {
            self.balance(&format!("{at}.loadBalancer"), lb);
        }
        if let Some(pool) = pool {
            self.pool(&format!("{at}.connectionPool"), pool);
        }
        if let Some(outlier) = outlier {
            self.0.extend(mesh_policy::outlier::settings(outlier, &format!("{at}.outlierDetection")).1);
        }
        if let Some(tls) = tls {
            self.tls(&format!("{at}.tls"), tls);
        }
    }

    fn balance(&mut self, at: &str, lb: &LoadBalancerSettings) {
        if lb.simple == Some(SimpleLb::Passthrough) {
            self.refuse(format!("{at}.simple"), "PASSTHROUGH");
        }
        if lb.consistent_hash.is_some() {
            self.refuse(format!("{at}.consistentHash"), "consistent hashing");
        }
        if lb.locality_lb_setting.as_ref().is_some_and(|l| l.enabled != Some(false)) {
            self.ignore(format!("{at}.localityLbSetting"), "balancing by locality");
        }
        if lb.zone_aware_lb_setting.as_ref().is_some_and(|l| l.enabled != Some(false)) {
            self.ignore(format!("{at}.zoneAwareLbSetting"), "balancing by zone");
        }
        if lb.warmup.is_some() || lb.warmup_duration_secs.is_some() {
            self.ignore(format!("{at}.warmup"), "a slow start");
        }
    }

    fn pool(&mut self, at: &str, pool: &ConnectionPoolSettings) {
        if let Some(tcp) = &pool.tcp {
            if tcp.tcp_keepalive.is_some() {
                self.ignore(format!("{at}.tcp.tcpKeepalive"), "TCP keep-alive");
            }
            if tcp.max_connection_duration.is_some() {
                self.ignore(format!("{at}.tcp.maxConnectionDuration"), "a longest time of connections");
            }
            if tcp.idle_timeout.is_some() {
                self.ignore(format!("{at}.tcp.idleTimeout"), "an idle timeout of TCP connections");
            }
        }
        if let Some(http) = &pool.http {
            if http.max_concurrent_streams != 0 {
                self.ignore(format!("{at}.http.maxConcurrentStreams"), "a limit on streams");
            }
            if http.http2_keep_alive.is_some() {
                self.ignore(format!("{at}.http.http2KeepAlive"), "HTTP/2 keep-alive");
            }
        }
    }

    fn tls(&mut self, at: &str, tls: &ClientTlsSettings) {
        let mode = match tls.mode {
            ClientTlsMode::Disable | ClientTlsMode::IstioMutual => {
                if !tls.sni.is_empty() && tls.mode == ClientTlsMode::IstioMutual {
                    self.refuse(format!("{at}.sni"), "another server name under ISTIO_MUTUAL");
                }
                return;
            }
            ClientTlsMode::Simple => "SIMPLE",
            ClientTlsMode::Mutual => "MUTUAL",
        };
        let message = format!("TLS of mode {mode} is not supported yet; use ISTIO_MUTUAL or DISABLE");
        self.0.push(Diagnostic::new(Effect::ClosedReading, message).field(format!("{at}.mode")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rule(spec: &str) -> Resource<DestinationRule> {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {spec}\n"
        );
        match mesh_core::yaml::parse_objects("a.yaml", &text).unwrap().remove(0) {
            mesh_core::resource::Object::DestinationRule(rule) => (*rule).clone(),
            other => panic!("{other:?}"),
        }
    }

    fn fields(spec: &str) -> Vec<(String, Effect)> {
        validate(&rule(spec)).into_iter().map(|d| (d.field, d.effect)).collect()
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        use Effect::{ClosedReading, NoEffect, NotApplied};
        let table = [
            ("{host: a}", None),
            ("{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}", None),
            (
                "{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}",
                Some(("spec.trafficPolicy.tls.mode", ClosedReading)),
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
                Some(("spec.trafficPolicy.loadBalancer.simple", NotApplied)),
            ),
            (
                "{host: a, subsets: [{name: v1, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}]}",
                Some(("spec.subsets[0].trafficPolicy.loadBalancer.consistentHash", NotApplied)),
            ),
            (
                "{host: a, trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 1s}}}}}",
                Some(("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive", NoEffect)),
            ),
            (
                "{host: a, trafficPolicy: {proxyProtocol: {version: V1}}}",
                Some(("spec.trafficPolicy.proxyProtocol", NotApplied)),
            ),
        ];
        for (spec, want) in table {
            let want: Vec<_> = want.into_iter().map(|(f, e)| (f.to_owned(), e)).collect();
            assert_eq!(fields(spec), want, "{spec}");
        }
    }

    #[test]
    fn who_says_no_gets_no_shared_connections() {
        for (policy, carry, protocol) in [
            ("DEFAULT", true, Protocol::Http1),
            ("DO_NOT_UPGRADE", false, Protocol::Http1),
            ("UPGRADE", true, Protocol::Http2),
        ] {
            let rule = rule(&format!(
                "{{host: a, trafficPolicy: {{connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}}}}}"
            ));
            let mut effective = EffectivePolicy::default();
            effective.connection_pool = rule.spec.traffic_policy.unwrap().connection_pool;
            let settings = settings(&effective, Protocol::Http1);
            assert_eq!((settings.carry, settings.protocol), (carry, protocol), "{policy}");
        }
    }

    #[test]
    fn blocks_become_settings() {
        let rule = rule(
            "{host: a, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, retryBudget: {percent: 50}, \
             connectionPool: {tcp: {maxConnections: 7, connectTimeout: 2s}, http: {http2MaxRequests: 9, \
             idleTimeout: 0s, h2UpgradePolicy: UPGRADE}}, outlierDetection: {consecutive5xxErrors: 2}}}",
        );
        let policy = rule.spec.traffic_policy.unwrap();
        let mut effective = EffectivePolicy::default();
        effective.load_balancer = policy.load_balancer;
        effective.connection_pool = policy.connection_pool;
        effective.outlier_detection = policy.outlier_detection;
        effective.retry_budget = policy.retry_budget;
        let settings = settings(&effective, Protocol::Http1);
        assert_eq!(settings.balance, Balance::RoundRobin);
        assert_eq!((settings.limits.connections, settings.limits.requests), (7, 9));
        assert_eq!(settings.connect_timeout, Duration::from_secs(2));
        assert_eq!(settings.idle_timeout, None);
        assert_eq!(settings.protocol, Protocol::Http2);
        assert!(settings.carry);
        assert_eq!(settings.outlier.unwrap().consecutive_5xx, 2);
        assert_eq!((settings.retry_budget.percent, settings.retry_budget.min_concurrent), (50.0, 3));
    }
}
