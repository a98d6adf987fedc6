//! AuthorizationPolicy between sidecars: who may do what, how a refusal explains itself to the caller and to
//! the owner of the policy, and that the application's own refusals stay its own.

use std::time::Duration;

use http::Method;
use mesh_test::client::{self, Call, Reply};
use mesh_test::sidecar::Sidecar;
use mesh_test::wait::until;
use mesh_test::yaml;
use serde_json::Value;
use tokio::time::Instant;

use crate::stage::{HOST, Replica, Stage};

const LONG: Duration = Duration::from_secs(30);
/// When a line is in the file at the latest, after the request ended.
const LINE: Duration = Duration::from_millis(250);
/// What a busy machine may add to it in a test: this many times as long.
const SLACK: u32 = 5;

const ONLY_GET: &str = "- from:\n  - source: {principals: [cluster.local/ns/default/sa/web]}\n  to:\n  \
                        - operation: {methods: [GET]}\n";

/// `web` and `ratings`, which call, and `reviews`, which is called.
struct Callers {
    stage: Stage,
    v1: Replica,
    web: Sidecar,
    ratings: Sidecar,
}

impl Callers {
    async fn start(policies: &[String]) -> Self {
        let stage = Stage::new();
        stage.caller("ratings");
        stage.dir.write("policy.yaml", yaml::documents(policies));
        let v1 = stage.replica("v1").await;
        let (web, ratings) = (stage.web().await, stage.spec("ratings").outbound().start().await);
        Self { stage, v1, web, ratings }
    }

    /// Puts a policy in force instead of what the file held, and waits until it is.
    async fn policy(&self, name: &str, action: &str, rules: &str) {
        self.stage
            .dir
            .write("policy.yaml", yaml::authorization_policy(name, "default", "reviews", action, rules));
        let resource = format!("AuthorizationPolicy default/{name}");
        until(LONG, name, async || {
            let page = self.v1.sidecar.admin_get("/config_dump").await.unwrap().text();
            let page: Value = serde_json::from_str(&page).unwrap();
            page["authorization"] == serde_json::json!([resource])
        })
        .await;
    }
}

async fn send(from: &Sidecar, call: &Call) -> Reply {
    client::send(from.outbound(), call).await.unwrap()
}

/// The refusal as a caller may see it: the code, and nothing of who decided and why.
fn assert_refused(reply: &Reply) {
    assert_eq!((reply.status, reply.reason()), (403, Some("denied")), "{reply:?}");
    assert_eq!((reply.served_by(), reply.header("x-mesh-detail")), (None, None), "{reply:?}");
    let text = format!("{:?} {}", reply.headers, reply.text());
    assert!(!text.contains("only-get") && !text.contains("ALLOW"), "{text}");
}

/// Waits for the line of the access log of the request with that path.
async fn line(sidecar: &Sidecar, path: &str) -> Value {
    let ended = Instant::now();
    let mut found = Value::Null;
    until(LONG, &format!("the line of {path}"), async || {
        let lines = sidecar.access_log();
        let mut lines = lines.iter().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        found = lines.find(|l| l["path"] == path).unwrap_or_default();
        !found.is_null()
    })
    .await;
    let took = ended.elapsed();
    println!("the line of {path} was there after {took:?}");
    assert!(took < LINE * SLACK, "{took:?}");
    found
}

