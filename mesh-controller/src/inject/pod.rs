//! Puts the sidecar into a pod.

use serde_json::{Map, Value, json};

use super::annotations::Wishes;
use super::refusal::Refusal;
use super::settings::{INIT_CONTAINER, PROXY_CONTAINER, STATUS_PORT, Settings};
use super::{Injected, STATUS_ANNOTATION, Target};
use super::{conflicts, container, merge, probes, stop, view};

const TLS_MODE: &str = "security.istio.io/tlsMode";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// The longest value of a label.
const MAX_LABEL: usize = 63;

pub(super) fn with_sidecar(
    settings: &Settings,
    target: &Target<'_>,
    pod: &Value,
) -> Result<Injected, Refusal> {
    let wishes = Wishes::of(pod, settings)?;
    let arguments = settings.capture.with_annotations(pod)?.arguments();
    let mut pod = pod.clone();
    let Some(root) = pod.as_object_mut() else { return Err(Refusal::new("", "must be an object")) };
    if !root.get("spec").is_some_and(Value::is_object) {
        return Err(Refusal::new("spec", "is missing; a pod has one"));
    }
    for (field, list) in [("spec.initContainers", false), ("spec.containers", true), ("spec.volumes", false)]
    {
        let value = root.get("spec").and_then(|s| s.get(field.strip_prefix("spec.")?));
        match value.filter(|v| !v.is_null()) {
            None if list => return Err(Refusal::new(field, "is missing; a pod has at least one container")),
            Some(value) if !value.is_array() => return Err(Refusal::new(field, "must be a list")),
            _ => {}
        }
    }
    conflicts::check_foreign(root)?;
    let own_ones = merge::take(view::object(root, "spec", "spec")?)?;
    conflicts::check(root, &container::VOLUMES)?;
    let mut originals = Map::new();
    let spec = view::object(root, "spec", "spec")?;
    if wishes.rewrite_probes {
        for list in ["initContainers", "containers"] {
            probes::rewrite(spec, list, &mut originals)?;
        }
        let bytes = Value::Object(originals.clone()).to_string().len();
        if bytes > probes::MAX_BYTES {
            let message = format!(
                "its probes take {bytes} bytes, and at most {} can be led to the sidecar; shorten them or set \
                 the annotation sidecar.istio.io/rewriteAppHTTPProbers to \"false\"",
                probes::MAX_BYTES
            );
            return Err(Refusal::new("spec.containers", message));
        }
    }
    if wishes.hold_stop {
        stop::hold(spec)?;
    }
    let metadata = view::object(root, "metadata", "metadata")?;
    let app_metrics = match wishes.merge_metrics {
        true => merge_metrics(metadata)?,
        false => None,
    };
    labels(metadata, target)?;
    let status = json!({
        "revision": settings.revision,
        "initContainers": [INIT_CONTAINER, PROXY_CONTAINER],
        "containers": [],
        "volumes": container::VOLUMES,
        "imagePullSecrets": null,
    });
    view::object(metadata, "annotations", "metadata.annotations")?
        .insert(STATUS_ANNOTATION.into(), json!(status.to_string()));

    let mut sidecar = container::sidecar(settings, &wishes, &originals, app_metrics);
    if let Some(own) = own_ones {
        merge::lay_over(&mut sidecar, own)?;
    }
    container::hold_up(&mut sidecar);
    let spec = view::object(root, "spec", "spec")?;
    // First of all: what comes after them finds the network as it will be.
    let first = [container::init(settings, &wishes, &arguments), sidecar];
    view::array(spec, "initContainers", "spec.initContainers")?.splice(0..0, first);
    view::array(spec, "volumes", "spec.volumes")?.extend(container::volumes(settings));
    Ok(Injected { pod, warnings: wishes.warnings })
}

/// Leads Prometheus to the page with the metrics of both. Gives where the application's are, when it has any.
fn merge_metrics(metadata: &mut Map<String, Value>) -> Result<Option<Value>, Refusal> {
    const SCRAPE: &str = "prometheus.io/scrape";
    const PORT: &str = "prometheus.io/port";
    const PATH: &str = "prometheus.io/path";
    const SCHEME: &str = "prometheus.io/scheme";
    let annotations = view::object(metadata, "annotations", "metadata.annotations")?;
    let text = |name: &str| annotations.get(name).and_then(Value::as_str);
    let scrape = text(SCRAPE);
    // Who says that nothing is to be scraped means it.
    if scrape == Some("false") {
        return Ok(None);
    }
    let app = match (scrape, text(PORT)) {
        (Some("true"), Some(port)) => {
            let Some(port) = port.parse::<u16>().ok().filter(|p| *p > 0) else {
                let message = format!("{port:?} is no port; write a number from 1 to 65535");
                return Err(Refusal::annotation(PORT, message));
            };
            let path = text(PATH).unwrap_or("/metrics");
            let app = json!({"port": port, "path": path, "scheme": text(SCHEME).unwrap_or("http")});
            Some(app).filter(|_| port != STATUS_PORT)
        }
        _ => None,
    };
    annotations.remove(SCHEME);
    annotations.insert(SCRAPE.into(), json!("true"));
    annotations.insert(PORT.into(), json!(STATUS_PORT.to_string()));
    annotations.insert(PATH.into(), json!("/stats/prometheus"));
    Ok(app)
}

/// The labels by which other sidecars know that this one speaks TLS, and by what name telemetry calls it.
fn labels(metadata: &mut Map<String, Value>, target: &Target<'_>) -> Result<(), Refusal> {
    let own = metadata.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let labels = view::object(metadata, "labels", "metadata.labels")?;
    let first = |names: &[&str]| {
        names.iter().find_map(|n| labels.get(*n)?.as_str().filter(|v| !v.is_empty())).map(str::to_owned)
    };
    let workload = if target.workload.is_empty() { own.as_str() } else { target.workload };
    let name =
        first(&[CANONICAL_NAME, "app.kubernetes.io/name", "app"]).unwrap_or_else(|| label_value(workload));
    let revision = first(&[CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
    labels.insert(TLS_MODE.into(), json!("istio"));
    if !name.is_empty() {
        labels.insert(CANONICAL_NAME.into(), json!(name));
    }
    labels.insert(CANONICAL_REVISION.into(), json!(revision.unwrap_or_else(|| "latest".into())));
    Ok(())
}

/// As much of a name as a label's value may be.
fn label_value(name: &str) -> String {
    let head: String = name.chars().take(MAX_LABEL).collect();
    head.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
