//! A security resource that cannot be read keeps out, and says what is wrong with it; one that could be read
//! before stays in force as it was.

use std::process::{Command, Output};
use std::time::Duration;

use mesh_test::client::{self, Call, Reply};
use mesh_test::sidecar::Sidecar;
use mesh_test::wait::until;
use mesh_test::yaml;

use crate::stage::{BIN, HOST, Stage};

const LONG: Duration = Duration::from_secs(30);

/// Allows GET from `web`; the word for `principals` is the caller's.
fn policy(principals: &str) -> String {
    let rules = format!(
        "- from:\n  - source:\n      {principals}: [cluster.local/ns/default/sa/web]\n  to:\n  \
         - operation: {{methods: [GET]}}\n"
    );
    yaml::authorization_policy("only-get", "default", "reviews", "ALLOW", &rules)
}

const TYPO: &str = "principles";
const FIELD: &str = "spec.rules[0].from[0].source.principles";

/// Where the typo stands in the policy's file, counted from 1.
fn typo_line() -> usize {
    1 + policy(TYPO).lines().position(|l| l.contains(TYPO)).unwrap()
}

fn check(stage: &Stage) -> Output {
    Command::new(BIN).arg("check").arg(stage.dir.path()).output().unwrap()
}

async fn send(from: &Sidecar, call: Call) -> Reply {
    client::send(from.outbound(), &call).await.unwrap()
}

