use bytes::Bytes;

use super::state::{Held, News, State};
use super::*;
use crate::proto::discovery::{DeltaDiscoveryRequest, Node};
use ResourceType::{Endpoints, Host, Workload};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn state() -> (State, Instant) {
    (State::new(ClientLimits::default(), Node { id: "n".into(), ..Node::default() }), Instant::now())
}

fn content(version: &str) -> News {
    News::Content { version: version.into(), body: Bytes::from_static(b"body") }
}

/// A response about these names.
fn told(
    state: &mut State,
    kind: ResourceType,
    news: &[(&str, News)],
    refused: &[(&str, &str)],
    now: Instant,
) {
    let news = news.iter().map(|(name, news)| ((*name).into(), news.clone())).collect();
    let refused: Vec<_> =
        refused.iter().map(|(name, why)| Refusal { name: (*name).into(), reason: (*why).into() }).collect();
    state.commit(kind, "7".into(), news, &refused, now);
}

fn requests(state: &mut State) -> Vec<DeltaDiscoveryRequest> {
    let all: Vec<_> = std::iter::from_fn(|| state.request()).collect();
    assert!(!state.has_request());
    all
}

fn version(state: &State, name: &str) -> Option<String> {
    match &state.entry(Host, name)?.held {
        Held::Content { version, .. } => Some(version.to_string()),
        _ => None,
    }
}

#[test]
fn a_name_is_asked_for_once() {
    let (mut state, now) = state();
    for _ in 0..3 {
        state.want(Host, "a", false, now).unwrap();
    }
    state.want(Endpoints, "a", false, now).unwrap();
    let said = requests(&mut state);
    assert_eq!(said.len(), 2);
    assert_eq!((&*said[0].type_url, &*said[1].type_url), (Host.url(), Endpoints.url()));
    assert_eq!(said[0].resource_names_subscribe, ["a"]);
    assert_eq!(said[0].node.as_ref().unwrap().id, "n");
    assert!(said[1].node.is_none(), "it introduces itself once");
    state.want(Host, "a", false, now).unwrap();
    assert!(!state.has_request());
}

#[test]
fn a_response_is_taken_and_acknowledged_before_anything_else() {
    let (mut state, now) = state();
    state.want(Host, "a", false, now).unwrap();
    requests(&mut state);
    state.want(Workload, "default/web", false, now).unwrap();
    told(&mut state, Host, &[("a", content("1"))], &[], now);
    let said = requests(&mut state);
    assert_eq!((&*said[0].type_url, &*said[0].response_nonce), (Host.url(), "7"));
    assert!(said[0].error_detail.is_none());
    assert_eq!(version(&state, "a").unwrap(), "1");
}

#[test]
fn a_refusal_says_why_and_keeps_the_last_good_one() {
    let (mut state, now) = state();
    for name in ["a", "b", "c"] {
        state.want(Host, name, false, now).unwrap();
    }
    told(&mut state, Host, &[("a", content("1"))], &[], now);
    requests(&mut state);

    let news = [("a", content("2")), ("b", content("2")), ("c", content("2"))];
    let why = "x".repeat(10_000);
    told(&mut state, Host, &news, &[("a", "spec.http: no"), ("b", &why)], now);
    let said = requests(&mut state);
    let detail = said[0].error_detail.as_ref().unwrap();
    assert!(detail.message.starts_with("Host a: spec.http: no; Host b: xx"), "{}", detail.message);
    assert_eq!((detail.code, detail.message.len()), (3, 512));

    assert_eq!(version(&state, "a").unwrap(), "1", "the last good one");
    assert_eq!(version(&state, "c").unwrap(), "2", "what is good of a response is taken");
    let Some(Err(Unavailable::Refused(reason))) = state.entry(Host, "b").unwrap().known() else { panic!() };
    assert_eq!(reason.len(), 512);
    // It comes back with what it has, so it is sent the new one again and can say so again.
    state.connected();
    let versions = &requests(&mut state)[0].initial_resource_versions;
    assert_eq!(versions.get("a").unwrap(), "1");
    assert_eq!((versions.get("b"), versions.len()), (None, 2));
    told(&mut state, Host, &[("b", content("3"))], &[], now);
    assert_eq!(version(&state, "b").unwrap(), "3");
}

#[test]
fn a_new_stream_hears_of_everything_with_its_version_in_parts() {
    let (mut state, now) = state();
    let names: Vec<String> = (0..REQUEST_NAMES + 1).map(|i| format!("n{i:05}")).collect();
    for name in &names {
        state.want(Host, name, false, now).unwrap();
        told(&mut state, Host, &[(name, content("1"))], &[], now);
    }
    requests(&mut state);
    // A verdict on a response of the old stream means nothing to the new one.
    told(&mut state, Host, &[("n00000", content("2"))], &[], now);
    state.connected();
    let said = requests(&mut state);
    assert_eq!(said.len(), 2);
    assert!(said.iter().all(|request| request.response_nonce.is_empty()));
    assert_eq!(said[0].resource_names_subscribe.len(), REQUEST_NAMES);
    assert_eq!(said[0].initial_resource_versions.len(), REQUEST_NAMES);
    assert_eq!(said[0].initial_resource_versions["n00000"], "2");
    assert_eq!(said[1].resource_names_subscribe, ["n01024"]);
    assert!(said[0].node.is_some() && said[1].node.is_none());
}

