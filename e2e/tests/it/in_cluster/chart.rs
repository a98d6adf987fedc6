//! The Helm chart: what it says, and what an installation may and leaves.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use mesh_e2e::{Namespace, SYSTEM, in_namespace, installed, kubectl, yaml};
use mesh_test::wait;
use serde_json::Value;

fn chart() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart"))
}

#[test]
fn the_chart_has_the_definitions_that_the_controller_prints() {
    let text = std::fs::read_to_string(chart().join("crds/mesh.yaml")).unwrap();
    let of_chart: Vec<Value> = text
        .split("\n---\n")
        .map(|document| document.trim_start_matches("---\n"))
        .filter(|document| !document.trim().is_empty())
        .map(|document| serde_json::from_str(document).unwrap())
        .collect();
    // A difference is shown as a name: the whole would be thousands of lines.
    for (ours, printed) in of_chart.iter().zip(mesh_controller::crds::definitions()) {
        assert!(*ours == printed, "{} is old: just crds", printed["metadata"]["name"]);
    }
    assert_eq!(of_chart.len(), mesh_controller::crds::definitions().len(), "just crds");
}

#[test]
fn the_chart_speaks_of_the_controllers_variables_alone() {
    let text = std::fs::read_to_string(chart().join("templates/deployment.yaml")).unwrap();
    let named: BTreeSet<&str> = text
        .split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter(|word| word.starts_with("MESH_"))
        .collect();
    assert!(named.len() > 10, "{named:?}");
    let cli = mesh_controller::args::Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    let known: BTreeSet<&str> =
        run.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    let unknown: Vec<_> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "the controller knows no {unknown:?}");
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn two_controllers_answer_and_keep_their_ca_in_a_secret() {
    let client = installed().await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM);
    let status = deployments.get("mesh-controller").await.unwrap().status.unwrap();
    assert_eq!(status.available_replicas, Some(2));
    let secrets: Api<Secret> = Api::namespaced(client, SYSTEM);
    let data = secrets.get("mesh-ca").await.unwrap().data.unwrap();
    assert!(data.keys().any(|file| file == "root-cert.pem"), "{:?}", data.keys());
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn the_controller_may_do_what_it_needs_and_no_more() {
    installed().await;
    in_namespace("rights", &[], async |namespace: Namespace| {
        let may = async |arguments: &[&str]| {
            let account = format!("--as=system:serviceaccount:{SYSTEM}:mesh-controller");
            let line = [&["auth", "can-i"], arguments, &[account.as_str()]].concat();
            // It ends with 1 for a "no", which is no error here.
            kubectl(&line, "").await.is_ok_and(|answer| answer.trim() == "yes")
        };
        let here = namespace.name();
        for needed in [
            &["watch", "pods", "-n", here][..],
            &["create", "tokenreviews"],
            &["patch", "virtualservices.networking.istio.io", "--subresource=status", "-n", here],
            &["patch", "configmap/mesh-root-cert", "-n", here],
            &["update", "secret/mesh-ca", "-n", SYSTEM],
            &["patch", "mutatingwebhookconfiguration/mesh-controller"],
        ] {
            assert!(may(needed).await, "it may not {needed:?}");
        }
        for refused in [
            &["get", "secrets", "-n", here][..],
            &["get", "secret/another", "-n", SYSTEM],
            &["list", "secrets", "-n", SYSTEM],
            &["delete", "secret/mesh-ca", "-n", SYSTEM],
            &["get", "configmap/another", "-n", here],
            &["delete", "configmap/mesh-root-cert", "-n", here],
            &["create", "pods", "-n", here],
            &["watch", "nodes"],
            &["create", "pods", "--subresource=exec", "-n", here],
            &["patch", "virtualservices.networking.istio.io", "-n", here],
            &["create", "serviceaccounts", "--subresource=token", "-n", here],
            &["patch", "mutatingwebhookconfiguration/another"],
            &["create", "clusterrolebindings"],
            &["impersonate", "users"],
        ] {
            assert!(!may(refused).await, "it may {refused:?}");
        }
    })
    .await;
}

/// Runs last, when no other test needs the mesh: `e2e/run` sees to it.
#[tokio::test]
#[ignore = "needs a cluster"]
async fn uninstalling_leaves_definitions_and_what_users_made_and_nothing_else() {
    installed().await;
    in_namespace("uninstall", &[("mesh.dev/injection", "enabled")], async |namespace: Namespace| {
        namespace
            .apply(
                "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mine}
spec: {hosts: [mine], http: [{route: [{destination: {host: mine}}]}]}
",
            )
            .await;
        mesh_e2e::helm(&["uninstall", "tower-mesh", "--namespace", SYSTEM, "--wait"]).await.unwrap();

        let kinds = "all,serviceaccounts,roles,rolebindings,poddisruptionbudgets,clusterroles,clusterrolebindings,\
                     mutatingwebhookconfigurations,validatingwebhookconfigurations";
        let label = "app.kubernetes.io/instance=tower-mesh";
        // The pods end in their own time.
        wait::until_ok(Duration::from_secs(60), "nothing of the mesh to be left", async || {
            let left = kubectl(&["get", kinds, "-A", "-l", label, "-o", "name"], "").await?;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        let mine = namespace.kubectl(&["get", "virtualservice", "mine", "-o", "name"]).await.unwrap();
        assert_eq!(mine.trim(), "virtualservice.networking.istio.io/mine");
        // Nothing holds up the pods of a namespace that was in the mesh.
        namespace.apply(&yaml::deployment("web").to_string()).await;
        namespace.rolled_out("web").await;
    })
    .await;
}
