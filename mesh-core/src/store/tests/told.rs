//! Who is told what decides answers as who told it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Keeper, View};
use super::world::{HOSTS, IPS, objects};
use super::*;
use crate::resource::Object;

type Choice = Vec<(proptest::sample::Index, u8)>;

/// Some of the world's objects: of several of one name the one that comes last.
fn some(choice: &Choice) -> BTreeMap<crate::diagnostic::ResourceRef, Object> {
    let all = objects();
    let mut some = BTreeMap::new();
    for (at, _) in choice {
        let object = at.get(&all).clone();
        some.insert(object.reference(), object);
    }
    some
}

fn store_of(objects: impl IntoIterator<Item = Object>) -> Store {
    Store::new(StoreOptions::default(), objects.into_iter().collect())
}

fn callers(store: &Store) -> Vec<Arc<Workload>> {
    store.workloads().map(Arc::clone).chain([caller("a"), caller("b"), caller("c")]).collect()
}

/// Every object once, as a source gives them.
fn union(objects: impl IntoIterator<Item = Object>) -> Store {
    let named: BTreeMap<_, _> = objects.into_iter().map(|object| (object.reference(), object)).collect();
    store_of(named.into_values())
}

fn same_outbound(
    whole: &Store,
    part: &Store,
    caller: &Arc<Workload>,
    host: &str,
) -> Result<(), TestCaseError> {
    let (a, b) = (whole.outbound(caller, host), part.outbound(caller, host));
    prop_assert_eq!(a.is_some(), b.is_some(), "{} from {}", host, caller.namespace);
    let (Some(a), Some(b)) = (a, b) else { return Ok(()) };
    prop_assert!(
        a.fingerprint() == b.fingerprint(),
        "{}: {:#?} {:#?}",
        host,
        a.fingerprint(),
        b.fingerprint()
    );
    for subset in ["", "v1"] {
        let (a, b) = (a.effective_policy(80, subset), b.effective_policy(80, subset));
        prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_told_of_hosts_decides_as_the_whole_does(
        choice in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let whole = store_of(some(&choice).into_values());
        for caller in callers(&whole) {
            let view = whole.view(&caller);
            let own = || whole.workload_resources(&caller).into_iter().chain(whole.workload_object(&caller));
            let mut all: Vec<Object> = own().collect();
            for host in HOSTS {
                let Some(told) = whole.host_resources(&view, host) else {
                    prop_assert!(whole.outbound(&caller, host).is_none());
                    continue;
                };
                // Alone, with what is told of the workload, and with everything that is told.
                let outbound = whole.outbound(&caller, host).unwrap();
                prop_assert_eq!(whole.host_backends(&view, host).unwrap_or_default().to_vec(), outbound.backends());
                same_outbound(&whole, &store_of(told.clone()), &caller, host)?;
                same_outbound(&whole, &union(own().chain(told.clone())), &caller, host)?;
                all.extend(told);
            }
            let part = union(all);
            for host in HOSTS.iter().filter(|host| whole.host_resources(&view, host).is_some()) {
                same_outbound(&whole, &part, &caller, host)?;
            }
            let described = caller.resource.is_some();
            let again = if described {
                part.workload(&caller.namespace, &caller.name).unwrap()
            } else {
                Arc::clone(&caller)
            };
            prop_assert_eq!(&again, &caller);
            prop_assert_eq!(part.inbound(&again), whole.inbound(&caller));
        }
    }

    /// What a namespace may not see is told to nobody there.
    #[test]
    fn nothing_is_told_that_is_not_seen(
        choice in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 20..60),
    ) {
        let whole = store_of(some(&choice).into_values());
        for caller in callers(&whole) {
            let view = whole.view(&caller);
            let told = HOSTS.iter().filter_map(|host| whole.host_resources(&view, host)).flatten();
            for object in told.chain(whole.workload_resources(&caller)) {
                let meta = object.meta();
                let private = match &object {
                    Object::VirtualService(vs) => vs.spec.export_to == ["."],
                    Object::DestinationRule(rule) => rule.spec.export_to == ["."],
                    Object::ServiceEntry(entry) => entry.spec.export_to == ["."] && meta.name != "names",
                    Object::Service(_) => !meta.annotations.is_empty(),
                    _ => true,
                };
                let own = *meta.namespace == *caller.namespace || meta.namespace == "istio-system";
                prop_assert!(own || !private, "{} is told to {}", object.reference(), caller.namespace);
            }
            if caller.namespace.as_ref() != "b" {
                prop_assert!(whole.host_backends(&view, "hidden.b").is_none());
                prop_assert!(whole.address_hosts(&view, "10.96.0.9".parse().unwrap()).is_none());
            }
        }
    }

    #[test]
    fn whatever_is_told_differently_is_among_the_differences(
        choice in proptest::collection::vec((any::<proptest::sample::Index>(), 0..3_u8), 1..50),
    ) {
        let all = objects();
        let mut keeper = Keeper::new(StoreOptions::default());
        let mut before = keeper.store();
        for (at, what) in &choice {
            let object = at.get(&all).clone();
            let changed = if *what == 0 { keeper.remove(&object.reference()) } else { keeper.put(object) };
            let now = keeper.store();
            let found = now.differences(&before);
            prop_assert!(changed || found.is_empty());
            let peers = ["a/one", "a/two", "b/three", "a/we", "a/none", "b/none", "c/none"];
            for peer in peers {
                let (namespace, name) = peer.split_once('/').unwrap();
                let workload = |store: &Store| {
                    let nobody = || Arc::new(Workload::detached(store.options(), namespace, name, "", Labels::new()));
                    store.workload(namespace, name).unwrap_or_else(nobody)
                };
                let (old, new) = (workload(&before), workload(&now));
                let of = |store: &Store, workload: &Arc<Workload>| {
                    (store.workload_object(workload), store.workload_resources(workload))
                };
                prop_assert!(of(&before, &old) == of(&now, &new) || found.workload(namespace, name), "{} {}", at.get(&all).reference(), peer);
                let (a, b): (View, View) = (before.view(&old), now.view(&new));
                for host in HOSTS {
                    let same = before.host_resources(&a, host) == now.host_resources(&b, host);
                    prop_assert!(same || found.host(host), "{}: {} for {}", at.get(&all).reference(), host, peer);
                    let same = before.host_backends(&a, host) == now.host_backends(&b, host);
                    prop_assert!(same || found.endpoints(host), "{}: endpoints of {} for {}", at.get(&all).reference(), host, peer);
                }
                for ip in IPS.iter().map(|ip| ip.parse().unwrap()) {
                    let same = before.address_hosts(&a, ip) == now.address_hosts(&b, ip);
                    prop_assert!(same || found.address(ip), "{}: {} for {}", at.get(&all).reference(), ip, peer);
                }
            }
            before = now;
        }
    }
}