#[test]
fn a_request_with_as_many_names_as_may_be_is_within_what_a_server_takes() {
    use prost::Message;
    let (mut state, now) = state();
    for i in 0..REQUEST_NAMES {
        let name = format!("{i:0width$}", width = crate::MAX_NAME_BYTES);
        state.want(Host, &name, false, now).unwrap();
        told(&mut state, Host, &[(&name, content(&"0".repeat(30)))], &[], now);
    }
    state.connected();
    let size = requests(&mut state)[0].encoded_len();
    let most = crate::server::ServerLimits::default().request_bytes;
    assert!(size > most / 2 && size < most, "{size}");
}

#[test]
fn what_is_not_used_is_let_go_of() {
    let (mut state, mut now) = state();
    state.want(Host, "used", false, now).unwrap();
    state.want(Host, "cold", false, now).unwrap();
    state.want(Workload, "default/own", true, now).unwrap();
    let used = Arc::clone(&state.entry(Host, "used").unwrap().used);
    requests(&mut state);
    told(&mut state, Host, &[("used", content("1")), ("cold", content("1"))], &[], now);
    requests(&mut state);
    assert!(state.sweep(now).is_empty(), "what was asked for just now is used");
    for _ in 0..9 {
        now += seconds(60);
        used.store(true, Ordering::Relaxed);
        assert!(state.sweep(now).is_empty());
    }
    now += seconds(60);
    assert_eq!(state.sweep(now), [(Host, "cold".into())]);
    assert_eq!(requests(&mut state)[0].resource_names_unsubscribe, ["cold"]);
    now += seconds(600);
    assert_eq!(state.sweep(now), [(Host, "used".into())]);
    assert!(state.is_wanted(Workload, "default/own"));

    // Wanted again before the server heard that it was not.
    state.want(Host, "used", false, now).unwrap();
    let said = requests(&mut state);
    assert_eq!(said[0].resource_names_subscribe, ["used"]);
    assert!(said[0].resource_names_unsubscribe.is_empty());
}

#[test]
fn what_was_never_asked_for_is_not_unsubscribed_from() {
    let (mut state, now) = state();
    state.want(Host, "a", false, now).unwrap();
    state.sweep(now);
    assert_eq!(state.sweep(now + seconds(3600)).len(), 1);
    assert!(!state.has_request());
}

#[test]
fn misses_are_remembered_while_they_are_used() {
    let (mut state, now) = state();
    state.want(Host, "nobody", false, now).unwrap();
    state.want(Host, "kept", true, now).unwrap();
    told(&mut state, Host, &[("nobody", News::Absent), ("kept", News::Absent)], &[], now);
    assert!(!state.entry(Host, "nobody").unwrap().known().unwrap().unwrap().exists());
    // What is called now and then stays known as nobody's: the server may be gone by the next call.
    for minutes in 1..=20 {
        state.want(Host, "nobody", false, now + seconds(60 * minutes)).unwrap();
        assert!(state.sweep(now + seconds(60 * minutes)).is_empty());
    }
    let last = now + seconds(1200);
    assert!(state.sweep(last + seconds(599)).is_empty());
    assert_eq!(state.sweep(last + seconds(600)), [(Host, "nobody".into())]);
    // It comes to exist while it is remembered.
    told(&mut state, Host, &[("kept", content("1"))], &[], now);
    assert!(state.entry(Host, "kept").unwrap().known().unwrap().unwrap().exists());
}

#[test]
fn misses_are_bounded_in_number() {
    let (mut state, now) = state();
    for i in 0..1030_u64 {
        let name = format!("n{i}");
        state.want(Host, &name, false, now).unwrap();
        told(&mut state, Host, &[(&name, News::Absent)], &[], now + Duration::from_millis(i));
    }
    assert_eq!(state.len(), 1024);
    assert!(!state.is_wanted(Host, "n5") && state.is_wanted(Host, "n6"), "the oldest go");
    // What is used outlasts what is not.
    state.sweep(now + seconds(1));
    state.want(Host, "n6", false, now + seconds(2)).unwrap();
    for name in ["m1", "m2"] {
        state.want(Host, name, false, now + seconds(2)).unwrap();
        told(&mut state, Host, &[(name, News::Absent)], &[], now + seconds(2));
    }
    assert!(state.is_wanted(Host, "n6") && !state.is_wanted(Host, "n7") && !state.is_wanted(Host, "n8"));
}

#[test]
fn subscriptions_are_bounded() {
    let limits = ClientLimits { subscriptions: 2, ..ClientLimits::default() };
    let mut state = State::new(limits, Node::default());
    let now = Instant::now();
    state.want(Host, "a", false, now).unwrap();
    state.want(Endpoints, "a", false, now).unwrap();
    assert_eq!(state.want(Host, "b", true, now).unwrap_err(), Unavailable::Full);
    state.want(Host, "a", false, now).unwrap();
    let server = crate::server::ServerLimits::default().subscriptions;
    assert!(ClientLimits::default().subscriptions <= server, "what a client asks for, a server bears");
}

