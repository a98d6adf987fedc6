//! What is in force, as JSON for people and tools.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use mesh_core::cluster::{Cluster, Endpoint, Expect, Gauge, UpstreamTls};
use mesh_core::diagnostic::Diagnostic;
use mesh_core::resource::Object;
use mesh_policy::breaker::State;
use mesh_tls::CertificateInfo;
use mesh_tls::clock::utc;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::mesh::Mesh;

impl Mesh {
    /// The resources in force and what is wrong with others; who the workload is; the modes of its ports;
    /// the hosts that it can call.
    pub fn config_dump(&self) -> Value {
        let view = self.0.view.load_full();
        let modes = self.0.modes.load();
        let mut hosts: Vec<(String, String)> = {
            let table = self.0.routes.load();
            table.domains().map(|(domain, routes)| (domain, routes.host().to_string())).collect()
        };
        hosts.sort();
        let ports: serde_json::Map<String, Value> =
            modes.ports().map(|(port, mode)| (port.to_string(), mode.mode.to_string().into())).collect();
        json!({
            "source": self.source_dump(),
            "workload": view.workload.as_ref().map(|w| json!({
                "namespace": &*w.namespace,
                "name": &*w.name,
                "service_account": &*w.service_account,
                "identity": w.identity.as_ref().map(ToString::to_string),
                "labels": *w.labels,
            })),
            "generation": self.0.readiness.configuration().load().generation,
            "mtls": {"default": modes.others().mode.to_string(), "ports": ports},
            "authorization": self.0.rules.load().policies().map(ToString::to_string).collect::<Vec<_>>(),
            "hosts": hosts.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "problems": view.diagnostics.iter().map(diagnostic).collect::<Vec<_>>(),
            "resources": view.objects.iter().map(resource).collect::<Vec<_>>(),
        })
    }

    /// Where the configuration comes from, and how it goes with that.
    fn source_dump(&self) -> Value {
        #[cfg(feature = "control-plane")]
        if let Some(control) = &self.0.control {
            return json!({"control_plane": control.dump()});
        }
        "directory or code".into()
    }

    /// Every cluster in use with its endpoints: what is in flight, what is ejected, who each must be.
    pub fn clusters_dump(&self) -> Value {
        let mut clusters = self.0.registry.all();
        clusters.sort_by(|a, b| a.key().cmp(b.key()));
        Value::Array(clusters.iter().map(|c| cluster(c)).collect())
    }

    /// The certificate in force, the roots that are trusted, and how renewal goes.
    pub fn certs_dump(&self) -> Value {
        let credentials = self.0.credentials.load_full();
        let status = credentials.status();
        let roots = credentials.material().into_iter().flat_map(|m| m.bundle().roots());
        json!({
            "identity": credentials.id().map(ToString::to_string),
            "certificate": credentials.certificate().map(certificate),
            "expired": credentials.expired(SystemTime::now()),
            "roots": roots.map(|(domain, info)| {
                let mut root = certificate(info);
                if let Value::Object(fields) = &mut root {
                    fields.insert("trust_domain".into(), domain.as_str().into());
                }
                root
            }).collect::<Vec<_>>(),
            "loaded_at": status.loaded_at.map(utc),
            "renewals": status.renewals,
            "failures": status.failures,
            "last_error": status.last_error.as_ref().map(ToString::to_string),
        })
    }
}

pub(crate) fn diagnostic(d: &Diagnostic) -> Value {
    json!({
        "error": d.is_error(),
        "effect": d.effect.told(),
        "file": d.origin.as_ref().map(|o| o.file.display().to_string()),
        "line": d.origin.as_ref().map(|o| o.line),
        "resource": d.resource.as_ref().map(ToString::to_string),
        "field": d.field,
        "message": d.message,
    })
}

fn resource(object: &Object) -> Value {
    json!({
        "resource": object.reference().to_string(),
        "origin": object.origin().map(ToString::to_string),
        "closed_reading": object.invalid().map(|i| i.reason.clone()),
        "object": serde_json::to_value(object).unwrap_or_default(),
    })
}

fn cluster(cluster: &Cluster) -> Value {
    let settings = cluster.load_settings();
    let limits = settings.limits;
    let unlimited = |limit: u32| if limit == u32::MAX { Value::Null } else { limit.into() };
    let endpoints = cluster.load_endpoints();
    let now = Instant::now();
    json!({
        "name": cluster.key().to_string(),
        "service": &*cluster.service().host,
        "port": cluster.key().port,
        "subset": &*cluster.key().subset,
        "protocol": format!("{:?}", settings.protocol),
        "balance": format!("{:?}", settings.balance),
        "refuses": settings.refuse.as_ref().map(ToString::to_string),
        "breaker": match State::of(cluster) { State::Closed => "closed", State::Open => "open" },
        "limits": {
            "requests": unlimited(limits.requests),
            "pending": unlimited(limits.pending),
            "connections": unlimited(limits.connections),
            "retries": unlimited(limits.retries),
        },
        "requests": cluster.in_use(Gauge::Requests),
        "pending": cluster.in_use(Gauge::Pending),
        "connections": cluster.in_use(Gauge::Connections),
        "retries": cluster.in_use(Gauge::Retries),
        "overflows": cluster.overflows(),
        "retry_overflows": cluster.retry_overflows(),
        "ejections": cluster.ejections(),
        "endpoints": endpoints.members().iter().map(|e| endpoint(e, now)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint, now: Instant) -> Value {
    let state = endpoint.state();
    let left = state.ejected_until().map(|until| until.saturating_duration_since(now));
    let (tls, expects) = match &endpoint.key().tls {
        UpstreamTls::Plaintext => ("none", Value::Null),
        UpstreamTls::Mutual { expect: Expect::AnyInTrustDomain, .. } => ("mutual", "trust domain".into()),
        UpstreamTls::Mutual { expect: Expect::AnyOf(ids), .. } => {
            ("mutual", ids.iter().map(|id| Value::from(id.as_str())).collect())
        }
    };
    json!({
        "address": endpoint.key().address.to_string(),
        "workload": &*endpoint.labels().workload,
        "weight": endpoint.weight(),
        "tls": tls,
        "expects": expects,
        "requests": state.active(),
        "connections": state.connections().load(Ordering::Relaxed),
        "ejected": state.is_ejected(now),
        "ejected_for_ms": left.filter(|l| !l.is_zero()).map(|l| l.as_millis() as u64),
        "ejections": state.ejections().load(Ordering::Relaxed),
    })
}

fn certificate(info: &CertificateInfo) -> Value {
    json!({
        "subject": &*info.subject,
        "spiffe_id": info.id.as_ref().map(ToString::to_string),
        "serial": &*info.serial,
        "not_before": utc(info.not_before),
        "not_after": utc(info.not_after),
    })
}
