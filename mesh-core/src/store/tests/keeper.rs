//! A store that follows its objects is the store of the objects.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Keeper;
use super::world::{HOSTS, objects};
use super::*;

/// The order of endpoints makes no difference.
fn sorted<T: std::fmt::Debug>(endpoints: &[T]) -> String {
    let mut endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("{endpoint:#?}\n")).collect();
    endpoints.sort();
    endpoints.concat()
}

/// Everything that a store answers, as text.
fn told(store: &Store) -> String {
    let mut told = String::new();
    let mut workloads: Vec<_> = store.workloads().map(Arc::clone).collect();
    workloads.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    workloads.push(caller("a"));
    workloads.push(caller("b"));
    for workload in workloads {
        told += &format!("{:#?}\n", store.inbound(&workload));
        let known: Vec<_> = store.hosts(&workload).collect();
        told += &format!("{known:#?}\n");
        for host in HOSTS {
            let Some(outbound) = store.outbound(&workload, host) else { continue };
            told += &format!("{host} {:#?}\n", outbound.fingerprint());
            told += &sorted(outbound.backends());
            told += &sorted(&outbound.endpoints(80, ""));
            told += &sorted(&outbound.endpoints(80, "v1"));
        }
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
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
        let (kept, whole) = (told(&before), told(&whole));
        let mut lines = kept.lines().zip(whole.lines()).enumerate();
        let differs = lines.find(|(_, (kept, whole))| kept != whole);
        prop_assert!(kept.len() == whole.len() && differs.is_none(), "{:?}", differs);
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

#[test]
fn a_workload_entry_that_goes_takes_its_endpoint_along() {
    let texts = [
        doc("Service", "a/s", "{selector: {app: x}, ports: [{name: http, port: 80}]}"),
        doc("WorkloadEntry", "a/we", "{address: 10.0.1.1, labels: {app: x}}"),
        doc(
            "EndpointSlice",
            "a/s-1",
            "labels: {kubernetes.io/service-name: s}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: \
             [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: one}}]",
        ),
        doc("Pod", "a/one", "labels: {app: x}\nstatus: {podIP: 10.0.0.1}"),
    ];
    let mut keeper = Keeper::new(StoreOptions::default());
    let objects: Vec<_> = texts.iter().flat_map(|text| parse_objects("all.yaml", text).unwrap()).collect();
    for object in &objects {
        assert!(keeper.put(object.clone()));
    }
    let addresses = |store: &Store| addresses(&outbound(store, "a", "s").unwrap().endpoints(80, ""));
    assert_eq!(addresses(&keeper.store()), ["10.0.0.1:80", "10.0.1.1:80"]);
    assert!(keeper.remove(&objects[1].reference()));
    assert_eq!(addresses(&keeper.store()), ["10.0.0.1:80"]);
}
