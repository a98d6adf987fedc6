use std::any::Any;
use std::collections::BTreeSet;

use http::HeaderValue;
use mesh_core::cluster::{
    Cluster, ClusterKey, ClusterSettings, Endpoint, EndpointSpec, Registry as Clusters, ServiceName,
};
use mesh_core::facts::{Connection, Direction, MatchedRoute, PeerIdentity, Upstream, WorkloadLabels};
use mesh_core::live;
use prometheus_client::metrics::gauge::Gauge;
use proptest::prelude::*;

use super::*;

/// Istio's labels of `istio_requests_total`, in its documentation's words.
const HTTP_LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

fn workload(name: &str, version: &str) -> WorkloadLabels {
    WorkloadLabels {
        workload: format!("{name}-{version}").into(),
        namespace: "default".into(),
        canonical_service: name.into(),
        canonical_revision: version.into(),
        app: name.into(),
        version: version.into(),
        cluster: "Kubernetes".into(),
        principal: Some(id(name)),
    }
}

fn id(account: &str) -> mesh_core::identity::SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap()
}

fn own() -> OwnWorkload {
    OwnWorkload {
        labels: workload("web", "v7"),
        service: Some(ServiceName::new("web.default.svc.cluster.local", "web", "default")),
        ports: Vec::new(),
    }
}

#[test]
fn each_port_of_a_workload_is_counted_for_its_service() {
    let name = |name: &str| ServiceName::new(&format!("{name}.default.svc"), name, "default");
    let ports = vec![(8080, name("web")), (9090, name("ops"))];
    let metrics = Metrics::new(OwnWorkload { ports, ..OwnWorkload::default() });
    for port in [8080, 9090, 1] {
        let facts = Facts::new(Connection::builder().workload_port(port).build());
        let record = crate::ConnectionRecord::new(&metrics, crate::AccessLog::off(), &facts);
        record.connected();
    }
    let text = metrics.encode(Exposition::Classic);
    for service in ["web", "ops", "unknown"] {
        let opened = |l: &&str| {
            l.starts_with("istio_tcp_connections_opened_total{")
                && l.contains(&format!("destination_service_name=\"{service}\""))
        };
        assert_eq!(text.lines().filter(opened).count(), 1, "{service}\n{text}");
    }
}

fn cluster(host: &str) -> Arc<Cluster> {
    let name = host.split('.').next().unwrap();
    Clusters::new().cluster(
        &ClusterKey::new(host, 9080, "v1"),
        &ServiceName::new(host, name, "default"),
        ClusterSettings::default(),
        Vec::new(),
    )
}

fn route(cluster: Arc<Cluster>) -> MatchedRoute {
    let policy: Arc<dyn Any + Send + Sync> = Arc::new(());
    MatchedRoute { resource: None, name: "default".into(), cluster: Some(cluster), policy }
}

fn outbound() -> Facts {
    Facts::new(Connection::builder().direction(Direction::Outbound).build())
}

fn upstream(mtls: bool) -> Upstream {
    let spec = EndpointSpec::plaintext("10.0.0.9:9080".parse().unwrap()).labels(workload("reviews", "v1"));
    let peer = mtls.then(|| Arc::new(PeerIdentity::new(id("reviews"))));
    Upstream { endpoint: Arc::new(Endpoint::new(spec)), address: None, peer }
}

fn inbound(mtls: bool, known: bool) -> Facts {
    let mut connection = Connection::builder();
    if mtls {
        connection = connection.peer(PeerIdentity::new(id("productpage")));
    }
    if known {
        connection = connection.peer_labels(workload("productpage", "v1"));
    }
    Facts::new(connection.build())
}

#[track_caller]
fn expect(facts: &Facts, outcome: Outcome, table: &[(&str, &str)]) {
    let labels = Labels::of(&own(), facts, outcome);
    for (name, value) in table {
        assert_eq!(labels.get(name).as_deref(), Some(*value), "{name}");
    }
}

