//! Which status a resource is to have.

use mesh_core::diagnostic::{Diagnostic, Effect};
use serde_json::{Value, json};

use super::Report;

/// The condition that is ours to write.
const CONDITION: &str = "Reconciled";
/// What the condition says where nothing is wrong any more.
const APPLIED: &str = "Applied";
/// What the codes of our messages begin with.
const CODES: &str = "MESH";
/// How many complaints are told.
pub const MAX_MESSAGES: usize = 10;
/// The longest text of the condition, in bytes.
pub const MAX_MESSAGE: usize = 2048;

/// The `status` that is to be merged into a resource's; nothing where it has it already, and where nothing is to be
/// said of it and nothing was. `now` is the time in RFC 3339.
pub fn decide(report: &Report, now: &str) -> Option<Value> {
    let current = &report.status;
    let before = condition_of(current);
    if report.diagnostics.is_empty() && !is_ours(current) {
        return None;
    }
    let errors = || report.diagnostics.iter().filter(|d| d.is_error());
    let first = errors().next();
    let reason = first.map_or(APPLIED, |first| code(first.effect).1);
    let status = if first.is_some() { "False" } else { "True" };
    let text = text(if first.is_some() { errors().collect() } else { report.diagnostics.iter().collect() });
    let ours: Vec<Value> = report.diagnostics.iter().take(MAX_MESSAGES).map(message).collect();

    let list = |field: &str| current.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let same_messages = {
        let known = list("validationMessages").iter().filter(|m| is_our_message(m));
        known.map(essence).eq(ours.iter().map(essence))
    };
    let of = |condition: &Value, field: &str| condition.get(field).and_then(Value::as_str).map(str::to_owned);
    let said = |field: &str| before.and_then(|c| of(c, field)).unwrap_or_default();
    let same_condition =
        (said("status").as_str(), said("reason"), said("message")) == (status, reason.into(), text.clone());
    let observed = match current.get("observedGeneration") {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(number) => number.as_i64().unwrap_or(0),
        None => 0,
    };
    if same_messages && same_condition && observed == report.generation {
        return None;
    }
    let since = if said("status") == status { said("lastTransitionTime") } else { String::new() };
    let since = if since.is_empty() { now.to_owned() } else { since };
    let condition = json!({
        "type": CONDITION, "status": status, "reason": reason, "message": text,
        "lastTransitionTime": since, "lastProbeTime": now,
    });
    let others = list("conditions").iter().filter(|c| !is_our_condition(c)).cloned();
    let foreign = list("validationMessages").iter().filter(|m| !is_our_message(m)).cloned();
    Some(json!({
        "conditions": others.chain([condition]).collect::<Vec<_>>(),
        "validationMessages": foreign.chain(ours).collect::<Vec<_>>(),
        "observedGeneration": report.generation,
    }))
}

/// Whether a status was written by a controller of the mesh: the reasons of the condition are our own.
pub(super) fn is_ours(status: &Value) -> bool {
    let reason = condition_of(status).and_then(|c| c.get("reason")).and_then(Value::as_str);
    reason.is_some_and(|reason| {
        reason == APPLIED
            || [Effect::NotApplied, Effect::LastGoodKept, Effect::ClosedReading]
                .map(|e| code(e).1)
                .contains(&reason)
    })
}

fn condition_of(status: &Value) -> Option<&Value> {
    status.get("conditions")?.as_array()?.iter().find(|c| is_our_condition(c))
}

fn is_our_condition(condition: &Value) -> bool {
    condition.get("type").and_then(Value::as_str) == Some(CONDITION)
}

fn is_our_message(message: &Value) -> bool {
    let code = message.pointer("/type/code").and_then(Value::as_str);
    code.is_some_and(|code| code.starts_with(CODES))
}

/// What tells one of our messages from another; the rest may be lost on the way.
fn essence(message: &Value) -> (Option<&Value>, Option<&Value>) {
    (message.pointer("/type/code"), message.get("level"))
}

/// The code and the name of what follows from a complaint.
const fn code(effect: Effect) -> (&'static str, &'static str) {
    match effect {
        Effect::NotApplied => ("MESH0001", "NotApplied"),
        Effect::LastGoodKept => ("MESH0002", "LastGoodKept"),
        Effect::ClosedReading => ("MESH0003", "ClosedReading"),
        Effect::NoEffect => ("MESH0004", "NoEffect"),
        _ => ("MESH0000", "Remark"),
    }
}

fn message(diagnostic: &Diagnostic) -> Value {
    let (code, name) = code(diagnostic.effect);
    let level = if diagnostic.is_error() { "ERROR" } else { "WARNING" };
    json!({"type": {"code": code, "name": name}, "level": level})
}

