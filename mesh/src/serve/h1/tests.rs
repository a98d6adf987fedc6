//! Whole connections, over a pipe and over sockets.

mod attacks;
mod connection;
mod pieces;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use mesh_core::body::Body;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

const SETTINGS: Settings = Settings {
    max_head: 4096,
    head_timeout: Duration::from_secs(30),
    linger: Duration::from_millis(500),
    dated: false,
};

/// Says what it was asked, and gives the body back; `/empty` and such by their names.
async fn echo(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let mut response = match path.as_str() {
        // Without a look at what comes.
        "/blind" => Response::new(Body::from("blind")),
        "/stream" => Response::new(body),
        "/204" => Response::builder().status(204).body(Body::empty()).unwrap(),
        "/304" => Response::builder().status(304).header("content-length", "5").body(Body::empty()).unwrap(),
        "/empty" => Response::new(Body::empty()),
        "/never" => std::future::pending().await,
        _ => match body.collect().await {
            Ok(body) => {
                let trailers = body.trailers().cloned();
                let text = format!("{} {} ", parts.method, parts.uri).into_bytes();
                let mut all = text;
                all.extend_from_slice(&body.to_bytes());
                if let Some(trailers) = trailers {
                    all.extend_from_slice(format!(" {trailers:?}").as_bytes());
                }
                Response::new(Body::from(Bytes::from(all)))
            }
            Err(error) => Response::builder().status(400).body(Body::from(error.to_string())).unwrap(),
        },
    };
    if path == "/close" {
        response.headers_mut().insert("connection", "close".parse().unwrap());
    }
    Ok(response)
}

/// A served connection, and its caller's end.
struct Served {
    caller: DuplexStream,
    task: JoinHandle<Result<Ended<DuplexStream>, Error>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

fn served(buffer: usize) -> Served {
    let (caller, io) = duplex(buffer);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        // Who never stops it keeps the sender until the end.
        serve(io, &SETTINGS, echo, async move { stopped.await.unwrap_or(()) }).await
    });
    Served { caller, task, stop: Some(stop) }
}

impl Served {
    async fn say(&mut self, text: &str) {
        self.caller.write_all(text.as_bytes()).await.unwrap();
    }

    /// One answer with a length, or with none.
    async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.caller.read_exact(&mut body).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.caller.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    /// All that comes until the end.
    async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        self.caller.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    }
}

fn status(answer: &str) -> u16 {
    answer.get(9..12).unwrap_or_default().parse().unwrap_or_default()
}

/// What `write` makes of these.
fn written(
    asked: Asked,
    code: u16,
    headers: &[(&str, &str)],
    size: Size,
    closing: bool,
) -> Result<(String, Plan), Unwritable> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    let mut out = Vec::new();
    let code = http::StatusCode::from_u16(code).unwrap();
    let plan = answer::write(&mut out, asked, code, None, &map, size, (closing, false))?;
    Ok((String::from_utf8(out).unwrap(), plan))
}

