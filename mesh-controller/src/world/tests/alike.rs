//! A proxy that is told decides as the whole cluster's store does.

use mesh_core::store::{Backend, Outbound};

use super::*;

/// What a proxy makes of what it is told: a store for each host, and one of everything.
struct Told {
    options: StoreOptions,
    own: Vec<Object>,
    hosts: BTreeMap<String, (Vec<Object>, Vec<Backend>)>,
}

impl Told {
    fn ask(answers: &Answers, peer: &Peer, own: &str, hosts: &[String]) -> Self {
        let ask = |kind, name: &str| decoded(&answers.answer(peer, kind, name));
        let Some(Payload::Workload(workload)) = ask(ResourceType::Workload, own) else {
            panic!("{own} is told nothing of itself")
        };
        let mut told = Self { options: workload.options, own: workload.resources, hosts: BTreeMap::new() };
        for host in hosts {
            let Some(Payload::Host(resources)) = ask(ResourceType::Host, host) else { continue };
            let backends = match ask(ResourceType::Endpoints, host) {
                Some(Payload::Endpoints(endpoints)) => endpoints.backends(&told.options).collect(),
                _ => Vec::new(),
            };
            told.hosts.insert(host.clone(), (resources.resources, backends));
        }
        told
    }

    fn everything(&self) -> Store {
        let hosts = self.hosts.values().flat_map(|(objects, _)| objects).cloned();
        store_of(last(self.own.iter().cloned().chain(hosts)).into_values())
    }
}

fn endpoints(outbound: &Outbound, port: u16, subset: &str) -> Vec<String> {
    let mut all: Vec<_> = outbound.endpoints(port, subset).iter().map(|e| format!("{e:?}")).collect();
    all.sort();
    all
}

fn alike(whole: &Outbound, part: &Outbound, what: &str) {
    assert!(whole.fingerprint() == part.fingerprint(), "{what}: {whole:#?} {part:#?}");
    let ports = whole.service().map_or_else(Vec::new, |s| s.ports.iter().map(|p| p.number).collect());
    let subsets: Vec<String> = whole.policy().subsets().iter().map(|s| s.name.clone()).collect();
    for port in ports {
        for subset in subsets.iter().map(String::as_str).chain([""]) {
            let (a, b) = (whole.effective_policy(port, subset), part.effective_policy(port, subset));
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "{what} {port} {subset}");
        }
    }
}

/// Asks for everything as every workload, and as somebody of each namespace.
fn check(objects: Vec<Object>) -> usize {
    let objects: Vec<_> = last(objects).into_values().collect();
    let world = world_of(objects.clone());
    let (whole, answers) = (store_of(objects), world.source());
    let mut checked = 0;
    let namespaces = whole.workloads().map(|w| w.namespace.to_string()).chain(["nowhere".to_owned()]);
    let detached = namespaces.map(|namespace| {
        let none = Labels::new();
        Arc::new(Workload::detached(whole.options(), &namespace, "somebody", "somebody", none))
    });
    let described = whole.workloads().map(|w| (Arc::clone(w), beside(w)));
    let callers = described.chain(detached.map(|w| (Arc::clone(&w), somebody(&w.namespace))));
    for (workload, peer) in callers {
        let own = format!("{}/{}", workload.namespace, workload.name);
        let known = whole.hosts(&workload).flat_map(|host| host.domains);
        let known = known.map(|host| host.to_string()).filter(|host| !host.starts_with('*'));
        let hosts: Vec<_> = known.chain(NAMES.iter().map(ToString::to_string)).collect();
        let told = Told::ask(&answers, &peer, &own, &hosts);
        let everything = told.everything();
        for host in &hosts {
            let what = format!("{host} from {own}");
            let before = whole.outbound(&workload, host);
            let (Some(before), Some((resources, backends))) = (&before, told.hosts.get(host)) else {
                assert!(before.is_none() && !told.hosts.contains_key(host), "{what}");
                continue;
            };
            alike(before, &everything.outbound(&workload, host).unwrap(), &what);
            let alone = Store::of_host(told.options.clone(), resources.clone(), backends);
            let alone = alone.outbound(&workload, host).unwrap();
            alike(before, &alone, &what);
            let ports = before.service().map_or_else(Vec::new, |s| s.ports.clone());
            for port in ports {
                for subset in ["", "v1", "v2"] {
                    let (a, b) =
                        (endpoints(before, port.number, subset), endpoints(&alone, port.number, subset));
                    assert_eq!(a, b, "{what} {} {subset}", port.number);
                    checked += a.len();
                }
            }
        }
        let again = match &workload.resource {
            Some(_) => everything.workload(&workload.namespace, &workload.name).unwrap(),
            None => Arc::clone(&workload),
        };
        assert_eq!(again, workload);
        assert_eq!(everything.inbound(&again), whole.inbound(&workload), "{own}");
        for ip in IPS {
            let found = whole.address_hosts(&whole.view(&workload), ip.parse().unwrap());
            let told = decoded(&answers.answer(&peer, ResourceType::Address, ip));
            let told = told.map(|told| match told {
                Payload::Address(address) => (address.hosts, address.endpoint),
                other => panic!("{other:?}"),
            });
            let found = found.map(|a| (a.hosts.iter().map(ToString::to_string).collect(), a.endpoint));
            assert_eq!(told, found, "{ip} from {own}");
        }
    }
    checked
}

