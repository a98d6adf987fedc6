//! Whatever is answered differently is told, and what is kept is never old.

use proptest::prelude::*;

use super::*;

/// What every peer is answered to every name: the bytes.
fn all(answers: &Answers, peers: &[Peer]) -> Vec<(usize, ResourceType, String, Answer)> {
    let hosts = NAMES.iter().flat_map(|name| [(ResourceType::Host, *name), (ResourceType::Endpoints, *name)]);
    let addresses = IPS.iter().map(|ip| (ResourceType::Address, *ip));
    let names: Vec<_> = hosts.chain(addresses).map(|(kind, name)| (kind, name.to_owned())).collect();
    let of_peer = |(i, peer): (usize, &Peer)| {
        let account = peer.identity.service_account().unwrap();
        let own = peer
            .workload
            .as_deref()
            .map_or_else(|| format!("{}/{account}", peer.identity.namespace().unwrap()), str::to_owned);
        let names = names.iter().cloned().chain([(ResourceType::Workload, own)]);
        names
            .map(|(kind, name)| {
                let answer = answers.answer(peer, kind, &name);
                (i, kind, name, answer)
            })
            .collect::<Vec<_>>()
    };
    peers.iter().enumerate().flat_map(of_peer).collect()
}

fn peers() -> Vec<Peer> {
    let named = |account: &str, workload: &str| {
        let namespace = workload.split_once('/').unwrap().0;
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap();
        Peer { identity, workload: Some(workload.into()) }
    };
    vec![
        named("reviews", "shop/one"),
        named("web", "shop/two"),
        named("ratings", "books/vm"),
        somebody("shop"),
        somebody("books"),
        somebody("nowhere"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_needed_word_is_missing_and_no_answer_is_old(
        steps in proptest::collection::vec((any::<proptest::sample::Index>(), 0..3_u8), 1..40),
    ) {
        let (forms, peers, notifier) = (forms(), peers(), notifier());
        let mut world = World::new(StoreOptions::default());
        let answers = world.source();
        let mut before = all(&answers, &peers);
        for (at, what) in steps {
            let object = at.get(&forms).clone();
            let reference = object.reference();
            let event = if what == 0 { Event::Gone(reference.clone()) } else { Event::Put(object) };
            let old = world.store().load_full();
            world.apply([event], &notifier);
            let store = world.store().load_full();
            let differences = store.differences(&old);
            let now = all(&answers, &peers);
            for (before, now) in before.iter().zip(&now).filter(|(before, now)| before != now) {
                let (peer, kind, name, _) = now;
                let told = concerns(&differences, *kind, name);
                prop_assert!(told, "{reference}: {kind} {name} of {:?}: {before:?} {now:?}", peers[*peer]);
            }
            before = now;
        }
    }

    #[test]
    fn it_makes_no_difference_how_it_came_to_be(
        steps in proptest::collection::vec((any::<proptest::sample::Index>(), 0..4_u8, any::<bool>()), 1..50),
    ) {
        let (forms, peers, notifier) = (forms(), peers(), notifier());
        let mut world = World::new(StoreOptions::default());
        let mut there = BTreeMap::new();
        for (at, what, at_once) in steps {
            let object = at.get(&forms).clone();
            let event = match what {
                0 => {
                    there.remove(&object.reference());
                    Event::Gone(object.reference())
                }
                _ => {
                    there.insert(object.reference(), object.clone());
                    Event::Put(object)
                }
            };
            if at_once {
                world.apply([event], &notifier);
            } else {
                world.take([event]);
            }
            // Asking in between fills what is kept.
            all(&world.source(), &peers);
        }
        world.apply([], &notifier);
        let again = world_of(there.into_values());
        prop_assert_eq!(all(&world.source(), &peers), all(&again.source(), &peers));
    }
}

#[test]
fn what_makes_no_difference_is_no_change() {
    let mut world = world_of(forms());
    let version = world.store().version();
    let mut events = Vec::new();
    for object in last(forms()).into_values() {
        if let Object::VirtualService(vs) = &object {
            let mut again = (**vs).clone();
            again.meta.resource_version = "77".into();
            again.meta.generation += 1;
            events.push(Event::Put(again.into()));
        }
    }
    events.push(Event::Gone(ResourceRef::new("Service", "nowhere", "nothing")));
    assert_eq!(world.apply(events, &notifier()), Applied::default());
    assert_eq!(world.store().version(), version);
}