#[test]
fn the_source_reporter_over_mutual_tls() {
    let facts = outbound();
    facts.set_route(route(cluster("reviews.default.svc.cluster.local")));
    facts.set_upstream(upstream(true));
    expect(
        &facts,
        Outcome::http(200),
        &[
            ("reporter", "source"),
            ("source_workload", "web-v7"),
            ("source_workload_namespace", "default"),
            ("source_canonical_service", "web"),
            ("source_canonical_revision", "v7"),
            ("source_app", "web"),
            ("source_version", "v7"),
            ("source_cluster", "Kubernetes"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/web"),
            ("destination_workload", "reviews-v1"),
            ("destination_workload_namespace", "default"),
            ("destination_canonical_service", "reviews"),
            ("destination_canonical_revision", "v1"),
            ("destination_app", "reviews"),
            ("destination_version", "v1"),
            ("destination_cluster", "Kubernetes"),
            ("destination_principal", "spiffe://cluster.local/ns/default/sa/reviews"),
            ("destination_service", "reviews.default.svc.cluster.local"),
            ("destination_service_name", "reviews"),
            ("destination_service_namespace", "default"),
            ("request_protocol", "http"),
            ("response_code", "200"),
            ("grpc_response_status", ""),
            ("response_flags", "-"),
            ("connection_security_policy", "unknown"),
        ],
    );
}

#[test]
fn the_source_reporter_knows_no_principals_without_mutual_tls() {
    let facts = outbound();
    facts.set_route(route(cluster("reviews.default.svc.cluster.local")));
    facts.set_upstream(upstream(false));
    let table = [
        ("source_principal", "unknown"),
        ("destination_principal", "unknown"),
        ("destination_workload", "reviews-v1"),
        ("connection_security_policy", "unknown"),
    ];
    expect(&facts, Outcome::http(200), &table);
}

#[test]
fn without_an_endpoint_the_service_is_all_that_is_known() {
    let facts = outbound();
    facts.set_route(route(cluster("reviews.default.svc.cluster.local")));
    let table = [
        ("destination_workload", "unknown"),
        ("destination_app", "unknown"),
        ("destination_principal", "unknown"),
        ("destination_service", "reviews.default.svc.cluster.local"),
        ("destination_service_name", "reviews"),
        ("response_code", "503"),
        ("response_flags", "UH"),
    ];
    expect(&facts, Outcome::http(503).flagged("UH"), &table);
    // An unknown host is no label: callers choose it.
    let table = [("destination_service", "unknown"), ("destination_service_namespace", "unknown")];
    expect(&outbound(), Outcome::http(502), &table);
}

#[test]
fn the_destination_reporter() {
    let mutual = [
        ("reporter", "destination"),
        ("source_principal", "spiffe://cluster.local/ns/default/sa/productpage"),
        ("source_workload", "productpage-v1"),
        ("source_canonical_service", "productpage"),
        ("destination_workload", "web-v7"),
        ("destination_principal", "spiffe://cluster.local/ns/default/sa/web"),
        ("destination_service", "web.default.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "default"),
        ("connection_security_policy", "mutual_tls"),
    ];
    expect(&inbound(true, true), Outcome::http(200), &mutual);
    let only_proved = [
        ("source_principal", "spiffe://cluster.local/ns/default/sa/productpage"),
        ("source_workload", "unknown"),
        ("source_workload_namespace", "unknown"),
    ];
    expect(&inbound(true, false), Outcome::http(200), &only_proved);
    let plain = [
        ("source_principal", "unknown"),
        ("source_workload", "unknown"),
        ("destination_principal", "unknown"),
        ("destination_workload", "web-v7"),
        ("connection_security_policy", "none"),
    ];
    expect(&inbound(false, false), Outcome::http(200), &plain);
    // What an address suggests is no proof.
    expect(
        &inbound(false, true),
        Outcome::http(200),
        &[("source_principal", "unknown"), ("source_workload", "productpage-v1")],
    );
}

#[test]
fn outcomes() {
    let facts = inbound(false, false);
    let grpc = [("request_protocol", "grpc"), ("response_code", "200"), ("grpc_response_status", "14")];
    expect(&facts, Outcome::grpc(14), &grpc);
    let gone = [("response_code", "0"), ("response_flags", "DC"), ("grpc_response_status", "")];
    expect(&facts, Outcome::http(0).flagged(DOWNSTREAM_CLOSED), &gone);
    expect(&facts, Outcome::http(200).flagged(""), &[("response_flags", "-")]);
    let tcp = Labels::of(&own(), &facts, Outcome::tcp("UF"));
    assert_eq!(tcp.get("request_protocol").as_deref(), Some("tcp"));
    assert_eq!(tcp.get("response_flags").as_deref(), Some("UF"));
    assert_eq!((tcp.get("response_code"), tcp.get("grpc_response_status")), (None, None));
}

#[test]
fn every_series_has_exactly_istios_labels() {
    let metrics = Metrics::new(own());
    metrics.recorder().request(&inbound(true, true), Outcome::http(200), Duration::ZERO, 0, 0);
    let text = metrics.encode(Exposition::Classic);
    let line = text.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
    let labels = line.split_once('{').unwrap().1.rsplit_once('}').unwrap().0;
    let names: BTreeSet<&str> = labels.split(',').map(|l| l.split('=').next().unwrap()).collect();
    assert_eq!(names, HTTP_LABELS.into_iter().collect());
}

#[test]
fn the_same_labels_are_the_same_series_whoever_holds_them() {
    let metrics = Metrics::new(own());
    let recorder = metrics.recorder();
    // Each has an identity and labels of its own, at addresses that are used again and again.
    for _ in 0..5_000 {
        recorder.request(&inbound(true, true), Outcome::http(200), Duration::ZERO, 1, 1);
        recorder.request(&inbound(true, false), Outcome::http(200), Duration::ZERO, 1, 1);
    }
    let text = metrics.encode(Exposition::Classic);
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("istio_requests_total{")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|l| l.ends_with(" 5000")), "{lines:?}");
}

