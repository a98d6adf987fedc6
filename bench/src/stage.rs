//! Where everything is, and how the programs are started.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh_test::ca::TestCa;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::args::Options;
use crate::load::Found;
use crate::peer::Peer;
use crate::proc::{Proc, Spawn, find_program};
use crate::template::Values;

/// How long a program may take until it is ready.
const READY: Duration = Duration::from_secs(60);

/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(10);

/// What all measurements of a run share.
#[derive(Debug)]
pub struct Stage {
    /// The command line.
    pub options: Options,
    /// The authority of both kinds of sidecars.
    pub ca: TestCa,
    dir: TempDir,
    mesh_proxy: PathBuf,
    own: PathBuf,
    peer_files: PathBuf,
    folders: Cell<u32>,
}

/// One sidecar of ours.
#[derive(Debug, Clone, Default)]
pub struct Ours<'a> {
    /// The folder of its configuration in `bench/peers`.
    pub config: &'a str,
    /// `default/web`, ...
    pub workload: &'a str,
    /// Where calls to the workload arrive, and the application.
    pub inbound: Option<(SocketAddr, SocketAddr)>,
    /// Where the workload's calls arrive.
    pub outbound: Option<SocketAddr>,
    /// More files of its configuration: names without their ending, and texts.
    pub generated: Vec<(String, String)>,
}

impl Stage {
    /// Finds the programs.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn new(options: Options) -> Result<Self> {
        let own = std::env::current_exe().context("where this program is")?;
        let mesh_proxy = match &options.mesh_proxy {
            Some(path) => path.clone(),
            None => own.with_file_name("mesh-proxy"),
        };
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let peer_files = options.peer_files.clone().unwrap_or(files);
        if !peer_files.is_dir() {
            bail!("{} is not there; name the folder with --peer-files", peer_files.display());
        }
        crate::stale::clean(&std::env::temp_dir());
        let prefix = crate::stale::prefix(std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().context("a temporary folder")?;
        let ca = TestCa::new();
        ca.write_dev_ca(dir.path().join("ca"));
        Ok(Self {
            mesh_proxy: find_program(&mesh_proxy)?,
            own,
            peer_files,
            ca,
            dir,
            options,
            folders: Cell::new(0),
        })
    }

    /// A folder of the temporary folder that did not exist yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        self.folders.set(self.folders.get() + 1);
        let folder = self.dir.path().join(format!("{:03}-{name}", self.folders.get()));
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// A configuration of a peer, or a folder of them.
    pub fn peer_file(&self, name: &str) -> PathBuf {
        self.peer_files.join(name)
    }

    /// The folder of the authority (`ca.crt`, `ca.key`).
    pub fn ca_dir(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    /// This program in the role of a load generator, to its end.
    ///
    /// # Errors
    /// With what it said, when something went wrong.
    pub async fn load_role(&self, args: &[String]) -> Result<Found> {
        let mut command = tokio::process::Command::new(&self.own);
        let output = command
            .arg("role")
            .args(args)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot start the load")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Found::parse(&text).with_context(|| format!("the load said {text:?}"))
    }

    /// The temporary folder.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The binary of a `mesh-proxy`.
    ///
    /// # Errors
    /// When there is none.
    pub fn mesh_proxy(&self, peer: Peer) -> Result<PathBuf> {
        match (peer, &self.options.ours) {
            (Peer::OursB, Some(path)) => find_program(path),
            _ => Ok(self.mesh_proxy.clone()),
        }
    }

    /// A folder with the certificate of a service account (`tls.crt`, `tls.key`) and the root (`ca.crt`).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn identity(&self, account: &str) -> Result<PathBuf> {
        let folder = self.folder(account)?;
        self.ca.leaf_for("default", account).write_to(&folder);
        Ok(folder)
    }

    fn proxy_cores(&self) -> (usize, usize) {
        (self.options.cores.proxy, self.options.cores.load)
    }

