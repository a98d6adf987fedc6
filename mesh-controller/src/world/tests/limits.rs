//! What is too large, and what is kept.

use mesh_core::resource::{DestinationRule, Resource, Service};
use mesh_xds::Encoded;

use super::*;

fn rule(size: usize) -> Event {
    let mut rule =
        Resource::new("shop", "huge", DestinationRule { host: "reviews".into(), ..Default::default() });
    rule.meta.annotations.insert("filler".into(), "x".repeat(size));
    Event::Put(rule.into())
}

fn found(answer: Answer) -> Encoded {
    match answer {
        Answer::Found(found) => found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_too_large_keeps_its_last_good_form_and_is_named() {
    let mut world = world_of(forms());
    let (answers, peer, notifier) = (world.source(), somebody("shop"), notifier());
    let host = || answers.answer(&peer, ResourceType::Host, "reviews");
    let good = found(host());
    world.apply([rule(3 << 20)], &notifier);
    assert_eq!(found(host()), good);
    let refused = answers.refused();
    assert_eq!((refused.len(), &*refused[0].name, &*refused[0].namespace), (1, "reviews", "shop"));
    let problem = &refused[0].problem;
    assert!(problem.contains("exportTo") && problem.contains("DestinationRule shop/huge"), "{problem}");
    // Another change of it, too large again; and one who asks for the first time.
    world.apply([rule(4 << 20)], &notifier);
    assert_eq!(found(host()), good);
    assert_eq!(answers.answer(&somebody("nowhere"), ResourceType::Host, "reviews.shop"), Answer::Unchanged);

    world.apply([rule(1)], &notifier);
    assert_ne!(found(host()), good);
    // Whoever has not asked again has not been looked at again.
    answers.answer(&somebody("nowhere"), ResourceType::Host, "reviews.shop");
    assert!(answers.refused().is_empty());
}

#[test]
fn a_workload_that_is_too_large_keeps_what_it_was_told() {
    let mut world = world_of(forms());
    let peer = beside(&world.store().load().workload("shop", "one").unwrap());
    let own = |world: &World| world.source().answer(&peer, ResourceType::Workload, "shop/one");
    found(own(&world));
    world.apply([rule(3 << 20)], &notifier());
    assert_eq!(own(&world), Answer::Unchanged);
    world.apply([rule(1)], &notifier());
    found(own(&world));
}

#[test]
fn content_is_made_once_for_all_who_see_the_same() {
    let world = world_of(forms());
    let answers = world.source();
    let ask = |peer: &Peer, kind, name| found(answers.answer(peer, kind, name));
    let bytes = |peer: &Peer, kind, name| ask(peer, kind, name).body().as_ptr();
    // Two of one namespace, and one of another that sees the same.
    let [a, b, c] = [somebody("shop"), Peer { workload: None, ..somebody("shop") }, somebody("nowhere")];
    for kind in [ResourceType::Host, ResourceType::Endpoints] {
        let name = "ratings.books.svc.cluster.local";
        let first = bytes(&a, kind, name);
        assert_eq!((first, first), (bytes(&b, kind, name), bytes(&c, kind, name)));
    }
    assert_eq!(answers.kept(), (4, 2));
    // A form of the name is another name for the same.
    ask(&a, ResourceType::Host, "ratings.books");
    assert_eq!(answers.kept(), (5, 2));

    // Nobody subscribes to any of it.
    world.tidy(&notifier());
    assert_eq!(answers.kept(), (0, 0));
}

#[test]
fn what_is_beyond_the_limit_is_answered_and_not_kept() {
    let mut world = World::with_cache(StoreOptions::default(), 2);
    let service = |i: u32| Resource::new("shop", &format!("s{i}"), Service::default());
    world.apply((0..4).map(|i| Event::Put(service(i).into())), &notifier());
    for _ in 0..2 {
        for i in 0..4 {
            found(world.source().answer(&somebody("shop"), ResourceType::Host, &format!("s{i}")));
        }
        assert_eq!(world.source().kept().0, 2);
    }
    // Nothing is kept of what does not exist.
    world.apply([Event::Gone(service(0).reference())], &notifier());
    assert_eq!(world.source().answer(&somebody("shop"), ResourceType::Host, "s0"), Answer::Absent);
    assert_eq!(world.source().kept().0, 1);
}