#[test]
fn an_own_workload_that_is_known_later_is_told_from_then_on() {
    let (publisher, live) = live::channel(OwnWorkload::default());
    let metrics = Metrics::new(live);
    let facts = inbound(false, false);
    metrics.recorder().request(&facts, Outcome::http(200), Duration::ZERO, 0, 0);
    publisher.publish(own());
    metrics.recorder().request(&facts, Outcome::http(200), Duration::ZERO, 0, 0);
    let text = metrics.encode(Exposition::Classic);
    let count = |label: &str| {
        text.lines().filter(|l| l.starts_with("istio_requests_total{") && l.contains(label)).count()
    };
    assert_eq!((count("destination_workload=\"unknown\""), count("destination_workload=\"web-v7\"")), (1, 1));
}

#[test]
fn label_sets_are_bounded_whatever_callers_do() {
    let budget = 20;
    let metrics = Metrics::builder(own()).label_budget(budget).build();
    let recorder = metrics.recorder();
    for n in 0..1_000 {
        let facts = outbound();
        facts.set_route(route(cluster(&format!("host{n}.example.com"))));
        let outcome = Outcome::http(200 + u16::try_from(n).unwrap() % 700);
        recorder.request(&facts, outcome, Duration::ZERO, 0, 0);
    }
    let text = metrics.encode(Exposition::Classic);
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("istio_requests_total{")).collect();
    assert!(lines.len() <= budget + MAX_OVERFLOW_SETS + 4, "{}", lines.len());
    let total: u64 = lines.iter().map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(total, 1_000, "overflow loses nothing");
    assert_eq!(metrics.label_overflows(), 980);
    assert!(text.contains("\nmesh_telemetry_label_overflow_total 980\n"));
    let overflown = lines.iter().find(|l| l.contains(OVERFLOW)).unwrap();
    for label in [
        "destination_service=\"_overflow\"",
        "destination_workload=\"_overflow\"",
        "destination_principal=\"_overflow\"",
        "source_workload=\"web-v7\"",
        "source_principal=\"unknown\"",
        "response_code=\"220\"",
    ] {
        assert!(overflown.contains(label), "{overflown} lacks {label}");
    }
    // Past the second limit the answer's own labels overflow, too.
    assert!(text.contains("response_code=\"_overflow\""));
    // What was there before the flood still has its own numbers.
    let facts = outbound();
    facts.set_route(route(cluster("host3.example.com")));
    recorder.request(&facts, Outcome::http(203), Duration::ZERO, 0, 0);
    assert_eq!(metrics.label_overflows(), 980);
}

