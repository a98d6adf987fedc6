//! `mesh-proxy run` as a builder.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::client::{self, CallError, Conn, Protocol, Reply};
use crate::ports;
use crate::process::Proc;

/// How long a sidecar may take to become ready.
const READY: Duration = Duration::from_secs(20);

/// How long a sidecar may take to leave after SIGTERM, beyond its drain.
const LEAVE: Duration = Duration::from_secs(20);

/// The flags of one sidecar.
#[derive(Debug, Clone)]
pub struct SidecarSpec {
    binary: PathBuf,
    config: Option<PathBuf>,
    workload: String,
    identity: Option<(&'static str, PathBuf)>,
    inbound: Option<(SocketAddr, SocketAddr)>,
    outbound: Option<SocketAddr>,
    admin: SocketAddr,
    access_log: Option<PathBuf>,
    more: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl SidecarSpec {
    /// A sidecar of `workload` (`NAMESPACE/NAME`) with the resources in `config`, an admin port, one worker,
    /// and no listener yet. `binary` is `env!("CARGO_BIN_EXE_mesh-proxy")` in the tests of the proxy.
    pub fn new(binary: impl Into<PathBuf>, config: impl Into<PathBuf>, workload: &str) -> Self {
        Self::without_source(binary.into(), Some(config.into()), workload)
    }

    /// A sidecar of `workload` with neither directory nor identity: flags say where both come from.
    pub fn controlled(binary: impl Into<PathBuf>, workload: &str) -> Self {
        Self::without_source(binary.into(), None, workload)
    }

    fn without_source(binary: PathBuf, config: Option<PathBuf>, workload: &str) -> Self {
        let spec = Self {
            binary,
            config,
            workload: workload.to_owned(),
            identity: None,
            inbound: None,
            outbound: None,
            admin: ports::free_addr(),
            access_log: None,
            more: Vec::new(),
            env: Vec::new(),
        };
        spec.flag("--workers", "1")
    }

    /// `--dev-ca DIR`.
    #[must_use]
    pub fn dev_ca(mut self, dir: impl Into<PathBuf>) -> Self {
        self.identity = Some(("--dev-ca", dir.into()));
        self
    }

    /// `--identity-dir DIR`.
    #[must_use]
    pub fn identity_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.identity = Some(("--identity-dir", dir.into()));
        self
    }

    /// `--inbound ADDR --app ADDR`: where calls to the workload arrive, and where they are handed to.
    #[must_use]
    pub fn inbound(mut self, inbound: SocketAddr, app: SocketAddr) -> Self {
        self.inbound = Some((inbound, app));
        self
    }

    /// `--outbound ADDR` on a free port.
    #[must_use]
    pub fn outbound(self) -> Self {
        self.outbound_at(ports::free_addr())
    }

    /// `--outbound ADDR`.
    #[must_use]
    pub fn outbound_at(mut self, addr: SocketAddr) -> Self {
        self.outbound = Some(addr);
        self
    }

    /// `--admin ADDR` instead of a free port.
    #[must_use]
    pub fn admin_at(mut self, addr: SocketAddr) -> Self {
        self.admin = addr;
        self
    }

    /// `--access-log FILE`.
    #[must_use]
    pub fn access_log(mut self, file: impl Into<PathBuf>) -> Self {
        self.access_log = Some(file.into());
        self
    }

    /// Any other flag with its value (`--drain`, `--detect-timeout`, `--trust-domain`, ...). A later value of
    /// the same flag replaces the earlier one.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        if let Some(at) = self.more.iter().step_by(2).position(|flag| flag == name) {
            self.more.drain(2 * at..2 * at + 2);
        }
        self.more.extend([name.into(), value.into()]);
        self
    }

    /// An environment variable of the process.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The whole command line after the program's name.
    pub fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["run".into()];
        let mut add = |flag: &str, value: OsString| args.extend([flag.into(), value]);
        if let Some(config) = &self.config {
            add("--config", config.clone().into());
        }
        add("--workload", self.workload.clone().into());
        if let Some((flag, dir)) = &self.identity {
            add(flag, dir.clone().into());
        }
        if let Some((inbound, app)) = self.inbound {
            add("--inbound", inbound.to_string().into());
            add("--app", app.to_string().into());
        }
        if let Some(outbound) = self.outbound {
            add("--outbound", outbound.to_string().into());
        }
        add("--admin", self.admin.to_string().into());
        if let Some(file) = &self.access_log {
            add("--access-log", file.clone().into());
        }
        args.extend(self.more.iter().cloned());
        args
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// With its output when it ends or is not ready in time.
    pub async fn start(self) -> Sidecar {
        let mut sidecar = self.spawn();
        sidecar.wait_ready(READY).await;
        sidecar
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn spawn(self) -> Sidecar {
        let proc = Proc::spawn_with(&self.binary, self.args(), self.env.iter().map(|(k, v)| (k, v)));
        Sidecar { proc, spec: self }
    }
}

/// A sidecar that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Sidecar {
    /// The process.
    pub proc: Proc,
    spec: SidecarSpec,
}

impl Sidecar {
    /// Its flags, to start it again.
    pub fn spec(&self) -> &SidecarSpec {
        &self.spec
    }

    /// Where its admin pages are.
    pub fn admin(&self) -> SocketAddr {
        self.spec.admin
    }

