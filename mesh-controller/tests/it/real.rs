//! A real API server with its etcd, and nothing else of Kubernetes.

use std::path::PathBuf;
use std::process::{Command, Stdio};

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

impl Real {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("api");
        let up = Command::new(program()).args(["api", "up"]).arg(&place).stdout(Stdio::null()).status();
        let up = up.unwrap_or_else(|error| panic!("{}: {error}", program().display()));
        assert!(up.success(), "{} api up: {up}", program().display());
        let kubeconfig = kube::config::Kubeconfig::read_from(place.join("kubeconfig")).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        config.default_retry = false;
        Self { dir, client: kube::Client::try_from(config).unwrap() }
    }

    /// The key with which it signs the tokens of service accounts.
    pub(crate) fn signing_key(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("api/pki/service-account.key")).unwrap()
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
