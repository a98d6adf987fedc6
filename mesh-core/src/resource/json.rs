//! Resources as JSON: what one process of the mesh writes and another reads.

use serde_json::{Map, Value};

use super::meta::LAST_APPLIED;
use super::object::{Invalid, Kind, KindVisitor, Object, Resource, with_kind};
use super::{ObjectMeta, metadata_problems};

/// The annotation in which `kubectl` keeps a second copy of the whole resource.
/// Metadata that changes although nothing that the mesh uses has changed.
const RESTLESS: [&str; 3] = ["resourceVersion", "generation", "uid"];

/// Why bytes are no resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidJson(String);

impl Object {
    /// The resource in canonical JSON, as Kubernetes writes it: keys in order, no white space, and without
    /// the metadata that changes although nothing that the mesh uses has changed.
    ///
    /// ```
    /// use tower_mesh_core::resource::{Object, Resource, Service};
    ///
    /// let object = Object::from(Resource::new("default", "reviews", Service::default()));
    /// let json = object.to_json();
    /// assert_eq!(
    ///     String::from_utf8_lossy(&json),
    ///     r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"reviews","namespace":"default"},"spec":{}}"#
    /// );
    /// assert_eq!(Object::from_json(&json, None).unwrap(), object);
    /// ```
    pub fn to_json(&self) -> Vec<u8> {
        // Nothing in a resource is without a form in JSON; if it were, empty bytes are refused by who reads.
        let Ok(mut value) = serde_json::to_value(self) else { return Vec::new() };
        if let Some(Value::Object(meta)) = value.get_mut("metadata") {
            RESTLESS.iter().for_each(|key| drop(meta.remove(*key)));
            if let Some(Value::Object(annotations)) = meta.get_mut("annotations") {
                annotations.remove(LAST_APPLIED);
                if annotations.is_empty() {
                    meta.remove("annotations");
                }
            }
        }
        serde_json::to_vec(&value).unwrap_or_default()
    }

    /// Reads what [`to_json`](Self::to_json) wrote, as strictly as YAML is read; `invalid` where it is the
    /// closed reading of what a user wrote.
    ///
    /// # Errors
    /// What is wrong, with the field. The caller knows which resource was meant.
    pub fn from_json(json: &[u8], invalid: Option<Invalid>) -> Result<Self, InvalidJson> {
        let value: Value = serde_json::from_slice(json).map_err(|e| InvalidJson(format!("no JSON: {e}")))?;
        let Value::Object(mut fields) = value else {
            return Err(InvalidJson("a resource is an object with apiVersion, kind and metadata".to_owned()));
        };
        let mut text = |field: &str| match fields.remove(field) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(InvalidJson(format!("{field}: missing, or no text"))),
        };
        let (version, kind) = (text("apiVersion")?, text("kind")?);
        let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
        let (group, version) = (group.to_owned(), version.to_owned());
        let visitor = FromJson { version, fields, invalid };
        with_kind(&group, &kind, visitor)
            .unwrap_or_else(|_| Err(InvalidJson(format!("kind: {kind:?} of group {group:?} is not known"))))
    }
}

struct FromJson {
    version: String,
    fields: Map<String, Value>,
    invalid: Option<Invalid>,
}

impl KindVisitor for FromJson {
    type Output = Result<Object, InvalidJson>;

