//! One `mesh-proxy run` process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::{free_port, load, loopback};

/// How long a sidecar may take to be ready.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(10);

/// A sidecar process; killed when dropped.
pub(super) struct Sidecar {
    pub(super) name: &'static str,
    pub(super) pid: u32,
    pub(super) ready_ms: u128,
    admin: SocketAddr,
    access_log: PathBuf,
    output: PathBuf,
    child: Child,
}

impl Sidecar {
    /// Starts the sidecar of workload `default/NAME` and waits until it is ready.
    pub(super) async fn start(
        dir: &Path,
        name: &'static str,
        inbound: Option<(SocketAddr, SocketAddr)>,
        outbound: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let admin = loopback(free_port()?);
        let access_log = dir.join(format!("{name}.access.log"));
        let output = dir.join(format!("{name}.log"));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["run", "--workers", "1", "--workload", &format!("default/{name}")])
            .arg("--config")
            .arg(dir.join("config"))
            .arg("--dev-ca")
            .arg(dir.join("ca"))
            .arg("--access-log")
            .arg(&access_log)
            .args(["--admin", &admin.to_string()]);
        if let Some((addr, app)) = inbound {
            command.args(["--inbound", &addr.to_string(), "--app", &app.to_string()]);
        }
        if let Some(addr) = outbound {
            command.args(["--outbound", &addr.to_string()]);
        }
        let log = std::fs::File::create(&output)?;
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("the sidecar of {name} does not start"))?;
        let pid = child.id().unwrap_or_default();
        let mut sidecar = Self { name, pid, ready_ms: 0, admin, access_log, output, child };
        sidecar.until_ready(started).await?;
        Ok(sidecar)
    }

    async fn until_ready(&mut self, started: Instant) -> anyhow::Result<()> {
        loop {
            if let Ok(reply) = load::once(self.admin, "localhost", "GET", "/ready").await
                && reply.status == 200
            {
                self.ready_ms = started.elapsed().as_millis();
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the sidecar of {} ended with {status}:\n{}", self.name, self.said());
            }
            ensure!(
                started.elapsed() < START,
                "the sidecar of {} is not ready after 20 s:\n{}",
                self.name,
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The sum of a metric's series that have all of `labels`.
    pub(super) async fn series(&self, metric: &str, labels: &[(&str, &str)]) -> u64 {
        let Ok(reply) = load::once(self.admin, "localhost", "GET", "/metrics").await else {
            return 0;
        };
        let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let lines =
            reply.body.lines().filter(|l| l.starts_with(metric) && wanted.iter().all(|w| l.contains(w)));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).map(|v| v as u64).sum()
    }

    /// The last line of the access log that holds `text`; the log is written within a quarter of a second.
    pub(super) async fn log_line(&self, text: &str) -> Option<String> {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let log = std::fs::read_to_string(&self.access_log).ok()?;
        log.lines().rfind(|line| line.contains(text)).map(str::to_owned)
    }

    /// Ends it as Kubernetes does, and expects it to end well.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("the sidecar has ended already")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let ended = tokio::time::timeout(STOP, self.child.wait()).await;
        let status = ended.with_context(|| format!("the sidecar of {} does not end", self.name))??;
        ensure!(status.success(), "the sidecar of {} ended with {status}:\n{}", self.name, self.said());
        Ok(())
    }
}