#[test]
fn connections_overflow_on_their_own() {
    let metrics = Metrics::builder(own()).label_budget(1).build();
    let recorder = metrics.recorder();
    drop(recorder.connection(&inbound(true, true)));
    drop(recorder.connection(&inbound(true, false)));
    recorder.request(&inbound(true, true), Outcome::http(200), Duration::ZERO, 0, 0);
    assert_eq!(metrics.label_overflows(), 1);
}

#[test]
fn histograms_have_istios_buckets() {
    let metrics = Metrics::new(own());
    let recorder = metrics.recorder();
    recorder.request(&inbound(false, false), Outcome::http(200), Duration::from_micros(500), 0, 100);
    recorder.request(&inbound(false, false), Outcome::http(200), Duration::from_secs(7200), 0, 101);
    let text = metrics.encode(Exposition::Classic);
    let value = |name: &str, part: &str| {
        let line = text.lines().find(|l| l.starts_with(name) && l.contains(part));
        line.unwrap_or_else(|| panic!("{name} {part}")).rsplit(' ').next().unwrap().to_owned()
    };
    let duration = "istio_request_duration_milliseconds_";
    assert_eq!(value(&format!("{duration}bucket"), "le=\"0.5\""), "1");
    assert_eq!(value(&format!("{duration}bucket"), "le=\"3600000.0\""), "1");
    assert_eq!(value(&format!("{duration}bucket"), "le=\"+Inf\""), "2");
    assert_eq!(value(&format!("{duration}sum"), "{"), "7200000.5");
    assert_eq!(value(&format!("{duration}count"), "{"), "2");
    assert_eq!(value("istio_response_bytes_bucket", "le=\"100.0\""), "1");
    assert_eq!(value("istio_response_bytes_sum", "{"), "201.0");
    assert_eq!(value("istio_request_bytes_bucket", "le=\"0.5\""), "2");
}

#[test]
fn other_metrics_live_in_the_same_registry() {
    let mut builder = Metrics::builder(own());
    let gauge: Gauge = Gauge::default();
    builder.registry_mut().register("mesh_one", "One", gauge.clone());
    let metrics = builder.build();
    metrics.with_registry(|r| r.register("mesh_two", "Two", gauge.clone()));
    gauge.set(5);
    let text = metrics.encode(Exposition::Classic);
    assert!(text.contains("mesh_one 5\n") && text.contains("# TYPE mesh_two gauge\nmesh_two 5\n"), "{text}");

    let mut other = Registry::default();
    metrics.register_in(&mut other);
    let mut theirs = String::new();
    prometheus_client::encoding::text::encode(&mut theirs, &other).unwrap();
    assert!(theirs.contains("istio_build{component=\"proxy\",tag=\""));
}

#[test]
fn accept_headers_choose_the_format() {
    use Exposition::{Classic, OpenMetrics};
    let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                        text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, format) in [
        (prometheus_2, OpenMetrics),
        ("Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8", OpenMetrics),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.5", OpenMetrics),
        ("application/openmetrics-text;q=0.4,text/plain;version=0.0.4;q=0.5", Classic),
        ("application/openmetrics-text;q=0", Classic),
        ("application/openmetrics-text;q=x", Classic),
        ("application/openmetrics-text;version=9.0.0", Classic),
        ("application/openmetrics-texts", Classic),
        ("text/plain", Classic),
        ("*/*", Classic),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Classic),
        (";;,,==;q", Classic),
        ("", Classic),
    ] {
        assert_eq!(negotiate(Some(&HeaderValue::from_static(accept))), format, "{accept}");
    }
    assert_eq!(negotiate(None), Classic);
    assert_eq!(negotiate(Some(&HeaderValue::from_bytes(b"\xff").unwrap())), Classic);
    assert!(
        OpenMetrics
            .content_type()
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text; version=1.0.0")
    );
    assert!(Classic.content_type().to_str().unwrap().starts_with("text/plain; version=0.0.4"));
}

