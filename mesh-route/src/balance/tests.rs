use std::collections::HashMap;
use std::time::Duration;

use super::*;
use mesh_core::cluster::{ClusterKey, ClusterSettings, EndpointSpec, OutlierSettings, Registry, ServiceName};
use mesh_core::facts::MatchedRoute;
use proptest::prelude::*;
use tower::limit::ConcurrencyLimitLayer;
use tower::{ServiceBuilder, ServiceExt};
use tower_test::mock;

fn endpoint(port: usize, weight: u32) -> Arc<Endpoint> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port as u16));
    Arc::new(Endpoint::new(EndpointSpec::plaintext(address).weight(weight)))
}

fn set(weights: &[u32]) -> EndpointSet {
    weights.iter().enumerate().map(|(i, w)| endpoint(i + 1, *w)).collect()
}

fn port(endpoint: &Endpoint) -> usize {
    endpoint.key().address.to_string().rsplit(':').next().unwrap().parse().unwrap()
}

fn shares(set: &EndpointSet, how: How, draws: usize) -> HashMap<usize, usize> {
    let now = Instant::now();
    let mut random = fastrand::Rng::with_seed(7);
    let mut seen = HashMap::new();
    for turn in 0..draws {
        let chosen = pick(set, how, 0, &[], Draw { random: random.u64(..), turn }, now).unwrap();
        *seen.entry(port(chosen) - 1).or_default() += 1;
    }
    seen
}

fn cluster(specs: Vec<EndpointSpec>, settings: ClusterSettings) -> Arc<Cluster> {
    let key = ClusterKey::new("a.default.svc", 80, "");
    Registry::new().cluster(&key, &ServiceName::new(&key.host, "a", "default"), settings, specs)
}

#[test]
fn round_robin_gives_each_its_exact_share() {
    for weights in [vec![1, 1, 1], vec![1, 2, 5], vec![3, 3, 3], vec![100, 1], vec![0, 4]] {
        let total: u32 = weights.iter().sum();
        let seen = shares(&set(&weights), How::RoundRobin, total as usize);
        for (i, w) in weights.iter().enumerate() {
            assert_eq!(seen.get(&i).copied().unwrap_or(0), *w as usize, "{weights:?}");
        }
    }
}

#[test]
fn round_robin_spreads_a_heavy_share() {
    let set = set(&[5, 5, 10]);
    let now = Instant::now();
    let order: Vec<_> = (0..20)
        .map(|turn| port(pick(&set, How::RoundRobin, 0, &[], Draw { random: 0, turn }, now).unwrap()))
        .collect();
    let longest = order.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap();
    assert!(longest <= 3, "{order:?}");
}

#[test]
fn the_less_busy_of_two_is_chosen() {
    let set = set(&[1, 1]);
    let _busy = set.members()[0].state().begin();
    let seen = shares(&set, How::LeastRequest, 200);
    assert_eq!(seen.get(&0), None, "{seen:?}");
    assert_eq!(seen[&1], 200);
}

#[test]
fn busyness_counts_by_weight() {
    let set = set(&[10, 1]);
    let _held: Vec<_> = (0..5).map(|_| set.members()[0].state().begin()).collect();
    let _one = set.members()[1].state().begin();
    // 5 of 10 is less than 1 of 1.
    assert_eq!(shares(&set, How::LeastRequest, 100)[&0], 100);
}

#[test]
fn one_that_was_tried_is_the_last_resort() {
    let set = set(&[1, 1, 1]);
    let now = Instant::now();
    let tried = [Arc::clone(&set.members()[0]), Arc::clone(&set.members()[1])];
    for how in [How::LeastRequest, How::RoundRobin, How::Random] {
        for random in 0..50 {
            let draw = Draw { random, turn: random as usize };
            assert_eq!(port(pick(&set, how, 0, &tried, draw, now).unwrap()), 3);
        }
        set.members()[2].state().eject(now, now + Duration::from_secs(1));
        assert_ne!(port(pick(&set, how, 0, &tried, Draw { random: 1, turn: 1 }, now).unwrap()), 3);
        set.members()[2].state().uneject();
    }
}

