use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io::Write;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use mesh_core::body::BoxError;
use mesh_core::cluster::{Endpoint, EndpointSpec};
use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{PeerIdentity, Upstream};
use mesh_core::failure::{Failure, FailureCode};
use tower::{ServiceExt, service_fn};
use tower_test::{assert_request_eq, mock};

use super::*;
use crate::access_log::{AccessLogWriter, Format, Sink};
use crate::metrics::{Exposition, OwnWorkload};
use crate::trace::TraceContext;

/// A body of given frames, of unknown length.
#[derive(Debug, Default)]
struct Frames(VecDeque<Result<Frame<Bytes>, BoxError>>);

impl Frames {
    fn of(frames: impl IntoIterator<Item = Result<Frame<Bytes>, BoxError>>) -> Self {
        Self(frames.into_iter().collect())
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn grpc_trailers(status: &'static str) -> Result<Frame<Bytes>, BoxError> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    Ok(Frame::trailers(trailers))
}

fn metrics() -> Metrics {
    Metrics::new(OwnWorkload::default())
}

/// The labels (code, gRPC status, flags) of all requests, with their number.
fn requests(metrics: &Metrics) -> Vec<(String, String, String, u64)> {
    let text = metrics.encode(Exposition::Classic);
    let lines = text.lines().filter(|l| l.starts_with("istio_requests_total{"));
    lines
        .map(|line| {
            let label = |name: &str| {
                let rest = line.split_once(&format!("{name}=\"")).unwrap().1;
                rest.split_once('"').unwrap().0.to_owned()
            };
            let count = line.rsplit(' ').next().unwrap().parse().unwrap();
            (label("response_code"), label("grpc_response_status"), label("response_flags"), count)
        })
        .collect()
}

#[track_caller]
fn assert_recorded(metrics: &Metrics, code: &str, grpc: &str, flags: &str) {
    assert_eq!(requests(metrics), [(code.into(), grpc.into(), flags.into(), 1)]);
}

fn sum(metrics: &Metrics, family: &str) -> f64 {
    let text = metrics.encode(Exposition::Classic);
    let line = text.lines().find(|l| l.starts_with(&format!("{family}_sum{{"))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Answers each request with what `answer` makes.
async fn call<B: http_body::Body>(
    layer: &TelemetryLayer,
    request: Request<Full<Bytes>>,
    answer: impl Fn(Request<Measured<Full<Bytes>>>) -> Response<B>,
) -> Response<Recorded<B>> {
    let service = layer.layer(service_fn(|request| ready(Ok::<_, Infallible>(answer(request)))));
    service.oneshot(request).await.unwrap()
}

fn get() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

fn grpc() -> Request<Full<Bytes>> {
    Request::builder().header("content-type", "application/grpc").body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn bodies_are_counted_and_time_runs_to_their_end() {
    let metrics = metrics();
    let service = TelemetryLayer::new(&metrics).layer(service_fn(
        |request: Request<Measured<Full<Bytes>>>| async move {
            assert_eq!(request.body().size_hint().exact(), Some(7));
            let got = request.into_body().collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok::<_, Infallible>(Response::new(Full::new(got)))
        },
    ));
    let request = Request::new(Full::new(Bytes::from_static(b"request")));
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(7));
    assert!(!response.body().is_end_stream());
    assert!(requests(&metrics).is_empty(), "recorded when the body ends");
    tokio::time::sleep(Duration::from_millis(12)).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "request");

    assert_recorded(&metrics, "200", "", "-");
    assert_eq!(sum(&metrics, "istio_request_bytes"), 7.0);
    assert_eq!(sum(&metrics, "istio_response_bytes"), 7.0);
    assert_eq!(sum(&metrics, "istio_request_duration_milliseconds"), 42.0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_body_is_recorded_at_once() {
    let metrics = metrics();
    let response =
        call(&TelemetryLayer::new(&metrics), get(), |_| Response::new(Empty::<Bytes>::new())).await;
    assert_recorded(&metrics, "200", "", "-");
    assert!(response.body().is_end_stream());
    drop(response);
    assert_recorded(&metrics, "200", "", "-");
}

#[tokio::test(start_paused = true)]
async fn answers_whose_body_nobody_sends_are_complete() {
    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("CONNECT", 200), ("GET", 101)] {
        let metrics = metrics();
        let mut request = get();
        *request.method_mut() = method.parse().unwrap();
        let response = call(&TelemetryLayer::new(&metrics), request, |_| {
            let mut response = Response::new(Frames::of([data("never sent")]));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        })
        .await;
        drop(response);
        assert_recorded(&metrics, &status.to_string(), "", "-");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_recorded_as_gone() {
    // Before the answer.
    let before = metrics();
    let service = TelemetryLayer::new(&before)
        .layer(service_fn(|_| std::future::pending::<Result<Response<String>, Infallible>>()));
    let mut call_it = Box::pin(service.oneshot(get()));
    assert!(futures_poll(&mut call_it).is_pending());
    drop(call_it);
    assert_recorded(&before, "0", "", "DC");

    // Within the body.
    let within = metrics();
    let answer = |_| Response::new(Frames::of([data("one"), data("two")]));
    let mut response = call(&TelemetryLayer::new(&within), get(), answer).await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert!(requests(&within).is_empty());
    drop(response);
    assert_recorded(&within, "200", "", "DC");
    assert_eq!(sum(&within, "istio_response_bytes"), 3.0);

    // Before the body's first byte.
    let first = metrics();
    drop(call(&TelemetryLayer::new(&first), get(), |_| Response::new(Full::<Bytes>::from("x"))).await);
    assert_recorded(&first, "200", "", "DC");
}

fn futures_poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_sent_whole_need_not_be_asked_for_its_end() {
    /// Knows its length, but not that it has ended.
    struct Exact(Frames);
    impl http_body::Body for Exact {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }
        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(3)
        }
    }
    let metrics = metrics();
    let answer = |_| Response::new(Exact(Frames::of([data("one")])));
    let mut response = call(&TelemetryLayer::new(&metrics), get(), answer).await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert_recorded(&metrics, "200", "", "-");
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_grpc_call_comes_from_trailers_or_headers() {
    for (status, label) in [("0", "0"), ("14", "14"), ("17", "2"), ("999999", "2"), ("x", "2"), ("", "2")] {
        let metrics = metrics();
        let answer = move |_| Response::new(Frames::of([data("m"), grpc_trailers(status)]));
        let response = call(&TelemetryLayer::new(&metrics), grpc(), answer).await;
        response.into_body().collect().await.unwrap();
        assert_recorded(&metrics, "200", label, "-");
    }
    let in_headers = metrics();
    let answer = |_| Failure::new(FailureCode::Denied).response::<Empty<Bytes>>(true);
    call(&TelemetryLayer::new(&in_headers), grpc(), answer).await;
    assert_recorded(&in_headers, "200", "7", "-");
    // Only of gRPC calls.
    let http = metrics();
    let answer = |_| Response::new(Frames::of([data("m"), grpc_trailers("5")]));
    call(&TelemetryLayer::new(&http), get(), answer).await.into_body().collect().await.unwrap();
    assert_recorded(&http, "200", "", "-");
}

#[tokio::test(start_paused = true)]
async fn failures_give_the_flag() {
    let in_extensions = metrics();
    let answer = |_| Failure::new(FailureCode::NoHealthyEndpoint).response::<Empty<Bytes>>(false);
    call(&TelemetryLayer::new(&in_extensions), get(), answer).await;
    assert_recorded(&in_extensions, "503", "", "UH");

    let in_facts = metrics();
    let answer = |request: Request<_>| {
        Facts::of(&request).unwrap().set_failure(FailureCode::Timeout.into());
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        response
    };
    call(&TelemetryLayer::new(&in_facts), get(), answer).await;
    assert_recorded(&in_facts, "504", "", "UT");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_says_so() {
    for (error, flag) in [
        (BoxError::from("connection reset"), "UC"),
        (Box::new(std::io::Error::other(Failure::new(FailureCode::Timeout))) as BoxError, "UT"),
    ] {
        let metrics = metrics();
        let frames = Mutex::new(Some(Frames::of([data("one"), Err(error)])));
        let answer = |_| Response::new(frames.lock().unwrap().take().unwrap());
        let response = call(&TelemetryLayer::new(&metrics), get(), answer).await;
        assert!(response.into_body().collect().await.is_err());
        assert_recorded(&metrics, "200", "", flag);
    }
}

#[tokio::test(start_paused = true)]
async fn errors_pass_and_are_recorded() {
    let known = metrics();
    let service = TelemetryLayer::new(&known).layer(service_fn(|_| {
        ready(Err::<Response<String>, BoxError>(Box::new(Failure::new(FailureCode::ConnectFailed))))
    }));
    let error = service.oneshot(get()).await.unwrap_err();
    assert_eq!(Failure::of(error).code(), FailureCode::ConnectFailed);
    assert_recorded(&known, "0", "", "UF");

    let unknown = metrics();
    let service = TelemetryLayer::new(&unknown).layer(service_fn(|_| ready(Err::<Response<String>, u8>(7))));
    assert_eq!(service.oneshot(get()).await.unwrap_err(), 7);
    assert_recorded(&unknown, "0", "", "-");
}

#[tokio::test(start_paused = true)]
async fn readiness_is_the_inner_services() {
    type Call = Request<Measured<Full<Bytes>>>;
    let (inner, mut handle) = mock::pair::<Call, Response<String>>();
    let limited = tower::limit::ConcurrencyLimit::new(inner, 1);
    let mut service = mock::Spawn::new(TelemetryLayer::new(metrics()).layer(limited));
    handle.allow(0);
    assert!(service.poll_ready::<Request<Full<Bytes>>>().is_pending());
    handle.allow(1);
    assert!(service.is_woken());
    assert!(service.poll_ready::<Request<Full<Bytes>>>().is_ready());
    // A clone has no readiness of its own: the permit is held by the first.
    assert!(service.clone().poll_ready::<Request<Full<Bytes>>>().is_pending());
    let response = service.call(get());
    let (request, answer) = handle.next_request().await.unwrap();
    assert!(Facts::of(&request).is_some());
    answer.send_response(Response::new("hello".to_owned()));
    assert_eq!(response.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test(start_paused = true)]
async fn traces_and_request_ids_reach_the_service() {
    let layer = TelemetryLayer::new(metrics()).with_random(|| 9);
    call(&layer, get(), |request| {
        assert_eq!(TraceContext::extract(request.headers()).unwrap().span_id(), 9);
        assert_eq!(request.headers()["x-request-id"], "00000000-0000-4009-8000-000000000009");
        #[cfg(feature = "otel")]
        assert!(request.extensions().get::<opentelemetry::trace::SpanContext>().unwrap().is_valid());
        Response::new(String::new())
    })
    .await;
    let off = layer.with_tracing(None).with_request_ids(false);
    call(&off, get(), |request| {
        assert!(request.headers().is_empty());
        Response::new(String::new())
    })
    .await;
}

/// A log whose lines are read when the test is done with the layer.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged() -> (TelemetryLayer, Lines, AccessLogWriter) {
    let lines = Lines::default();
    let (log, writer) = AccessLog::new(Sink::Writer(Box::new(lines.clone())), Format::Json).unwrap();
    (TelemetryLayer::new(metrics()).with_access_log(log), lines, writer)
}

async fn read(layer: TelemetryLayer, lines: Lines, writer: AccessLogWriter) -> serde_json::Value {
    drop(layer);
    writer.run().await;
    let lines = lines.0.lock().unwrap();
    serde_json::from_slice(&lines).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_the_request_as_it_came_and_who_refused_it() {
    let (layer, lines, writer) = logged();
    let layer = layer.with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_millis(1));
    let request = Request::builder()
        .method("POST")
        .uri("/a%20b?c=d")
        .header("host", "reviews:9080")
        .header("user-agent", "curl\u{7f}".replace('\u{7f}', "/8"))
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-request-id", "my-id")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(Full::from("12345"))
        .unwrap();
    let answer = |mut request: Request<Measured<Full<Bytes>>>| {
        *request.uri_mut() = "/rewritten".parse().unwrap();
        let policy = ResourceRef::new("AuthorizationPolicy", "default", "only-get");
        let failure = Failure::new(FailureCode::Denied).policies(vec![policy]);
        Facts::of(&request).unwrap().set_failure(failure.clone());
        failure.response::<Empty<Bytes>>(false)
    };
    call(&layer, request, answer).await;
    let line = read(layer, lines, writer).await;
    for (key, value) in [
        ("start_time", "1970-01-01T00:00:00.001Z"),
        ("method", "POST"),
        ("path", "/a%20b?c=d"),
        ("protocol", "HTTP/1.1"),
        ("x_forwarded_for", "1.2.3.4"),
        ("user_agent", "curl/8"),
        ("request_id", "my-id"),
        ("authority", "reviews:9080"),
        ("reason", "denied"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!(line["policies"], serde_json::json!(["default/only-get"]));
    assert_eq!(line["response_code"], 403);
}

#[tokio::test(start_paused = true)]
async fn a_verified_sidecar_is_believed_and_nobody_else() {
    for verified in [true, false] {
        let (layer, lines, writer) = logged();
        let layer = layer.with_direction(Direction::Outbound);
        let answer = |request: Request<_>| {
            let peer = PeerIdentity::new("spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap());
            let spec = EndpointSpec::plaintext("10.0.0.9:9080".parse().unwrap());
            Facts::of(&request).unwrap().set_upstream(Upstream {
                endpoint: Arc::new(Endpoint::new(spec)),
                address: None,
                peer: verified.then(|| Arc::new(peer)),
            });
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::FORBIDDEN;
            let headers = response.headers_mut();
            headers.insert("x-mesh-reason", HeaderValue::from_static("denied"));
            headers.insert("x-mesh-detail", HeaderValue::from_static("policy default/x"));
            response
        };
        let response = call(&layer, get(), answer).await;
        assert!(!response.headers().contains_key("x-mesh-detail"), "the application never sees it");
        let line = read(layer, lines, writer).await;
        assert_eq!(line["reason"], serde_json::Value::Null, "it was not this mesh hop that refused");
        assert_eq!(line["upstream_host"], "10.0.0.9:9080");
        assert_eq!(line["response_code_details"], "via_upstream");
        assert_eq!(line["upstream_reason"] == "denied", verified);
        assert_eq!(line["detail"] == "policy default/x", verified);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_has_an_authority_and_no_path() {
    let (layer, lines, writer) = logged();
    let request = Request::connect("db:5432").body(Full::default()).unwrap();
    call(&layer, request, |_| Response::new(Empty::<Bytes>::new())).await;
    let line = read(layer, lines, writer).await;
    assert_eq!((&line["path"], &line["authority"]), (&serde_json::Value::Null, &"db:5432".into()));
}

#[tokio::test(start_paused = true)]
async fn it_works_alone_in_an_axum_service() {
    use axum::{Router, routing::get};
    let metrics = metrics();
    let router: Router =
        Router::new().route("/", get(|| async { "hello" })).layer(TelemetryLayer::new(&metrics));
    for (path, expected) in [("/", 200), ("/missing", 404)] {
        let request = Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected);
        response.into_body().collect().await.unwrap();
    }
    let codes: Vec<String> = requests(&metrics).into_iter().map(|r| r.0).collect();
    assert_eq!(codes, ["200", "404"]);
}

#[tokio::test(start_paused = true)]
async fn the_mock_sees_one_request_for_one() {
    let (service, mut handle) = mock::pair::<&'static str, &'static str>();
    let service = service
        .map_request(|_: Request<Measured<Full<Bytes>>>| "called")
        .map_response(|text| Response::new(Full::<Bytes>::from(text)));
    let answer = tokio::spawn(TelemetryLayer::new(metrics()).layer(service).oneshot(get()));
    assert_request_eq!(handle, "called").send_response("answer");
    assert_eq!(answer.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes(), "answer");
}

#[test]
fn a_request_costs_few_bytes() {
    // Grown without notice this slows every request; raise it knowingly.
    assert!(size_of::<record::Record>() <= 136, "{}", size_of::<record::Record>());
    assert!(size_of::<Measured<()>>() <= 8);
}
