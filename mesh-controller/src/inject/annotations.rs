//! What a pod's annotations ask of its sidecar, besides what is redirected.

use std::collections::BTreeMap;

use serde_json::Value;

use super::refusal::Refusal;
use super::settings::{Resources, Settings};
use super::view;

const IMAGE: &str = "sidecar.istio.io/proxyImage";
const LOG_LEVEL: &str = "sidecar.istio.io/logLevel";
const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
const MERGE_METRICS: &str = "prometheus.istio.io/merge-metrics";
/// Whether the application is told to end when its callers have been told, rather than at once.
const HOLD_STOP: &str = "mesh.dev/hold-until-withdrawn";
const RESOURCES: [(&str, bool, &str); 4] = [
    ("sidecar.istio.io/proxyCPU", false, "cpu"),
    ("sidecar.istio.io/proxyMemory", false, "memory"),
    ("sidecar.istio.io/proxyCPULimit", true, "cpu"),
    ("sidecar.istio.io/proxyMemoryLimit", true, "memory"),
];

/// Wishes that cannot be met and must not be passed over: each with the value that is as good as none.
const UNSUPPORTED: [(&str, &str, &str); 7] = [
    (
        "sidecar.istio.io/nativeSidecar",
        "true",
        "the sidecar is an init container that keeps running; remove it",
    ),
    ("inject.istio.io/templates", "sidecar", "only the template \"sidecar\" is known; remove it"),
    ("status.sidecar.istio.io/port", "15020", "the port is always 15020; remove it"),
    (
        "sidecar.istio.io/userVolume",
        "",
        "is not supported; declare a container named mesh-proxy with volumeMounts",
    ),
    (
        "sidecar.istio.io/userVolumeMount",
        "",
        "is not supported; declare a container named mesh-proxy with volumeMounts",
    ),
    ("istio.io/reroute-virtual-interfaces", "", "is not supported; remove it"),
    ("sidecar.istio.io/bootstrapOverride", "", "there is no Envoy to configure; remove it"),
];

/// Wishes that make no difference here, and change nothing about safety either.
const WITHOUT_EFFECT: [&str; 19] = [
    "proxy.istio.io/config",
    "sidecar.istio.io/agentLogLevel",
    "sidecar.istio.io/componentLogLevel",
    "sidecar.istio.io/discoveryAddress",
    "sidecar.istio.io/extraStatTags",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/statsCompression",
    "sidecar.istio.io/statsEvictionInterval",
    "sidecar.istio.io/statsFlushInterval",
    "sidecar.istio.io/statsHistogramBins",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsInclusionPrefixes",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/statsInclusionSuffixes",
    "sidecar.istio.io/enableCoreDump",
    "readiness.status.sidecar.istio.io/applicationPorts",
    "readiness.status.sidecar.istio.io/failureThreshold",
    "readiness.status.sidecar.istio.io/initialDelaySeconds",
    "readiness.status.sidecar.istio.io/periodSeconds",
];

/// What a pod asks of its sidecar, where it does, else the mesh's settings.
pub(super) struct Wishes {
    pub(super) image: String,
    pub(super) log: String,
    pub(super) resources: Resources,
    pub(super) rewrite_probes: bool,
    pub(super) merge_metrics: bool,
    pub(super) hold_stop: bool,
    pub(super) warnings: Vec<String>,
}

impl Wishes {
    pub(super) fn of(pod: &Value, settings: &Settings) -> Result<Self, Refusal> {
        for (name, harmless, why) in UNSUPPORTED {
            match view::annotation(pod, name) {
                Some(value) if value != harmless => {
                    return Err(Refusal::annotation(name, format!("{value:?}: {why}")));
                }
                _ => {}
            }
        }
        let image = match view::annotation(pod, IMAGE) {
            Some(image) if image.is_empty() || image.contains(char::is_whitespace) => {
                return Err(Refusal::annotation(IMAGE, format!("{image:?} is no name of an image")));
            }
            image => image.unwrap_or(&settings.image).to_owned(),
        };
        let warnings = WITHOUT_EFFECT
            .into_iter()
            .filter(|name| view::annotation(pod, name).is_some())
            .map(|name| format!("metadata.annotations[{name}]: makes no difference to this mesh"))
            .collect();
        Ok(Self {
            image,
            log: log(pod)?.unwrap_or(&settings.log).to_owned(),
            resources: resources(pod)?.unwrap_or_else(|| settings.resources.clone()),
            rewrite_probes: switch(pod, REWRITE_PROBES)?.unwrap_or(true),
            merge_metrics: switch(pod, MERGE_METRICS)?.unwrap_or(settings.merge_metrics),
            hold_stop: switch(pod, HOLD_STOP)?.unwrap_or(true),
            warnings,
        })
    }
}

