//! Manifests that many tests share.

use std::fmt;

use serde_json::{Value, json};

/// A Deployment of `e2e-app` with its ServiceAccount and Service, all of one name. HTTP is on 9080, TCP where the
/// client speaks first on 9000, TCP where the server does on 9001.
#[derive(Debug, Clone)]
pub struct App {
    name: String,
    version: Option<String>,
    replicas: u32,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    service: bool,
}

/// An [`App`] with one replica.
pub fn deployment(name: &str) -> App {
    App {
        name: name.to_owned(),
        version: None,
        replicas: 1,
        labels: Vec::new(),
        // So that tests reach the control port whatever the mesh does.
        annotations: vec![("traffic.sidecar.istio.io/excludeInboundPorts".into(), "7000".into())],
        service: true,
    }
}

impl App {
    /// A version of the application: label `version`, and a Deployment and a `x-served-by` of the name
    /// `NAME-VERSION`. The first version brings account and Service.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        self.version = Some(version.to_owned());
        self
    }

    /// The name of its Deployment.
    pub fn full_name(&self) -> String {
        self.version.as_ref().map_or_else(|| self.name.clone(), |version| format!("{}-{version}", self.name))
    }

    /// How many pods.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// One more label of the pods.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// One more annotation of the pods.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The Deployment alone.
    #[must_use]
    pub fn without_service(mut self) -> Self {
        self.service = false;
        self
    }
}

/// The image of the tests' application.
pub fn image() -> String {
    format!("e2e-app:{}", env!("CARGO_PKG_VERSION"))
}

/// A Job called `work`, each pod of which makes one call at its very start, without another try, and ends: well if the
/// call was answered.
pub fn job(pods: u32, url: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work"},
        "spec": {
            "backoffLimit": 0,
            "completions": pods,
            "parallelism": pods,
            "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "work",
                    "image": image(),
                    "imagePullPolicy": "Never",
                    "args": ["--lifetime=0", format!("--call-first={url}")],
                }],
            }},
        },
    })
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        let full = self.full_name();
        if self.service {
            write!(
                f,
                "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 9080}}
  - {{name: tcp, port: 9000}}
  - {{name: first, port: 9001}}
---
"
            )?;
        }
        write!(
            f,
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {full}}}
spec:
  replicas: {}
  selector: {{matchLabels: {{app: {name}, instance: {full}}}}}
  template:
    metadata:
      labels:
        app: {name}
        instance: {full}
",
            self.replicas
        )?;
        let version = self.version.iter().map(|version| ("version", version));
        for (key, value) in version.chain(self.labels.iter().map(|(key, value)| (key.as_str(), value))) {
            writeln!(f, "        {key}: {value:?}")?;
        }
        writeln!(f, "      annotations:")?;
        for (key, value) in &self.annotations {
            writeln!(f, "        {key}: {value:?}")?;
        }
        write!(
            f,
            "    spec:
      serviceAccountName: {name}
      containers:
      - name: app
        image: {}
        imagePullPolicy: Never
        args: [--name={full}, --http=9080, --tcp=9000, --tcp-first=9001]
        ports: [{{containerPort: 9080}}, {{containerPort: 9000}}, {{containerPort: 9001}}]
        readinessProbe: {{httpGet: {{path: /, port: 9080}}, periodSeconds: 1}}
---
",
            image()
        )
    }
}