    /// This program in one of its roles, with its output in a new folder.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn role(&self, args: &[String], on_proxy_core: bool, ready: SocketAddr) -> Result<Proc> {
        let name = args.first().map_or("role", String::as_str);
        let output = self.folder(name)?.join("output");
        let core = if on_proxy_core { self.options.cores.proxy } else { self.options.cores.load };
        let mut spawn = Spawn::new(&self.own, (core, self.options.cores.load), output).arg("role");
        for arg in args {
            spawn = spawn.arg(arg);
        }
        let mut proc = spawn.start()?;
        self.listening(&mut proc, ready).await?;
        Ok(proc)
    }

    /// The command line of a sidecar of ours, with its configuration written.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn ours_spawn(&self, peer: Peer, ours: &Ours<'_>, values: &Values) -> Result<(Spawn, SocketAddr)> {
        let folder = self.folder(peer.name())?;
        values.render_to(&self.peer_files.join("ours").join(ours.config), &folder.join("config"))?;
        for (name, text) in &ours.generated {
            let file = folder.join("config").join(format!("{name}.yaml"));
            std::fs::write(&file, text).with_context(|| file.display().to_string())?;
        }
        let admin = mesh_test::ports::free_addr();
        let mut spawn = Spawn::new(self.mesh_proxy(peer)?, self.proxy_cores(), folder.join("output"))
            .arg("run")
            .flag("--config", folder.join("config").display())
            .flag("--workload", ours.workload)
            .flag("--dev-ca", self.dir.path().join("ca").display())
            .flag("--admin", admin)
            .flag("--access-log", folder.join("access.log").display())
            .logs_to(folder.join("access.log"))
            .flag("--workers", 1)
            .flag("--log", "warn");
        if let Some((inbound, app)) = ours.inbound {
            spawn = spawn.flag("--inbound", inbound).flag("--app", app);
        }
        if let Some(outbound) = ours.outbound {
            spawn = spawn.flag("--outbound", outbound);
        }
        Ok((spawn, admin))
    }

    /// A sidecar of ours, ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn ours(&self, peer: Peer, ours: &Ours<'_>, values: &Values) -> Result<Proc> {
        let (spawn, admin) = self.ours_spawn(peer, ours, values)?;
        self.start_ready(spawn, admin).await
    }

    /// The command line of an Envoy, with its configuration written. `{{ADMIN}}` is the admin port,
    /// `{{LOG}}` the access log.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn envoy_spawn(&self, template: &str, values: &Values) -> Result<(Spawn, SocketAddr)> {
        let folder = self.folder("envoy")?;
        let admin = mesh_test::ports::free_addr();
        let values =
            values.clone().with("ADMIN", admin.port()).with("LOG", folder.join("access.log").display());
        let config = folder.join("envoy.yaml");
        values.render_to(&self.peer_files.join(template), &config)?;
        let envoy = find_program(&self.options.envoy)?;
        let spawn = Spawn::new(envoy, self.proxy_cores(), folder.join("output"))
            .logs_to(folder.join("access.log"))
            .flag("--config-path", config.display())
            .flag("--concurrency", 1)
            .flag("--log-level", "warn")
            // Otherwise it keeps shared memory for a successor that never comes.
            .arg("--disable-hot-restart");
        Ok((spawn, admin))
    }

    /// An Envoy, ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn envoy(&self, template: &str, values: &Values) -> Result<Proc> {
        let (spawn, admin) = self.envoy_spawn(template, values)?;
        self.start_ready(spawn, admin).await
    }

    /// An nginx, listening. `{{DIR}}` is its folder.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn nginx(&self, template: &str, values: &Values, listen: SocketAddr) -> Result<Proc> {
        let folder = self.folder("nginx")?;
        let config = folder.join("nginx.conf");
        let values = values.clone().with("PORT", listen.port()).with("DIR", folder.display());
        values.render_to(&self.peer_files.join(template), &config)?;
        let mut proc =
            Spawn::new(find_program(Path::new("nginx"))?, self.proxy_cores(), folder.join("output"))
                .logs_to(folder.join("access.log"))
                .flag("-c", config.display())
                .flag("-p", folder.display())
                .flag("-e", "stderr")
                .start()?;
        self.listening(&mut proc, listen).await?;
        Ok(proc)
    }

    /// An HAProxy, listening. What it logs goes to its standard output, and so into a file.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn haproxy(&self, template: &str, values: &Values, listen: SocketAddr) -> Result<Proc> {
        let folder = self.folder("haproxy")?;
        let config = folder.join("haproxy.cfg");
        let values = values.clone().with("PORT", listen.port());
        values.render_to(&self.peer_files.join(template), &config)?;
        let haproxy = find_program(Path::new("haproxy"))?;
        let mut proc = Spawn::new(haproxy, self.proxy_cores(), folder.join("output"))
            .logs_to(folder.join("output"))
            .arg("-db")
            .flag("-f", config.display())
            .start()?;
        self.listening(&mut proc, listen).await?;
        Ok(proc)
    }

    /// Waits until somebody listens.
    async fn listening(&self, proc: &mut Proc, addr: SocketAddr) -> Result<()> {
        until(proc, &format!("{addr} listens"), async || tokio::net::TcpStream::connect(addr).await.is_ok())
            .await
    }

    /// Starts a sidecar and waits until `/ready` of its admin port answers 200.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start_ready(&self, spawn: Spawn, admin: SocketAddr) -> Result<Proc> {
        let mut proc = spawn.start()?;
        until(&mut proc, &format!("{admin}/ready answers"), async || {
            mesh_test::client::get(admin, "localhost", "/ready").await.is_ok_and(|reply| reply.status == 200)
        })
        .await?;
        Ok(proc)
    }
}

/// Waits for something that a process is about to do.
///
/// # Errors
/// With the process's output when it ends, or takes too long.
pub async fn until<F: Future<Output = bool>>(
    proc: &mut Proc,
    what: &str,
    mut done: impl FnMut() -> F,
) -> Result<()> {
    let give_up = Instant::now() + READY;
    while !done().await {
        proc.check()?;
        if Instant::now() > give_up {
            bail!("waited too long until {what}\n{}", proc.tail());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