#[test]
fn openmetrics_becomes_classic_text() {
    let openmetrics = r##"# HELP hits How \"many\" hits\\misses.\n
# TYPE hits counter
# UNIT hits things
hits_total{path="a b} # {c\"",x="y"} 3 1520879607.789 # {trace_id="1"} 1 1520879607
hits_created{path="z"} 1520872607.123
# TYPE size_bytes histogram
# HELP size_bytes Sizes.
size_bytes_bucket{le="1.0"} 1 # {id="#"} 0.5
size_bytes_bucket{le="+Inf"} 2
size_bytes_sum 3.5
size_bytes_count 2
# HELP build What.
# TYPE build info
build_info{tag="1"} 1
# TYPE mystery unknown
mystery 1
# HELP up Up.
# TYPE up gauge
up_created 7
# EOF
"##;
    let classic = r##"# HELP hits_total How "many" hits\\misses.\n
# TYPE hits_total counter
hits_total{path="a b} # {c\"",x="y"} 3 1520879607789
# TYPE size_bytes histogram
# HELP size_bytes Sizes.
size_bytes_bucket{le="1.0"} 1
size_bytes_bucket{le="+Inf"} 2
size_bytes_sum 3.5
size_bytes_count 2
# HELP build_info What.
# TYPE build_info gauge
build_info{tag="1"} 1
# TYPE mystery untyped
mystery 1
# HELP up Up.
# TYPE up gauge
up_created 7
"##;
    assert_eq!(to_classic(openmetrics), classic);
    // Classic text of ours stays as it is.
    let metrics = Metrics::new(own());
    let text = metrics.encode(Exposition::Classic);
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
}

proptest! {
    #[test]
    fn any_text_is_translated_without_a_panic(text in "(#? ?(HELP|TYPE|UNIT|EOF)? ?[a-z_{}\"\\\\#=, é0-9]{0,30}\n){0,8}") {
        let classic = to_classic(&text);
        prop_assert!(classic.lines().count() <= text.lines().count());
    }

    #[test]
    fn any_accept_header_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            negotiate(Some(&value));
        }
    }
}

#[test]
fn a_connection_counts_while_it_is_open() {
    let metrics = Metrics::new(own());
    let facts = outbound();
    facts.set_route(route(cluster("db.default.svc.cluster.local")));
    facts.set_upstream(upstream(true));
    let mut connection = metrics.recorder().connection(&facts);
    connection.received(10);
    connection.sent(32);
    connection.sent(1);
    let count = |name: &str, part: &str| {
        let text = metrics.encode(Exposition::Classic);
        let lines = text.lines().filter(|l| l.starts_with(&format!("{name}{{")) && l.contains(part));
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!(count("istio_tcp_connections_opened_total", "request_protocol=\"tcp\""), 1);
    assert_eq!(count("istio_tcp_connections_closed_total", ""), 0);
    assert_eq!(count("istio_tcp_received_bytes_total", "destination_service_name=\"db\""), 10);
    assert_eq!(count("istio_tcp_sent_bytes_total", "response_flags=\"-\""), 33);
    connection.fail("UC");
    drop(connection);
    assert_eq!(count("istio_tcp_connections_closed_total", "response_flags=\"UC\""), 1);
    assert_eq!(count("istio_tcp_connections_closed_total", "response_flags=\"-\""), 0);
}

/// `promtool check metrics` of Prometheus (Debian package `prometheus`).
#[test]
#[ignore = "needs promtool; run by `just interop`"]
fn promtool_remarks_on_nothing_but_istios_own_unit() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let metrics = Metrics::new(own());
    let (log, _writer) = crate::AccessLog::new(
        crate::access_log::Sink::Writer(Box::new(std::io::sink())),
        crate::access_log::Format::Json,
    )
    .unwrap();
    metrics.with_registry(|r| log.register(r));
    let recorder = metrics.recorder();
    recorder.request(&inbound(true, true), Outcome::grpc(0), Duration::from_millis(3), 10, 20);
    recorder.request(&outbound(), Outcome::http(502), Duration::from_millis(3), 10, 20);
    drop(recorder.connection(&inbound(true, true)));

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (Debian package prometheus) is installed");
    promtool.stdin.take().unwrap().write_all(metrics.encode(Exposition::Classic).as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    let remarks: Vec<&str> = said.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(remarks.len(), 1, "{said}");
    assert!(
        remarks[0].contains("istio_request_duration_milliseconds") && remarks[0].contains("base unit"),
        "{said}"
    );
}
