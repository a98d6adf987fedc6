//! A store that follows its objects is the store of the objects.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Keeper;
use super::world::{HOSTS, objects};
use super::*;

/// Everything that a store answers, as text.
fn told(store: &Store) -> String {
    let mut told = String::new();
    let mut workloads: Vec<_> = store.workloads().map(Arc::clone).collect();
    workloads.push(caller("a"));
    workloads.push(caller("b"));
    for workload in workloads {
        told += &format!("{:#?}\n", store.inbound(&workload));
        let known: Vec<_> = store.hosts(&workload).collect();
        told += &format!("{known:#?}\n");
        for host in HOSTS {
            let Some(outbound) = store.outbound(&workload, host) else { continue };
            told += &format!("{host} {:#?} {:#?}\n", outbound.fingerprint(), outbound.backends());
            told += &format!("{:#?} {:#?}\n", outbound.endpoints(80, ""), outbound.endpoints(80, "v1"));
        }
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_is_the_store_of_its_objects(
        steps in proptest::collection::vec((any::<proptest::sample::Index>(), 0..4_u8), 1..60),
    ) {
        let all = objects();
        let mut keeper = Keeper::new(StoreOptions::default());
        let mut there = BTreeMap::new();
        let mut before = keeper.store();
        for (at, what) in steps {
            let object = at.get(&all).clone();
            let reference = object.reference();
            let changed = if what == 0 {
                let known = there.remove(&reference).is_some();
                prop_assert_eq!(keeper.remove(&reference), known);
                known
            } else {
                let known = there.insert(reference, object.clone());
                let changed = known.as_ref() != Some(&object);
                prop_assert_eq!(keeper.put(object), changed);
                changed
            };
            let store = keeper.store();
            if !changed {
                prop_assert!(Arc::ptr_eq(&store.index.services, &before.index.services));
            }
            before = store;
        }
        let whole = Store::new(StoreOptions::default(), there.into_values().collect());
        prop_assert_eq!(told(&before), told(&whole));
    }
}

#[test]
fn what_has_not_changed_is_shared() {
    let mut keeper = Keeper::new(StoreOptions::default());
    let all = objects();
    for object in all.clone() {
        keeper.put(object);
    }
    let before = keeper.store();
    let slice = all.iter().find(|o| o.reference().to_string() == "EndpointSlice a/s-1").unwrap();
    assert!(keeper.put(slice.clone()));
    let after = keeper.store();
    assert!(Arc::ptr_eq(&before.index.claims, &after.index.claims));
    assert!(Arc::ptr_eq(&before.index.workloads, &after.index.workloads));
    let changed = before.index.services.all().iter().zip(after.index.services.all());
    let changed: Vec<_> = changed.filter(|(a, b)| !Arc::ptr_eq(a, b)).map(|(a, _)| &*a.info.host).collect();
    assert_eq!(changed, ["s.a.svc.cluster.local"]);
}

#[test]
fn what_pods_have_in_common_is_kept_once_and_forgotten_with_the_last() {
    let mut keeper = Keeper::new(StoreOptions::default());
    let pods: Vec<_> = objects().into_iter().filter(|o| o.kind() == "Pod").collect();
    for pod in pods.iter().skip(2).take(1).chain(pods.first()) {
        assert!(keeper.put(pod.clone()));
    }
    let store = keeper.store();
    let [a, b] = [store.workload("a", "one").unwrap(), store.workload("a", "two").unwrap()];
    assert!(Arc::ptr_eq(&a.labels, &b.labels) && Arc::ptr_eq(&a.ports, &b.ports));
    assert!(Arc::ptr_eq(&a.service_account, &b.service_account));
    drop((a, b, store));
    for pod in &pods {
        keeper.remove(&pod.reference());
    }
    drop(keeper.store());
    assert_eq!(keeper.shared_values(), 0);
}
