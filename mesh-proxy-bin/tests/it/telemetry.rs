//! What is told: metrics with Istio's names and labels on both sides, access logs, traces, request ids.

use mesh_test::client::{Call, Conn, Protocol, get};
use mesh_test::sidecar::Sidecar;
use mesh_test::wait::until_secs;

use crate::stage::{HOST, Stage};

/// Istio's labels of `istio_requests_total`.
const LABELS: [&str; 23] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "connection_security_policy",
];

async fn send(sidecar: &Sidecar, call: &Call) -> mesh_test::client::Reply {
    sidecar.connect(Protocol::H1).await.unwrap().send(call).await.unwrap()
}

/// The page holds Istio's names and labels, on the caller's side and on the side of who is called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_istios_names_and_labels() {
    let stage = Stage::new();
    let reviews = stage.replica("v1").await;
    let web = stage.web().await;
    for path in ["/", "/status/404"] {
        send(&web, &Call::post(HOST, path, "hello")).await;
    }
    let common = [
        "source_workload=\"web\"",
        "source_workload_namespace=\"default\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
        "source_app=\"web\"",
        "source_canonical_service=\"web\"",
        "destination_workload=\"v1\"",
        "destination_workload_namespace=\"default\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/reviews\"",
        "destination_app=\"reviews\"",
        "destination_version=\"v1\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "destination_service_name=\"reviews\"",
        "destination_service_namespace=\"default\"",
        "request_protocol=\"http\"",
        "response_flags=\"-\"",
    ];
    let caller = ["reporter=\"source\"", "connection_security_policy=\"unknown\""];
    let called = ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""];
    for (sidecar, own) in [(&web, caller), (&reviews.sidecar, called)] {
        for code in ["200", "404"] {
            let code = format!("response_code=\"{code}\"");
            let labels: Vec<&str> = common.iter().chain(&own).copied().chain([code.as_str()]).collect();
            until_secs(10, &format!("{labels:?}"), async || {
                sidecar.metric("istio_requests_total", &labels).await == 1.0
            })
            .await;
            for name in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"]
            {
                let count = sidecar.metric(&format!("{name}_count"), &labels).await;
                assert_eq!(count, 1.0, "{name} {labels:?}\n{}", sidecar.metrics().await);
            }
            assert_eq!(sidecar.metric("istio_request_bytes_sum", &labels).await, 5.0, "{labels:?}");
        }
        let page = sidecar.metrics().await;
        let line = page.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
        for label in LABELS {
            assert!(line.contains(&format!("{label}=\"")), "{label} is missing in {line}");
        }
    }
}

/// OpenMetrics for who asks for it, classic text else, with types that name what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_expositions_are_served() {
    let stage = Stage::new();
    let _reviews = stage.replica("v1").await;
    let web = stage.web().await;
    web.get(HOST, "/").await.unwrap();
    for path in ["/metrics", "/stats/prometheus"] {
        let classic = web.admin_get(path).await.unwrap();
        assert!(classic.header("content-type").unwrap().starts_with("text/plain"));
        let text = classic.text();
        assert!(text.contains("# TYPE istio_requests_total counter\n"), "{text}");
        assert!(text.contains("# TYPE istio_request_duration_milliseconds histogram\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");

        let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        let mut admin = Conn::open(web.admin(), Protocol::H1).await.unwrap();
        let open = admin.send(&Call::get("localhost", path).header("accept", accept)).await.unwrap();
        assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
        let text = open.text();
        assert!(text.contains("# TYPE istio_requests counter\n") && text.ends_with("# EOF\n"), "{text}");
    }
    let missing = web.admin_get("/nothing").await.unwrap();
    assert_eq!(missing.status, 404);
}

