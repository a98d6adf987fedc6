//! HTTP/1.1 between two sidecars shares connections, and nobody can tell: applications, logs and metrics see
//! what they see without.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh::tls::alpn::CARRIED;
use mesh_test::ca::spiffe;
use mesh_test::client::{Call, Protocol};
use mesh_test::load::LoadGen;
use mesh_test::tls;
use mesh_test::wait::until_secs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{HOST, Stage};

const APART: &str = "connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}";

/// Requests as they come from an application.
const REQUESTS: [&str; 18] = [
    "GET /echo/a?b=c HTTP/1.1\r\nHost: reviews:9080\r\nCookie: a=1; b=2\r\nAccept: */*\r\n\r\n",
    "GET /echo HTTP/1.1\r\nHost: reviews:9080\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Empty:\r\nTE: trailers\r\n\r\n",
    "GET http://reviews:9080/echo/absolute HTTP/1.1\r\nHost: liar\r\n\r\n",
    "GET /echo HTTP/1.0\r\nHost: reviews:9080\r\n\r\n",
    "GET /echo HTTP/1.1\r\nHost: REVIEWS:9080\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 0\r\n\r\n",
    "HEAD /echo HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
    "HEAD /bytes/100 HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 5\r\n\r\nhello",
    "POST /echo HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: reviews:9080\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n\
     5\r\nhello\r\n7\r\n, world\r\n0\r\nx-t: 1\r\n\r\n",
    "PUT /echo HTTP/1.1\r\nHost: reviews:9080\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "DELETE /status/204 HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
    "GET /status/304 HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
    "GET /trailers HTTP/1.1\r\nHost: reviews:9080\r\nTE: trailers\r\n\r\n",
    "GET /bytes/300000 HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
];

/// An answer as it came: the head's lines, the length of what followed.
type Answer = (Vec<String>, String);

/// Sends the bytes, and reads until the end.
async fn raw(addr: SocketAddr, request: &str) -> Answer {
    // Given, so that they are the same each time; and the connection ends with the answer.
    let fixed = "x-request-id: 1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
                 connection: close\r\n";
    let (line, rest) = request.split_once("\r\n").unwrap();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("{line}\r\n{fixed}{rest}").as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let reading = stream.read_to_end(&mut all);
    tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    let mut text = String::from_utf8(all).unwrap();
    // Whether the caller is told to go on may depend on how fast the answer is.
    if let Some(rest) = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
        text = rest.to_owned();
    }
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut head: Vec<String> = head.lines().map(str::to_owned).collect();
    let chunked = head.iter().any(|line| line == "transfer-encoding: chunked");
    head.retain(|line| !line.starts_with("date: "));
    head[1..].sort();
    (head, if chunked { joined(body) } else { body.to_owned() })
}

/// The chunks of a body joined, its trailers behind: how it is cut is nobody's business.
fn joined(mut chunks: &str) -> String {
    let mut all = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n").unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return all + "\r\n" + rest;
        }
        all += &rest[..length];
        chunks = &rest[length + 2..];
    }
}

/// The body of `/echo` and the log line name a span, which is new each time; and times.
fn without_spans(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("0af7651916cd43dd8448eb211c80319c-") {
        let end = at + "0af7651916cd43dd8448eb211c80319c-".len();
        out += &rest[..end];
        rest = rest.get(end + 16..).unwrap();
    }
    out + rest
}

/// What the log lines say of requests and answers.
fn told(lines: &[String]) -> Vec<BTreeMap<String, String>> {
    let mut all: Vec<BTreeMap<String, String>> = Vec::new();
    for line in lines {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let told = [
            "protocol",
            "method",
            "path",
            "authority",
            "response_code",
            "bytes_received",
            "bytes_sent",
            "response_flags",
        ];
        all.push(
            object
                .into_iter()
                .filter(|(name, _)| told.contains(&name.as_str()))
                .map(|(name, value)| (name, value.to_string()))
                .collect(),
        );
    }
    all
}

