//! The demo's configuration: the files that a user of a mesh writes.

use std::path::Path;

/// Where the sidecars of `reviews` listen.
pub(super) struct Ports {
    pub(super) v1: u16,
    pub(super) v2: u16,
}

/// Writes (or rewrites) the configuration, with `weight` percent of the calls going to v1. Each file is
/// replaced at once, as editors do.
pub(super) fn write(dir: &Path, ports: &Ports, weight: u32) -> std::io::Result<()> {
    let files = [
        ("services.yaml", services(ports)),
        ("routing.yaml", routing(weight)),
        ("policies.yaml", POLICIES.to_owned()),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        let next = dir.join(format!(".{name}.next"));
        std::fs::write(&next, text)?;
        std::fs::rename(&next, &path)?;
    }
    Ok(())
}

fn services(Ports { v1, v2 }: &Ports) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: reviews, namespace: default}}
spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 9080}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: web, namespace: default}}
spec:
  address: 127.0.0.1
  serviceAccount: web
  labels: {{app: web, version: v1, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews-v1, namespace: default}}
spec:
  address: 127.0.0.1
  ports: {{http: {v1}}}
  serviceAccount: reviews
  labels: {{app: reviews, version: v1, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews-v2, namespace: default}}
spec:
  address: 127.0.0.1
  ports: {{http: {v2}}}
  serviceAccount: reviews
  labels: {{app: reviews, version: v2, security.istio.io/tlsMode: istio}}
"
    )
}

fn routing(v1: u32) -> String {
    let v2 = 100 - v1;
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: default}}
spec:
  host: reviews
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - name: canary
    route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: reviews, subset: v2}}, weight: {v2}}}
"
    )
}

const POLICIES: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews-readers, namespace: default}
spec:
  selector: {matchLabels: {app: reviews}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
    to: [{operation: {methods: [GET]}}]
";
