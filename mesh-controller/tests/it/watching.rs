//! What a real API server says is what the controller knows, and what the leader writes is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use mesh_controller::event::Event;
use mesh_controller::metrics::Writes;
use mesh_controller::{leader, shared, status, watch};
use mesh_core::diagnostic::ResourceRef;
use mesh_core::resource::Object;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::definitions::install;
use crate::real::Real;

/// How long anything may take. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `holds` gives something.
async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = holds().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// What is known after all events, and what was wrong with them.
#[derive(Debug, Clone, Default)]
struct Mirror {
    known: Arc<Mutex<HashMap<ResourceRef, Object>>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    async fn follow(self, mut events: mpsc::Receiver<Vec<Event>>) {
        while let Some(batch) = events.recv().await {
            for event in batch {
                let reference = event.reference();
                let mut known = self.known.lock().unwrap();
                let news = match event {
                    Event::Put(object) => known.insert(reference.clone(), object.clone()) != Some(object),
                    Event::Gone(_) => known.remove(&reference).is_some(),
                };
                if !news {
                    self.wrong.lock().unwrap().push(reference.to_string());
                }
            }
        }
    }

    fn get(&self, reference: &ResourceRef) -> Option<Object> {
        self.known.lock().unwrap().get(reference).cloned()
    }

    async fn until(&self, kind: &'static str, name: &str, holds: impl Fn(Option<&Object>) -> bool) {
        let reference = ResourceRef::new(kind, if kind == "Namespace" { "" } else { "shop" }, name);
        let what = format!("{reference}: {:?}", self.get(&reference));
        until(&what, async || holds(self.get(&reference).as_ref()).then_some(())).await;
    }
}

/// A controller's watches, what they say and what is wrong.
struct Watching {
    mirror: Mirror,
    reports: status::Reports,
    metrics: watch::Metrics,
    synced: tokio::sync::watch::Receiver<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn watching(client: &Client) -> Watching {
    let (events, out) = mpsc::channel(watch::CHANNEL);
    let all_there = tokio::sync::watch::Sender::new(false);
    let synced = all_there.subscribe();
    let (mirror, reports, metrics) =
        (Mirror::default(), status::Reports::default(), watch::Metrics::default());
    let outputs =
        watch::Outputs { events, synced: all_there, reports: reports.clone(), metrics: metrics.clone() };
    let settings = watch::Settings { root_namespace: "istio-system".into() };
    let tasks = vec![
        tokio::spawn(watch::run(client.clone(), settings, outputs)),
        tokio::spawn(mirror.clone().follow(out)),
    ];
    Watching { mirror, reports, metrics, synced, tasks }
}

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let api_version = object["apiVersion"].as_str().unwrap();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap()));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

async fn apply(client: &Client, object: &Value) {
    let params = PatchParams::apply("test").force();
    until(&format!("apply {object}"), async || {
        let applied = api(client, object).patch(name(object), &params, &Patch::Apply(object)).await;
        applied.inspect_err(|error| eprintln!("{}: {error}", name(object))).ok()
    })
    .await;
}

async fn delete(client: &Client, object: &Value) {
    let params = DeleteParams::default().grace_period(0);
    api(client, object).delete(name(object), &params).await.unwrap();
}

fn of(api_version: &str, kind: &'static str, rest: Value) -> (&'static str, Value) {
    let mut object =
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a", "namespace": "shop"}});
    json_patch::merge(&mut object, &rest);
    (kind, object)
}

fn kubernetes() -> Vec<(&'static str, Value)> {
    let containers =
        json!([{"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": 80}]}]);
    vec![
        of("v1", "Service", json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "a"}}})),
        of(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4", "endpoints": []}),
        ),
        of("v1", "Pod", json!({"spec": {"containers": containers}})),
    ]
}

