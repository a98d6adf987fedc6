//! A real API server with its etcd, and nothing else of Kubernetes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// An API server of this test's own. Dropping it ends it.
pub(crate) struct Real {
    dir: TempDir,
    pub(crate) client: kube::Client,
}

fn program() -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/cluster/cluster");
    std::env::var_os("CLUSTER").map_or_else(|| beside.into(), PathBuf::from)
}

async fn config(kubeconfig: &Path) -> kube::Config {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    config
}

impl Real {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("api");
        let up = Command::new(program()).args(["api", "up"]).arg(&place).stdout(Stdio::null()).status();
        let up = up.unwrap_or_else(|error| panic!("{}: {error}", program().display()));
        assert!(up.success(), "{} api up: {up}", program().display());
        let client = kube::Client::try_from(config(&place.join("kubeconfig")).await).unwrap();
        Self { dir, client }
    }

    /// A client that is `user`, who has the rights that bindings give.
    pub(crate) async fn client_as(&self, user: &str) -> kube::Client {
        let mut config = config(&self.kubeconfig()).await;
        config.auth_info.impersonate = Some(user.to_owned());
        kube::Client::try_from(config).unwrap()
    }

    /// Applies manifests with the rights of an administrator.
    pub(crate) fn kubectl_apply(&self, manifests: &str) {
        let file = self.dir.path().join("manifests.yaml");
        std::fs::write(&file, manifests).unwrap();
        let programs = Command::new(program()).arg("programs").output().unwrap().stdout;
        let kube = PathBuf::from(String::from_utf8(programs).unwrap().trim()).join("kube");
        let kubeconfig = self.kubeconfig();
        let mut kubectl = Command::new(kube);
        kubectl.args(["kubectl", "apply", "-f"]).arg(file).arg("--kubeconfig").arg(kubeconfig);
        let output = kubectl.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The key with which it signs the tokens of service accounts.
    pub(crate) fn signing_key(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("api/pki/service-account.key")).unwrap()
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.path().join("api/pids/kube-apiserver")
    }

    fn api_server(&self) -> String {
        let record = std::fs::read_to_string(self.pid_file()).unwrap();
        record.split_whitespace().next().unwrap().to_owned()
    }

    /// Kills the API server without a warning; etcd stays.
    pub(crate) fn kill_api_server(&self) {
        let pid = self.api_server();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        std::fs::write(self.dir.path().join("cmdline"), line).unwrap();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    }

    /// Starts the API server that was killed, as it was started before.
    #[expect(clippy::zombie_processes, reason = "it ends with the others, when this is dropped")]
    pub(crate) async fn start_api_server(&self) {
        let line = std::fs::read_to_string(self.dir.path().join("cmdline")).unwrap();
        let mut words = line.trim_end_matches('\0').split('\0');
        let program = words.next().unwrap();
        let log = std::fs::File::create(self.dir.path().join("again.log")).unwrap();
        let server = Command::new(program).args(words).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        // So that it ends with the others.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
        let since = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap().to_owned();
        std::fs::write(self.pid_file(), format!("{} {since}\n", server.id())).unwrap();
        let patience = tokio::time::Instant::now() + Duration::from_secs(90);
        while self.client.apiserver_version().await.is_err() {
            assert!(tokio::time::Instant::now() < patience, "the API server does not come back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("api/kubeconfig")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = Command::new(program()).args(["api", "down"]).arg(self.dir.path().join("api")).status();
    }
}