#[test]
fn what_is_not_wanted_any_more_is_not_taken() {
    let (mut state, now) = state();
    told(&mut state, Host, &[("a", content("1"))], &[], now);
    assert_eq!(state.len(), 0);
    assert_eq!(requests(&mut state)[0].response_nonce, "7", "but acknowledged");
}

mod waiting {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn first_calls_are_bounded_in_number() {
        let limits = ClientLimits { waiting: 2, ..ClientLimits::default() };
        let client = Client::new("n", limits);
        let call = |name: &'static str| {
            let client = client.clone();
            async move { client.subscribe(Host, name).await.unwrap_err() }
        };
        let all = futures_util::future::join_all([call("a"), call("a"), call("b")]).await;
        assert_eq!(all, [Unavailable::TimedOut, Unavailable::TimedOut, Unavailable::Busy]);
        // Who has waited makes room.
        assert_eq!(call("b").await, Unavailable::TimedOut);
        assert_eq!(client.counters().read().timed_out, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_call_ends_with_the_answer() {
        let client = Client::new("n", ClientLimits::default());
        let answer = |news: News| {
            let client = client.clone();
            async move {
                tokio::time::sleep(seconds(1)).await;
                client.state().commit(Host, String::new(), vec![("a".into(), news)], &[], Instant::now());
            }
        };
        let (first, ()) = tokio::join!(client.subscribe(Host, "a"), answer(News::Absent));
        assert!(!first.unwrap().exists());
        let (again, ()) = tokio::join!(client.subscribe(Host, "a"), answer(content("1")));
        assert!(!again.unwrap().exists(), "what is remembered is answered at once");
        assert!(client.subscribe(Host, "a").await.unwrap().exists());
    }
}

mod snapshots {
    use super::super::snapshot::InvalidSnapshot;
    use super::*;
    use crate::{Address, Payload};

    fn with_content() -> Client {
        let client = Client::new("n", ClientLimits::default());
        let address = Payload::from(Address { hosts: vec!["a.b".into()], endpoint: false }).encode().unwrap();
        let kind = ResourceType::Address;
        for (name, pinned) in [("10.0.0.2", false), ("10.0.0.1", true)] {
            let (version, body) = (address.version().to_string().into(), address.body().clone());
            let content = Held::Content { version, body };
            client.state().restore(kind, name, pinned, content, Instant::now()).unwrap();
        }
        // What is nobody's is known as that.
        let now = Instant::now();
        client.state().restore(kind, "192.0.2.7", false, Held::Absent(now), now).unwrap();
        // But not that somebody else is not known yet.
        client.state().restore(Workload, "default/own", true, Held::Absent(now), now).unwrap();
        // What is only wanted is not held.
        client.state().want(Host, "a", false, Instant::now()).unwrap();
        client
    }

    #[test]
    fn a_client_comes_back_with_what_it_held() {
        let client = with_content();
        let bytes = client.snapshot();
        assert_eq!(bytes, with_content().snapshot(), "the same content, the same bytes");

        let again = Client::new("n", ClientLimits::default());
        let mut applied = Vec::new();
        let mut sink = |changes: &[Change]| -> Vec<Refusal> {
            applied.extend(changes.iter().map(|change| change.name.to_string()));
            Vec::new()
        };
        assert_eq!(again.restore(&bytes, &mut sink), Ok(3));
        assert_eq!(applied, ["10.0.0.1", "10.0.0.2", "192.0.2.7"]);
        assert_eq!(again.snapshot(), bytes);
        assert_eq!(again.exists(ResourceType::Address, "192.0.2.7"), Some(false));
        again.state().connected();
        let said = again.state().request().unwrap();
        assert_eq!((said.resource_names_subscribe.len(), said.initial_resource_versions.len()), (3, 2));
    }

    #[test]
    fn what_is_refused_is_not_kept() {
        let again = Client::new("n", ClientLimits::default());
        let mut sink = |_: &[Change]| vec![Refusal { name: "10.0.0.1".into(), reason: "no".into() }];
        assert_eq!(again.restore(&with_content().snapshot(), &mut sink), Ok(2));
        assert_eq!(again.subscriptions().len(), 2);
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = with_content().snapshot();
        let mut sink = |_: &[Change]| -> Vec<Refusal> { panic!("nothing is applied") };
        let client = Client::new("n", ClientLimits::default());
        for cut in 0..bytes.len() {
            assert!(client.restore(&bytes[..cut], &mut sink).is_err(), "{cut}");
            let mut flipped = bytes.clone();
            flipped[cut] ^= 1;
            assert!(client.restore(&flipped, &mut sink).is_err(), "{cut}");
        }
        let huge = vec![0; MAX_SNAPSHOT_BYTES + 1];
        assert_eq!(client.restore(&huge, &mut sink), Err(InvalidSnapshot::TooLarge));
    }
}