/// Numbers that are put in where the files are used.
const MARKS: &[&str] = &["{{INBOUND}}", "{{LIMIT}}", "{{BACKEND_V1}}", "{{BACKEND_V2}}"];

#[test]
fn the_repositorys_configurations_are_told_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = [
        "mesh-core/src/yaml/samples/bookinfo.yaml",
        "bench/peers/ours/mtls/reviews.yaml",
        "bench/peers/ours/plain/reviews.yaml",
        "bench/peers/ours/routes/web.yaml",
        "bench/peers/ours/tcp/db.yaml",
        "bench/peers/ours/tcp-mtls/db.yaml",
    ];
    for file in files {
        let mut text = std::fs::read_to_string(root.join(file)).unwrap();
        text = text.replace("{{PORT_NAME}}", "http");
        for mark in MARKS {
            text = text.replace(mark, "9080");
        }
        let objects = parse_objects(file, &text).unwrap().iter().map(from_nowhere).collect();
        assert!(check(objects) > 0 || file.contains("routes"), "{file} has no endpoint");
    }
}

#[test]
fn a_world_in_which_things_hide_is_told_whole() {
    let all = forms();
    assert!(check(all.clone()) > 20);
    // The other form of each, and each left out.
    for (i, object) in all.iter().enumerate() {
        let mut some = all.clone();
        some.remove(i);
        check(some.clone());
        some.push(object.clone());
        check(some);
    }
}

#[test]
fn what_may_not_be_seen_is_in_no_answer() {
    let world = world_of(forms());
    let answers = world.source();
    for namespace in ["shop", "nowhere"] {
        let peer = somebody(namespace);
        for name in ["secret.books", "secret.books.svc.cluster.local", "other.example.com", "10.96.0.9"] {
            assert_eq!(answers.answer(&peer, ResourceType::Host, name), Answer::Absent, "{name}");
            assert_eq!(answers.answer(&peer, ResourceType::Endpoints, name), Answer::Absent, "{name}");
        }
        assert_eq!(answers.answer(&peer, ResourceType::Address, "10.96.0.9"), Answer::Absent);
        // The address of an endpoint that two services have, of which one is hidden.
        let Some(Payload::Address(address)) =
            decoded(&answers.answer(&peer, ResourceType::Address, "10.0.1.1"))
        else {
            panic!("somebody sees ratings");
        };
        assert_eq!(address.hosts, ["ratings.books.svc.cluster.local"]);
        for name in NAMES {
            let Answer::Found(found) = answers.answer(&peer, ResourceType::Host, name) else { continue };
            let text = String::from_utf8_lossy(found.body());
            for hidden in ["secret", "hidden", "wild", "\"mine\""] {
                assert!(!text.contains(hidden), "{name} tells of {hidden}: {text}");
            }
        }
    }
    let books = somebody("books");
    for name in ["secret", "other.example.com"] {
        assert!(matches!(answers.answer(&books, ResourceType::Host, name), Answer::Found(_)), "{name}");
    }
}

#[test]
fn a_workload_is_told_to_itself_alone() {
    let world = world_of(forms());
    let answers = world.source();
    let ask = |peer: &Peer, name: &str| answers.answer(peer, ResourceType::Workload, name);
    let store = world.store().load_full();
    let one = beside(&store.workload("shop", "one").unwrap());
    assert!(matches!(ask(&one, "shop/one"), Answer::Found(_)));
    for other in ["shop/two", "books/vm", "shop/reviews", "shop/somebody", "one"] {
        assert_eq!(ask(&one, other), Answer::Absent, "{other}");
    }
    // Of whom nobody says which workload it is gets what its account gets, but no Pod of that name.
    let account = Peer { workload: None, ..one.clone() };
    assert_eq!(ask(&account, "shop/one"), Answer::Absent);
    let Some(Payload::Workload(told)) = decoded(&ask(&account, "shop/reviews")) else { panic!() };
    assert!(
        told.resources.iter().all(|object| object.kind() != "Pod" && object.reference().name() != "reviews")
    );
    // A Pod that is not known yet is told nothing, rather than what applies to one without labels.
    let unknown = Peer { workload: Some("shop/three".into()), ..one.clone() };
    assert_eq!(ask(&unknown, "shop/three"), Answer::Unchanged);

    // Nobody here: of another trust domain, with a workload of another namespace, without a namespace.
    let stranger = |identity: &str, workload: Option<&str>| Peer {
        identity: identity.parse().unwrap(),
        workload: workload.map(Arc::from),
    };
    for stranger in [
        stranger("spiffe://elsewhere/ns/shop/sa/reviews", Some("shop/one")),
        stranger("spiffe://cluster.local/ns/books/sa/ratings", Some("shop/one")),
        stranger("spiffe://cluster.local/ns/shop/sa/reviews", Some("one")),
        stranger("spiffe://cluster.local/gateway", None),
    ] {
        assert_eq!(ask(&stranger, "shop/one"), Answer::Absent);
        for name in NAMES {
            assert_eq!(answers.answer(&stranger, ResourceType::Host, name), Answer::Absent);
            assert_eq!(answers.answer(&stranger, ResourceType::Endpoints, name), Answer::Absent);
        }
        assert_eq!(answers.answer(&stranger, ResourceType::Address, "10.96.0.2"), Answer::Absent);
    }
}
