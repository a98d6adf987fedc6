//! The pure decisions of a request on their own: which route, whether it may pass, what is counted, the line that is
//! logged, the trace that is read. `just bench-decisions [FILTER]` runs them.

#![expect(clippy::expect_used, clippy::panic, reason = "what is measured is known to be good")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use mesh::core::cluster::{Cluster, ClusterKey, ClusterSettings, EndpointSpec, Registry, ServiceName};
use mesh::core::facts::{Connection, Direction, Facts, MatchedRoute, PeerIdentity, Upstream, UpstreamAddr};
use mesh::core::normal::Authority;
use mesh::core::resource::Object;
use mesh::core::yaml::parse_objects;
use mesh::policy::authorization::{self, Context, Rules};
use mesh::route::matching::RequestView;
use mesh::route::table::{CompileContext, HostRoutes, Resolved, RouteTable, compile_http};
use mesh::telemetry::access_log::Entry;
use mesh::telemetry::metrics::{Metrics, Outcome, OwnWorkload};
use mesh::telemetry::trace::{TraceContext, Tracing};
use mesh_bench::role::layers;

const PORT: u16 = 9080;

fn fqdn(name: &str) -> String {
    format!("{name}.default.svc.cluster.local")
}

fn objects(text: &str) -> Vec<Object> {
    parse_objects("bench.yaml", text).unwrap_or_else(|wrong| panic!("{wrong:#?}\n{text}"))
}

/// Each host with its VirtualService of so many rules, as in the scenario `routes`.
fn table(hosts: usize, rules: usize) -> RouteTable {
    let registry = Registry::new();
    let labels = Default::default();
    let mut table = RouteTable::builder();
    for host in 1..=hosts {
        let name = format!("svc-{host}");
        let rules: String = (1..=rules)
            .map(|n| {
                format!(
                    "  - name: api-{n}\n    match: [{{uri: {{prefix: /api/v{n}/}}}}]\n    \
                     route: [{{destination: {{host: {name}}}}}]\n"
                )
            })
            .collect();
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\n\
             spec:\n  hosts: [{name}]\n  http:\n{rules}"
        );
        let objects = objects(&text);
        let Some(Object::VirtualService(vs)) = objects.first() else { panic!("no VirtualService") };
        let key = ClusterKey::new(&fqdn(&name), PORT, "");
        let service = ServiceName::new(&fqdn(&name), &name, "default");
        let cluster = registry.cluster(&key, &service, ClusterSettings::default(), vec![]);
        let context = CompileContext {
            namespace: "default",
            labels: &labels,
            cluster_domain: "cluster.local",
            host: &fqdn(&name),
            port: PORT,
            resolve: &|_| Resolved::Cluster(Arc::clone(&cluster)),
        };
        let compiled = compile_http(Some(vs), &context);
        assert!(compiled.diagnostics.is_empty(), "{:#?}", compiled.diagnostics);
        let routes = Arc::new(HostRoutes::new(&fqdn(&name), [(PORT, compiled.routes)]));
        table = table.host([name, fqdn(&format!("svc-{host}"))], &routes);
    }
    table.build()
}

/// The last rule of a host in the middle matches.
fn route(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for (name, hosts, rules) in [("1 rule", 1, 1), ("10 rules", 1, 10), ("10000 rules", 1000, 10)] {
        let table = table(hosts, rules);
        let path: Uri = format!("/api/v{rules}/things?q=1").parse().expect("a path");
        let headers = HeaderMap::new();
        let host = format!("svc-{}:{PORT}", hosts.div_ceil(2));
        let authority = Authority::parse(&host).expect("a host");
        group.bench_function(name, |b| {
            b.iter(|| {
                let view = RequestView::new(&Method::GET, &path, &headers, black_box(&authority));
                let found = table.route(&view, black_box(7)).expect("a route");
                black_box(found.name());
            });
        });
    }
    group.finish();
}

/// Ten rules, of which the last admits or none does.
fn authorize(c: &mut Criterion) {
    let objects = objects(&layers::policy());
    let Some(Object::AuthorizationPolicy(policy)) = objects.first() else { panic!("no policy") };
    let (rules, diagnostics) = Rules::compile(&[Arc::clone(policy)], &Context::default());
    assert!(diagnostics.is_empty(), "{diagnostics:#?}");
    let mut group = c.benchmark_group("authorize");
    for (name, path, passes) in [("10 rules, allow", "/reviews/7", true), ("10 rules, deny", "/admin", false)]
    {
        let mut request = Request::get(path).body(()).expect("a request");
        Facts::new(inbound()).insert(&mut request);
        let check = |request| rules.check(&authorization::RequestView::of(request)).passes();
        assert_eq!(check(&request), passes);
        group.bench_function(name, |b| b.iter(|| check(black_box(&request))));
    }
    group.finish();
}

