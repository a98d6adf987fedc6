//! What a backend answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::{Body, Counted, Failing, KEPT_HEADS, Seen, Shared, Stop};

/// The bytes of one frame of `/bytes/N`.
const CHUNK: &[u8] = &[b'x'; 16 * 1024];

pub(super) async fn answer(
    shared: Arc<Shared>,
    stop: watch::Receiver<Stop>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let _in_flight = Counted::new(&shared, |s| &s.in_flight);
    note(&shared, &request);
    let failing = *shared.failing.lock().unwrap_or_else(PoisonError::into_inner);
    let mut response = match failing {
        Failing::Not => route(&shared, stop, request).await?,
        Failing::Status(status) => plain(status_code(status), format!("{} fails\n", shared.name)),
        Failing::Reset => return Err(std::io::Error::other("told to fail")),
        Failing::Hang => std::future::pending().await,
    };
    if let Ok(name) = HeaderValue::from_str(&shared.name) {
        response.headers_mut().insert("x-served-by", name);
    }
    Ok(response)
}

fn note(shared: &Shared, request: &Request<Incoming>) {
    shared.total.fetch_add(1, Ordering::Relaxed);
    let key = (request.method().clone(), request.uri().path().to_owned());
    *shared.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    let mut heads = shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
    if heads.len() == KEPT_HEADS {
        heads.pop_front();
    }
    heads.push_back(Seen {
        method: request.method().clone(),
        path: path_and_query(request),
        version: request.version(),
        authority: authority(request),
        headers: request.headers().clone(),
    });
}

fn path_and_query(request: &Request<Incoming>) -> String {
    request.uri().path_and_query().map_or_else(|| request.uri().to_string(), ToString::to_string)
}

fn authority(request: &Request<Incoming>) -> Option<String> {
    let host =
        || request.headers().get(header::HOST).map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned());
    request.uri().authority().map(ToString::to_string).or_else(host)
}

async fn route(
    shared: &Arc<Shared>,
    stop: watch::Receiver<Stop>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    let mut segments = path.trim_start_matches('/').splitn(2, '/');
    let (first, rest) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    Ok(match (first, rest) {
        ("echo", _) => {
            let head = echo_head(&request);
            let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
            plain(StatusCode::OK, [head.as_bytes(), &body].concat())
        }
        ("status", code) => {
            let status = status_code(code.parse().unwrap_or(400));
            // As below: what comes after an early answer is counted by nobody.
            let _ = request.into_body().collect().await;
            plain(status, format!("{} says {status}\n", shared.name))
        }
        ("delay", millis) => {
            tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await;
            named(shared)
        }
        ("forge", _) => {
            let mut response = plain(StatusCode::FORBIDDEN, format!("{} refuses\n", shared.name));
            let headers = response.headers_mut();
            headers.insert("x-mesh-reason", HeaderValue::from_static("denied"));
            headers.insert("x-mesh-detail", HeaderValue::from_static("forged by the application"));
            response
        }
        ("bytes", count) => {
            let left = count.parse().unwrap_or(0);
            Response::new(Filler { left }.boxed())
        }
        ("trailers", _) => trailers(shared),
        ("upgrade", _) => upgrade(shared, stop, request),
        _ => {
            // An application that answers before it has read the request makes many clients fail.
            let _ = request.into_body().collect().await;
            named(shared)
        }
    })
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST)
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    response
}

fn named(shared: &Shared) -> Response<Body> {
    plain(StatusCode::OK, format!("{}\n", shared.name))
}

fn trailers(shared: &Shared) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    if let Ok(name) = HeaderValue::from_str(&shared.name) {
        trailers.insert("x-trailer", name);
    }
    let body = Full::new(Bytes::from(format!("{}\n", shared.name)));
    let mut response = Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed());
    // HTTP/1.1 sends only those that it has announced.
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("grpc-status, x-trailer"));
    response
}

fn upgrade(
    shared: &Arc<Shared>,
    mut stop: watch::Receiver<Stop>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return plain(StatusCode::UPGRADE_REQUIRED, "this path wants an upgrade\n");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let active = Counted::new(shared, |s| &s.active);
    tokio::spawn(async move {
        let _active = active;
        let echo = async {
            let Ok(upgraded) = upgraded.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        };
        tokio::select! {
            () = echo => {}
            _ = stop.wait_for(|stop| *stop != Stop::Running) => {}
        }
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, protocol);
    response
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_11 => "HTTP/1.1",
        _ => "HTTP/1.0",
    }
}

fn echo_head(request: &Request<Incoming>) -> String {
    let mut lines = json!({
        "method": request.method().as_str(),
        "path": path_and_query(request),
        "authority": authority(request),
        "version": version_name(request.version()),
    })
    .to_string();
    for (name, value) in request.headers() {
        let header = json!({ "header": name.as_str(), "value": String::from_utf8_lossy(value.as_bytes()) });
        lines.push('\n');
        lines.push_str(&header.to_string());
    }
    lines.push_str("\n\n");
    lines
}

/// What `/echo` answered, read back: a JSON line with method, path, authority and version, one for each
/// header, an empty line, the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// The method that arrived.
    pub method: String,
    /// The path with the query that arrived.
    pub path: String,
    /// `:authority` or `Host` that arrived.
    pub authority: Option<String>,
    /// `HTTP/1.1` or `HTTP/2`.
    pub version: String,
    /// The headers that arrived, each with its values in their order.
    pub headers: BTreeMap<String, Vec<String>>,
    /// The body that arrived.
    pub body: Vec<u8>,
}

impl Echo {
    /// Reads the body of an answer of `/echo`.
    ///
    /// # Panics
    /// When it is not one.
    pub fn parse(answer: &[u8]) -> Self {
        let gap = answer.windows(2).position(|two| two == b"\n\n");
        let (head, body) = gap.and_then(|at| answer.split_at_checked(at)).unwrap_or_else(|| {
            panic!("not an answer of /echo: {}", String::from_utf8_lossy(answer));
        });
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| {
            serde_json::from_slice::<Value>(line).unwrap_or_else(|e| panic!("not an answer of /echo: {e}"))
        });
        let first = lines.next().unwrap_or_default();
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let mut headers = BTreeMap::<String, Vec<String>>::new();
        for line in lines {
            if let (Some(name), Some(value)) = (text(&line, "header"), text(&line, "value")) {
                headers.entry(name).or_default().push(value);
            }
        }
        Self {
            method: text(&first, "method").unwrap_or_default(),
            path: text(&first, "path").unwrap_or_default(),
            authority: text(&first, "authority"),
            version: text(&first, "version").unwrap_or_default(),
            headers,
            body: body.strip_prefix(b"\n\n").unwrap_or_default().to_vec(),
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.first().map(String::as_str)
    }
}

/// A body of a given length that is never in memory as a whole.
struct Filler {
    left: u64,
}

impl HttpBody for Filler {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK.len());
        self.left -= len as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(CHUNK).slice(..len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}