#[test]
fn one_that_could_not_be_connected_to_is_left_alone_for_a_while() {
    let set = set(&[1, 1, 1]);
    let now = Instant::now();
    let gone = &set.members()[1];
    let failure = Failure::new(FailureCode::ConnectFailed);
    note_unreachable(gone, Some(&failure), now);
    let chosen = |at: Instant, tried: &[Arc<Endpoint>]| -> std::collections::HashSet<usize> {
        let draws = (0..200).map(|turn| Draw { random: scramble(turn as u64), turn });
        let pick = |draw| pick(&set, How::LeastRequest, 0, tried, draw, at).map(|e| port(e));
        draws.filter_map(pick).collect()
    };
    let [one, two, three] = [0, 1, 2].map(|i| port(&set.members()[i]));
    assert_eq!(chosen(now, &[]), [one, three].into());
    assert_eq!(chosen(now + CONNECT_BACKOFF, &[]), [one, two, three].into());
    // Better than going back to one that has just failed.
    let others = [Arc::clone(&set.members()[0]), Arc::clone(&set.members()[2])];
    assert_eq!(chosen(now, &others), [two].into());
    // Any other failure says nothing about reaching it.
    note_unreachable(&set.members()[0], Some(&Failure::new(FailureCode::UpstreamReset)), now);
    assert!(chosen(now, &[]).contains(&one));
}

#[test]
fn when_too_few_are_healthy_ejections_are_ignored() {
    let set = set(&[1, 1, 1, 1]);
    let now = Instant::now();
    for e in &set.members()[..3] {
        e.state().eject(now, now + Duration::from_secs(1));
    }
    let draw = Draw { random: 0, turn: 0 };
    assert_eq!(port(pick(&set, How::RoundRobin, 25, &[], draw, now).unwrap()), 4);
    assert_eq!(port(pick(&set, How::RoundRobin, 26, &[], draw, now).unwrap()), 1);
    set.members()[3].state().eject(now, now + Duration::from_secs(1));
    assert!(pick(&set, How::Random, 0, &[], draw, now).is_none());
    assert!(pick(&set, How::Random, 0, &[], draw, now + Duration::from_secs(2)).is_some());
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![Just(How::LeastRequest), Just(How::RoundRobin), Just(How::Random)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_an_ejected_one_while_a_healthy_one_is_there(
        members in proptest::collection::vec((any::<u32>(), any::<bool>(), any::<bool>()), 0..12),
        how in how(), random: u64, turn: usize,
    ) {
        let set: EndpointSet =
            members.iter().enumerate().map(|(i, (w, ..))| endpoint(i + 1, *w)).collect();
        let now = Instant::now();
        let mut tried = Vec::new();
        for (e, (_, ejected, was_tried)) in set.members().iter().zip(&members) {
            if *ejected { e.state().eject(now, now + Duration::from_secs(1)); }
            if *was_tried { tried.push(Arc::clone(e)); }
        }
        let healthy = members.iter().filter(|(_, ejected, _)| !ejected).count();
        let untried = members.iter().filter(|(_, ejected, tried)| !ejected && !tried).count();
        match pick(&set, how, 0, &tried, Draw { random, turn }, now) {
            None => prop_assert_eq!(healthy, 0),
            Some(e) => {
                prop_assert!(!e.state().is_ejected(now));
                let was_tried = tried.iter().any(|t| Arc::ptr_eq(t, e));
                prop_assert!(!was_tried || untried == 0);
            }
        }
        // In panic, anything goes, and something is chosen wherever there is something.
        let any = pick(&set, how, 100, &tried, Draw { random, turn }, now);
        prop_assert_eq!(any.is_some(), !members.is_empty());
    }

    #[test]
    fn weights_are_respected(weights in proptest::collection::vec(0u32..20, 1..6), how in how()) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let draws = 4_000;
        let seen = shares(&set(&weights), if how == How::RoundRobin { How::Random } else { how }, draws);
        for (i, w) in weights.iter().enumerate() {
            let share = seen.get(&i).copied().unwrap_or(0) as f64 / draws as f64;
            let wanted = f64::from(*w) / f64::from(total);
            prop_assert!((share - wanted).abs() < 0.05, "{:?}: {} took {}", weights, i, share);
        }
    }
}

