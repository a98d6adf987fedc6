//! Whole exchanges over a pipe, whose other end says what it likes.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use mesh_core::body::{Body, BoxError};
use mesh_core::cluster::{Cluster, ClusterKey, ClusterSettings, EndpointSpec, ServiceName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::Instant;

use super::super::super::endpoint::{EndpointPool, Home, Remote};
use super::super::super::shared::{Place, Shared};
use super::super::*;

/// A connection, the server's end of it, and where it goes back to.
pub(super) struct Pair {
    pub(super) conn: Conn,
    pub(super) server: DuplexStream,
    pub(super) home: Home,
    _cluster: Arc<Cluster>,
}

pub(super) fn pair(buffer: usize) -> Pair {
    let (client, server) = duplex(buffer);
    let endpoints = vec![EndpointSpec::plaintext("127.0.0.1:1".parse().unwrap())];
    let (key, name) = (ClusterKey::new("a", 1, ""), ServiceName::new("a", "a", ""));
    let cluster = Cluster::detached(key, name, ClusterSettings::default(), endpoints);
    let target = Arc::clone(&cluster.load_endpoints().members()[0]);
    let place = Place::new(&cluster, target.state());
    let shared = Arc::new(Shared::new(1));
    let home = Home { target, shared, place, shard: 0, idle_timeout: None, max_requests: 0 };
    Pair { conn: Connection::open(client, Remote::default()), server, home, _cluster: cluster }
}

impl Pair {
    /// Whether the connection came back.
    pub(super) async fn returned(home: &Home) -> Option<Conn> {
        let pool = EndpointPool::of(home.target.state(), &home.shared).unwrap();
        let shard = pool.shard(0).unwrap();
        std::future::poll_fn(|cx| std::task::Poll::Ready(shard.take_http1(Instant::now(), cx))).await
    }
}

pub(super) fn leased(mut answered: Answered, home: &Home) -> Response<Leased> {
    let head = std::mem::take(&mut answered.head);
    let in_flight = home.target.state().begin();
    head.map(|()| Leased::new(answered, home.clone(), in_flight))
}

fn get() -> Request<Body> {
    Request::get("/x?y").header("host", "a").body(Body::empty()).unwrap()
}

fn streamed(frames: Vec<Frame<Bytes>>) -> Body {
    Body::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, BoxError>))))
}

fn data(text: &str) -> Frame<Bytes> {
    Frame::data(Bytes::copy_from_slice(text.as_bytes()))
}

/// What the server received until it had read `n` bytes.
async fn received(server: &mut DuplexStream, n: usize) -> String {
    let mut buf = vec![0; n];
    server.read_exact(&mut buf).await.unwrap();
    String::from_utf8(buf).unwrap()
}

/// Gives `answer` to a GET, and how the body ended.
async fn answer(answer: &[u8]) -> (Result<(StatusCode, Result<Vec<u8>, BoxError>), Failed>, bool) {
    let Pair { conn, mut server, home, _cluster } = pair(1 << 20);
    let said = answer.to_vec();
    let serving = async {
        let mut buf = [0; 256];
        let _ = server.read(&mut buf).await.unwrap();
        server.write_all(&said).await.unwrap();
        server
    };
    // A server that says too little closes then.
    let (answered, server) = tokio::join!(exchange(conn, get(), true), serving);
    let got = match answered {
        Err(failed) => Err(failed),
        Ok(answered) => {
            let response = leased(answered, &home);
            drop(server);
            let status = response.status();
            Ok((status, response.into_body().collect().await.map(|b| b.to_bytes().to_vec())))
        }
    };
    // Whether it came back: that it ended then is not looked at.
    (got, idle(&home))
}

fn idle(home: &Home) -> bool {
    EndpointPool::of(home.target.state(), &home.shared).unwrap().evict()
}

