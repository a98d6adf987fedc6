//! The cluster itself.

use std::panic::AssertUnwindSafe;
use std::process::Stdio;

use futures_util::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client, Config};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A client with an administrator's rights, from `KUBECONFIG`.
///
/// # Panics
/// When there is no cluster to reach.
pub async fn client() -> Client {
    let config = Config::infer().await.unwrap_or_else(|e| panic!("run the tests with `just e2e`: {e}"));
    Client::try_from(config).unwrap_or_else(|e| panic!("a client for the cluster: {e}"))
}

/// Runs `kubectl` with an administrator's rights; gives what it printed, or what it complained of.
///
/// # Errors
/// With its standard error, when it ends with anything but 0.
///
/// # Panics
/// When it cannot be started.
pub async fn kubectl(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new("kubectl");
    command.args(arguments);
    run(command, input).await
}

/// The namespace in which `e2e/run` installs the mesh.
pub const SYSTEM: &str = "mesh-system";

/// A client for a cluster in which the mesh is installed.
///
/// # Panics
/// When it is not.
pub async fn installed() -> Client {
    let client = client().await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM);
    if let Err(error) = deployments.get("mesh-controller").await {
        panic!("the mesh is not installed, as `just e2e` does: {error}");
    }
    client
}

/// Runs `helm` with an administrator's rights; gives what it printed, or what it complained of.
///
/// # Errors
/// With its standard error, when it ends with anything but 0.
///
/// # Panics
/// When it cannot be started.
pub async fn helm(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("helm");
    command.args(arguments);
    run(command, "").await
}

/// Starts or stops one of the cluster's programs, such as `kube-apiserver`.
///
/// # Panics
/// When that fails.
pub async fn component(what: &str, name: &str) {
    let program = std::env::var("CLUSTER").unwrap_or_else(|_| panic!("run the tests with `just e2e`"));
    let mut command = Command::new(program);
    command.args([what, name]);
    run(command, "").await.unwrap_or_else(|e| panic!("{what} {name}: {e}"));
}

async fn run(mut command: Command, input: &str) -> Result<String, String> {
    let what = format!("{:?}", command.as_std().get_program());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}; run the tests with `just e2e`"));
    let mut stdin = child.stdin.take().unwrap_or_else(|| panic!("{what} has a standard input"));
    let (fed, output) = tokio::join!(
        async move {
            let fed = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            fed
        },
        child.wait_with_output()
    );
    let output = output.unwrap_or_else(|e| panic!("{what}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        fed.map_err(|e| format!("{what} did not read its input: {e}"))?;
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// Runs `script` for each process of the node that runs `program` with `setting` (`NAME=VALUE`) in its environment, which
/// is `$p` (`/proc/PID`) there; gives what it printed. The kernel cuts the names of programs after 15 characters.
async fn for_each_process(program: &str, setting: &str, script: &str) -> String {
    let cluster = std::env::var("CLUSTER").unwrap_or_else(|_| panic!("run the tests with `just e2e`"));
    let script = format!(
        "for p in /proc/[0-9]*; do
           [ \"$(cat $p/comm 2>/dev/null)\" = {program} ] || continue
           tr '\\0' '\\n' <$p/environ 2>/dev/null | grep -qx '{setting}' || continue
           {script}
         done"
    );
    let mut command = Command::new(cluster);
    command.args(["enter", "sh", "-c", &script]);
    run(command, "").await.unwrap_or_else(|e| panic!("{e}"))
}

/// The resident memory of a workload's sidecar in KiB, as the node's kernel counts it. `workload` is
/// `NAMESPACE/POD`.
///
/// # Panics
/// When there is no such sidecar.
pub async fn resident_kib(workload: &str) -> u64 {
    let setting = format!("MESH_WORKLOAD={workload}");
    let script = "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' $p/status";
    let text = for_each_process("mesh-proxy", &setting, script).await;
    text.trim().parse().unwrap_or_else(|_| panic!("no sidecar of {workload}: {text:?}"))
}

/// Kills (SIGKILL) the one process of the node that runs `program` with `setting` (`NAME=VALUE`) in its environment, as
/// the kernel kills who takes too much memory: nothing is said or given back. Needs no API server.
///
/// # Panics
/// When there is not just one.
pub async fn kill(program: &str, setting: &str) {
    let killed = for_each_process(program, setting, "kill -9 ${p#/proc/} && echo ${p#/proc/}").await;
    assert!(killed.lines().count() == 1, "{program} with {setting}: {killed:?}");
}

/// Runs `test`, and then `restore`, also when the test fails.
///
/// # Panics
/// When the test does.
pub async fn restored(test: impl Future<Output = ()>, restore: impl Future<Output = ()>) {
    let outcome = AssertUnwindSafe(test).catch_unwind().await;
    restore.await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
