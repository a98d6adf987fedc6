//! What is told becomes what is in force: without a network, change by change.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::cluster::Gauge;
use mesh_core::failure::FailureCode;
use mesh_core::normal::Authority;
use mesh_core::resource::Object;
use mesh_core::store::{Store, StoreOptions};
use mesh_xds::client::{Change, Client, ClientLimits, Now, Refusal, Sink, SubscriptionStatus};
use mesh_xds::{Address, Endpoints, Host, Payload, ResourceType, Workload};

use super::learn::OnDemand;
use super::sink::{Configuration, ConfigurationSink};
use super::stats::Counters;
use super::{ControlPlane, Each};
use crate::hosts::Hosts;
use crate::learn::Learn;
use crate::world::{Wanted, World};

const OWN: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: default}
spec: {address: 10.0.0.9, serviceAccount: web, labels: {app: web}}
";

/// A service with one endpoint at an address, and more documents.
fn host(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{clusterIP: 10.96.0.1, ports: [{{name: http, port: 80}}]}}\n---\n{more}"
    )
}

fn routes(name: &str, http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{hosts: [{name}], http: [{http}]}}\n"
    )
}

fn leads_to(name: &str, to: &str) -> String {
    routes(name, &format!("{{route: [{{destination: {{host: {to}}}}}]}}"))
}

fn full(name: &str) -> String {
    format!("{name}.default.svc.cluster.local")
}

struct Scene {
    client: Client,
    sink: ConfigurationSink,
    configuration: Arc<Configuration>,
    registry: Arc<mesh_core::cluster::Registry>,
}

impl Scene {
    fn new() -> Self {
        Self::with(ClientLimits::default())
    }

    fn with(limits: ClientLimits) -> Self {
        let client = Client::new("default/web-1", limits);
        let wanted = Wanted::Named { namespace: "default".into(), name: "web-1".into() };
        let world = World::new(StoreOptions::default(), wanted, None, None, None);
        let registry = Arc::clone(world.registry());
        let configuration =
            Configuration::new(world, client.clone(), "default/web-1".into(), "istio-system".into());
        let sink = ConfigurationSink::new(Arc::clone(&configuration));
        Self { client, sink, configuration, registry }
    }

    /// A scene whose own workload is known.
    fn begun() -> Self {
        let mut scene = Self::new();
        assert!(scene.workload(OWN).is_empty());
        scene
    }

    fn tell(&mut self, kind: ResourceType, name: &str, now: Now) -> Vec<Refusal> {
        self.sink.apply(&[Change { kind, name: name.into(), now }])
    }

    fn workload(&mut self, yaml: &str) -> Vec<Refusal> {
        let content = Workload { options: StoreOptions::default(), resources: objects(yaml) };
        self.tell(ResourceType::Workload, "default/web-1", content_of(content))
    }

    fn host(&mut self, name: &str, yaml: &str) -> Vec<Refusal> {
        self.tell(ResourceType::Host, &full(name), content_of(Host { resources: objects(yaml) }))
    }

    fn endpoints(&mut self, name: &str, address: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}-1, namespace: default}}\n\
             spec: {{address: {address}, labels: {{app: {name}}}}}\n"
        );
        let store = Store::new(StoreOptions::default(), objects(&text));
        let caller = store.workload("default", &format!("{name}-1")).unwrap();
        let outbound = store.outbound(&caller, name).unwrap();
        let content = Endpoints::collect(outbound.backends());
        assert!(self.tell(ResourceType::Endpoints, &full(name), content_of(content)).is_empty());
    }

    fn each(&self) -> Arc<Each> {
        match &self.configuration.view().load().hosts {
            Hosts::Each(each) => Arc::clone(each),
            Hosts::Whole(_) => Arc::default(),
        }
    }

    /// The hosts in force, by their names.
    fn served(&self) -> Vec<String> {
        let each = self.each();
        let mut hosts: Vec<String> =
            each.table.domains().map(|(_, routes)| routes.host().to_string()).collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    fn wants(&self, kind: ResourceType, name: &str) -> bool {
        let is = |s: &SubscriptionStatus| s.kind == kind && *s.name == *full(name);
        self.client.subscriptions().iter().any(is)
    }

    fn addresses(&self) -> Vec<String> {
        let clusters = self.registry.all();
        let members = clusters.iter().flat_map(|c| {
            let set = c.load_endpoints();
            set.members().iter().map(|e| e.key().address.to_string()).collect::<Vec<_>>()
        });
        let mut all: Vec<String> = members.collect();
        all.sort();
        all
    }
}

fn objects(yaml: &str) -> Vec<Object> {
    mesh_core::yaml::parse_objects("told.yaml", yaml).unwrap()
}

