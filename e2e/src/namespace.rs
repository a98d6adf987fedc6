//! A namespace for each test.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace as Object, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use mesh_test::wait;

use crate::app::App;
use crate::cluster::{client, kubectl};

/// How long pods may take to become ready: many start at once on a small machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A namespace of the cluster that one test has to itself.
#[derive(Clone)]
pub struct Namespace {
    client: Client,
    name: String,
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Namespace").field(&self.name).finish()
    }
}

/// Runs a test in a fresh namespace that has those labels, and deletes it afterwards. When the test fails, what its
/// pods are doing is printed first; `E2E_KEEP=1` keeps a failed test's namespace.
///
/// # Panics
/// When the test does.
pub async fn in_namespace(name: &str, labels: &[(&str, &str)], test: impl AsyncFnOnce(Namespace)) {
    let namespace = Namespace::create(name, labels).await;
    let outcome = AssertUnwindSafe(test(namespace.clone())).catch_unwind().await;
    if let Err(panic) = outcome {
        namespace.explain().await;
        if std::env::var("E2E_KEEP").is_err() {
            namespace.delete().await;
        }
        std::panic::resume_unwind(panic);
    }
    namespace.delete().await;
}

impl Namespace {
    async fn create(name: &str, labels: &[(&str, &str)]) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let client = client().await;
        // Another run's may still be there.
        let name = format!("{name}-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut object = Object::default();
        object.metadata.name = Some(name.clone());
        object.metadata.labels =
            Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        Api::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .unwrap_or_else(|e| panic!("namespace {name}: {e}"));
        let namespace = Self { client, name };
        // No pod is admitted before its account is there.
        let accounts: Api<ServiceAccount> = namespace.api();
        wait::until_ok(READY_WITHIN, "the namespace's default account", async || {
            accounts.get("default").await
        })
        .await;
        namespace
    }

    async fn delete(&self) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        // Nobody waits for its end: names are not used twice.
        if let Err(error) = Api::<Object>::all(self.client.clone()).delete(&self.name, &now).await {
            println!("namespace {} is left: {error}", self.name);
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client that made it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its objects of one kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// `kubectl apply`.
    ///
    /// # Panics
    /// With its complaint, when it is refused.
    #[track_caller]
    pub fn apply(&self, yaml: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            if let Err(complaint) = self.try_apply(yaml).await {
                panic!("{caller}: {complaint}");
            }
        }
    }

    /// `kubectl apply`.
    ///
    /// # Errors
    /// With its complaint, when it is refused.
    pub async fn try_apply(&self, yaml: &str) -> Result<String, String> {
        kubectl(&["apply", "--namespace", &self.name, "-f", "-"], yaml).await
    }

    /// `kubectl` in this namespace.
    ///
    /// # Errors
    /// With its complaint.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        kubectl(&[&["--namespace", &self.name], arguments].concat(), "").await
    }

    /// Waits until every replica of a Deployment is new and ready, and the EndpointSlices of its Services say so: they
    /// come later, by seconds when Kubernetes is busy.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn rolled_out(&self, deployment: &str) {
        let deployments: Api<Deployment> = self.api();
        let found =
            wait::until_ok(READY_WITHIN, &format!("Deployment {deployment} to roll out"), async || {
                let found = deployments.get(deployment).await.map_err(|e| e.to_string())?;
                let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let status = found.status.clone().unwrap_or_default();
                let new = status.updated_replicas.unwrap_or(0);
                let all = status.replicas.unwrap_or(0);
                let ready = status.available_replicas.unwrap_or(0);
                let seen = status.observed_generation == found.metadata.generation;
                match seen && new == wanted && all == wanted && ready == wanted {
                    true => Ok(found),
                    false => Err(format!("{wanted} wanted, {new} new, {all} in all, {ready} available")),
                }
            })
            .await;
        let spec = found.spec.unwrap_or_default();
        let labels = spec.template.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let services: Api<Service> = self.api();
        let all = services.list(&ListParams::default()).await;
        for service in all.unwrap_or_else(|e| panic!("Services of {}: {e}", self.name)).items {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if selector.is_some_and(|wants| {
                !wants.is_empty() && wants.iter().all(|(key, value)| labels.get(key) == Some(value))
            }) {
                self.in_slices(&service.name_any(), wanted).await;
            }
        }
    }

    /// Waits until the EndpointSlices of a Service name that many ready endpoints, or more.
    async fn in_slices(&self, service: &str, wanted: usize) {
        let slices: Api<EndpointSlice> = self.api();
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        wait::until_ok(READY_WITHIN, &format!("Service {service} to have its endpoints"), async || {
            let slices = slices.list(&of_service).await.map_err(|e| e.to_string())?;
            let endpoints = slices.items.iter().flat_map(|slice| &slice.endpoints);
            let ready: HashSet<&str> = endpoints
                .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false))
                .filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.as_deref())
                .collect();
            let ready = ready.len();
            if ready >= wanted { Ok(()) } else { Err(format!("{wanted} wanted, {ready} ready")) }
        })
        .await;
    }

    /// Waits until all pods of a [Job](crate::yaml::job) have ended well.
    ///
    /// # Panics
    /// When one has not, or that takes too long.
    pub async fn work_done(&self, pods: u32) {
        let jobs: Api<Job> = self.api();
        wait::until_ok(READY_WITHIN, "all pods of the Job to succeed", async || {
            let status = jobs.get("work").await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            assert_eq!(status.failed.unwrap_or(0), 0, "{status:?}");
            let succeeded = status.succeeded.and_then(|pods| u32::try_from(pods).ok());
            if succeeded == Some(pods) { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
    }

    /// The ready pods of an application (label `app`) that are not being deleted, by name.
    ///
    /// # Panics
    /// When the API server does not answer.
    pub async fn pods(&self, app: &str) -> Vec<Pod> {
        let pods: Api<Pod> = self.api();
        let list = pods.list(&ListParams::default().labels(&format!("app={app}"))).await;
        let mut ready: Vec<Pod> = list
            .unwrap_or_else(|e| panic!("pods of {app}: {e}"))
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod))
            .collect();
        ready.sort_by_key(ResourceExt::name_any);
        ready
    }

    /// Waits until a pod is ready.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn ready(&self, pod: &str) -> Pod {
        let pods: Api<Pod> = self.api();
        wait::until_ok(READY_WITHIN, &format!("pod {pod} to be ready"), async || {
            let found = pods.get(pod).await.map_err(|e| e.to_string())?;
            if is_ready(&found) { Ok(found) } else { Err(format!("{:?}", found.status)) }
        })
        .await
    }

    /// The application in the first ready pod of that name (label `app`).
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn app(&self, app: &str) -> App {
        let pod = wait::until_ok(READY_WITHIN, &format!("a ready pod of {app}"), async || {
            self.pods(app).await.into_iter().next().ok_or("none is ready")
        })
        .await;
        App::of(&pod)
    }

    /// What there is to say when a test has failed.
    async fn explain(&self) {
        let show = async |arguments: &[&str]| match self.kubectl(arguments).await {
            Ok(text) | Err(text) => println!("--- {}: {}\n{text}", self.name, arguments.join(" ")),
        };
        show(&["get", "pods,services,endpointslices", "-o", "wide"]).await;
        show(&["get", "events", "--sort-by=.lastTimestamp"]).await;
        let pods: Api<Pod> = self.api();
        for pod in pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            show(&["logs", &pod.name_any(), "--all-containers", "--prefix", "--tail=30"]).await;
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
