//! The directory changes while requests pass: broken documents are named and change nothing, good ones apply
//! however they are written.

use std::process::{Command, Output};
use std::time::Duration;

use mesh_test::load::LoadGen;
use mesh_test::sidecar::Sidecar;
use mesh_test::wait::until_secs;
use mesh_test::yaml;
use tokio::time::Instant;

use crate::stage::{BIN, HOST, Stage};

fn check(stage: &Stage, more: &[&str]) -> Output {
    Command::new(BIN).arg("check").arg(stage.dir.path()).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn all_to(version: &str) -> String {
    yaml::split("reviews", "default", "reviews", &[(version, 100)])
}

/// Waits until `version` alone answers, and tells how long it took.
async fn answers(web: &Sidecar, version: &str, since: Instant) {
    until_secs(20, &format!("answers of {version}"), async || {
        web.get(HOST, "/").await.is_ok_and(|r| r.served_by() == Some(version))
    })
    .await;
    let took = since.elapsed();
    println!("{version} answers {took:?} after the change");
    // A second is what is promised; the rest is for machines that are busy.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// A broken document saved under load: the error names file, line, resource and field, `check` exits with 1
/// and says the same; traffic does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_document_is_named_and_traffic_does_not_notice() {
    let stage = Stage::new();
    let (_a, b) = (stage.replica("a").await, stage.replica("b").await);
    stage.dir.write("rule.yaml", yaml::destination_rule("reviews", "default", "reviews", &["a", "b"]));
    stage.dir.write("route.yaml", all_to("a"));
    let web = stage.web().await;
    let good = check(&stage, &[]);
    assert!(good.status.success(), "{}", text(&good.stdout));

    let load = LoadGen::to(web.outbound()).host(HOST).start();
    until_secs(20, "load", async || load.snapshot().total > 50).await;
    let broken = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                  metadata: {name: reviews, namespace: default}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n\
                  \x20   - destinaton: {host: reviews, subset: b}\n";
    stage.dir.write("route.yaml", broken);
    let file = stage.dir.file("route.yaml");
    let named = format!("{}:8: VirtualService default/reviews: spec.http[0].route[0]", file.display());
    let line = web.proc.wait_for_line(&named, Duration::from_secs(20)).await;
    assert!(line.contains("ERROR") && line.contains("destinaton") && line.contains("destination"), "{line}");
    assert!(line.contains("its last good form stays in force"), "{line}");

    let checked = check(&stage, &[]);
    let report = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{report}");
    // The same text up to what follows from it: here nothing was in force before.
    let said = line.get(line.find(&named).unwrap()..).unwrap();
    let said = said.split("; its last good form").next().unwrap();
    assert!(report.contains(&format!("error: {said}; the resource is not applied")), "{report}\n{line}");

    let json = check(&stage, &["-o", "json"]);
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["errors"], 1, "{json}");
    let problem = &json["problems"][0];
    assert_eq!(problem["resource"], "VirtualService default/reviews");
    assert_eq!((&problem["line"], &problem["error"]), (&8.into(), &true.into()));
    assert_eq!(problem["file"], file.display().to_string());
    assert!(problem["field"].as_str().unwrap().starts_with("spec.http[0].route[0]"), "{problem}");

    // Not even YAML: everything that the file gave stays.
    stage.dir.write_in_place("route.yaml", "spec: [\n  {");
    let file = file.display().to_string();
    until_secs(20, "the other error", async || {
        web.proc.lines().iter().any(|l| l.contains("ERROR") && l.contains(&file) && !l.contains("destinaton"))
    })
    .await;
    assert_eq!(web.metric("mesh_config_problems", &["last_good_kept"]).await, 1.0);
    let total = load.snapshot().total;
    until_secs(20, "load", async || load.snapshot().total > total + 50).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!((report.of("b"), b.app.requests()), (0, 0), "the last good route held all along");

    stage.dir.write("route.yaml", all_to("b"));
    answers(&web, "b", Instant::now()).await;
    assert_eq!(web.metric("mesh_config_problems", &["last_good_kept"]).await, 0.0);
    assert!(check(&stage, &[]).status.success());
}

