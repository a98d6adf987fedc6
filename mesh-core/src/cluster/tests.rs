use super::*;
use std::time::Duration;
use tokio::time::Instant;

fn spec(port: u16) -> EndpointSpec {
    EndpointSpec::plaintext(format!("127.0.0.1:{port}").parse().unwrap())
}

fn cluster(registry: &Registry, endpoints: Vec<EndpointSpec>) -> Arc<Cluster> {
    let service = ServiceName::new("a.default.svc.cluster.local", "a", "default");
    registry.cluster(&ClusterKey::new(&service.host, 80, ""), &service, ClusterSettings::default(), endpoints)
}

#[test]
fn an_edit_keeps_counts_ejections_and_pools() {
    let registry = Registry::new();
    let first = cluster(&registry, vec![spec(1), spec(2)]);
    let state = Arc::clone(first.load_endpoints().members()[1].state());
    let now = Instant::now();
    assert!(state.eject(now, now + Duration::from_secs(30)));
    let _flight = state.begin();
    state.attachment(|| String::from("pool")).unwrap();

    let second = cluster(&registry, vec![spec(3), spec(2).weight(5)]);
    assert!(Arc::ptr_eq(&first, &second));
    let kept = Arc::clone(&second.load_endpoints().members()[1]);
    assert_eq!(kept.weight(), 5);
    assert!(kept.state().is_ejected(now));
    assert_eq!(kept.state().active(), 1);
    assert_eq!(kept.state().attachment(String::new).unwrap(), "pool");
    assert_eq!(second.load_endpoints().members()[0].state().active(), 0);
}

#[test]
fn another_identity_or_tls_mode_is_another_endpoint() {
    let registry = Registry::new();
    let c = cluster(&registry, vec![spec(1)]);
    let before = Arc::clone(c.load_endpoints().members()[0].state());
    c.publish_endpoints(vec![spec(1).mutual("x", Expect::AnyInTrustDomain)]);
    assert!(!Arc::ptr_eq(&before, c.load_endpoints().members()[0].state()));
    let mutual = Arc::clone(c.load_endpoints().members()[0].state());
    let other: crate::identity::SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
    c.publish_endpoints(vec![spec(1).mutual("x", Expect::AnyOf(Arc::from([other])))]);
    assert!(!Arc::ptr_eq(&mutual, c.load_endpoints().members()[0].state()));
}

#[test]
fn the_same_endpoints_publish_nothing() {
    let registry = Registry::new();
    let c = cluster(&registry, vec![spec(1)]);
    let live = c.endpoints();
    c.publish_endpoints(vec![spec(1)]);
    assert_eq!(live.version(), 0);
    c.publish_endpoints(vec![]);
    assert_eq!(live.version(), 1);
}

#[test]
fn a_gauge_stops_at_its_limit_and_gives_back() {
    let registry = Registry::new();
    let c = cluster(&registry, vec![]);
    let one = c.try_acquire(Gauge::Requests, 1).unwrap();
    assert!(c.try_acquire(Gauge::Requests, 1).is_none());
    assert_eq!((c.in_use(Gauge::Requests), c.overflows()), (1, 1));
    drop(one);
    assert!(c.try_acquire(Gauge::Requests, 1).is_some());
}

#[test]
fn the_retry_budget_is_a_share_with_a_floor() {
    let budget = RetryBudget::default();
    let table = [(0, 3), (10, 3), (15, 3), (20, 4), (1000, 200)];
    for (active, limit) in table {
        assert_eq!(budget.limit(active), limit, "{active}");
    }
    let registry = Registry::new();
    let c = cluster(&registry, vec![]);
    let held: Vec<_> = std::iter::from_fn(|| c.try_retry()).collect();
    assert_eq!((held.len(), c.retry_overflows(), c.overflows()), (3, 1, 0));
}

#[test]
fn an_ejection_is_counted_by_one_of_many() {
    let endpoint = Endpoint::new(spec(1));
    let now = Instant::now();
    let until = now + Duration::from_secs(1);
    assert!(endpoint.state().eject(now, until));
    assert!(!endpoint.state().eject(now, until));
    assert!(!endpoint.state().is_ejected(until + Duration::from_millis(1)));
    assert!(endpoint.state().eject(until + Duration::from_millis(1), until + Duration::from_secs(5)));
}

#[test]
fn a_forgotten_cluster_starts_anew() {
    let registry = Registry::new();
    let old = cluster(&registry, vec![spec(1)]);
    registry.retain(|_| false);
    assert!(registry.all().is_empty());
    assert!(!Arc::ptr_eq(&old, &cluster(&registry, vec![spec(1)])));
    assert_eq!(old.key().to_string(), "outbound|80||a.default.svc.cluster.local");
}

#[test]
fn what_is_acquired_counts_as_use_until_it_is_asked() {
    let service = ServiceName::new("a", "a", "");
    let cluster =
        Cluster::detached(ClusterKey::new("a", 80, ""), service, ClusterSettings::default(), Vec::new());
    assert!(!cluster.take_used());
    assert!(cluster.try_acquire(Gauge::Requests, 0).is_none());
    assert!(!cluster.take_used(), "what is refused is no use");
    let held = cluster.try_acquire(Gauge::Connections, 1).unwrap();
    assert!(cluster.take_used() && cluster.take_used(), "as long as it is held");
    drop(held);
    drop(cluster.try_acquire(Gauge::Requests, 1));
    assert!(cluster.take_used() && !cluster.take_used());
}
