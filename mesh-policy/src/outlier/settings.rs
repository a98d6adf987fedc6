//! From a `DestinationRule` to settings.

use mesh_core::cluster::OutlierSettings;
use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::resource::destination_rule::{DestinationRule, OutlierDetection};
use mesh_core::resource::{Duration, Resource};

/// The settings of an `outlierDetection` block that stands at `field`, and what in it has no effect.
/// What it leaves out is Istio's default; a number of 0 turns a row off, and a percentage or a
/// duration of 0 is unset.
///
/// ```
/// use mesh_core::resource::destination_rule::OutlierDetection;
/// use tower_mesh_policy::outlier::settings;
///
/// let block: OutlierDetection = serde_json::from_str(r#"{"consecutive5xxErrors": 3, "interval": "5s"}"#).unwrap();
/// let (settings, found) = settings(&block, "spec.trafficPolicy.outlierDetection");
/// assert_eq!((settings.consecutive_5xx, settings.interval.as_secs(), settings.max_ejection_percent), (3, 5, 10));
/// assert!(found.is_empty());
/// ```
pub fn settings(block: &OutlierDetection, field: &str) -> (OutlierSettings, Vec<Diagnostic>) {
    let unset = OutlierSettings::default();
    let mut found = Vec::new();
    let mut note = |name: &str, message: String| {
        found.push(Diagnostic::new(Effect::NoEffect, message).field(format!("{field}.{name}")));
    };
    if block.consecutive_errors != 0 {
        note(
            "consecutiveErrors",
            "it is deprecated and Istio ignores it; use consecutive5xxErrors".to_owned(),
        );
    }
    if block.consecutive_local_origin_failures.is_some() && !block.split_external_local_origin_errors {
        note(
            "consecutiveLocalOriginFailures",
            "failures on the way count as 5xx; set splitExternalLocalOriginErrors to count them apart"
                .to_owned(),
        );
    }
    let mut error_codes = Vec::new();
    for (i, code) in block.outlier_detection_http_error_codes.iter().enumerate() {
        match u16::try_from(*code) {
            Ok(code @ 100..=599) => error_codes.push(code),
            _ => note(
                &format!("outlierDetectionHttpErrorCodes[{i}]"),
                format!("{code} is no status, 100 to 599"),
            ),
        }
    }
    let duration = |value: Option<Duration>, default| {
        value.filter(|d| !d.is_zero()).map_or(default, std::time::Duration::from)
    };
    let settings = OutlierSettings {
        consecutive_5xx: block.consecutive_5xx_errors.unwrap_or(unset.consecutive_5xx),
        consecutive_gateway: block.consecutive_gateway_errors.unwrap_or(unset.consecutive_gateway),
        consecutive_local: block.consecutive_local_origin_failures.unwrap_or(unset.consecutive_local),
        split_local: block.split_external_local_origin_errors,
        error_codes,
        interval: duration(block.interval, unset.interval),
        base_ejection: duration(block.base_ejection_time, unset.base_ejection),
        max_ejection_percent: match block.max_ejection_percent {
            0 => unset.max_ejection_percent,
            percent => percent,
        },
        min_health_percent: block.min_health_percent,
    };
    (settings, found)
}

/// What has no effect in the `outlierDetection` blocks of a DestinationRule.
pub fn validate(rule: &Resource<DestinationRule>) -> Vec<Diagnostic> {
    let mut blocks: Vec<(String, Option<&OutlierDetection>)> = Vec::new();
    let own = rule.spec.traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let subsets = rule.spec.subsets.iter().enumerate();
    let subsets = subsets
        .filter_map(|(i, s)| Some((format!("spec.subsets[{i}].trafficPolicy"), s.traffic_policy.as_ref()?)));
    for (field, policy) in own.chain(subsets) {
        for (i, port) in policy.port_level_settings.iter().enumerate() {
            blocks.push((format!("{field}.portLevelSettings[{i}]"), port.outlier_detection.as_ref()));
        }
        blocks.push((field, policy.outlier_detection.as_ref()));
    }
    let found = blocks.into_iter().filter_map(|(field, block)| Some((field, block?)));
    found
        .flat_map(|(field, block)| settings(block, &format!("{field}.outlierDetection")).1)
        .map(|mut diagnostic| {
            diagnostic.resource = Some(rule.reference());
            diagnostic.origin.clone_from(&rule.origin);
            diagnostic
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration as Time;

    fn read(json: &str) -> (OutlierSettings, Vec<Diagnostic>) {
        settings(&serde_json::from_str(json).unwrap(), "x")
    }

    #[test]
    fn what_is_left_out_is_the_default_and_zero_means_what_istio_means() {
        let default = OutlierSettings::default();
        assert_eq!(read("{}"), (default.clone(), vec![]));
        let zeros = r#"{"consecutive5xxErrors": 0, "consecutiveGatewayErrors": 0, "maxEjectionPercent": 0, "baseEjectionTime": "0s"}"#;
        assert_eq!(read(zeros).0, OutlierSettings { consecutive_5xx: 0, ..default });
    }

    #[test]
    fn every_field_finds_its_place() {
        let (settings, found) = read(
            r#"{"consecutive5xxErrors": 1, "consecutiveGatewayErrors": 2, "consecutiveLocalOriginFailures": 3,
                "splitExternalLocalOriginErrors": true, "interval": "4s", "baseEjectionTime": "5s",
                "maxEjectionPercent": 60, "minHealthPercent": 70, "outlierDetectionHttpErrorCodes": [429, 503]}"#,
        );
        let want = OutlierSettings {
            consecutive_5xx: 1,
            consecutive_gateway: 2,
            consecutive_local: 3,
            split_local: true,
            interval: Time::from_secs(4),
            base_ejection: Time::from_secs(5),
            max_ejection_percent: 60,
            min_health_percent: 70,
            error_codes: vec![429, 503],
        };
        assert_eq!((settings, found), (want, vec![]));
    }

    #[test]
    fn what_has_no_effect_is_told_with_its_field() {
        let spec = r#"{"host": "a", "trafficPolicy": {"outlierDetection": {"consecutiveErrors": 5},
            "portLevelSettings": [{"outlierDetection": {"consecutiveLocalOriginFailures": 5}}]},
            "subsets": [{"name": "v1", "trafficPolicy": {"outlierDetection": {"outlierDetectionHttpErrorCodes": [99]}}}]}"#;
        let rule = Resource::new("default", "a", serde_json::from_str::<DestinationRule>(spec).unwrap());
        let found = validate(&rule);
        assert!(found.iter().all(|d| !d.is_error() && d.resource.is_some()));
        let fields: Vec<&str> = found.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.trafficPolicy.portLevelSettings[0].outlierDetection.consecutiveLocalOriginFailures",
                "spec.trafficPolicy.outlierDetection.consecutiveErrors",
                "spec.subsets[0].trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[0]",
            ]
        );
    }
}
