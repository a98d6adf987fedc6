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
           # The hook of a sidecar that has just been started is none.
           ! grep -qzx wait $p/cmdline || continue
           tr '\\0' '\\n' <$p/environ 2>/dev/null | grep -qx '{setting}' || continue
           {script}
         done"
    );
    let mut command = Command::new(cluster);
    command.args(["enter", "sh", "-c", &script]);
    run(command, "").await.unwrap_or_else(|e| panic!("{e}"))
}

/// A sidecar's process, as the node's kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sidecar {
    /// Its resident memory in KiB.
    pub resident_kib: u64,
    /// When it was started, in seconds since 1970; to a hundredth of a second. The container's runtime makes the
    /// process, and lets it become the sidecar a little later.
    pub started: f64,
}

/// The process of a workload's sidecar. `workload` is `NAMESPACE/POD`.
///
/// # Panics
/// When there is no such sidecar.
pub async fn sidecar(workload: &str) -> Sidecar {
    // Of /proc/PID/stat the 22nd: when it was started, in ticks since the machine was. The name before it has no spaces.
    let script = "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' $p/status
           echo $(cut -d' ' -f22 $p/stat) $(getconf CLK_TCK) $(cut -d' ' -f1 /proc/uptime) $(date +%s.%N)";
    let text = for_each_process("mesh-proxy", &format!("MESH_WORKLOAD={workload}"), script).await;
    read_sidecar(&text).unwrap_or_else(|| panic!("no sidecar of {workload}: {text:?}"))
}

fn read_sidecar(text: &str) -> Option<Sidecar> {
    let mut words = text.split_whitespace();
    let resident_kib = words.next()?.parse().ok()?;
    let mut number = || words.next()?.parse::<f64>().ok();
    let (ticks, a_second, uptime, now) = (number()?, number()?, number()?, number()?);
    // Two processes would be two sidecars.
    words.next().is_none().then_some(Sidecar { resident_kib, started: now - uptime + ticks / a_second })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_is_read_from_what_the_kernel_tells() {
        // Started 1050 s after the machine, which was 10 s before 1000.
        let read = read_sidecar("1234\n105000 100 1060.00 1000.25\n").unwrap();
        assert_eq!(read, Sidecar { resident_kib: 1234, started: 990.25 });
        for wrong in ["", "1234\n105000 100 1060.00\n", "1 2 3 4 5\n1 2 3 4 5\n"] {
            assert_eq!(read_sidecar(wrong), None, "{wrong:?}");
        }
    }
}