#[tokio::test]
async fn the_cluster_of_the_route_is_used_and_the_endpoint_told() {
    let (inner, mut handle) = mock::pair::<Dispatch<()>, Response<()>>();
    let service = BalanceLayer::new().layer(inner);
    let cluster = cluster(
        vec![EndpointSpec::plaintext("127.0.0.1:1".parse().unwrap())],
        ClusterSettings { balance: How::RoundRobin, ..ClusterSettings::default() },
    );
    let mut request = Request::new(());
    let facts = Facts::of_or_insert(&mut request);
    facts.set_route(MatchedRoute {
        resource: None,
        name: "default".into(),
        cluster: Some(cluster),
        policy: Arc::new(()),
    });
    let answer = tokio::spawn(service.oneshot(request));
    let (dispatch, send) = handle.next_request().await.unwrap();
    assert_eq!(port(&dispatch.endpoint), 1);
    send.send_response(Response::new(()));
    answer.await.unwrap().unwrap();
    assert_eq!(port(&facts.upstream().unwrap().endpoint), 1);
    assert_eq!(facts.attempts(), 1);
}

#[tokio::test]
async fn a_cluster_that_refuses_or_is_empty_or_unknown_fails() {
    let refusing =
        ClusterSettings { refuse: Some(FailureCode::PolicyInvalid.into()), ..ClusterSettings::default() };
    let layers = [
        (BalanceLayer::to(cluster(vec![], ClusterSettings::default())), FailureCode::NoHealthyEndpoint),
        (BalanceLayer::to(cluster(vec![], refusing)), FailureCode::PolicyInvalid),
        (BalanceLayer::new(), FailureCode::Internal),
    ];
    for (layer, code) in layers {
        let (inner, mut handle) = mock::pair::<Dispatch<()>, Response<()>>();
        handle.allow(1);
        let error = layer.layer(inner).oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(Failure::of(error).code(), code);
    }
}

#[tokio::test]
async fn an_inner_error_is_passed_on() {
    let (inner, mut handle) = mock::pair::<Dispatch<&str>, Response<()>>();
    let specs = vec![EndpointSpec::plaintext("127.0.0.1:1".parse().unwrap())];
    let settings =
        ClusterSettings { outlier: Some(OutlierSettings::default()), ..ClusterSettings::default() };
    let service = BalanceLayer::to(cluster(specs, settings)).layer(inner);
    let answer = tokio::spawn(service.oneshot(Request::new("x")));
    let (_, send) = handle.next_request().await.unwrap();
    send.send_error(Failure::new(FailureCode::ConnectFailed));
    assert_eq!(Failure::of(answer.await.unwrap().unwrap_err()).code(), FailureCode::ConnectFailed);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_gives_the_permit_back() {
    let (inner, mut handle) = mock::pair::<Dispatch<()>, Response<()>>();
    handle.allow(10);
    let limited =
        ServiceBuilder::new().layer(BalanceLayer::new()).layer(ConcurrencyLimitLayer::new(1)).service(inner);
    let mut one = mock::Spawn::new(limited.clone());
    let mut other = mock::Spawn::new(limited);
    assert!(one.poll_ready().is_ready());
    assert!(other.poll_ready().is_pending());
    assert!(one.call(Request::new(())).await.is_err());
    assert!(other.is_woken());
    assert!(other.poll_ready().is_ready());
}

#[tokio::test]
async fn a_connection_to_an_endpoints_own_address_stays_with_it() {
    let specs = (1..=5).map(|i| EndpointSpec::plaintext(format!("10.0.0.{i}:80").parse().unwrap())).collect();
    let cluster = cluster(specs, ClusterSettings::default());
    let echo = tower::service_fn(|dispatch: Dispatch<()>| async move {
        Ok::<_, Failure>(Response::new(dispatch.endpoint.key().address.to_string()))
    });
    let service = BalanceLayer::to(cluster).layer(echo);
    let ask = async |to_endpoint: bool, dst: &str| {
        let connection = mesh_core::facts::Connection::builder()
            .original_dst(dst.parse().unwrap())
            .to_endpoint(to_endpoint);
        let mut request = Request::new(());
        Facts::new(connection.build()).insert(&mut request);
        service.clone().oneshot(request).await.unwrap().into_body()
    };
    let mut others = std::collections::HashSet::new();
    for _ in 0..50 {
        assert_eq!(ask(true, "10.0.0.3:80").await, "10.0.0.3:80");
        others.insert(ask(false, "10.0.0.3:80").await);
        // An endpoint that has gone leaves its callers to the others.
        others.insert(ask(true, "10.0.0.9:80").await);
    }
    assert!(others.len() > 1, "{others:?}");
}