fn content_of(payload: impl Into<Payload>) -> Now {
    Now::Content(Box::new(payload.into()))
}

#[test]
fn a_host_is_served_once_it_is_whole() {
    let mut scene = Scene::new();
    // In any order: what is told before the workload itself is known waits for it.
    scene.host("a", &host("a", ""));
    assert!(scene.wants(ResourceType::Endpoints, "a"), "its endpoints are asked for with it");
    scene.endpoints("a", "10.0.0.1");
    assert!(scene.served().is_empty());
    scene.workload(OWN);
    assert_eq!(scene.served(), [full("a")]);
    assert_eq!(scene.addresses(), ["10.0.0.1:80"]);

    // Routes to others wait for these, and for those that these need.
    scene.host("b", &host("b", &leads_to("b", "c")));
    scene.endpoints("b", "10.0.0.2");
    assert_eq!(scene.served(), [full("a")]);
    assert!(scene.wants(ResourceType::Host, "c") && scene.wants(ResourceType::Endpoints, "c"));
    scene.host("c", &host("c", &leads_to("c", "d")));
    scene.endpoints("c", "10.0.0.3");
    assert_eq!(scene.served(), [full("a")]);
    scene.host("d", &host("d", &leads_to("d", "b")));
    assert_eq!(scene.served(), [full("a")]);
    scene.endpoints("d", "10.0.0.4");
    assert_eq!(scene.served(), [full("a"), full("b"), full("c"), full("d")], "a circle is no hindrance");
}

#[test]
fn an_edit_that_needs_another_host_waits_and_the_old_routes_stay() {
    let mut scene = Scene::begun();
    scene.host("a", &host("a", ""));
    scene.endpoints("a", "10.0.0.1");
    let view = scene.configuration.view();
    let cluster = |scene: &Scene| {
        let authority = Authority::parse("a").unwrap();
        let each = scene.each();
        let routes = Arc::clone(each.table.host(authority.name()).unwrap());
        format!("{routes:?}")
    };
    let before = cluster(&scene);
    scene.host("a", &host("a", &leads_to("a", "new")));
    assert_eq!(cluster(&scene), before, "the route waits for its destination");
    assert_eq!(view.load().workload.as_ref().map(|w| &*w.name), Some("web-1"));
    scene.tell(ResourceType::Host, &full("new"), Now::Absent);
    assert_ne!(cluster(&scene), before, "now it is known that there is none");
    // When it comes to be, the route leads there, without anybody asking.
    scene.host("new", &host("new", ""));
    scene.endpoints("new", "10.0.0.5");
    assert!(scene.addresses().contains(&"10.0.0.5:80".to_owned()), "{:?}", scene.addresses());
}

#[test]
fn endpoints_move_without_a_new_table_and_keep_their_clusters() {
    let mut scene = Scene::begun();
    scene.host("a", &host("a", ""));
    scene.endpoints("a", "10.0.0.1");
    scene.host("b", &host("b", &leads_to("b", "a")));
    scene.endpoints("b", "10.0.0.2");
    let (table, clusters) = (Arc::clone(&scene.each().table), scene.registry.all().len());
    scene.endpoints("a", "10.0.0.7");
    assert!(Arc::ptr_eq(&table, &scene.each().table));
    assert_eq!(scene.registry.all().len(), clusters);
    assert!(scene.addresses().contains(&"10.0.0.7:80".to_owned()));
    assert!(!scene.addresses().contains(&"10.0.0.1:80".to_owned()));
}

#[test]
fn what_is_gone_or_forgotten_leaves_nothing_behind() {
    let mut scene = Scene::begun();
    for name in ["a", "b"] {
        scene.host(name, &host(name, ""));
        scene.endpoints(name, "10.0.0.1");
    }
    scene.tell(ResourceType::Host, &full("a"), Now::Absent);
    scene.tell(ResourceType::Endpoints, &full("a"), Now::Absent);
    assert_eq!(scene.served(), [full("b")]);
    scene.tell(ResourceType::Host, &full("b"), Now::Forgotten);
    scene.tell(ResourceType::Endpoints, &full("b"), Now::Forgotten);
    assert!(scene.served().is_empty() && scene.registry.all().is_empty());
    assert!(scene.each().slots.is_empty(), "{:?}", scene.each().slots.keys());
    // A name that never was anything is not kept either.
    for i in 0..100 {
        scene.tell(ResourceType::Host, &full(&format!("nobody-{i}")), Now::Absent);
        scene.tell(ResourceType::Endpoints, &full(&format!("nobody-{i}")), Now::Absent);
    }
    assert!(scene.each().slots.is_empty());
}