/// Files that are replaced by editors, written in place, added in folders, and removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_followed_however_they_are_written() {
    let stage = Stage::new();
    let (_a, _b) = (stage.replica("a").await, stage.replica("b").await);
    stage.dir.write("rule.yaml", yaml::destination_rule("reviews", "default", "reviews", &["a", "b"]));
    stage.dir.write("route.yaml", all_to("a"));
    let web = stage.web().await;
    answers(&web, "a", Instant::now()).await;
    let load = LoadGen::to(web.outbound()).host(HOST).start();

    stage.dir.write("route.yaml", all_to("b"));
    answers(&web, "b", Instant::now()).await;
    stage.dir.write_in_place("route.yaml", all_to("a"));
    answers(&web, "a", Instant::now()).await;
    // As vim does it: the old file moves aside, a new one takes its name.
    std::fs::rename(stage.dir.file("route.yaml"), stage.dir.file("route.yaml~")).unwrap();
    stage.dir.write_in_place("route.yaml", all_to("b"));
    std::fs::remove_file(stage.dir.file("route.yaml~")).unwrap();
    answers(&web, "b", Instant::now()).await;

    // Removed: no route any more, so both answer.
    stage.dir.remove("route.yaml");
    let mut seen = std::collections::BTreeSet::new();
    until_secs(20, "answers of both", async || {
        seen.extend(web.get(HOST, "/").await.unwrap().served_by().map(str::to_owned));
        seen.len() == 2
    })
    .await;
    stage.dir.write("deep/er/route.yml", all_to("a"));
    answers(&web, "a", Instant::now()).await;
    std::fs::remove_dir_all(stage.dir.file("deep")).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    until_secs(20, "answers of both", async || {
        seen.extend(web.get(HOST, "/").await.unwrap().served_by().map(str::to_owned));
        seen.len() == 2
    })
    .await;
    // The same resource in two files: both are named.
    stage.dir.write("one.yaml", all_to("a"));
    stage.dir.write("two.yaml", all_to("b"));
    let line =
        web.proc.wait_for_line("two.yaml:1: VirtualService default/reviews", Duration::from_secs(20)).await;
    assert!(line.contains("one.yaml"), "{line}");
    load.stop().await.assert_clean();
}

/// A mounted ConfigMap: `..data` flips from one version to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_map_flips() {
    let stage = Stage::new();
    let (_a, _b) = (stage.replica("a").await, stage.replica("b").await);
    let texts: Vec<(String, String)> = ["reviews.yaml", "web.yaml", "a.yaml", "b.yaml"]
        .into_iter()
        .map(|name| (name.to_owned(), std::fs::read_to_string(stage.dir.file(name)).unwrap()))
        .collect();
    let rule = yaml::destination_rule("reviews", "default", "reviews", &["a", "b"]);
    let mounted = yaml::Dir::new();
    let flip = |version: u32, to: &str| {
        let route = all_to(to);
        let mut files: Vec<(&str, &str)> = texts.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        files.extend([("rule.yaml", rule.as_str()), ("route.yaml", route.as_str())]);
        mounted.write_config_map(version, &files);
    };
    flip(1, "a");
    let spec = mesh_test::sidecar::SidecarSpec::new(BIN, mounted.path(), "default/web");
    let web = spec.dev_ca(stage.ca_dir()).outbound().start().await;
    answers(&web, "a", Instant::now()).await;
    let load = LoadGen::to(web.outbound()).host(HOST).start();
    for (version, to) in [(2, "b"), (3, "a"), (4, "b")] {
        flip(version, to);
        answers(&web, to, Instant::now()).await;
    }
    load.stop().await.assert_clean();
    assert!(!web.proc.lines().iter().any(|l| l.contains("ERROR")), "{}", web.proc.tail());
}

/// `check` on what is no error and on what is none of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_what_it_skips_and_what_it_cannot_read() {
    let stage = Stage::new();
    stage.dir.write("other.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n");
    let checked = check(&stage, &[]);
    let report = text(&checked.stdout);
    assert!(checked.status.success(), "{report}");
    assert!(
        report.contains("note: ") && report.contains("1 document") && report.contains("skipped"),
        "{report}"
    );
    let nowhere = Command::new(BIN).args(["check", "/nonexistent/directory"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("/nonexistent/directory"), "{}", text(&nowhere.stderr));
}