#[tokio::test]
async fn a_head_and_what_is_there_of_a_body_are_one_write() {
    let table: Vec<(Request<Body>, &str)> = vec![
        (get(), "GET /x?y HTTP/1.1\r\nhost: a\r\n\r\n"),
        (
            Request::post("/").header("content-length", "2").body(Body::from("hi")).unwrap(),
            "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi",
        ),
        (Request::put("/").body(Body::from("hi")).unwrap(), "PUT / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"),
        (
            Request::get("/").body(streamed(vec![data("hello"), data("0123456789")])).unwrap(),
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
        ),
        (Request::options("*").body(Body::empty()).unwrap(), "OPTIONS * HTTP/1.1\r\n\r\n"),
        (Request::post("/").body(Body::empty()).unwrap(), "POST / HTTP/1.1\r\n\r\n"),
        (
            Request::connect("b:443").header("x", "").body(Body::empty()).unwrap(),
            "CONNECT b:443 HTTP/1.1\r\nx: \r\n\r\n",
        ),
    ];
    for (request, wire) in table {
        let Pair { conn, mut server, home: _home, _cluster } = pair(1 << 16);
        let exchanging = tokio::spawn(exchange(conn, request, true));
        // All of it is there at the first read.
        let mut buf = [0; 4096];
        let n = server.read(&mut buf).await.unwrap();
        assert_eq!(std::str::from_utf8(&buf[..n]).unwrap(), wire);
        exchanging.abort();
    }
}

#[tokio::test]
async fn a_body_that_comes_a_turn_later_is_in_the_same_write() {
    let body = stream::once(async {
        tokio::task::yield_now().await;
        Ok::<_, BoxError>(data("hi"))
    });
    let request = Request::post("/").header("content-length", "2").body(Body::new(StreamBody::new(body)));
    let Pair { conn, mut server, home: _home, _cluster } = pair(1 << 16);
    let exchanging = tokio::spawn(exchange(conn, request.unwrap(), true));
    let mut buf = [0; 256];
    let n = server.read(&mut buf).await.unwrap();
    assert!(buf[..n].ends_with(b"\r\n\r\nhi"), "{:?}", String::from_utf8_lossy(&buf[..n]));
    exchanging.abort();
}

#[tokio::test]
async fn trailers_are_sent_where_they_were_announced_and_may_be() {
    let mut trailers = HeaderMap::new();
    for (name, value) in [("x-sum", "1"), ("content-length", "9"), ("x-other", "2")] {
        trailers.insert(name, value.parse().unwrap());
    }
    let frames = vec![data("a"), Frame::trailers(trailers)];
    let request =
        Request::post("/").header("trailer", "X-Sum, content-length").body(streamed(frames)).unwrap();
    let Pair { conn, mut server, home: _home, _cluster } = pair(1 << 16);
    let exchanging = tokio::spawn(exchange(conn, request, true));
    let want = "POST / HTTP/1.1\r\ntrailer: X-Sum, content-length\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n";
    assert_eq!(received(&mut server, want.len()).await, want);
    exchanging.abort();
}

#[tokio::test]
async fn a_large_piece_goes_through_a_small_pipe_unchanged() {
    let large: String = (0..200_000).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    for lengthy in [false, true] {
        let Pair { conn, server, home, _cluster } = pair(1000);
        let mut request = Request::post("/");
        if lengthy {
            request = request.header("content-length", large.len() + 4);
        }
        let frames = vec![data("ab"), data(&large), data("cd")];
        let request = request.body(streamed(frames)).unwrap();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Full::new(body)))
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(server), service);
        let asking = async {
            let response = leased(exchange(conn, request, true).await.unwrap(), &home);
            response.into_body().collect().await.unwrap().to_bytes()
        };
        tokio::select! {
            got = asking => assert_eq!(got, format!("ab{large}cd")),
            _ = serving => panic!("the server ended"),
        }
    }
}