#[test]
fn a_needed_host_that_does_not_exist_is_asked_for_again_when_it_is_forgotten() {
    let mut scene = Scene::begun();
    scene.host("a", &host("a", &leads_to("a", "nowhere")));
    scene.endpoints("a", "10.0.0.1");
    scene.tell(ResourceType::Host, &full("nowhere"), Now::Absent);
    assert_eq!(scene.served(), [full("a")]);
    scene.tell(ResourceType::Host, &full("nowhere"), Now::Forgotten);
    assert_eq!(scene.served(), [full("a")]);
    assert!(scene.wants(ResourceType::Host, "nowhere"));
}

#[test]
fn what_is_wrong_is_refused_or_takes_its_closed_reading() {
    let policy = |field: &str| {
        format!(
            "{OWN}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: default}}\nspec: {{action: ALLOW, {field}}}\n"
        )
    };
    let unsupported = policy("rules: [{when: [{key: 'experimental.envoy.filters.x[y]', values: [z]}]}]");
    let good = policy("rules: [{}]");

    // With an older form in force, that one stays, and the reason goes back.
    let mut scene = Scene::new();
    assert!(scene.workload(&good).is_empty());
    let refused = scene.workload(&unsupported);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.contains("AuthorizationPolicy default/p"), "{}", refused[0].reason);
    assert!(scene.configuration.view().load().objects.iter().all(|o| o.invalid().is_none()));

    // Without one, it closes.
    let mut scene = Scene::new();
    assert!(scene.workload(&unsupported).is_empty());
    let view = scene.configuration.view();
    let closed = view.load().objects.iter().filter(|o| o.invalid().is_some()).count();
    assert_eq!((closed, view.load().diagnostics.is_empty()), (1, false));

    // A workload that is not in its own content is refused; one that is unknown is waited for.
    let mut scene = Scene::new();
    assert!(scene.workload(&host("a", "")).first().unwrap().reason.contains("default/web-1"));
    scene.tell(ResourceType::Workload, "default/web-1", Now::Absent);
    assert!(scene.configuration.view().load().workload.is_none());
}

#[test]
fn names_of_other_hosts_lead_to_those() {
    let mut scene = Scene::begun();
    // An instance of a headless service.
    let headless = host("db", "").replace("clusterIP: 10.96.0.1", "clusterIP: None");
    let instance = format!("db-0.{}", full("db"));
    let content = Host { resources: objects(&headless) };
    scene.tell(ResourceType::Host, &instance, content_of(content.clone()));
    scene.tell(ResourceType::Endpoints, &instance, Now::Absent);
    assert!(scene.served().is_empty());
    assert!(scene.wants(ResourceType::Host, "db"));
    scene.tell(ResourceType::Host, &full("db"), content_of(content));
    scene.endpoints("db", "10.0.0.3");
    assert_eq!(scene.served(), [full("db")]);
    assert!(scene.each().table.host(&instance).is_some());
}

#[test]
fn what_is_kept_is_whole_without_what_was_not_there() {
    let mut scene = Scene::begun();
    scene.host("a", &host("a", &leads_to("a", "nowhere")));
    scene.endpoints("a", "10.0.0.1");
    scene.tell(ResourceType::Host, &full("nowhere"), Now::Absent);
    assert_eq!(scene.served(), [full("a")]);
    // The snapshot is the client's; here it is made by one that was told so.
    let snapshot = snapshot_of(&[
        (ResourceType::Workload, "default/web-1".to_owned(), Payload::from(own_content())),
        (
            ResourceType::Host,
            full("a"),
            Payload::from(Host { resources: objects(&host("a", &leads_to("a", "nowhere"))) }),
        ),
    ]);
    let again = Scene::new();
    again.configuration.restore(&snapshot);
    assert_eq!(again.served(), [full("a")], "nobody is there to say that there is no `nowhere`");
    // What is damaged is no configuration.
    let fresh = Scene::new();
    fresh.configuration.restore(&snapshot[..snapshot.len() - 1]);
    assert!(fresh.configuration.view().load().workload.is_none());
}

fn own_content() -> Workload {
    Workload { options: StoreOptions::default(), resources: objects(OWN) }
}

/// What a client that holds this keeps.
fn snapshot_of(held: &[(ResourceType, String, Payload)]) -> Vec<u8> {
    use mesh_xds::proto::mesh::{Held, Snapshot};
    use prost::Message;
    use sha2::{Digest, Sha256};
    let held = held.iter().map(|(kind, name, payload)| {
        let encoded = payload.encode().unwrap();
        Held {
            type_url: kind.url().to_owned(),
            name: name.clone(),
            version: encoded.version().to_string(),
            body: encoded.body().clone(),
            pinned: false,
            absent: false,
        }
    });
    let content = Snapshot { held: held.collect() }.encode_to_vec();
    [b"mesh-xds snapshot 1\n".as_slice(), Sha256::digest(&content).as_slice(), &content].concat()
}

