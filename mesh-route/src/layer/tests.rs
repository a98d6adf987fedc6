use std::convert::Infallible;
use std::sync::LazyLock;

use http::{Method, StatusCode};
use http_body_util::Full;
use mesh_core::cluster::{ClusterKey, ClusterSettings};
use mesh_core::facts::Connection;
use mesh_core::live;
use proptest::prelude::*;
use tower::limit::ConcurrencyLimitLayer;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock::Spawn;

use super::*;
use crate::policy::RoutePolicy;
use crate::testing::{request, table};

type Text = Full<Bytes>;

const RULES: &str = "
spec:
  hosts: [reviews]
  http:
  - name: ops
    match: [{uri: {prefix: /ops}}]
    headers:
      request: {set: {x-route: a, host: ratings}, remove: [x-gone]}
      response: {set: {x-answer: rule}, remove: [server]}
    route:
    - destination: {host: reviews, subset: v1}
      headers:
        request: {add: {x-route: b}, set: {authority: ignored}}
        response: {add: {x-answer: destination}}
  - match: [{uri: {prefix: /prefix/}}, {uri: {exact: /whole}}]
    rewrite: {uri: /new/, authority: 'ratings:9080'}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /re/}}]
    rewrite: {uriRegexRewrite: {match: '^/re/(.*)/(.*)$', rewrite: '/\\2/\\1'}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /up}}]
    rewrite: {uri: /}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /go/}}]
    redirect: {prefixRewrite: /went/, scheme: https, redirectCode: 307}
    headers: {response: {set: {x-answer: redirect}}}
  - match: [{uri: {exact: /tea}}]
    directResponse: {status: 418, body: {bytes: dGVh}}
    headers: {response: {set: {content-type: application/tea}}}
  - match: [{uri: {exact: /nowhere}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - match: [{uri: {exact: /split}}]
    timeout: 3s
    route: [{destination: {host: reviews, subset: v1}, weight: 50}, {destination: {host: reviews, subset: v2}, weight: 50}]
";

/// Sends `request` through the router; gives the answer, and the request as it was forwarded.
async fn send(request: Request<()>, draw: fn() -> u64) -> (Response<Text>, Option<Request<()>>) {
    let (seen, mut forwarded) = tokio::sync::mpsc::unbounded_channel();
    let inner = service_fn(move |request: Request<()>| {
        seen.send(request).unwrap();
        async {
            let response = Response::builder().header("server", "app").body(Text::default());
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    let layer = RouteLayer::new(Live::fixed(table(&[RULES]))).draw(draw);
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    (response, forwarded.try_recv().ok())
}

fn zero() -> u64 {
    0
}

#[tokio::test]
async fn headers_of_rule_then_destination() {
    let asked = request("GET /ops", &[("host", "reviews:9080"), ("x-gone", "1"), ("x-route", "old")]);
    let (response, forwarded) = send(asked, zero).await;
    let forwarded = forwarded.unwrap();
    let all = |headers: &HeaderMap, name: &str| -> Vec<String> {
        headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(all(forwarded.headers(), "x-route"), ["a", "b"]);
    assert_eq!(all(forwarded.headers(), "host"), ["ratings"]);
    assert!(all(forwarded.headers(), "x-gone").is_empty());
    assert_eq!(all(response.headers(), "x-answer"), ["rule", "destination"]);
    assert!(all(response.headers(), "server").is_empty());
}

#[tokio::test]
async fn rewrites() {
    for (path, want, host) in [
        ("/prefix/x?q=1", "/new/x?q=1", "ratings:9080"),
        ("/whole?q=1", "/new/?q=1", "ratings:9080"),
        ("/re/a/b", "/b/a", "reviews"),
        ("/other/../re/a/b", "/b/a", "reviews"),
        ("/up/x", "//x", "reviews"),
    ] {
        let (_, forwarded) = send(request(&format!("GET {path}"), &[("host", "reviews")]), zero).await;
        let forwarded = forwarded.unwrap();
        assert_eq!(
            (forwarded.uri().to_string().as_str(), forwarded.headers()["host"].to_str().unwrap()),
            (want, host),
            "{path}"
        );
    }
    let (response, _) = send(request("GET /up../x", &[("host", "reviews")]), zero).await;
    assert_eq!(response.headers()["x-mesh-reason"], "bad_request");
}

#[tokio::test]
async fn the_router_answers_by_itself() {
    for (line, status, reason, header) in [
        (
            "GET /go/there?q=1",
            307,
            "direct_response",
            Some(("location", "https://reviews:9080/went/there?q=1")),
        ),
        ("GET /go/there", 307, "direct_response", Some(("x-answer", "redirect"))),
        ("GET /tea", 418, "direct_response", Some(("content-type", "application/tea"))),
        ("GET /nowhere", 503, "unknown_subset", None),
        ("GET /nothing", 404, "no_route", None),
        ("GET /../x", 400, "bad_request", None),
        ("GET http://gone/", 502, "unknown_host", None),
        ("GET http://reviews:1/", 502, "unknown_host", None),
        ("GET http://user@reviews/ops", 400, "bad_request", None),
    ] {
        let asked = request(line, &[("host", "reviews:9080")]);
        let (response, forwarded) = send(asked, zero).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["x-mesh-reason"].to_str().unwrap()),
            (status, reason),
            "{line}"
        );
        if let Some((name, value)) = header {
            assert_eq!(response.headers()[name], value, "{line}");
        }
        assert!(forwarded.is_none(), "{line}");
    }
}

#[tokio::test]
async fn hosts_that_are_none() {
    let many: [&[(&str, &str)]; 4] =
        [&[], &[("host", "reviews"), ("host", "reviews")], &[("host", "")], &[("host", "a/b")]];
    for headers in many {
        let (response, _) = send(request("GET /ops", headers), zero).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{headers:?}");
    }
    let grpc = [("host", "gone"), ("content-type", "application/grpc")];
    let (response, _) = send(request("POST /a/B", &grpc), zero).await;
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &"14".parse().unwrap())
    );
}

#[tokio::test]
async fn the_uri_names_the_host_before_the_header_does() {
    let (_, forwarded) = send(request("GET http://reviews:9080/split", &[("host", "elsewhere")]), zero).await;
    assert_eq!(forwarded.unwrap().headers()["host"], "reviews:9080");
}

#[tokio::test]
async fn facts_are_written() {
    let mut asked = request("GET http://reviews/split", &[]);
    let facts = Facts::of_or_insert(&mut asked);
    send(asked, || u64::MAX).await;
    let route = facts.route().unwrap();
    assert_eq!(&*route.cluster.as_ref().unwrap().key().subset, "v2");
    assert_eq!(route.resource.as_ref().unwrap().to_string(), "VirtualService default/test");
    assert_eq!(RoutePolicy::of(&facts).unwrap().timeout, Some(std::time::Duration::from_secs(3)));

    let mut asked = request("GET http://reviews/nowhere", &[]);
    let facts = Facts::of_or_insert(&mut asked);
    send(asked, zero).await;
    assert_eq!(facts.failure().unwrap().code(), FailureCode::UnknownSubset);
    assert!(facts.route().is_some(), "the log names the route that failed");
}

#[tokio::test]
async fn the_original_destination_gives_the_port() {
    let mut asked = request("GET /", &[("host", "multi:8080")]);
    let connection = Connection::builder().original_dst("10.0.0.1:80".parse().unwrap()).build();
    let facts = Facts::new(connection);
    facts.clone().insert(&mut asked);
    send(asked, zero).await;
    assert_eq!(facts.route().unwrap().cluster.as_ref().unwrap().key().port, 80);
}

#[tokio::test]
async fn what_nobody_knows_goes_where_the_connection_was_going() {
    let key = ClusterKey::new("PassthroughCluster", 80, "");
    let name = mesh_core::cluster::ServiceName::new("", "PassthroughCluster", "");
    let out = mesh_core::cluster::Cluster::detached(key, name, ClusterSettings::default(), vec![]);
    let open =
        Connection::builder().original_dst("10.0.0.1:80".parse().unwrap()).otherwise(Some(out)).build();
    for (host, connection, cluster, code) in [
        ("example.com", Some(&open), "PassthroughCluster", None),
        ("multi:8081", Some(&open), "multi.default.svc.cluster.local", None),
        ("a b", Some(&open), "", Some(FailureCode::BadRequest)),
        ("example.com", None, "", Some(FailureCode::UnknownHost)),
    ] {
        let mut asked = request("GET /", &[("host", host)]);
        let facts = connection.map_or_else(Facts::default, |c| Facts::new(Arc::clone(c)));
        facts.clone().insert(&mut asked);
        send(asked, zero).await;
        assert_eq!(facts.failure().map(Failure::code), code, "{host}");
        let found = facts.route().and_then(|r| r.cluster.as_ref()).map_or("", |c| &*c.key().host);
        assert_eq!(found, cluster, "{host}");
        if cluster == "PassthroughCluster" {
            assert_eq!(RoutePolicy::of(&facts).unwrap().retry.attempts, 0);
        }
    }
}

#[tokio::test]
async fn a_new_table_takes_effect_with_the_next_request() {
    let (publisher, live) = live::channel(RouteTable::default());
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Text::default())) });
    let service = RouteLayer::new(live).layer(inner);
    let ask = || service.clone().oneshot(request("GET http://reviews/", &[]));
    assert_eq!(ask().await.unwrap().status(), 502);
    publisher.publish(table(&[]));
    assert_eq!(ask().await.unwrap().status(), 200);
}