/// The complaints as a person reads them, without the resource: they stand in it.
fn text(diagnostics: Vec<&Diagnostic>) -> String {
    let told = |d: &&Diagnostic| Diagnostic { resource: None, origin: None, ..(*d).clone() }.to_string();
    let mut text = diagnostics.iter().take(MAX_MESSAGES).map(told).collect::<Vec<_>>().join("\n");
    if let Some(more @ 1..) = diagnostics.len().checked_sub(MAX_MESSAGES) {
        text.push_str(&format!("\nand {more} more"));
    }
    if text.len() > MAX_MESSAGE {
        const CUT: &str = "...";
        let mut end = MAX_MESSAGE - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::resource::{AuthorizationPolicy, ObjectMeta};

    const THEN: &str = "2024-05-01T00:00:00Z";
    const NOW: &str = "2024-05-02T00:00:00Z";

    fn report(generation: i64, status: Value, diagnostics: &[(Effect, &str)]) -> Report {
        let meta = ObjectMeta { generation, ..ObjectMeta::new("shop", "p") };
        let diagnostics = diagnostics.iter().map(|(e, t)| Diagnostic::new(*e, *t).field("spec.x")).collect();
        Report { diagnostics, ..Report::of::<AuthorizationPolicy>(&meta, status) }
    }

    /// The status after what was decided is merged into it.
    fn after(report: &Report, now: &str) -> Value {
        let mut status = report.status.clone();
        json_patch::merge(&mut status, &decide(report, now).unwrap());
        status
    }

    #[test]
    fn a_fine_resource_is_left_alone() {
        for status in [
            Value::Null,
            json!({}),
            json!({"conditions": [{"type": "Other", "status": "False", "reason": "NotApplied"}]}),
            // Another control plane's word.
            json!({"conditions": [{"type": "Reconciled", "status": "True", "message": "1/1 proxies up to date."}]}),
            json!({"conditions": "nonsense", "validationMessages": 7}),
        ] {
            assert_eq!(decide(&report(1, status.clone(), &[]), NOW), None, "{status}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_once() {
        for (effect, reason, code) in [
            (Effect::NotApplied, "NotApplied", "MESH0001"),
            (Effect::LastGoodKept, "LastGoodKept", "MESH0002"),
            (Effect::ClosedReading, "ClosedReading", "MESH0003"),
        ] {
            let wrong = report(2, Value::Null, &[(effect, "no")]);
            let status = after(&wrong, THEN);
            assert_eq!(status["observedGeneration"], 2);
            assert_eq!(
                status["conditions"],
                json!([{
                    "type": "Reconciled", "status": "False", "reason": reason, "message": format!("spec.x: no; {}", effect.told()),
                    "lastTransitionTime": THEN, "lastProbeTime": THEN,
                }])
            );
            assert_eq!(
                status["validationMessages"],
                json!([{"type": {"code": code, "name": reason}, "level": "ERROR"}])
            );
            assert_eq!(decide(&report(2, status, &[(effect, "no")]), NOW), None);
        }
    }

    #[test]
    fn what_has_changed_is_said_anew() {
        let status = after(&report(2, Value::Null, &[(Effect::NotApplied, "no")]), THEN);
        // Another edit, wrong in the same way: since when it is wrong stays.
        let edited = after(&report(3, status.clone(), &[(Effect::NotApplied, "no")]), NOW);
        assert_eq!(edited["observedGeneration"], 3);
        assert_eq!(edited["conditions"][0]["lastTransitionTime"], THEN);
        let other = after(&report(2, status.clone(), &[(Effect::LastGoodKept, "no")]), NOW);
        assert_eq!(other["conditions"][0]["reason"], "LastGoodKept");
        let mended = after(&report(3, status, &[]), NOW);
        assert_eq!(
            mended["conditions"],
            json!([{
                "type": "Reconciled", "status": "True", "reason": "Applied", "message": "",
                "lastTransitionTime": NOW, "lastProbeTime": NOW,
            }])
        );
        assert_eq!(mended["validationMessages"], json!([]));
        assert_eq!(decide(&report(3, mended.clone(), &[]), NOW), None);
        // What was wrong once is kept true.
        assert_eq!(decide(&report(4, mended, &[]), NOW).unwrap()["observedGeneration"], 4);
    }

    #[test]
    fn a_generation_may_be_a_text_as_istio_writes_it() {
        let mut status = after(&report(2, Value::Null, &[(Effect::NotApplied, "no")]), THEN);
        status["observedGeneration"] = json!("2");
        assert_eq!(decide(&report(2, status, &[(Effect::NotApplied, "no")]), NOW), None);
    }

    #[test]
    fn a_remark_does_not_say_that_the_resource_is_not_applied() {
        let status = after(&report(1, Value::Null, &[(Effect::NoEffect, "of no use here")]), NOW);
        assert_eq!(status["conditions"][0]["status"], "True");
        assert_eq!(status["conditions"][0]["message"], "spec.x: of no use here; it has no effect");
        assert_eq!(status["validationMessages"][0]["level"], "WARNING");
    }

    #[test]
    fn what_others_wrote_stays() {
        let others = json!({
            "conditions": [{"type": "Other", "status": "True"}],
            "validationMessages": [{"type": {"code": "IST0101"}, "level": "ERROR"}],
            "addresses": [{"value": "240.240.0.1"}],
        });
        let status = after(&report(1, others.clone(), &[(Effect::NotApplied, "no")]), NOW);
        assert_eq!(status["conditions"][0], others["conditions"][0]);
        assert_eq!(status["validationMessages"][0], others["validationMessages"][0]);
        assert_eq!(status["addresses"], others["addresses"]);
        assert_eq!(status["validationMessages"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_status_has_a_bound() {
        let long = "ä".repeat(MAX_MESSAGE);
        let many: Vec<_> = (0..MAX_MESSAGES + 3).map(|_| (Effect::NotApplied, "no")).collect();
        let status = decide(&report(1, Value::Null, &many), NOW).unwrap();
        assert_eq!(status["validationMessages"].as_array().unwrap().len(), MAX_MESSAGES);
        assert!(status["conditions"][0]["message"].as_str().unwrap().ends_with("\nand 3 more"));
        let status = decide(&report(1, Value::Null, &[(Effect::NotApplied, &long)]), NOW).unwrap();
        let text = status["conditions"][0]["message"].as_str().unwrap().to_owned();
        assert!(text.len() <= MAX_MESSAGE && text.ends_with("..."));
    }
}
