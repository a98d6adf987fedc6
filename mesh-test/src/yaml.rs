//! Directories of resources, and the texts that go into them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Replaces a file in one step, as careful editors do: the new text is written beside it under a name that
/// starts with a dot and moved over it.
///
/// # Panics
/// When the file cannot be written.
pub fn replace_file(path: &Path, text: &str) {
    let name = path.file_name().expect("a file has a name").to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&beside, text).unwrap_or_else(|e| panic!("{}: {e}", beside.display()));
    std::fs::rename(&beside, path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A configuration directory that is removed with its handle.
#[derive(Debug)]
pub struct Dir {
    root: TempDir,
}

impl Default for Dir {
    fn default() -> Self {
        Self::new()
    }
}

impl Dir {
    /// An empty directory.
    pub fn new() -> Self {
        Self { root: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file in one step (to a temporary name, then moved); folders of the name are made.
    pub fn write(&self, name: &str, text: impl AsRef<str>) {
        replace_file(&self.made(name), text.as_ref());
    }

    /// Writes into the file as it stands: for a moment a reader may see it empty or half.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_in_place(&self, name: &str, text: impl AsRef<str>) {
        let path = self.made(name);
        std::fs::write(&path, text.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Removes a file.
    ///
    /// # Panics
    /// When there is none.
    pub fn remove(&self, name: &str) {
        let path = self.file(name);
        std::fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Writes these files, and only these, as a mounted ConfigMap is written: `NAME -> ..data/NAME`, and
    /// `..data` is a symbolic link to a folder of this version, flipped in one step.
    #[cfg(unix)]
    pub fn write_config_map(&self, version: u32, files: &[(&str, &str)]) {
        use std::os::unix::fs::symlink;
        let folder = format!("..version_{version}");
        for (name, text) in files {
            self.write(&format!("{folder}/{name}"), text);
            if self.file(name).symlink_metadata().is_err() {
                symlink(Path::new("..data").join(name), self.file(name)).expect("a symbolic link");
            }
        }
        let _ = std::fs::remove_file(self.file("..data_tmp"));
        let before = std::fs::read_link(self.file("..data")).ok();
        symlink(&folder, self.file("..data_tmp")).expect("a symbolic link");
        std::fs::rename(self.file("..data_tmp"), self.file("..data")).expect("the flip");
        // As the kubelet does: names that are gone and the folder of the version before are cleared up after.
        let entries = std::fs::read_dir(self.path()).expect("the directory").flatten();
        for entry in entries.filter(|entry| entry.path().is_symlink() && !entry.path().exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
        if let Some(before) = before.filter(|before| before.as_os_str() != folder.as_str()) {
            let _ = std::fs::remove_dir_all(self.path().join(before));
        }
    }

    fn made(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        }
        path
    }
}

/// Documents one after the other in one file.
pub fn documents<T: fmt::Display>(documents: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = documents.into_iter().map(|document| document.to_string()).collect();
    texts.join("---\n")
}

fn indented(text: &str, by: usize) -> String {
    let margin = " ".repeat(by);
    text.lines().filter(|line| !line.trim().is_empty()).fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{margin}{line}");
        all
    })
}

fn head(api: &str, kind: &str, name: &str, namespace: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n")
}

/// A Kubernetes Service that selects `app: NAME` and has one port named `http`.
pub fn service(name: &str, namespace: &str, port: u16) -> String {
    service_with_ports(name, namespace, &[("http", port)])
}

/// A Kubernetes Service that selects `app: NAME`; each port has a name (which tells its protocol: `http`,
/// `grpc`, `tcp-db`, ...) and a number.
pub fn service_with_ports(name: &str, namespace: &str, ports: &[(&str, u16)]) -> String {
    let ports: Vec<String> =
        ports.iter().map(|(name, port)| format!("{{name: {name}, port: {port}}}")).collect();
    let head = head("v1", "Service", name, namespace);
    format!("{head}  selector: {{app: {name}}}\n  ports: [{}]\n", ports.join(", "))
}

/// A WorkloadEntry: where one workload runs and who it is. `Display` gives its YAML.
#[derive(Debug, Clone)]
pub struct Workload {
    name: String,
    namespace: String,
    address: String,
    ports: BTreeMap<String, u16>,
    account: Option<String>,
    labels: BTreeMap<String, String>,
}

impl Workload {
    /// A workload whose calls arrive at `addr` on the port named `http`, with the label `app: APP`.
    pub fn new(name: &str, namespace: &str, app: &str, addr: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            address: addr.ip().to_string(),
            ports: BTreeMap::from([("http".to_owned(), addr.port())]),
            account: None,
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        }
    }

    /// The service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    /// One more label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The label `version`.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.label("version", version)
    }

    /// The label that says that a sidecar answers with mTLS.
    #[must_use]
    pub fn sidecar(self) -> Self {
        self.label("security.istio.io/tlsMode", "istio")
    }

    /// These named ports instead of `http`.
    #[must_use]
    pub fn ports(mut self, ports: &[(&str, u16)]) -> Self {
        self.ports = ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        self
    }

    /// `NAMESPACE/NAME`, as `--workload` takes it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&head("networking.istio.io/v1", "WorkloadEntry", &self.name, &self.namespace))?;
        writeln!(f, "  address: {:?}", self.address)?;
        if !self.ports.is_empty() {
            writeln!(f, "  ports:")?;
            self.ports.iter().try_for_each(|(name, port)| writeln!(f, "    {name}: {port}"))?;
        }
        if let Some(account) = &self.account {
            writeln!(f, "  serviceAccount: {account}")?;
        }
        writeln!(f, "  labels:")?;
        self.labels.iter().try_for_each(|(name, value)| writeln!(f, "    {name}: {value:?}"))
    }
}