fn mesh() -> Vec<(&'static str, Value)> {
    let networking = |kind, spec: Value| of("networking.istio.io/v1", kind, json!({"spec": spec}));
    let security = |kind, spec: Value| of("security.istio.io/v1", kind, json!({"spec": spec}));
    vec![
        networking(
            "VirtualService",
            json!({"hosts": ["a"], "http": [{"timeout": "1.5s", "route": [{"destination": {"host": "a"}}]}]}),
        ),
        networking(
            "DestinationRule",
            json!({"host": "a", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}),
        ),
        networking(
            "ServiceEntry",
            json!({"hosts": ["x.example"], "ports": [{"number": 443, "name": "https", "protocol": "TLS"}], "resolution": "DNS"}),
        ),
        networking("WorkloadEntry", json!({"address": "10.9.9.9", "labels": {"app": "vm"}})),
        networking("Sidecar", json!({"egress": [{"hosts": ["./*"]}]})),
        security("PeerAuthentication", json!({"mtls": {"mode": "STRICT"}})),
        security(
            "AuthorizationPolicy",
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["PUT"]}}]}]}),
        ),
        of(
            "telemetry.istio.io/v1",
            "Telemetry",
            json!({"spec": {"accessLogging": [{"providers": [{"name": "envoy"}]}]}}),
        ),
    ]
}

fn with_label(object: &Value) -> Value {
    let mut object = object.clone();
    json_patch::merge(&mut object, &json!({"metadata": {"labels": {"changed": "yes"}}}));
    object
}

fn has_label(object: Option<&Object>) -> bool {
    object.is_some_and(|o| o.meta().labels.contains_key("changed"))
}

/// The rights that the documentation names.
const RIGHTS: &str = include_str!("../../../docs/controller-objects.md");

/// A client with these rights and no others.
async fn controller(real: &Real) -> Client {
    let rights = RIGHTS.split("## Rights").nth(1).unwrap();
    let mut rules = rights.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let indented = |rules: &str| rules.lines().map(|line| format!("  {line}\n")).collect::<String>();
    let mut manifest = String::new();
    for (kind, namespace) in [("ClusterRole", ""), ("Role", "  namespace: default\n")] {
        let rules = indented(rules.next().unwrap());
        manifest += &format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: controller\n{namespace}rules:\n{rules}---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata:\n  name: controller\n{namespace}\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: controller}}\n\
             subjects: [{{kind: User, name: controller, apiGroup: rbac.authorization.k8s.io}}]\n---\n"
        );
    }
    real.kubectl_apply(&manifest);
    real.client_as("controller").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kube-apiserver"]