/// The same requests with and without: the callers' answers, what the application saw, and both logs are equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_tell() {
    let mut seen = Vec::new();
    for policy in ["", APART] {
        let stage = Stage::new();
        let replica = stage.replica("v1").await;
        if !policy.is_empty() {
            stage.traffic_policy(policy);
        }
        let web = stage.web().await;
        let mut answers = Vec::new();
        for request in REQUESTS {
            let (head, body) = raw(web.outbound(), request).await;
            // `/echo` tells of headers in their order, which means nothing.
            let mut body: Vec<_> = body.lines().map(without_spans).collect();
            body.sort();
            answers.push((request, head, body));
        }
        let count = REQUESTS.len();
        let logs = async || [web.access_log(), replica.sidecar.access_log()];
        until_secs(20, "all lines", async || logs().await.iter().all(|l| l.len() == count)).await;
        let logs = logs().await.map(|lines| told(&lines));
        assert!(logs[1].iter().all(|l| l["protocol"] == "\"HTTP/1.1\""), "{:?}", logs[1]);
        let app: Vec<_> = replica
            .app
            .seen()
            .into_iter()
            .map(|seen| {
                let mut headers: Vec<_> = seen
                    .headers
                    .iter()
                    .map(|(n, v)| format!("{n}: {}", without_spans(v.to_str().unwrap())))
                    .collect();
                headers.sort();
                (seen.method, seen.path, seen.version, seen.authority, headers)
            })
            .collect();
        assert_eq!(app.len(), count);
        seen.push((answers, app, logs));
    }
    let (apart, carried) = (seen.pop().unwrap(), seen.pop().unwrap());
    for (with, without) in carried.0.iter().zip(&apart.0) {
        assert_eq!(with, without);
    }
    for (with, without) in carried.1.iter().zip(&apart.1) {
        assert_eq!(with, without);
        assert_eq!(with.2, Version::HTTP_11);
    }
    for (with, without) in carried.2.iter().flatten().zip(apart.2.iter().flatten()) {
        assert_eq!(with, without);
    }
}

/// Forty requests at once are on one connection; where the policy says so, on forty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_a_connection() {
    for (policy, want) in [("outlierDetection: {}", 1.0), (APART, 40.0)] {
        let stage = Stage::new();
        let replica = stage.replica("v1").await;
        stage.traffic_policy(policy);
        let web = stage.spec("web").outbound().flag("--workers", "1").start().await;
        let calls: Vec<_> = (0..40)
            .map(|_| {
                let addr = web.outbound();
                tokio::spawn(async move { mesh_test::client::get(addr, HOST, "/delay/3000").await })
            })
            .collect();
        until_secs(20, "all at once", async || replica.app.in_flight() == 40).await;
        assert_eq!(web.metric("mesh_cluster_connections", &["reviews"]).await, want, "{policy}");
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status, 200);
        }
        assert_eq!(web.metric("istio_requests_total", &["request_protocol=\"http\""]).await, 40.0);
    }
}

/// `maxConnections` bounds requests at once as it does without: here one, and the other is told in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_connections_limits_requests() {
    for more in ["", ", h2UpgradePolicy: DO_NOT_UPGRADE"] {
        let stage = Stage::new();
        let replica = stage.replica("v1").await;
        stage.traffic_policy(&format!(
            "connectionPool: {{tcp: {{maxConnections: 1}}, http: {{http1MaxPendingRequests: 1{more}}}}}"
        ));
        let web = stage.web().await;
        assert_eq!(web.get(HOST, "/").await.unwrap().status, 200);
        let call = |path: &'static str| {
            let addr = web.outbound();
            tokio::spawn(async move { mesh_test::client::get(addr, HOST, path).await.unwrap() })
        };
        let first = call("/delay/3000");
        until_secs(20, "the first at work", async || replica.app.in_flight() == 1).await;
        let second = call("/");
        until_secs(20, "the second waiting", async || {
            let page = web.admin_get("/clusters").await.unwrap().text();
            let page: serde_json::Value = serde_json::from_str(&page).unwrap();
            page.as_array().unwrap().iter().any(|cluster| cluster["pending"] == 1)
        })
        .await;
        assert_eq!(web.get(HOST, "/").await.unwrap().reason(), Some("overflow"));
        assert_eq!(replica.app.in_flight(), 1, "{more}");
        assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    }
}