/// The access log in JSON has Istio's keys, at the latest soon after the request; the text format is Istio's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_logs_in_both_formats() {
    let stage = Stage::new();
    let reviews = stage.replica("v1").await;
    let text = stage.beside("text.log");
    let web =
        stage.spec("web").access_log(&text).flag("--access-log-format", "text").outbound().start().await;
    let call =
        Call::post(HOST, "/some?query=1", "hello").header("x-request-id", "my-id").header("user-agent", "me");
    assert_eq!(send(&web, &call).await.status, 200);
    until_secs(10, "the lines", async || {
        web.access_log().len() == 1 && reviews.sidecar.access_log().len() == 1
    })
    .await;

    let line: serde_json::Value = serde_json::from_str(&reviews.sidecar.access_log()[0]).unwrap();
    for key in [
        "start_time",
        "method",
        "path",
        "protocol",
        "response_code",
        "response_flags",
        "response_code_details",
        "connection_termination_details",
        "upstream_transport_failure_reason",
        "bytes_received",
        "bytes_sent",
        "duration",
        "upstream_service_time",
        "x_forwarded_for",
        "user_agent",
        "request_id",
        "authority",
        "upstream_host",
        "upstream_cluster",
        "upstream_local_address",
        "downstream_local_address",
        "downstream_remote_address",
        "requested_server_name",
        "route_name",
        "reason",
        "policies",
    ] {
        assert!(line.get(key).is_some(), "{key} is missing in {line}");
    }
    assert_eq!(line["method"], "POST");
    assert_eq!(line["path"], "/some?query=1");
    assert_eq!(line["response_code"], 200);
    assert_eq!((&line["bytes_received"], &line["request_id"]), (&5.into(), &"my-id".into()));
    assert_eq!((&line["user_agent"], &line["authority"]), (&"me".into(), &HOST.into()));
    assert_eq!(line["source_principal"], "spiffe://cluster.local/ns/default/sa/web");
    assert_eq!(line["requested_server_name"], "outbound_.9080_._.reviews.default.svc.cluster.local");
    assert_eq!(line["upstream_host"], reviews.app.addr().to_string());

    let line = &web.access_log()[0];
    assert!(
        line.starts_with('[') && line.contains("] \"POST /some?query=1 HTTP/1.1\" 200 - via_upstream "),
        "{line}"
    );
    assert!(
        line.contains(&format!("\"me\" \"my-id\" \"{HOST}\" \"{}\"", reviews.sidecar.inbound())),
        "{line}"
    );
}

/// One trace through both sidecars to the application, in the format in which it came; started where there
/// is none. A request id is kept, or made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_and_request_ids_reach_the_application() {
    let stage = Stage::new();
    let reviews = stage.replica("v1").await;
    let web = stage.web().await;
    let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");

    let parent = format!("00-{trace}-{span}-01");
    let call = Call::get(HOST, "/echo").header("traceparent", &parent).header("tracestate", "vendor=1");
    let echo = send(&web, &call).await.echo();
    // Nobody reports the sidecars' spans, so the caller's span stays the parent.
    assert_eq!(echo.headers["traceparent"], [parent]);
    assert_eq!(echo.header("tracestate"), Some("vendor=1"));

    let call = Call::get(HOST, "/echo").header("b3", &format!("{trace}-{span}-1"));
    let echo = send(&web, &call).await.echo();
    assert!(echo.header("b3").unwrap().starts_with(&format!("{trace}-")), "{echo:?}");

    let call = Call::get(HOST, "/echo").header("x-b3-traceid", trace).header("x-b3-spanid", span);
    let echo = send(&web, &call.header("x-b3-sampled", "1")).await.echo();
    assert_eq!(echo.header("x-b3-traceid"), Some(trace), "{echo:?}");
    assert_eq!(echo.header("x-b3-sampled"), Some("1"), "{echo:?}");

    let echo = send(&web, &Call::get(HOST, "/echo").header("x-request-id", "kept")).await.echo();
    assert_eq!(echo.headers["x-request-id"], ["kept"]);
    let started = echo.header("traceparent").expect("a trace is started").to_owned();
    let mut made = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let echo = get(web.outbound(), HOST, "/echo").await.unwrap().echo();
        made.insert(echo.header("x-request-id").expect("an id is made").to_owned());
    }
    assert_eq!(made.len(), 2, "{made:?}");

    // Both logs tell the same trace.
    let trace = started.split('-').nth(1).unwrap();
    for sidecar in [&web, &reviews.sidecar] {
        until_secs(10, "the trace in the log", async || {
            sidecar.access_log().iter().any(|l| l.contains(&format!("\"trace_id\":\"{trace}\"")))
        })
        .await;
    }
}