/// A policy that allows only GET from one service account: everybody else, and every other method, gets 403 with
/// the reason; the log of the server names the policy and the caller; the caller's log tells why, the caller's
/// application does not hear it.
#[tokio::test]
async fn only_one_account_may_get() {
    let policy = yaml::authorization_policy("only-get", "default", "reviews", "ALLOW", ONLY_GET);
    let mesh = Callers::start(&[policy]).await;
    let allowed = send(&mesh.web, &Call::get(HOST, "/allowed")).await;
    assert_eq!((allowed.status, allowed.served_by(), allowed.reason()), (200, Some("v1"), None));

    let refused = [
        (&mesh.web, "web", Method::POST, "/post"),
        (&mesh.web, "web", Method::DELETE, "/delete"),
        (&mesh.ratings, "ratings", Method::GET, "/other-account"),
    ];
    for (from, account, method, path) in refused {
        assert_refused(&send(from, &Call::new(method, HOST, path)).await);
        let server = line(&mesh.v1.sidecar, path).await;
        assert_eq!(
            (&server["reason"], &server["response_code"]),
            (&"denied".into(), &403.into()),
            "{server}"
        );
        assert_eq!(server["policies"], serde_json::json!(["default/only-get"]), "{server}");
        assert_eq!(server["source_principal"], mesh_test::ca::spiffe("default", account), "{server}");
        let caller = line(from, path).await;
        assert_eq!(caller["upstream_reason"], "denied", "{caller}");
        assert!(caller["detail"].as_str().is_some_and(|d| d.contains("default/only-get")), "{caller}");
    }
    // Whoever has no identity is nobody.
    let direct = client::get(mesh.v1.sidecar.inbound(), HOST, "/nobody").await.unwrap();
    assert_refused(&direct);
    assert_eq!(line(&mesh.v1.sidecar, "/nobody").await["source_principal"], Value::Null);
    assert_eq!((mesh.v1.app.requests(), mesh.v1.app.count("/allowed")), (1, 1));
}

/// The application's own 403 carries no reason of the mesh's, even when the application forges one; the log
/// blames no policy for it.
#[tokio::test]
async fn the_applications_own_403_stays_its_own() {
    let policy = yaml::authorization_policy("only-get", "default", "reviews", "ALLOW", ONLY_GET);
    let mesh = Callers::start(&[policy]).await;
    for path in ["/status/403", "/forge"] {
        let reply = send(&mesh.web, &Call::get(HOST, path)).await;
        assert_eq!((reply.status, reply.served_by()), (403, Some("v1")), "{reply:?}");
        assert_eq!((reply.reason(), reply.header("x-mesh-detail")), (None, None), "{reply:?}");
        for sidecar in [&mesh.v1.sidecar, &mesh.web] {
            let line = line(sidecar, path).await;
            assert_eq!(line["response_code"], 403, "{line}");
            assert_eq!((&line["reason"], &line["upstream_reason"]), (&Value::Null, &Value::Null), "{line}");
            assert_eq!(line["policies"], serde_json::json!([]), "{line}");
        }
    }
}

/// A gRPC call is refused in gRPC's words.
#[tokio::test]
async fn a_grpc_call_is_refused_in_its_own_words() {
    let policy = yaml::authorization_policy("only-get", "default", "reviews", "ALLOW", ONLY_GET);
    let mesh = Callers::start(&[policy]).await;
    let call = Call::post(HOST, "/pkg.Service/Method", "").header("content-type", "application/grpc");
    let call = call.header("te", "trailers");
    let mut conn = mesh.web.connect(client::Protocol::H2).await.unwrap();
    let reply = conn.send(&call).await.unwrap();
    assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("7")), "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/grpc"));
    assert_eq!((reply.reason(), reply.header("x-mesh-detail")), (Some("denied"), None), "{reply:?}");
    let line = line(&mesh.v1.sidecar, "/pkg.Service/Method").await;
    assert_eq!(line["policies"], serde_json::json!(["default/only-get"]), "{line}");
    assert_eq!(mesh.v1.app.requests(), 0);
}

