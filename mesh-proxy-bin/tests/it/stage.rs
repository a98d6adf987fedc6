//! What is set up again and again: a directory, a CA, a workload with its application and its sidecar.

use std::path::PathBuf;

use mesh_test::backend::Backend;
use mesh_test::ca::TestCa;
use mesh_test::ports;
use mesh_test::sidecar::{Sidecar, SidecarSpec};
use mesh_test::yaml::{self, Dir, Workload};

pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_mesh-proxy");
pub(crate) const HOST: &str = "reviews:9080";

/// A mesh with the workload `default/web`, the Service `reviews`, and nobody behind it yet.
pub(crate) struct Stage {
    pub(crate) dir: Dir,
    pub(crate) ca: TestCa,
    files: Dir,
}

/// A workload of `reviews`: the application and the sidecar in front of it.
pub(crate) struct Replica {
    pub(crate) app: Backend,
    pub(crate) sidecar: Sidecar,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let stage = Self { dir: Dir::new(), ca: TestCa::new(), files: Dir::new() };
        stage.ca.write_dev_ca(stage.ca_dir());
        stage.caller("web");
        stage.dir.write("reviews.yaml", yaml::service("reviews", "default", 9080));
        stage
    }

    /// The development CA's directory.
    pub(crate) fn ca_dir(&self) -> PathBuf {
        self.files.file("ca")
    }

    /// A file beside the configuration.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.files.file(name)
    }

    /// A workload that calls and is called by nobody, with the account of its name.
    pub(crate) fn caller(&self, name: &str) {
        let nowhere = ports::loopback(1);
        let workload = Workload::new(name, "default", name, nowhere).account(name).sidecar();
        self.dir.write(&format!("{name}.yaml"), workload.to_string());
    }

    /// A sidecar of `default/NAME` with the CA and an access log.
    pub(crate) fn spec(&self, name: &str) -> SidecarSpec {
        SidecarSpec::new(BIN, self.dir.path(), &format!("default/{name}"))
            .dev_ca(self.ca_dir())
            .access_log(self.beside(&format!("{name}.log")))
    }

    /// The sidecar of `web`, ready.
    pub(crate) async fn web(&self) -> Sidecar {
        self.spec("web").outbound().start().await
    }

    /// One more workload of `reviews`; its name is its version.
    pub(crate) async fn replica(&self, name: &str) -> Replica {
        let app = Backend::start(name).await;
        let inbound = ports::free_addr();
        let workload = Workload::new(name, "default", "reviews", inbound);
        let workload = workload.account("reviews").version(name).sidecar();
        self.dir.write(&format!("{name}.yaml"), workload.to_string());
        let sidecar = self.spec(name).inbound(inbound, app.addr()).start().await;
        Replica { app, sidecar }
    }

    /// A DestinationRule of `reviews` with that `trafficPolicy`.
    pub(crate) fn traffic_policy(&self, policy: &str) {
        let rule = yaml::destination_rule_with("reviews", "default", "reviews", &[], policy);
        self.dir.write("rule.yaml", rule);
    }
}