#[test]
fn addresses_are_kept_while_they_are_told_of() {
    let mut scene = Scene::begun();
    let address = Address { hosts: vec![full("a")], endpoint: false };
    scene.tell(ResourceType::Address, "10.96.0.1", content_of(address));
    assert_eq!(scene.each().addresses.len(), 1);
    scene.tell(ResourceType::Address, "10.96.0.1", Now::Forgotten);
    assert!(scene.each().addresses.is_empty());
}

/// A connection asks for its address when it is opened, and may be open for hours.
#[test]
fn the_addresses_of_hosts_in_use_are_in_use() {
    let mut scene = Scene::begun();
    for (name, ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2")] {
        scene.host(name, &host(name, ""));
        scene.endpoints(name, "10.0.0.1");
        let behind = Address { hosts: vec![full(name)], endpoint: false };
        scene.tell(ResourceType::Address, ip, content_of(behind));
    }
    assert!(scene.configuration.take_used().is_empty());
    let of_a = scene.registry.all().into_iter().find(|c| *c.key().host == *full("a")).unwrap();
    let open = of_a.try_acquire(Gauge::Connections, 10).unwrap();
    for _ in 0..2 {
        let used = scene.configuration.take_used();
        let of_a = |kind: ResourceType, name: &str| (kind, name.to_owned());
        assert_eq!(used.len(), 3, "{used:?}");
        for one in [
            of_a(ResourceType::Host, &full("a")),
            of_a(ResourceType::Endpoints, &full("a")),
            of_a(ResourceType::Address, "10.96.0.1"),
        ] {
            assert!(used.contains(&one), "{one:?}");
        }
    }
    drop(open);
}

fn plane() -> ControlPlane {
    ControlPlane { first_calls: 2, ..ControlPlane::new("https://localhost", "token", "roots").unwrap() }
}

#[tokio::test(start_paused = true)]
async fn first_calls_wait_so_long_and_so_many() {
    let scene = Scene::begun();
    let counters = Arc::<Counters>::default();
    let view = scene.configuration.view();
    let learner = OnDemand::new(&plane(), scene.client.clone(), view, Arc::clone(&counters));
    let code = |learnt: Result<(), mesh_core::failure::Failure>| learnt.unwrap_err().code();
    let authority = Authority::parse("a:80").unwrap();
    // Nobody answers: two wait, the third does not.
    let (first, second) = (tokio::spawn(learner.host(&authority)), tokio::spawn(learner.host(&authority)));
    tokio::task::yield_now().await;
    assert_eq!(code(learner.host(&authority).await), FailureCode::Overflow);
    let ip = "10.0.0.1".parse().unwrap();
    assert_eq!(learner.address(ip).await.unwrap_err().code(), FailureCode::Overflow);
    let begun = tokio::time::Instant::now();
    assert_eq!(code(first.await.unwrap()), FailureCode::ConfigUnavailable);
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(code(second.await.unwrap()), FailureCode::ConfigUnavailable);
    // Those that have gone make room.
    assert_eq!(code(learner.host(&authority).await), FailureCode::ConfigUnavailable);

    // Who has been away for long is not waited for.
    counters.set_away(true);
    let begun = tokio::time::Instant::now();
    assert_eq!(code(learner.host(&authority).await), FailureCode::ConfigUnavailable);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_asked_for_than_may_be() {
    let limits = ClientLimits { subscriptions: 2, ..ClientLimits::default() };
    let mut scene = Scene::with(limits);
    scene.workload(OWN);
    let view = scene.configuration.view();
    let learner = OnDemand::new(&plane(), scene.client.clone(), view, Arc::default());
    let failure = learner.host(&Authority::parse("a.b.example.com").unwrap()).await.unwrap_err();
    assert_eq!(failure.code(), FailureCode::ConfigUnavailable);
    let failure = learner.host(&Authority::parse("c.d.example.com").unwrap()).await.unwrap_err();
    assert_eq!(failure.code(), FailureCode::Overflow, "{failure}");
    // A route to a host for which there is no room is in force, and leads nowhere.
    scene.host("x", &host("x", &leads_to("x", "y")));
    scene.tell(ResourceType::Endpoints, &full("x"), Now::Absent);
    assert_eq!(scene.served(), [full("x")]);
}

#[test]
fn a_workload_has_to_be_named() {
    let built = crate::Mesh::builder().account("default", "web").control_plane(plane()).build();
    assert!(matches!(built, Err(crate::BuildError::NoWorkload)));
}