#[tokio::test]
async fn a_request_that_contradicts_itself_is_not_sent() {
    for request in [
        Request::post("/").header("content-length", "3").body(Body::from("hi")),
        Request::post("/").header("content-length", "3").body(Body::empty()),
        Request::post("/").header("content-length", "2").header("content-length", "3").body(Body::from("hi")),
        Request::post("/").header("content-length", "+2").body(Body::from("hi")),
        Request::post("/").header("content-length", "").body(Body::from("hi")),
    ] {
        let Pair { conn, mut server, home, _cluster } = pair(1 << 16);
        let Err(Failed::Refused(failure, conn)) = exchange(conn, request.unwrap(), true).await else {
            panic!("it was sent")
        };
        assert_eq!(failure.code(), mesh_core::failure::FailureCode::BadRequest);
        home.take_back(conn);
        assert!(idle(&home), "it is as good as before");
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_its_head_said_ends_the_connection() {
    for frames in [vec![data("a")], vec![data("abc")]] {
        let Pair { conn, mut server, home: _home, _cluster } = pair(1 << 16);
        let request = Request::post("/").header("content-length", "2").body(streamed(frames)).unwrap();
        let (failed, got) = tokio::join!(exchange(conn, request, true), async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            got
        });
        assert!(matches!(failed, Err(Failed::Sent(Error::Body(_)))), "{failed:?}");
        assert!(!got.ends_with(b"ab"), "nobody may take it for whole");
    }
}

#[tokio::test]
async fn a_connection_goes_back_when_its_response_has_ended_and_nothing_else_came() {
    let table: [(&[u8], &[u8], bool); 11] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", true),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok", true),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n", b"ok", true),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", true),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", b"ok", false),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", false),
        (b"HTTP/1.1 200 OK\r\n\r\nok", b"ok", false),
        // Somebody's next response, before there was a request.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", b"ok", false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n!", b"ok", false),
    ];
    for (said, body, kept) in table {
        let (got, back) = answer(said).await;
        let (_, got) = got.unwrap();
        assert_eq!((&*got.unwrap(), back), (body, kept), "{}", String::from_utf8_lossy(said));
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_or_is_wrong_is_told_and_takes_the_connection() {
    let heads: [&[u8]; 5] = [
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        &b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_INFORMATIONAL + 1),
        &[b"HTTP/1.1 100 Continue\r\nx: ", &*vec![b'y'; 40_000], b"\r\n\r\n"].concat().repeat(2),
    ];
    for said in heads {
        let (got, back) = answer(said).await;
        assert!(matches!(got, Err(Failed::Sent(Error::Malformed(_)))), "{got:?}");
        assert!(!back);
    }
    let enough =
        [&*b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_INFORMATIONAL), b"HTTP/1.1 204 x\r\n\r\n"].concat();
    assert_eq!(answer(&enough).await.0.unwrap().0, StatusCode::NO_CONTENT);
    let bodies: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    for said in bodies {
        let (got, back) = answer(said).await;
        let (_, body) = got.unwrap();
        assert!(body.is_err() && !back, "{}", String::from_utf8_lossy(said));
    }
}

#[tokio::test]
async fn a_connection_that_ended_or_speaks_unasked_takes_no_request() {
    for speaks in [false, true] {
        let Pair { conn, mut server, home: _home, _cluster } = pair(1 << 16);
        if speaks {
            server.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        } else {
            drop(server);
        }
        let Err(Failed::Back(request)) = exchange(conn, get(), true).await else { panic!("it was sent") };
        assert_eq!(request.uri(), "/x?y");
    }
}

#[tokio::test]
async fn the_rest_of_a_request_follows_its_early_response() {
    let Pair { conn, mut server, home, _cluster } = pair(1 << 16);
    let (send, receive) = tokio::sync::mpsc::unbounded_channel::<Frame<Bytes>>();
    let body = Body::new(StreamBody::new(stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|frame| (Ok::<_, BoxError>(frame), receive))
    })));
    let request = Request::post("/").body(body).unwrap();
    let exchanging = tokio::spawn(exchange(conn, request, true));
    let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(received(&mut server, head.len()).await, head);
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await.unwrap();
    let mut response = leased(exchanging.await.unwrap().unwrap(), &home).into_body();
    // Nobody reads the response, and the request goes on.
    for text in ["one", "two"] {
        send.send(data(text)).unwrap();
        let want = format!("3\r\n{text}\r\n");
        assert_eq!(received(&mut server, want.len()).await, want);
    }
    server.write_all(b"ab").await.unwrap();
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
    drop(send);
    assert_eq!(received(&mut server, 5).await, "0\r\n\r\n");
    server.write_all(b"cd").await.unwrap();
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "cd");
    assert!(response.frame().await.is_none());
    assert!(Pair::returned(&home).await.is_some(), "both ended: it can be used again");
}