async fn everything_that_happens_to_every_kind_is_told_once() {
    let real = Real::start().await;
    let client = &real.client;
    let mut watching = watching(&controller(&real).await);
    // There are no definitions yet.
    tokio::time::timeout(PATIENCE, watching.synced.wait_for(|s| *s)).await.unwrap().unwrap();
    until("pods are watched", async || watching.metrics.is_connected("Pod").then_some(())).await;
    assert!(!watching.metrics.is_connected("Sidecar"));

    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    apply(client, &shop).await;
    watching.mirror.until("Namespace", "shop", |o| o.is_some()).await;
    for (_, object) in kubernetes() {
        apply(client, &object).await;
    }
    install(client).await;
    for (_, object) in mesh() {
        apply(client, &object).await;
    }
    // A pod counts when it has an address.
    let (_, pod) = of("v1", "Pod", json!({}));
    let running =
        json!({"status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]}});
    let pods = api(client, &pod);
    pods.patch_status("a", &PatchParams::default(), &Patch::Merge(&running)).await.unwrap();

    let all: Vec<_> = kubernetes().into_iter().chain(mesh()).collect();
    for (kind, _) in &all {
        watching.mirror.until(kind, "a", |o| o.is_some_and(|o| o.invalid().is_none())).await;
    }
    for (_, object) in &all {
        apply(client, &with_label(object)).await;
    }
    for (kind, _) in &all {
        watching.mirror.until(kind, "a", has_label).await;
    }
    let errors: Vec<_> = watching.reports.wrong().into_iter().filter(|d| d.is_error()).collect();
    assert_eq!(errors, []);

    // The API server goes and comes back: what is known stays, and what happened meanwhile is told.
    real.kill_api_server();
    until("the watch is known to be broken", async || (!watching.metrics.is_connected("Pod")).then_some(()))
        .await;
    watching.mirror.until("Service", "a", |o| o.is_some()).await;
    real.start_api_server().await;
    let (_, other) =
        of("v1", "Service", json!({"metadata": {"name": "b"}, "spec": {"ports": [{"port": 81}]}}));
    apply(client, &other).await;
    watching.mirror.until("Service", "b", |o| o.is_some()).await;
    for (kind, _) in &all {
        let connected = async || watching.metrics.is_connected(kind).then_some(());
        until(&format!("{kind} is watched again"), connected).await;
        watching.mirror.until(kind, "a", has_label).await;
    }

    for (_, object) in &all {
        delete(client, object).await;
    }
    for (kind, _) in &all {
        watching.mirror.until(kind, "a", |o| o.is_none()).await;
    }
    assert_eq!(*watching.mirror.wrong.lock().unwrap(), Vec::<String>::new(), "told twice");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kube-apiserver"]
async fn a_resource_that_slipped_through_says_so_in_its_status() {
    let real = Real::start().await;
    let client = &real.client;
    install(client).await;
    apply(client, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).await;
    let watching = watching(client);
    let leading = tokio::sync::watch::Sender::new(true);
    let writer =
        status::run(client.clone(), watching.reports.clone(), leading.subscribe(), Writes::default());
    let writer = tokio::spawn(writer);

    let policy = |block: &str| {
        let rules = json!([{"from": [{"source": {"ipBlocks": [block]}}]}]);
        of("security.istio.io/v1", "AuthorizationPolicy", json!({"spec": {"action": "DENY", "rules": rules}}))
            .1
    };
    let condition = async |status: &str| {
        until(&format!("Reconciled is {status}"), async || {
            let object = api(client, &policy("")).get("a").await.ok()?;
            let condition = object.data.pointer("/status/conditions/0")?.clone();
            (condition["status"] == status).then_some((condition, object))
        })
        .await
    };
    apply(client, &policy("nonsense")).await;
    let (closed, object) = condition("False").await;
    assert_eq!((&closed["type"], &closed["reason"]), (&json!("Reconciled"), &json!("ClosedReading")));
    let message = closed["message"].as_str().unwrap();
    assert!(message.contains("ipBlocks") && message.contains("until it is mended it refuses"), "{message}");
    assert_eq!(object.data["status"]["observedGeneration"], 1);
    assert_eq!(object.data["status"]["validationMessages"][0]["type"]["code"], "MESH0003");
    watching.mirror.until("AuthorizationPolicy", "a", |o| o.is_some_and(|o| o.invalid().is_some())).await;

    apply(client, &policy("10.0.0.0/8")).await;
    let (fine, _) = condition("True").await;
    assert_eq!((&fine["reason"], &fine["message"]), (&json!("Applied"), &json!("")));
    watching.mirror.until("AuthorizationPolicy", "a", |o| o.is_some_and(|o| o.invalid().is_none())).await;

    // From now on it has a last good form.
    apply(client, &policy("nonsense")).await;
    let (kept, _) = condition("False").await;
    assert_eq!(kept["reason"], "LastGoodKept");
    watching.mirror.until("AuthorizationPolicy", "a", |o| o.is_some_and(|o| o.invalid().is_none())).await;
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kube-apiserver"]
async fn one_of_two_leads_and_keeps_the_roots_in_every_namespace() {
    let real = Real::start().await;
    let client = &real.client;
    let timing = leader::Timing {
        lease: Duration::from_secs(4),
        renew: Duration::from_secs(3),
        retry: Duration::from_millis(500),
    };
    let (roots, _) = tokio::sync::watch::channel("ROOT 1".to_owned());
    let controller = controller(&real).await;
    let replica = |pod: &str| {
        let settings = leader::Settings { timing, ..leader::Settings::new("default", pod) };
        let leads = tokio::sync::watch::Sender::new(false);
        let told = leads.subscribe();
        let stop = Arc::new(tokio::sync::Notify::new());
        let (client, stopped, roots) = (controller.clone(), Arc::clone(&stop), roots.subscribe());
        let leading = told.clone();
        let task = tokio::spawn(async move {
            tokio::join!(
                leader::run(client.clone(), settings, leads, async move { stopped.notified().await }),
                shared::run(client, roots, leading, Writes::default()),
            );
        });
        (task, told, stop)
    };
    let (first, mut first_leads, _) = replica("one");
    tokio::time::timeout(PATIENCE, first_leads.wait_for(|l| *l)).await.unwrap().unwrap();
    let (second, mut second_leads, stop) = replica("two");

    let map = async |namespace: &str, roots: &str| {
        let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        until(&format!("{namespace} has {roots}"), async || {
            let map = maps.get_opt(shared::NAME).await.ok()??;
            (map.data?.get(shared::KEY)? == roots).then_some(())
        })
        .await;
    };
    map("default", "ROOT 1").await;
    apply(client, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).await;
    map("shop", "ROOT 1").await;
    let (_, edited) =
        of("v1", "ConfigMap", json!({"metadata": {"name": shared::NAME}, "data": {shared::KEY: "MINE"}}));
    apply(client, &edited).await;
    map("shop", "ROOT 1").await;
    delete(client, &edited).await;
    map("shop", "ROOT 1").await;
    roots.send_replace("ROOT 2".to_owned());
    for namespace in ["default", "shop", "kube-system"] {
        map(namespace, "ROOT 2").await;
    }

    assert!(*first_leads.borrow() && !*second_leads.borrow());
    // Killed: it gives nothing back.
    first.abort();
    tokio::time::timeout(PATIENCE, second_leads.wait_for(|l| *l)).await.unwrap().unwrap();
    delete(client, &edited).await;
    map("shop", "ROOT 2").await;
    let leases = Api::<Lease>::namespaced(client.clone(), "default");
    let lease = leases.get("mesh-controller").await.unwrap().spec.unwrap();
    assert!(lease.holder_identity.unwrap().starts_with("two_"));
    assert_eq!(lease.lease_transitions, Some(1));

    // Told to end, it gives the lease back.
    stop.notify_one();
    tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    let lease = leases.get("mesh-controller").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity.as_deref().unwrap_or_default(), "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kube-apiserver"]
async fn a_controller_that_is_told_to_end_gives_the_lease_back_and_ends_well() {
    let real = Real::start().await;
    install(&real.client).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mesh-controller"));
    command.arg("run").env("KUBECONFIG", real.kubeconfig()).kill_on_drop(true);
    command.args(["--namespace", "default", "--drain", "2s", "--webhook-configuration", ""]);
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    command.args(["--listen", "127.0.0.1:0", "--webhook", "127.0.0.1:0", "--admin", &admin.to_string()]);
    let mut controller = command.spawn().unwrap();
    let holder = async || {
        let lease = Api::<Lease>::namespaced(real.client.clone(), "default").get_opt("mesh-controller").await;
        lease.ok().flatten().and_then(|lease| lease.spec?.holder_identity)
    };
    until("it leads", async || holder().await.filter(|holder| !holder.is_empty())).await;
    until("it has made the roots known", async || {
        let map =
            Api::<ConfigMap>::namespaced(real.client.clone(), "kube-system").get_opt(shared::NAME).await;
        map.ok().flatten()?.data?.get(shared::KEY)?.contains("BEGIN CERTIFICATE").then_some(())
    })
    .await;
    until("it is ready", async || {
        let mut stream = tokio::net::TcpStream::connect(admin).await.ok()?;
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1).is_some_and(|code| code == "200").then_some(())
    })
    .await;
    let pid = controller.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, controller.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
    assert_eq!(holder().await.as_deref().unwrap_or_default(), "");
}
