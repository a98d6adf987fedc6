//! Memory follows use.

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use mesh_e2e::{Namespace, in_namespace, sidecar, yaml};
use mesh_test::wait;
use serde_json::json;

use super::mesh::{INJECTED, metric};

const SERVICES: usize = 1000;
/// Of a sidecar that calls three services, in KiB.
const MOST: u64 = 15 * 1024;

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_sidecar_holds_what_it_calls() {
    in_namespace("memory", INJECTED, async |namespace: Namespace| {
        let services: Api<Service> = namespace.api();
        stream::iter(0..SERVICES)
            .for_each_concurrent(16, |i| {
                let service = json!({
                    "metadata": {"name": format!("service-{i}")},
                    "spec": {"selector": {"app": format!("service-{i}")}, "ports": [{"name": "http", "port": 80}]},
                });
                let services = services.clone();
                async move {
                    let service = serde_json::from_value(service).unwrap();
                    services.create(&PostParams::default(), &service).await.unwrap();
                }
            })
            .await;
        for name in ["web", "a", "b", "c", "d"] {
            namespace.apply(&yaml::deployment(name).to_string()).await;
        }
        for name in ["web", "a", "b", "c", "d"] {
            namespace.rolled_out(name).await;
        }
        let web = namespace.app("web").await;
        for name in ["a", "b", "c"] {
            let url = format!("http://{name}:9080/");
            wait::until_secs(20, "an answer", async || web.get(&url).await.status == Some(200)).await;
        }
        // The mesh knows the fourth before `web` asks for it.
        for name in ["a", "b", "c"] {
            let other = namespace.app(name).await;
            wait::until_secs(20, "an answer of d", async || other.get("http://d:9080/").await.status == Some(200))
                .await;
        }
        let workload = format!("{}/{}", namespace.name(), web.pod());
        let name = "mesh_control_plane_resources_total";
        let (three, before) = (sidecar(&workload).await.resident_kib, metric(&web, name).await);
        let fourth = web.get("http://d:9080/").await;
        assert_eq!(fourth.status, Some(200), "{fourth:?}");
        let again = web.get("http://d:9080/").await;
        let sent = (metric(&web, name).await - before) as u64;
        println!(
            "{SERVICES} services: a sidecar that calls three holds {three} KiB; the first call to a fourth takes \
             {:.1} ms ({sent} resources sent), the second {:.1} ms",
            fourth.millis, again.millis
        );
        assert!((1..=3).contains(&sent), "{sent} resources for one host");
        assert!(three <= MOST, "{three} KiB are more than {MOST}");
    })
    .await;
}