#[tokio::test]
async fn an_early_response_that_ends_leaves_the_request_its_connection() {
    let Pair { conn, mut server, home, _cluster } = pair(1 << 16);
    let (send, receive) = tokio::sync::mpsc::unbounded_channel::<Frame<Bytes>>();
    let body = Body::new(StreamBody::new(stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|frame| (Ok::<_, BoxError>(frame), receive))
    })));
    let exchanging = tokio::spawn(exchange(conn, Request::post("/").body(body).unwrap(), true));
    received(&mut server, 10).await;
    server.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let response = leased(exchanging.await.unwrap().unwrap(), &home);
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert!(Pair::returned(&home).await.is_none(), "the request is not over");
    send.send(data("more")).unwrap();
    drop(send);
    let mut rest = String::new();
    server.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("4\r\nmore\r\n0\r\n\r\n"), "{rest}");
}

#[tokio::test]
async fn a_request_that_fails_ends_its_early_response_and_the_other_way_round() {
    for drops in [false, true] {
        let Pair { conn, mut server, home, _cluster } = pair(1 << 16);
        let (send, receive) = tokio::sync::mpsc::unbounded_channel::<Result<Frame<Bytes>, BoxError>>();
        let body = Body::new(StreamBody::new(stream::unfold(receive, |mut receive| async {
            receive.recv().await.map(|frame| (frame, receive))
        })));
        let exchanging = tokio::spawn(exchange(conn, Request::post("/").body(body).unwrap(), true));
        received(&mut server, 10).await;
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await.unwrap();
        let mut response = leased(exchanging.await.unwrap().unwrap(), &home).into_body();
        response.frame().await.unwrap().unwrap();
        if drops {
            drop(response);
        } else {
            let failing = tokio::spawn(async move { response.frame().await });
            tokio::task::yield_now().await;
            send.send(Err("gone".into())).unwrap();
            let error = failing.await.unwrap().unwrap().unwrap_err();
            let failure = mesh_core::failure::Failure::of(error);
            assert_eq!(failure.code(), mesh_core::failure::FailureCode::DownstreamClosed);
        }
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        assert!(!rest.ends_with("0\r\n\r\n"), "nobody may take it for whole: {rest}");
        assert_eq!(home.target.state().active(), 0);
    }
}

#[tokio::test]
async fn of_a_server_that_answers_and_closes_the_answer_counts() {
    let Pair { conn, mut server, home, _cluster } = pair(64);
    let large = data(&"x".repeat(100_000));
    let exchanging =
        tokio::spawn(exchange(conn, Request::post("/").body(streamed(vec![large])).unwrap(), true));
    received(&mut server, 20).await;
    server.write_all(b"HTTP/1.1 413 x\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
    drop(server);
    let response = leased(exchanging.await.unwrap().unwrap(), &home);
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
    assert!(Pair::returned(&home).await.is_none());
}

#[tokio::test]
async fn what_comes_behind_a_101_is_the_other_protocols() {
    let Pair { conn, mut server, home: _home, _cluster } = pair(1 << 16);
    let request = Request::get("/").header("connection", "upgrade").header("upgrade", "x");
    let exchanging = tokio::spawn(exchange(conn, request.body(Body::empty()).unwrap(), true));
    received(&mut server, 10).await;
    server.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nfirst").await.unwrap();
    let (first, mut io) = exchanging.await.unwrap().unwrap().into_io().unwrap();
    assert_eq!(first, "first");
    server.write_all(b"second").await.unwrap();
    let mut buf = [0; 6];
    io.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"second");
}

#[tokio::test]
async fn a_large_body_comes_as_it_was_sent() {
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    for head in ["content-length: 3000000\r\n\r\n", "connection: close\r\n\r\n"] {
        let Pair { conn, mut server, home, _cluster } = pair(1 << 18);
        let sent = large.clone();
        let serving = tokio::spawn(async move {
            received(&mut server, 10).await;
            server.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).await.unwrap();
            server.write_all(&sent).await.unwrap();
        });
        let response = leased(exchange(conn, get(), true).await.unwrap(), &home);
        assert!(response.into_body().collect().await.unwrap().to_bytes() == large);
        serving.await.unwrap();
    }
}
