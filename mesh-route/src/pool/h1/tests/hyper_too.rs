//! The same bytes as hyper reads and writes.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::TokioIo;
use mesh_core::body::{Body, BoxError};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::super::*;
use super::exchange::{Pair, leased, pair};

/// Something like a chunked body, or not.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        5 => Just(b"5\r\nhello\r\n".to_vec()),
        2 => Just(b"3;x=y\r\nabc\r\n".to_vec()),
        2 => Just(b"0\r\n\r\n".to_vec()),
        1 => Just(b"0\r\nx: y\r\n\r\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
        1 => "[0-9a-fA-F; \r\n:x]{0,6}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Status, headers, body, trailers.
type Told = (u16, HeaderMap, Bytes, Option<HeaderMap>);

/// Says `said` to whoever asks, in two pieces, and closes.
async fn say(mut server: tokio::io::DuplexStream, said: Vec<u8>, cut: usize) {
    let mut buf = [0; 1024];
    let _ = server.read(&mut buf).await;
    let (first, second) = said.split_at(cut.min(said.len()));
    let _ = server.write_all(first).await;
    tokio::task::yield_now().await;
    let _ = server.write_all(second).await;
}

async fn ours(said: Vec<u8>, cut: usize) -> Result<Told, String> {
    let Pair { conn, server, home, .. } = pair(1 << 16);
    let request = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    tokio::spawn(say(server, said, cut));
    let answered = exchange(conn, request, true).await.map_err(|e| format!("{e:?}"))?;
    let (parts, body) = leased(answered, &home).into_parts();
    let body = body.collect().await.map_err(|e| format!("{e:?}"))?;
    let trailers = body.trailers().cloned();
    Ok((parts.status.as_u16(), parts.headers, body.to_bytes(), trailers))
}

async fn hypers(said: Vec<u8>, cut: usize) -> Result<Told, String> {
    let (client, server) = duplex(1 << 16);
    tokio::spawn(say(server, said, cut));
    let (mut send, conn) = hyper::client::conn::http1::Builder::new()
        .max_header_size(MAX_HEAD_BYTES as usize)
        .handshake(TokioIo::new(client))
        .await
        .map_err(|e| format!("{e:?}"))?;
    tokio::spawn(conn);
    let request = Request::get("/").header("host", "a").body(Full::new(Bytes::new())).unwrap();
    let (parts, body) = send.send_request(request).await.map_err(|e| format!("{e:?}"))?.into_parts();
    let body = body.collect().await.map_err(|e| format!("{e:?}"))?;
    let trailers = body.trailers().cloned();
    Ok((parts.status.as_u16(), parts.headers, body.to_bytes(), trailers))
}

/// Something like a response, or not.
fn responses() -> impl Strategy<Value = Vec<u8>> {
    let status = prop_oneof![
        6 => Just("HTTP/1.1 200 OK"),
        1 => Just("HTTP/1.0 200 OK"),
        1 => Just("HTTP/1.1 204 No Content"),
        1 => Just("HTTP/1.1 304 Not Modified"),
        1 => Just("HTTP/1.1 404"),
        1 => Just("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 500 Oh"),
        1 => Just("HTTP/1.1 2x0 OK"),
    ];
    let header = prop_oneof![
        3 => Just("content-length: 5".to_owned()),
        1 => "content-length: [0-9+, ]{0,4}",
        3 => Just("transfer-encoding: chunked".to_owned()),
        1 => "transfer-encoding: [a-z, ]{0,9}",
        1 => Just("connection: close".to_owned()),
        2 => "[a-z-]{1,8}: [ -~]{0,12}",
        1 => "[ -~]{0,8}",
    ];
    let end = prop_oneof![9 => Just("\r\n"), 1 => Just("\n")];
    (status, proptest::collection::vec(header, 0..4), end, bodies()).prop_map(
        |(status, headers, end, body)| {
            let mut said = status.as_bytes().to_vec();
            said.extend(end.bytes());
            for header in headers {
                said.extend(header.bytes());
                said.extend(end.bytes());
            }
            said.extend(end.bytes());
            said.extend(body);
            said
        },
    )
}

/// What is refused here on purpose and not there.
fn is_on_purpose(why: &str) -> bool {
    let stricter =
        [Malformed::BOTH, Malformed::ENCODING, Malformed::LENGTH, Malformed::CHUNK, Malformed::TRAILERS];
    stricter.iter().any(|m| why.contains(&format!("{m:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_taken_is_what_hyper_takes(said in responses(), cut in 0_usize..120) {
        let (ours, hypers) = block_on(async { (ours(said.clone(), cut).await, hypers(said.clone(), cut).await) });
        match (ours, hypers) {
            (Ok((status, headers, body, trailers)), Ok(mut theirs)) => {
                if headers.get_all("content-length").iter().count() == 1 {
                    theirs.1.insert("content-length", headers["content-length"].clone());
                }
                theirs.3 = theirs.3.map(|mut t| { t.remove("host"); t }).filter(|t| !t.is_empty());
                prop_assert_eq!((status, headers, body, trailers), theirs);
            }
            (Ok(taken), Err(why)) => prop_assert!(false, "{taken:?} is refused there: {why}"),
            (Err(why), Ok(taken)) => prop_assert!(is_on_purpose(&why), "{taken:?} is refused here: {why}"),
            (Err(_), Err(_)) => {}
        }
    }

    #[test]
    fn hyper_reads_what_was_sent(
        method in prop_oneof![Just(Method::GET), Just(Method::POST), Just(Method::DELETE), Just(Method::PATCH)],
        path in "/[a-z0-9/]{0,20}(\\?[a-z=&]{0,9})?",
        headers in proptest::collection::vec(("x-[a-z]{1,9}", "[!-~][ -~]{0,30}[!-~]"), 0..20),
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..6),
        lengthy: bool,
        trailer in proptest::option::of("[a-z]{1,9}"),
        small_pipe: bool,
    ) {
        let mut sent = HeaderMap::new();
        for (name, value) in &headers {
            sent.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let body = pieces.concat();
        if lengthy {
            sent.insert("content-length", body.len().into());
        }
        let trailers = trailer.filter(|_| !lengthy).map(|value| {
            sent.insert("trailer", HeaderValue::from_static("x-sum"));
            HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_str(&value).unwrap())])
        });
        let mut frames: Vec<_> = pieces.into_iter().map(|p| Ok::<_, BoxError>(Frame::data(p.into()))).collect();
        frames.extend(trailers.clone().map(|t| Ok(Frame::trailers(t))));
        let mut request = Request::new(Body::new(StreamBody::new(stream::iter(frames))));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().unwrap();
        *request.headers_mut() = sent.clone();

        let seen = Arc::new(Mutex::new(None));
        let (answer, got) = block_on(async {
            let Pair { conn, server, home, .. } = pair(if small_pipe { 100 } else { 1 << 16 });
            let tell = Arc::clone(&seen);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let tell = Arc::clone(&tell);
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap();
                    let trailers = body.trailers().cloned();
                    let bytes = body.to_bytes();
                    *tell.lock().unwrap() = Some((parts, bytes.clone(), trailers));
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes)))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
            let answered = exchange(conn, request, true).await.unwrap();
            let response = leased(answered, &home);
            let answer = response.into_body().collect().await.unwrap().to_bytes();
            (answer, Pair::returned(&home).await.is_some())
        });
        let (parts, bytes, arrived) = seen.lock().unwrap().take().unwrap();
        prop_assert_eq!((parts.method, parts.uri.to_string()), (method, path));
        let mut headers = parts.headers;
        if !lengthy {
            headers.remove("transfer-encoding");
        }
        prop_assert_eq!(headers, sent);
        prop_assert_eq!((&bytes, &answer, arrived), (&Bytes::from(body), &bytes, trailers));
        prop_assert!(got, "the connection can be used again");
    }
}