fn identity() -> PeerIdentity {
    PeerIdentity::new("spiffe://cluster.local/ns/default/sa/web".parse().expect("an identity"))
}

fn inbound() -> Arc<Connection> {
    let peer = "10.0.0.7:41000".parse().expect("an address");
    Connection::builder().peer_addr(peer).peer(identity()).build()
}

/// What is known of a call at its end.
fn outbound() -> Facts {
    let address = "10.0.0.9:9080".parse().expect("an address");
    let key = ClusterKey::new(&fqdn("reviews"), PORT, "v1");
    let service = ServiceName::new(&fqdn("reviews"), "reviews", "default");
    let endpoints = vec![EndpointSpec::plaintext(address)];
    let cluster = Cluster::detached(key, service, ClusterSettings::default(), endpoints);
    let facts = Facts::new(Connection::builder().direction(Direction::Outbound).build());
    let members = cluster.load_endpoints();
    let endpoint = Arc::clone(members.members().first().expect("an endpoint"));
    let peer = Some(Arc::new(identity()));
    let (name, policy) = (Arc::from("default"), Arc::new(()));
    facts.set_route(MatchedRoute { resource: None, name, cluster: Some(Arc::clone(&cluster)), policy });
    facts.set_upstream(Upstream { endpoint, address: Some(UpstreamAddr(address)), peer });
    facts
}

fn record(c: &mut Criterion) {
    let metrics = Metrics::new(OwnWorkload::default());
    let recorder = metrics.recorder();
    let mut group = c.benchmark_group("record");
    for (name, facts) in [("outbound", outbound()), ("inbound", Facts::new(inbound()))] {
        group.bench_function(name, |b| {
            b.iter(|| {
                recorder.request(black_box(&facts), Outcome::http(200), Duration::from_micros(740), 0, 100)
            });
        });
    }
    // Each with a certificate of its own, as mTLS has it.
    let many: Vec<Facts> = (0..2_000).map(|_| Facts::new(inbound())).collect();
    let mut all = many.iter().cycle();
    group.bench_function("inbound, 2000 connections", |b| {
        b.iter(|| {
            let facts = all.next().expect("it has no end");
            recorder.request(facts, Outcome::http(200), Duration::from_micros(740), 0, 100);
        });
    });
    group.finish();
}

fn log_line(c: &mut Criterion) {
    let facts = outbound();
    let entry = Entry {
        method: Some("GET"),
        path: Some(b"/reviews/7"),
        protocol: Some("HTTP/1.1"),
        response_code: 200,
        bytes_sent: 100,
        duration: Duration::from_micros(740),
        upstream_service_time: Some(Duration::from_micros(690)),
        user_agent: Some(b"curl/8.5.0"),
        request_id: Some(b"5f3b0d4e-5a3c-4b1e-9d1c-0a1b2c3d4e5f"),
        authority: Some(b"reviews:9080"),
        trace_id: Some(b"0af7651916cd43dd8448eb211c80319c"),
        ..Entry::new(&facts, SystemTime::UNIX_EPOCH + Duration::from_millis(1_785_000_000_123))
    };
    let mut line = Vec::with_capacity(4096);
    let mut group = c.benchmark_group("access log line");
    group.bench_function("json", |b| {
        b.iter(|| {
            line.clear();
            black_box(&entry).write_json(&mut line);
            black_box(line.len())
        });
    });
    group.bench_function("text", |b| {
        b.iter(|| {
            line.clear();
            black_box(&entry).write_text(&mut line);
            black_box(line.len())
        });
    });
    group.finish();
}

fn trace(c: &mut Criterion) {
    let mut group = c.benchmark_group("trace");
    let carried = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"),
    ];
    for (name, value) in carried {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("reviews:9080"));
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        assert!(TraceContext::extract(&headers).is_some());
        group.bench_function(format!("{name}, read"), |b| {
            b.iter(|| TraceContext::extract(black_box(&headers)));
        });
        group.bench_function(format!("{name}, continued"), |b| {
            b.iter_batched_ref(
                || headers.clone(),
                |headers| Tracing::default().advance(headers, &mut || 7),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(decisions, route, authorize, record, log_line, trace);
criterion_main!(decisions);
