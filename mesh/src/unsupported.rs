//! Resources of which the mesh does little yet: what has no effect is said.

use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::resource::sidecar::CaptureMode;
use mesh_core::resource::{Object, Resource, Sidecar, Telemetry};

/// What is not done of a Telemetry or a Sidecar.
pub(crate) fn validate(object: &Object) -> Vec<Diagnostic> {
    match object {
        Object::Telemetry(telemetry) => of_telemetry(telemetry),
        Object::Sidecar(sidecar) => of_sidecar(sidecar),
        _ => Vec::new(),
    }
}

fn no_effect(field: impl Into<String>, message: &str) -> Diagnostic {
    Diagnostic::new(Effect::NoEffect, message).field(field)
}

fn of_telemetry(telemetry: &Resource<Telemetry>) -> Vec<Diagnostic> {
    let spec = &telemetry.spec;
    let mut found = Vec::new();
    if !spec.tracing.is_empty() {
        found.push(no_effect(
            "spec.tracing",
            "tracing by Telemetry is not supported yet; trace context is always passed on",
        ));
    }
    if !spec.metrics.is_empty() {
        found.push(no_effect("spec.metrics", "metrics by Telemetry are not supported yet; all are kept"));
    }
    if !spec.access_logging.is_empty() {
        found.push(no_effect(
            "spec.accessLogging",
            "access logging by Telemetry is not supported yet; the proxy's --access-log decides",
        ));
    }
    found
}

fn of_sidecar(sidecar: &Resource<Sidecar>) -> Vec<Diagnostic> {
    let spec = &sidecar.spec;
    let mut found = Vec::new();
    if !spec.ingress.is_empty() {
        let message = "ingress listeners are not supported yet; leave them out";
        found.push(Diagnostic::new(Effect::NotApplied, message).field("spec.ingress"));
    }
    if spec.inbound_connection_pool.is_some() {
        let message = "an inbound connection pool is not supported yet";
        found.push(no_effect("spec.inboundConnectionPool", message));
    }
    for (i, egress) in spec.egress.iter().enumerate() {
        if egress.port.is_some() {
            let message =
                "an egress listener with a port of its own is not supported yet; leave the port out";
            found.push(Diagnostic::new(Effect::NotApplied, message).field(format!("spec.egress[{i}].port")));
        }
        if !egress.bind.is_empty() || egress.capture_mode != CaptureMode::Default {
            let message = "bind and captureMode are not supported yet; the proxy's --outbound decides";
            found.push(no_effect(format!("spec.egress[{i}]"), message));
        }
    }
    if spec.outbound_traffic_policy.as_ref().is_some_and(|p| p.egress_proxy.is_some()) {
        let message = "an egress proxy is not supported yet; leave it out";
        let field = "spec.outboundTrafficPolicy.egressProxy";
        found.push(Diagnostic::new(Effect::NotApplied, message).field(field));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_said() {
        use Effect::{NoEffect, NotApplied};
        let table = [
            ("networking.istio.io/v1", "Sidecar", "{egress: [{hosts: ['./*']}]}", None),
            ("networking.istio.io/v1", "Sidecar", "{outboundTrafficPolicy: {mode: ALLOW_ANY}}", None),
            (
                "networking.istio.io/v1",
                "Sidecar",
                "{egress: [{port: {number: 80, protocol: HTTP, name: http}, hosts: ['./*']}]}",
                Some(("spec.egress[0].port", NotApplied)),
            ),
            (
                "telemetry.istio.io/v1",
                "Telemetry",
                "{accessLogging: [{providers: [{name: envoy}]}]}",
                Some(("spec.accessLogging", NoEffect)),
            ),
            (
                "telemetry.istio.io/v1",
                "Telemetry",
                "{tracing: [{randomSamplingPercentage: 10}]}",
                Some(("spec.tracing", NoEffect)),
            ),
        ];
        for (version, kind, spec, want) in table {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
            let object = mesh_core::yaml::parse_objects("a.yaml", &text).unwrap().remove(0);
            let found: Vec<_> = validate(&object).into_iter().map(|d| (d.field, d.effect)).collect();
            let want: Vec<_> = want.into_iter().map(|(f, e)| (f.to_owned(), e)).collect();
            assert_eq!(found, want, "{spec}");
        }
    }
}