/// A drain of the called sidecar and its successor on the same port fail nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_replaced_fails_nothing() {
    let stage = Stage::new();
    let (replica, other) = (stage.replica("v1").await, stage.replica("v2").await);
    let web = stage.web().await;
    let load = LoadGen::to(web.outbound()).host(HOST).connections(16).start();
    until_secs(30, "load on both", async || [&replica, &other].iter().all(|r| r.app.requests() > 50)).await;
    let (spec, app) = (replica.sidecar.spec().clone(), replica.app);
    let (status, _) = replica.sidecar.stop().await;
    assert!(status.success());
    let again = spec.start().await;
    let before = app.requests();
    until_secs(40, "load on the successor", async || app.requests() > before + 50).await;
    load.stop().await.assert_clean();
    drop(again);
}

/// A peer that agrees on carrying and then sends what no proxy of ours does: the stream is reset, the application
/// hears nothing, and other requests of the connection are served as HTTP/1.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_names_for_one_host_reach_nobody() {
    let stage = Stage::new();
    let replica = stage.replica("v1").await;
    let leaf = stage.ca.leaf(&spiffe("default", "web"));
    let alpn = std::str::from_utf8(CARRIED).unwrap();
    let config = tls::client_config(Some(&leaf), Some(&stage.ca), &[alpn]);
    let stream = tls::connect(replica.sidecar.inbound(), config, "reviews").await.unwrap();
    assert_eq!(tls::alpn(&stream).as_deref(), Some(alpn));
    let (mut send, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    let get = |uri: &str| Request::get(uri).version(Version::HTTP_2);
    let bad = [
        get("http://reviews:9080/").header("host", "ratings"),
        get("http://user@reviews:9080/"),
        get("http://reviews:9080/").header("content-length", "0").header("content-length", "5"),
        Request::connect("reviews:9080"),
    ];
    for request in bad {
        let error = exchange(&mut send, request.body(Empty::new()).unwrap()).await.unwrap_err();
        let reset = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<h2::Error>());
        assert_eq!(reset.and_then(h2::Error::reason), Some(h2::Reason::PROTOCOL_ERROR), "{error:?}");
    }
    assert_eq!(replica.app.requests(), 0);

    let good = get("http://reviews:9080/echo").header("cookie", "a=1").header("cookie", "b=2");
    assert_eq!(exchange(&mut send, good.body(Empty::new()).unwrap()).await.unwrap(), 200);
    let seen = replica.app.seen().pop().unwrap();
    assert_eq!((seen.version, seen.authority.as_deref()), (Version::HTTP_11, Some("reviews:9080")));
    let cookies: Vec<_> = seen.headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
    assert_eq!(seen.headers.get_all("host").iter().collect::<Vec<_>>(), ["reviews:9080"]);
}

async fn exchange(
    send: &mut SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<u16> {
    send.ready().await?;
    let response = send.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

/// A caller that leaves takes only its own request along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_ends_its_request_alone() {
    let stage = Stage::new();
    let replica = stage.replica("v1").await;
    let web = stage.spec("web").outbound().flag("--workers", "1").start().await;
    let mut stays = web.connect(Protocol::H1).await.unwrap();
    let stays = tokio::spawn(async move { stays.send(&Call::get(HOST, "/delay/3000")).await });
    let mut leaves = web.connect(Protocol::H1).await.unwrap();
    let leaves = tokio::spawn(async move { leaves.send(&Call::get(HOST, "/delay/600000")).await });
    until_secs(20, "both at work", async || replica.app.in_flight() == 2).await;
    leaves.abort();
    until_secs(20, "one at work", async || replica.app.in_flight() == 1).await;
    assert_eq!(stays.await.unwrap().unwrap().status, 200);
}