#[tokio::test]
async fn errors_from_further_in_pass_through() {
    let failing =
        service_fn(|_: Request<()>| async { Err::<Response<Text>, _>(Failure::new(FailureCode::Timeout)) });
    let service = RouteLayer::new(Live::fixed(table(&[]))).layer(failing);
    let error = service.oneshot(request("GET http://reviews/", &[])).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::Timeout);
}

#[tokio::test]
async fn a_refusal_gives_the_permit_back() {
    let (mock, mut upstream) = tower_test::mock::pair::<Request<()>, Response<Text>>();
    upstream.allow(10);
    let service = ServiceBuilder::new()
        .layer(RouteLayer::new(Live::fixed(RouteTable::default())))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(mock);
    let mut a = Spawn::new(service);
    let mut b = a.clone();
    assert!(a.poll_ready().is_ready());
    assert!(b.poll_ready().is_pending());
    assert_eq!(a.call(request("GET http://gone/", &[])).await.unwrap().status(), 502);
    assert!(b.poll_ready().is_ready());
}

#[test]
fn connect_needs_no_path() {
    let mut asked = Request::builder().method(Method::CONNECT).uri("reviews:9080").body(()).unwrap();
    assert_eq!(normalize(&mut asked).unwrap().original(), "reviews:9080");
}

#[test]
fn what_waits_per_request_stays_small() {
    // The response future of the inner service, what is left to do, and no more.
    let size = size_of::<ResponseFuture<std::future::Ready<Result<Response<Text>, Infallible>>, Text>>();
    assert!(size <= 320, "{size}");
}

proptest! {
    #[test]
    fn no_request_makes_the_router_panic(uri in "(http://)?[a-z:@/.%?\\\\-]{0,24}", host in "[ -~]{0,16}") {
        static TABLE: LazyLock<RouteTable> = LazyLock::new(|| table(&[RULES]));
        let built = Request::builder().uri(uri).header("host", host).body(());
        if let Ok(mut request) = built {
            let facts = Facts::default();
            let _ = route::<_, Text>(&TABLE, &mut request, &facts, zero);
        }
    }
}