    fn visit<K: Kind>(mut self) -> Self::Output
    where
        Object: From<Resource<K>>,
    {
        if !K::VERSIONS.contains(&self.version.as_str()) {
            let known = K::VERSIONS.join(", ");
            return Err(InvalidJson(format!("apiVersion: {:?} is not one of {known}", self.version)));
        }
        let meta = self.fields.remove("metadata").unwrap_or_default();
        let meta: ObjectMeta =
            serde_json::from_value(meta).map_err(|e| InvalidJson(format!("metadata: {e}")))?;
        if K::NAMESPACED == meta.namespace.is_empty() {
            return Err(InvalidJson("metadata.namespace: missing, or of a kind that has none".to_owned()));
        }
        let spec = if K::FLAT {
            Value::Object(self.fields)
        } else {
            let spec = self.fields.remove("spec").unwrap_or_else(|| Value::Object(Map::new()));
            // Kubernetes' own objects carry a status that is nobody's business here.
            if let Some(field) = self.fields.keys().find(|_| K::STRICT) {
                return Err(InvalidJson(format!("{field}: unknown field")));
            }
            spec
        };
        let spec: K = serde_json::from_value(spec).map_err(|e| InvalidJson(format!("spec: {e}")))?;
        // A closed reading is what is left of something that broke the schema's rules.
        let of_spec = if self.invalid.is_none() { spec.validate(&meta) } else { Vec::new() };
        if let Some(problem) = metadata_problems(K::NAMESPACED, &meta).into_iter().chain(of_spec).next() {
            return Err(InvalidJson(format!("{}: {}", problem.field, problem.message)));
        }
        Ok(Resource { meta, spec, origin: None, invalid: self.invalid }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse_objects;

    const EVERY_KIND: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, labels: {a: b}, creationTimestamp: '2024-01-01T00:00:00Z'}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /v2}, headers: {end-user: {exact: jason}}}]
    timeout: 1.5s
    retries: {attempts: 2, perTryTimeout: 250ms}
    route: [{destination: {host: reviews, subset: v2, port: {number: 9080}}, weight: 90}, {destination: {host: reviews}, weight: 10}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v2, labels: {version: v2}}], trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec: {hosts: [api.example.com], ports: [{number: 443, name: https, protocol: TLS}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm}
spec: {address: 10.0.0.1, ports: {http: 8080}, weight: 2}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {egress: [{hosts: ['./*']}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh}
spec: {accessLogging: [{providers: [{name: envoy}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: web}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1]}]
ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1-abc}
spec: {serviceAccountName: reviews, containers: [{name: app, ports: [{name: web, containerPort: 9080}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
";

    fn objects() -> Vec<Object> {
        parse_objects("every.yaml", EVERY_KIND).unwrap()
    }

    #[test]
    fn every_kind_comes_back_as_it_was() {
        let objects = objects();
        assert_eq!(objects.len(), 12);
        for object in objects {
            let json = object.to_json();
            let read = Object::from_json(&json, None);
            let read = read.unwrap_or_else(|e| panic!("{}: {e}", object.reference()));
            assert_eq!((read.kind(), read.meta()), (object.kind(), object.meta()));
            assert_eq!(read.to_json(), json);
            assert!(read.origin().is_none());
        }
    }

    #[test]
    fn metadata_that_means_nothing_makes_no_difference() {
        let service = super::super::Service::default();
        let quiet = Resource::new("default", "reviews", service);
        let mut restless = quiet.clone();
        restless.meta.resource_version = "17".into();
        restless.meta.generation = 3;
        restless.meta.uid = "u".into();
        restless.meta.annotations.insert(LAST_APPLIED.into(), "{}".into());
        assert_eq!(Object::from(quiet).to_json(), Object::from(restless).to_json());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let of = |json: &str| Object::from_json(json.as_bytes(), None).unwrap_err().to_string();
        let vs = |rest: &str| {
            format!(r#"{{"apiVersion":"networking.istio.io/v1","kind":"VirtualService",{rest}}}"#)
        };
        let meta = r#""metadata":{"name":"a","namespace":"b"}"#;
        for (json, said) in [
            (String::new(), "no JSON"),
            ("[]".to_owned(), "a resource is an object"),
            ("{}".to_owned(), "apiVersion: missing"),
            (r#"{"apiVersion":"v1","kind":"Secret"}"#.to_owned(), "kind: \"Secret\""),
            (vs(r#""metadata":{"namespace":"b"}"#), "metadata.name: the name"),
            (vs(r#""metadata":{"name":"a"}"#), "metadata.namespace: missing"),
            (vs(&format!(r#"{meta},"spec":{{"htpp":[]}}"#)), "spec: unknown field `htpp`"),
            (vs(&format!(r#"{meta},"spec":{{}},"status":{{}}"#)), "status: unknown field"),
            (vs(&format!(r#"{meta},"spec":{{}}"#)), "spec: one of http"),
            (vs(meta).replace("/v1", "/v9"), "apiVersion: \"v9\""),
            ("[".repeat(100_000), "no JSON"),
        ] {
            assert!(of(&json).starts_with(said), "{json:.80}: {}", of(&json));
        }
    }

    #[test]
    fn a_closed_reading_stays_one() {
        let json = r#"{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"a","namespace":"b"},"spec":{"host":"x"}}"#;
        let invalid = Some(Invalid { reason: "spec.trafficPolicy: no".into() });
        assert_eq!(Object::from_json(json.as_bytes(), invalid.clone()).unwrap().invalid(), invalid.as_ref());
    }
}