    /// Where calls to its workload arrive.
    ///
    /// # Panics
    /// When it has no inbound listener.
    pub fn inbound(&self) -> SocketAddr {
        self.spec.inbound.expect("a sidecar with --inbound").0
    }

    /// Where its workload's own calls arrive.
    ///
    /// # Panics
    /// When it has no outbound listener.
    pub fn outbound(&self) -> SocketAddr {
        self.spec.outbound.expect("a sidecar with --outbound")
    }

    /// Calls a host through the outbound listener, on a connection of its own.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn get(&self, host: &str, path: &str) -> Result<Reply, CallError> {
        client::get(self.outbound(), host, path).await
    }

    /// A connection to the outbound listener.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn connect(&self, protocol: Protocol) -> Result<Conn, CallError> {
        Conn::open(self.outbound(), protocol).await
    }

    /// Reads an admin page.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn admin_get(&self, path: &str) -> Result<Reply, CallError> {
        client::get(self.admin(), "localhost", path).await
    }

    /// Whether `/ready` answers 200.
    pub async fn is_ready(&self) -> bool {
        self.admin_get("/ready").await.is_ok_and(|reply| reply.status == 200)
    }

    /// Waits until `/ready` answers 200.
    ///
    /// # Panics
    /// With its output when it ends or is not ready in time.
    pub async fn wait_ready(&mut self, timeout: Duration) {
        let give_up = tokio::time::Instant::now() + timeout;
        let mut last = String::from("no answer");
        loop {
            match self.admin_get("/ready").await {
                Ok(reply) if reply.status == 200 => return,
                Ok(reply) => last = format!("{} {}", reply.status, reply.text().trim_end()),
                Err(error) => {
                    last =
                        if last.starts_with(|c: char| c.is_ascii_digit()) { last } else { error.to_string() }
                }
            }
            let workload = &self.spec.workload;
            if !self.proc.is_running() {
                let status = self.proc.wait(LEAVE).await;
                panic!("the sidecar of {workload} ended ({status})\n{}", self.proc.tail());
            }
            if tokio::time::Instant::now() >= give_up {
                panic!("the sidecar of {workload} is not ready ({last})\n{}", self.proc.tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The page `/metrics`.
    ///
    /// # Panics
    /// When it is not served.
    pub async fn metrics(&self) -> String {
        match self.admin_get("/metrics").await {
            Ok(reply) if reply.status == 200 => reply.text(),
            other => panic!("/metrics: {other:?}\n{}", self.proc.tail()),
        }
    }

    /// The sum of the samples of a metric whose labels contain each of these pieces (`reporter="source"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric_sum(&self.metrics().await, name, labels)
    }

    /// The lines of the access log so far.
    ///
    /// # Panics
    /// When it was started without a file.
    pub fn access_log(&self) -> Vec<String> {
        let file: &Path = self.spec.access_log.as_deref().expect("a sidecar with an access log file");
        std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Panics
    /// With its output when it does not leave in time.
    pub async fn stop(mut self) -> (ExitStatus, Proc) {
        self.proc.terminate();
        let status = self.proc.wait(LEAVE).await;
        (status, self.proc)
    }
}

/// The sum of the samples of a metric in a text page whose labels contain each of these pieces.
pub fn metric_sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    page.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter(|rest| labels.iter().all(|label| rest.contains(label)))
        // Exemplars stand behind " # "; the value is the first word after the labels.
        .filter_map(|rest| {
            let value = rest.split(" # ").next()?.rsplit('}').next()?;
            value.split_whitespace().next()?.parse::<f64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_contract() {
        let at = ports::loopback;
        let spec = SidecarSpec::new("mesh-proxy", "/c", "default/web")
            .dev_ca("/ca")
            .inbound(at(1), at(2))
            .outbound_at(at(3))
            .admin_at(at(4))
            .access_log("/l")
            .flag("--drain", "1s")
            .flag("--workers", "2");
        let args: Vec<String> = spec.args().into_iter().map(|a| a.into_string().unwrap()).collect();
        assert_eq!(
            args.join(" "),
            "run --config /c --workload default/web --dev-ca /ca --inbound 127.0.0.1:1 --app 127.0.0.1:2 \
             --outbound 127.0.0.1:3 --admin 127.0.0.1:4 --access-log /l --drain 1s --workers 2"
        );
    }

    #[tokio::test]
    #[should_panic(expected = "the reason")]
    async fn a_sidecar_that_ends_shows_why() {
        let dir = crate::yaml::Dir::new();
        dir.write("fake", "#!/bin/sh\necho the reason >&2\n");
        let script = dir.file("fake");
        // Through the shell: a script that was just written may be busy when it is run directly.
        let mut sidecar = SidecarSpec::new("sh", dir.path(), "default/web").spawn();
        sidecar.proc = Proc::spawn("sh", [script]);
        sidecar.wait_ready(READY).await;
    }

    #[test]
    fn sums_samples() {
        let page = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4 # {t=\"}\"} 1\na_b{x=\"1\"} 9\na 1\n";
        assert!((metric_sum(page, "a", &["x=\"1\""]) - 7.0).abs() < 1e-9);
        assert!((metric_sum(page, "a", &[]) - 8.0).abs() < 1e-9);
    }
}