/// What the log and `check` say of the typo: file, line, resource, field, the way out, and what follows.
fn assert_told(text: &str, stage: &Stage, follows: &str) {
    let place = format!("{}:{}", stage.dir.file("policy.yaml").display(), typo_line());
    for part in [&*place, "AuthorizationPolicy default/only-get", FIELD, "\"principals\"", follows] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// A policy with a misspelled field, from the start: it refuses all that it selects and says so, `check` names the
/// field and exits with 1; mended, it is in force.
#[tokio::test]
async fn a_policy_that_was_never_readable_keeps_everybody_out() {
    let stage = Stage::new();
    stage.dir.write("policy.yaml", policy(TYPO));
    let v1 = stage.replica("v1").await;
    let web = stage.web().await;
    for call in [Call::get(HOST, "/"), Call::post(HOST, "/", "")] {
        let reply = send(&web, call).await;
        assert_eq!((reply.status, reply.reason()), (403, Some("policy_invalid")), "{reply:?}");
        assert_eq!(reply.header("x-mesh-detail"), None);
    }
    let direct = client::get(v1.sidecar.inbound(), HOST, "/").await.unwrap();
    assert_eq!((direct.status, direct.reason()), (403, Some("policy_invalid")));
    assert_eq!(v1.app.requests(), 0);
    let line = v1.sidecar.proc.wait_for_line(FIELD, LONG).await;
    assert_told(&line, &stage, "until it is mended it refuses all that it selects");
    assert!(
        (v1.sidecar.metric("mesh_config_problems", &["effect=\"closed_reading\""]).await - 1.0).abs() < 0.1
    );
    until(LONG, "a line that names the policy", async || {
        v1.sidecar.access_log().iter().any(|l| l.contains("policy_invalid") && l.contains("default/only-get"))
    })
    .await;

    let checked = check(&stage);
    let text = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert_told(&text, &stage, "until it is mended it refuses all that it selects");

    stage.dir.write("policy.yaml", policy("principals"));
    until(LONG, "the mended policy", async || send(&web, Call::get(HOST, "/")).await.status == 200).await;
    let reply = send(&web, Call::post(HOST, "/", "")).await;
    assert_eq!((reply.status, reply.reason()), (403, Some("denied")));
    assert!(check(&stage).status.success());
}

/// The same typo saved over a policy in force: the good one stays in force, the log names file, line, resource and
/// field, and `check` exits with 1.
#[tokio::test]
async fn a_typo_over_a_good_policy_leaves_the_good_one_in_force() {
    let stage = Stage::new();
    stage.dir.write("policy.yaml", policy("principals"));
    let v1 = stage.replica("v1").await;
    let web = stage.web().await;
    assert_eq!(send(&web, Call::get(HOST, "/")).await.status, 200);

    stage.dir.write("policy.yaml", policy(TYPO));
    let line = v1.sidecar.proc.wait_for_line(FIELD, LONG).await;
    assert_told(&line, &stage, "its last good form stays in force");
    until(LONG, "the metric", async || {
        v1.sidecar.metric("mesh_config_problems", &["effect=\"last_good_kept\""]).await > 0.5
    })
    .await;
    // Other edits after it are put in force beside it.
    stage.dir.write("other.yaml", yaml::service("other", "default", 80));
    until(LONG, "an edit after it", async || send(&web, Call::get("other", "/")).await.status == 503).await;
    for _ in 0..5 {
        assert_eq!(send(&web, Call::get(HOST, "/")).await.status, 200);
        let reply = send(&web, Call::post(HOST, "/", "")).await;
        assert_eq!((reply.status, reply.reason()), (403, Some("denied")), "{reply:?}");
    }
    let checked = check(&stage);
    assert_eq!(checked.status.code(), Some(1));
    // There is no form before for `check`: it says what a start would do.
    assert_told(&String::from_utf8_lossy(&checked.stdout), &stage, "refuses all that it selects");
    // A process that starts now has never seen the good form.
    let spec = v1.sidecar.spec().clone();
    assert!(v1.sidecar.stop().await.0.success());
    let again = spec.start().await;
    let reply = send(&web, Call::get(HOST, "/")).await;
    assert_eq!((reply.status, reply.reason()), (403, Some("policy_invalid")), "{reply:?}");
    drop(again);
}

/// A DENY that cannot be read keeps everybody out, and a PeerAuthentication that cannot be read is STRICT.
#[tokio::test]
async fn every_security_resource_has_a_closed_reading() {
    let stage = Stage::new();
    let deny = "- from:\n  - source: {principles: [somebody]}\n";
    stage.dir.write("deny.yaml", yaml::authorization_policy("no", "default", "reviews", "DENY", deny));
    let v1 = stage.replica("v1").await;
    let web = stage.web().await;
    let reply = send(&web, Call::get(HOST, "/")).await;
    assert_eq!((reply.status, reply.reason()), (403, Some("policy_invalid")), "{reply:?}");
    assert_eq!(check(&stage).status.code(), Some(1));
    stage.dir.remove("deny.yaml");
    until(LONG, "the policy's end", async || send(&web, Call::get(HOST, "/")).await.status == 200).await;
    assert_eq!(client::get(v1.sidecar.inbound(), HOST, "/").await.unwrap().status, 200);

    stage.dir.write("mode.yaml", yaml::peer_authentication("mode", "default", "reviews", "PERMISIVE"));
    until(LONG, "STRICT", async || client::get(v1.sidecar.inbound(), HOST, "/").await.is_err()).await;
    assert_eq!(send(&web, Call::get(HOST, "/")).await.status, 200);
    let checked = check(&stage);
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("PERMISSIVE"));

    // Over one in force, the one in force stays.
    stage.dir.write("mode.yaml", yaml::peer_authentication("mode", "default", "reviews", "DISABLE"));
    until(LONG, "DISABLE", async || client::get(v1.sidecar.inbound(), HOST, "/").await.is_ok()).await;
    stage.dir.write("mode.yaml", yaml::peer_authentication("mode", "default", "reviews", "STRIKT"));
    let line = v1.sidecar.proc.wait_for_line("STRIKT", LONG).await;
    assert!(line.contains("its last good form stays in force"), "{line}");
    assert_eq!(client::get(v1.sidecar.inbound(), HOST, "/").await.unwrap().status, 200);
}