#[test]
fn the_head_of_an_answer_says_in_one_way_where_its_body_ends() {
    use Size::{Ended, Known, Unknown};
    let get = Asked { head: false, old: false, keep_alive: true, trailers: false };
    let head = Asked { head: true, ..get };
    let old = Asked { old: true, keep_alive: false, ..get };
    let old_keep = Asked { old: true, ..get };
    let close = Asked { keep_alive: false, ..get };
    type Case<'a> = (Asked, u16, &'a [(&'a str, &'a str)], Size, &'a str, Framing, bool);
    let table: [Case<'_>; 21] = [
        (get, 200, &[], Known(5), "200 OK\r\ncontent-length: 5", Framing::Length(5), false),
        (
            get,
            200,
            &[("content-length", "5")],
            Known(5),
            "200 OK\r\ncontent-length: 5",
            Framing::Length(5),
            false,
        ),
        (
            get,
            200,
            &[("content-length", "5")],
            Unknown,
            "200 OK\r\ncontent-length: 5",
            Framing::Length(5),
            false,
        ),
        (get, 200, &[], Unknown, "200 OK\r\ntransfer-encoding: chunked", Framing::Chunked, false),
        (
            get,
            200,
            &[("transfer-encoding", "Chunked")],
            Unknown,
            "200 OK\r\ntransfer-encoding: chunked",
            Framing::Chunked,
            false,
        ),
        (get, 200, &[], Ended, "200 OK\r\ncontent-length: 0", Framing::None, false),
        (get, 200, &[("content-length", "5")], Ended, "200 OK\r\ncontent-length: 0", Framing::None, false),
        (get, 204, &[("content-length", "0")], Ended, "204 No Content", Framing::None, false),
        (get, 204, &[], Unknown, "204 No Content", Framing::None, false),
        (get, 304, &[], Known(5), "304 Not Modified", Framing::None, false),
        (get, 299, &[], Ended, "299 <none>\r\ncontent-length: 0", Framing::None, false),
        (head, 200, &[("content-length", "5")], Ended, "200 OK\r\ncontent-length: 5", Framing::None, false),
        (head, 200, &[], Known(5), "200 OK\r\ncontent-length: 5", Framing::None, false),
        (head, 200, &[], Unknown, "200 OK", Framing::None, false),
        (head, 200, &[], Ended, "200 OK", Framing::None, false),
        (
            get,
            200,
            &[("trailer", "x")],
            Unknown,
            "200 OK\r\ntrailer: x\r\ntransfer-encoding: chunked",
            Framing::Chunked,
            false,
        ),
        (
            close,
            200,
            &[("connection", "keep-alive")],
            Ended,
            "200 OK\r\ncontent-length: 0\r\nconnection: close",
            Framing::None,
            true,
        ),
        (
            get,
            200,
            &[("connection", "close")],
            Ended,
            "200 OK\r\nconnection: close\r\ncontent-length: 0",
            Framing::None,
            true,
        ),
        (old, 200, &[("trailer", "x")], Unknown, "200 OK", Framing::Close, true),
        (
            old_keep,
            200,
            &[],
            Known(1),
            "200 OK\r\ncontent-length: 1\r\nconnection: keep-alive",
            Framing::Length(1),
            false,
        ),
        (old_keep, 200, &[], Unknown, "200 OK", Framing::Close, true),
    ];
    for (asked, code, headers, size, want, framing, last) in table {
        let (text, plan) = written(asked, code, headers, size, false).unwrap();
        let version = if asked.old { "HTTP/1.0" } else { "HTTP/1.1" };
        assert_eq!(text, format!("{version} {want}\r\n\r\n"), "{asked:?} {code} {headers:?} {size:?}");
        assert_eq!((plan.framing, plan.last), (framing, last), "{asked:?} {code} {headers:?} {size:?}");
    }
    let (text, plan) = written(get, 200, &[], Known(1), true).unwrap();
    assert_eq!(
        (text.as_str(), plan.last),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n", true)
    );
    let trailing = Asked { trailers: true, ..get };
    for (asked, names) in [(get, 0), (trailing, 2)] {
        assert_eq!(
            written(asked, 200, &[("trailer", "x, y")], Unknown, false).unwrap().1.trailers.len(),
            names
        );
    }
    for (code, headers, size) in [
        (200, [("content-length", "5"), ("x", "y")], Known(6)),
        (200, [("content-length", "5"), ("content-length", "6")], Unknown),
        (200, [("content-length", "+5"), ("x", "y")], Unknown),
        (200, [("transfer-encoding", "gzip, chunked"), ("x", "y")], Unknown),
        (103, [("x", "y"), ("x", "y")], Ended),
        (101, [("x", "y"), ("x", "y")], Ended),
    ] {
        assert!(written(get, code, &headers, size, false).is_err(), "{code} {headers:?} {size:?}");
    }
}