/// Istio's levels are Envoy's; those that we do not have become the next one.
fn log(pod: &Value) -> Result<Option<&str>, Refusal> {
    let Some(level) = view::annotation(pod, LOG_LEVEL) else { return Ok(None) };
    match level {
        "off" | "error" | "warn" | "info" | "debug" | "trace" => Ok(Some(level)),
        "warning" => Ok(Some("warn")),
        "critical" => Ok(Some("error")),
        _ => Err(Refusal::annotation(
            LOG_LEVEL,
            format!("{level:?} is no level; write off, error, warn, info, debug or trace"),
        )),
    }
}

/// When a pod says anything about resources, the mesh's own are not mixed in: a request of the one beyond a
/// limit of the other would be no pod at all.
fn resources(pod: &Value) -> Result<Option<Resources>, Refusal> {
    let mut resources = Resources::default();
    for (name, limit, what) in RESOURCES {
        let Some(quantity) = view::annotation(pod, name) else { continue };
        if !is_quantity(quantity) {
            let message =
                format!("{quantity:?} is no quantity; write such as 100m for CPU or 64Mi for memory");
            return Err(Refusal::annotation(name, message));
        }
        let map: &mut BTreeMap<_, _> = if limit { &mut resources.limits } else { &mut resources.requests };
        map.insert(what.to_owned(), quantity.to_owned());
    }
    Ok((resources != Resources::default()).then_some(resources))
}

/// A number of Kubernetes' with a suffix: `100m`, `0.5`, `64Mi`, `1e3`.
fn is_quantity(text: &str) -> bool {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let exponent = || suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i8>().is_ok());
    number.parse::<f64>().is_ok()
        && (matches!(suffix, "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E")
            || matches!(suffix, "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei")
            || exponent())
}

fn switch(pod: &Value, name: &str) -> Result<Option<bool>, Refusal> {
    match view::annotation(pod, name) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(Refusal::annotation(
            name,
            format!("{other:?} is neither \"true\" nor \"false\"; write one of them"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wishes(name: &str, value: &str) -> Result<Wishes, String> {
        let pod = json!({"metadata": {"annotations": {name: value}}});
        Wishes::of(&pod, &Settings::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn annotations_go_before_settings() {
        let of = |name, value| wishes(name, value).unwrap();
        assert_eq!(of(IMAGE, "mine:1").image, "mine:1");
        for (level, log) in [("warning", "warn"), ("critical", "error"), ("debug", "debug"), ("off", "off")] {
            assert_eq!(of(LOG_LEVEL, level).log, log);
        }
        assert!(!of(REWRITE_PROBES, "false").rewrite_probes);
        assert!(!of(MERGE_METRICS, "false").merge_metrics);
        assert!(of("other.io/x", "y").hold_stop && !of(HOLD_STOP, "false").hold_stop);
        let cpu = of("sidecar.istio.io/proxyCPU", "200m").resources;
        assert_eq!(cpu.requests, BTreeMap::from([("cpu".into(), "200m".into())]));
        assert!(cpu.limits.is_empty());
        let memory = of("sidecar.istio.io/proxyMemoryLimit", "64Mi").resources;
        assert_eq!(memory.limits, BTreeMap::from([("memory".into(), "64Mi".into())]));
        assert_eq!(of("other.io/x", "y").resources, Settings::default().resources);
        for name in WITHOUT_EFFECT {
            let warnings = of(name, "x").warnings;
            assert!(warnings.len() == 1 && warnings[0].contains(name), "{warnings:?}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_way_out() {
        for (name, harmless, why) in UNSUPPORTED {
            assert!(wishes(name, harmless).is_ok());
            let error = wishes(name, "x").err().unwrap();
            assert_eq!(error, format!("metadata.annotations[{name}]: \"x\": {why}"));
        }
        for (name, value, said) in [
            (IMAGE, "a b", "is no name of an image"),
            (LOG_LEVEL, "loud", "write off, error, warn"),
            (REWRITE_PROBES, "maybe", "neither"),
            (HOLD_STOP, "no", "neither"),
            ("sidecar.istio.io/proxyCPU", "lots", "is no quantity"),
            ("sidecar.istio.io/proxyMemory", "", "is no quantity"),
            ("sidecar.istio.io/proxyMemory", "64MB", "is no quantity"),
        ] {
            let error = wishes(name, value).err().unwrap();
            assert!(error.contains(name) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn quantities() {
        for good in ["1", "0.5", "100m", "64Mi", "1e3", "1E-3", "2Gi", "5."] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "m", "-1", "1 Mi", "1.2.3", "1mi", "inf", "1e", "é"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
