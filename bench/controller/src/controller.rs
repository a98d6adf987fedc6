//! The program that is measured.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::world::SYSTEM;

/// How long it may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running controller. Dropping it ends it.
#[derive(Debug)]
pub struct Controller {
    child: Child,
    pid: u32,
    output: PathBuf,
    /// Where proxies connect to.
    pub proxies: SocketAddr,
    webhook: SocketAddr,
    admin: SocketAddr,
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Resident now.
    pub now: f64,
    /// The most that it was.
    pub most: f64,
}

impl Controller {
    /// Starts it, and waits until it is ready. Says how long that took.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(program: &Path, kubeconfig: &Path, output: &Path) -> Result<(Self, Duration)> {
        Self::start_at(ports()?, program, kubeconfig, output).await
    }

    /// Kills it (SIGKILL), leaves it dead for so long, and starts it anew on the same ports. Says how long it then took
    /// to be ready.
    ///
    /// # Errors
    /// When it cannot be killed, or does not become ready.
    pub async fn killed_for(
        mut self,
        away: Duration,
        program: &Path,
        kubeconfig: &Path,
    ) -> Result<(Self, Duration)> {
        self.child.kill().await?;
        tokio::time::sleep(away).await;
        Self::start_at([self.proxies, self.webhook, self.admin], program, kubeconfig, &self.output).await
    }

    async fn start_at(
        [proxies, webhook, admin]: [SocketAddr; 3],
        program: &Path,
        kubeconfig: &Path,
        output: &Path,
    ) -> Result<(Self, Duration)> {
        let log = std::fs::File::create(output)?;
        let mut command = Command::new(program);
        command.args([
            "run",
            "--namespace",
            SYSTEM,
            "--dns-names",
            "localhost",
            "--webhook-configuration",
            "",
        ]);
        command.args(["--listen", &proxies.to_string(), "--webhook", &webhook.to_string()]);
        command.args(["--admin", &admin.to_string()]).env("KUBECONFIG", kubeconfig);
        // As the chart does.
        command.env("MIMALLOC_PURGE_DELAY", "0");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let started = Instant::now();
        let child = command.spawn().with_context(|| program.display().to_string())?;
        let pid = child.id().context("it ended at once")?;
        let mut this = Self { child, pid, output: output.to_owned(), proxies, webhook, admin };
        while !this.is_ready().await {
            if let Some(status) = this.child.try_wait()? {
                bail!("the controller ended ({status})\n{}", this.tail());
            }
            if started.elapsed() > PATIENCE {
                bail!("the controller is not ready in {PATIENCE:?}\n{}", this.tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok((this, started.elapsed()))
    }

    async fn is_ready(&self) -> bool {
        self.page("/ready").await.is_ok()
    }

    /// A page of its admin port, when it is a good one.
    async fn page(&self, path: &str) -> Result<String> {
        let stream = TcpStream::connect(self.admin).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8(body.to_vec())?)
    }

    /// A counter of its metrics, without the prefix that all have: the sum of its lines.
    ///
    /// # Errors
    /// When it does not answer, or has no such counter.
    pub async fn count(&self, name: &str) -> Result<u64> {
        let page = self.page("/metrics").await?;
        count(&page, name).with_context(|| format!("there is no counter {name}"))
    }

    /// CPU time so far, in seconds.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self) -> Result<f64> {
        mesh_bench::proc::cpu_seconds(&[self.pid])
    }

    /// Its memory.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<Memory> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        memory(&text.with_context(|| format!("the controller is gone\n{}", self.tail()))?)
            .with_context(|| format!("the controller has ended\n{}", self.tail()))
    }

    /// The last lines that it wrote.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        lines.iter().rev().map(|line| format!("  | {line}\n")).collect()
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// The definitions that it prints: documents of JSON.
///
/// # Errors
/// When it prints something else.
pub async fn definitions(program: &Path) -> Result<Vec<Value>> {
    let output = Command::new(program).arg("crds").output().await.context("the controller's definitions")?;
    let text = String::from_utf8(output.stdout)?;
    let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
    documents.map(|document| Ok(serde_json::from_str(document)?)).collect()
}

/// Ports of loopback that nobody has.
fn ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut taken = Vec::new();
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        taken.push(listener);
    }
    Ok(addresses)
}

fn count(page: &str, name: &str) -> Option<u64> {
    let name = format!("mesh_controller_{name}");
    let samples = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(&name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<u64>().ok())?
    });
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
}

fn memory(status: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 1024.0)
    };
    Some(Memory { now: field("VmRSS:")?, most: field("VmHWM:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed() {
        let page = "# TYPE x counter\nmesh_controller_a_total{kind=\"x\"} 2\nmesh_controller_a_total{kind=\"y\"} 3\n\
                    mesh_controller_a_total_more 7\n";
        assert_eq!(count(page, "a_total"), Some(5));
        assert_eq!(count(page, "b_total"), None);
    }

    #[test]
    fn memory_is_read_as_the_kernel_tells_it() {
        let text = "Name:\tx\nVmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(memory(text), Some(Memory { now: 2.0, most: 4.0 }));
        assert_eq!(memory("Name:\tx\n"), None);
    }
}