/// Conditions on headers, paths, hosts and ports, in their exact, prefix, suffix and negated forms.
#[tokio::test]
async fn conditions_decide() {
    let mesh = Callers::start(&[]).await;
    let (inbound, app) = (mesh.v1.sidecar.inbound().port(), mesh.v1.app.addr().port());
    let operation = |operation: &str| format!("- to:\n  - operation: {{{operation}}}\n");
    let when = |key: &str, values: &str| format!("- when:\n  - {{key: \"{key}\", {values}}}\n");
    let get = |path: &str| Call::get(HOST, path);
    let with = |value: &str| get("/").header("x-token", value);
    let table: Vec<(String, Vec<Call>, Vec<Call>)> = vec![
        (
            operation("paths: [/a, /b/*, \"*.txt\"]"),
            vec![get("/a"), get("/b/c?q"), get("/x.txt")],
            vec![get("/"), get("/a/"), get("/b"), get("/b/../c")],
        ),
        (
            operation("notPaths: [/private/*]"),
            vec![get("/"), get("/private")],
            vec![get("/private/a"), get("/x/../private/a"), get("//private/a")],
        ),
        (operation("hosts: [\"reviews:*\"]"), vec![get("/")], vec![Call::get("reviews.default:9080", "/")]),
        (
            operation("notHosts: [\"*.default:9080\"]"),
            vec![get("/")],
            vec![Call::get("reviews.default:9080", "/")],
        ),
        (operation(&format!("ports: [\"{inbound}\"]")), vec![get("/")], vec![]),
        (operation(&format!("ports: [\"{app}\"]")), vec![], vec![get("/")]),
        (operation(&format!("notPorts: [\"{inbound}\"]")), vec![], vec![get("/")]),
        (
            when("request.headers[x-token]", "values: [secret-*, exact]"),
            vec![with("secret-1"), with("exact")],
            vec![get("/"), with("exactly"), with("not-secret-1")],
        ),
        (when("request.headers[x-token]", "values: [\"*\"]"), vec![with("any")], vec![get("/")]),
        (
            when("request.headers[x-token]", "notValues: [bad]"),
            vec![get("/"), with("good")],
            vec![with("bad")],
        ),
    ];
    for (at, (rules, pass, stop)) in table.into_iter().enumerate() {
        mesh.policy(&format!("case-{at}"), "ALLOW", &rules).await;
        for call in pass {
            let reply = send(&mesh.web, &call).await;
            assert_eq!(reply.status, 200, "{rules}{call:?}\n{reply:?}");
        }
        for call in stop {
            let reply = send(&mesh.web, &call).await;
            assert_eq!((reply.status, reply.reason()), (403, Some("denied")), "{rules}{call:?}\n{reply:?}");
        }
    }
}

/// DENY comes before ALLOW, and the log names the one that denied.
#[tokio::test]
async fn deny_comes_before_allow() {
    let deny = "- to:\n  - operation: {paths: [/admin*]}\n- from:\n  \
                - source: {principals: [\"*/sa/ratings\"]}\n  to:\n  - operation: {methods: [POST]}\n";
    let mesh = Callers::start(&[
        yaml::authorization_policy("a-all", "default", "reviews", "ALLOW", "- {}\n"),
        yaml::authorization_policy("b-deny", "default", "", "DENY", deny),
    ])
    .await;
    let pass = [
        (&mesh.web, Call::get(HOST, "/")),
        (&mesh.ratings, Call::get(HOST, "/")),
        (&mesh.web, Call::post(HOST, "/", "")),
    ];
    for (from, call) in pass {
        assert_eq!(send(from, &call).await.status, 200, "{call:?}");
    }
    let stop = [
        (&mesh.web, Call::get(HOST, "/admin/a")),
        (&mesh.web, Call::get(HOST, "/%61dmin/b")),
        (&mesh.ratings, Call::post(HOST, "/c", "")),
    ];
    for (from, call) in stop {
        assert_refused(&send(from, &call).await);
    }
    for path in ["/admin/a", "/c"] {
        let line = line(&mesh.v1.sidecar, path).await;
        assert_eq!(line["policies"], serde_json::json!(["default/b-deny"]), "{line}");
        assert!(line["detail"].as_str().is_some_and(|d| d.contains("DENY default/b-deny")), "{line}");
    }
}