/// A VirtualService that splits all requests to `host` by weight over subsets of the same host.
pub fn split(name: &str, namespace: &str, host: &str, weights: &[(&str, u32)]) -> String {
    let mut http = String::from("- route:\n");
    for (subset, weight) in weights {
        let _ = writeln!(http, "  - {{destination: {{host: {host}, subset: {subset}}}, weight: {weight}}}");
    }
    virtual_service(name, namespace, host, &http)
}

/// A VirtualService for one host; `http` is the YAML of the list `spec.http`.
pub fn virtual_service(name: &str, namespace: &str, host: &str, http: &str) -> String {
    let head = head("networking.istio.io/v1", "VirtualService", name, namespace);
    format!("{head}  hosts: [{host:?}]\n  http:\n{}", indented(http, 2))
}

/// A DestinationRule with one subset for each version (its name is the value of the label `version`).
pub fn destination_rule(name: &str, namespace: &str, host: &str, versions: &[&str]) -> String {
    destination_rule_with(name, namespace, host, versions, "")
}

/// As [`destination_rule`]; `traffic_policy` is the YAML of `spec.trafficPolicy`, none when empty.
pub fn destination_rule_with(
    name: &str,
    namespace: &str,
    host: &str,
    versions: &[&str],
    traffic_policy: &str,
) -> String {
    let mut text = head("networking.istio.io/v1", "DestinationRule", name, namespace);
    let _ = writeln!(text, "  host: {host:?}");
    if !traffic_policy.is_empty() {
        let _ = write!(text, "  trafficPolicy:\n{}", indented(traffic_policy, 4));
    }
    if !versions.is_empty() {
        let _ = writeln!(text, "  subsets:");
    }
    for version in versions {
        let _ = writeln!(text, "  - {{name: {version}, labels: {{version: {version:?}}}}}");
    }
    text
}

/// An AuthorizationPolicy for the workloads with `app: APP` (empty: the whole namespace); `rules` is the YAML
/// of the list `spec.rules`, none when empty (an ALLOW without rules admits nobody).
pub fn authorization_policy(name: &str, namespace: &str, app: &str, action: &str, rules: &str) -> String {
    let mut text = head("security.istio.io/v1", "AuthorizationPolicy", name, namespace);
    text.push_str(&selector(app));
    let _ = writeln!(text, "  action: {action}");
    if !rules.is_empty() {
        let _ = write!(text, "  rules:\n{}", indented(rules, 2));
    }
    text
}

/// A PeerAuthentication for the workloads with `app: APP` (empty: the whole namespace).
pub fn peer_authentication(name: &str, namespace: &str, app: &str, mode: &str) -> String {
    let head = head("security.istio.io/v1", "PeerAuthentication", name, namespace);
    format!("{head}{}  mtls: {{mode: {mode}}}\n", selector(app))
}

fn selector(app: &str) -> String {
    match app {
        "" => String::new(),
        app => format!("  selector: {{matchLabels: {{app: {app}}}}}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_map_is_flipped_in_one_step() {
        let dir = Dir::new();
        dir.write_config_map(1, &[("a.yaml", "one"), ("b.yaml", "two")]);
        assert_eq!(std::fs::read_to_string(dir.file("a.yaml")).unwrap(), "one");
        dir.write_config_map(2, &[("a.yaml", "three")]);
        assert_eq!(std::fs::read_to_string(dir.file("a.yaml")).unwrap(), "three");
        assert!(dir.file("b.yaml").symlink_metadata().is_err());
        assert!(!dir.file("..version_1").exists());
    }

    #[test]
    fn texts_stand_as_a_person_would_write_them() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 19081));
        let workload = Workload::new("reviews-v1", "default", "reviews", addr);
        let text = documents([
            workload.account("reviews").version("v1").sidecar().to_string(),
            split("reviews", "default", "reviews", &[("v1", 90), ("v2", 10)]),
            destination_rule_with("reviews", "default", "reviews", &["v1"], "tls:\n  mode: DISABLE\n"),
            authorization_policy(
                "a",
                "default",
                "reviews",
                "ALLOW",
                "- to:\n  - operation: {methods: [GET]}\n",
            ),
        ]);
        let expected = r#"apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec:
  address: "127.0.0.1"
  ports:
    http: 19081
  serviceAccount: reviews
  labels:
    app: "reviews"
    security.istio.io/tlsMode: "istio"
    version: "v1"
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: ["reviews"]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: "reviews"
  trafficPolicy:
    tls:
      mode: DISABLE
  subsets:
  - {name: v1, labels: {version: "v1"}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: default}
spec:
  selector: {matchLabels: {app: reviews}}
  action: ALLOW
  rules:
  - to:
    - operation: {methods: [GET]}
"#;
        assert_eq!(text, expected);
    }
}
