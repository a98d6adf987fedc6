//! Heads of requests that two readers could understand differently (RFC 9112, sections 3, 5, 6 and 11).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use proptest::prelude::*;
use tokio::io::{AsyncRead, ReadBuf};

use super::super::*;

const MOST: usize = 4096;

fn read(text: &str) -> Result<ParsedRequest, Malformed> {
    parse_request(&Bytes::copy_from_slice(text.as_bytes()), MOST, &mut HeaderMap::new())
}

fn head(lines: &str) -> Result<RequestHead, Malformed> {
    let text = format!("{lines}\r\n\r\n");
    match read(&text)? {
        ParsedRequest::Head(head, taken) if taken == text.len() => Ok(head),
        other => panic!("{other:?} of {text:?}"),
    }
}

#[test]
fn a_request_says_how_its_body_ends_in_one_way_or_is_none() {
    use Framing::{Chunked, Length, None};
    let ok = |lines: &str, framing| {
        let head = head(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}")).unwrap();
        assert_eq!(head.framing, framing, "{lines}");
    };
    ok("X: y", None);
    ok("Content-Length: 0", None);
    ok("Content-Length: 5", Length(5));
    ok("Content-Length:5 ", Length(5));
    ok("content-length: 005", Length(5));
    ok("content-length: 5\r\ncontent-length: 5", Length(5));
    ok("content-length: 18446744073709551615", Length(u64::MAX));
    ok("Transfer-Encoding: Chunked", Chunked);
    let one = head("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5").unwrap();
    assert_eq!(one.headers.get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);

    let refused = [
        ("Content-Length: 5\r\nContent-Length: 6", Malformed::LENGTH),
        ("Content-Length: 5, 5", Malformed::LENGTH),
        ("Content-Length: 5,", Malformed::LENGTH),
        ("Content-Length: ", Malformed::LENGTH),
        ("Content-Length: +5", Malformed::LENGTH),
        ("Content-Length: -5", Malformed::LENGTH),
        ("Content-Length: 0x5", Malformed::LENGTH),
        ("Content-Length: 5 5", Malformed::LENGTH),
        ("Content-Length: 5.0", Malformed::LENGTH),
        ("Content-Length: 18446744073709551616", Malformed::LENGTH),
        ("Content-Length: \u{663}", Malformed::LENGTH),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", Malformed::BOTH),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", Malformed::BOTH),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", Malformed::BOTH),
        ("Transfer-Encoding: gzip, chunked", Malformed::ENCODING),
        ("Transfer-Encoding: chunked, gzip", Malformed::ENCODING),
        ("Transfer-Encoding: gzip", Malformed::ENCODING),
        ("Transfer-Encoding: identity", Malformed::ENCODING),
        ("Transfer-Encoding:", Malformed::ENCODING),
        ("Transfer-Encoding: chunked, chunked", Malformed::ENCODING),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Malformed::ENCODING),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Malformed::ENCODING),
        ("Transfer-Encoding: chunked;q=1", Malformed::ENCODING),
        ("Transfer-Encoding: \"chunked\"", Malformed::ENCODING),
        ("Transfer-Encoding: xchunked", Malformed::ENCODING),
        ("Transfer-Encoding: \u{b}chunked", Malformed::NO_HEAD),
        ("Transfer-Encoding : chunked", Malformed::NO_HEAD),
        ("Content-Length : 5", Malformed::NO_HEAD),
        ("Content-Length\t: 5", Malformed::NO_HEAD),
        ("X: y\r\n Content-Length: 5", Malformed::NO_HEAD),
        ("X: y\r\n\tz", Malformed::NO_HEAD),
        ("Content-Length\0: 5", Malformed::NO_HEAD),
        ("X: a\0b", Malformed::NO_HEAD),
        ("X: a\rContent-Length: 5", Malformed::NO_HEAD),
        ("X: a\r\rY: b", Malformed::NO_HEAD),
        (": y", Malformed::NO_HEAD),
        ("x", Malformed::NO_HEAD),
        ("Host: a", Malformed::HOST),
        ("Host: b", Malformed::HOST),
        ("host:", Malformed::HOST),
    ];
    for (lines, why) in refused {
        let found = head(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}"));
        assert_eq!(found.unwrap_err(), why, "{lines:?}");
    }
    assert_eq!(head("POST / HTTP/1.0\r\nTransfer-Encoding: chunked").unwrap_err(), Malformed::ENCODING);
    // The first line must not be taken for one that follows another.
    assert_eq!(head("GET / HTTP/1.1\r\n Host: a").unwrap_err(), Malformed::NO_HEAD);
}

#[test]
fn only_a_whole_request_line_begins_a_request() {
    for line in [
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / HTTP/0.9",
        "GET / http/1.1",
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        " GET / HTTP/1.1",
        "G\0T / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET http:// HTTP/1.1",
        "HTTP/1.1 200 OK",
        "PRI * HTTP/2.0",
        "SSH-2.0-OpenSSH",
        "\u{16}\u{3}\u{1}",
    ] {
        assert_eq!(head(&format!("{line}\r\nHost: a")).unwrap_err(), Malformed::NO_HEAD, "{line:?}");
    }
    for (line, uri) in [
        ("OPTIONS * HTTP/1.1", "*"),
        ("M-SEARCH /a?b HTTP/1.1", "/a?b"),
        ("GET http://b/x HTTP/1.1", "http://b/x"),
        ("CONNECT b:80 HTTP/1.1", "b:80"),
        ("\r\n\nGET / HTTP/1.1", "/"),
    ] {
        assert_eq!(head(&format!("{line}\r\nHost: a")).unwrap().uri.to_string(), uri, "{line:?}");
    }
    assert_eq!(head("GET / HTTP/1.1\r\nX: y").unwrap_err(), Malformed::HOST);
    let old = head("GET / HTTP/1.0\r\nX: y").unwrap();
    assert_eq!((old.version, old.method), (Version::HTTP_10, Method::GET));
    // Lines that end with a line feed alone are lines (RFC 9112, section 2.2).
    assert_eq!(read("GET / HTTP/1.1\nHost: a\n\n").unwrap(), {
        let ParsedRequest::Head(head, _) = read("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap() else {
            panic!()
        };
        ParsedRequest::Head(head, 24)
    });
}

#[test]
fn what_else_a_head_says_of_its_connection() {
    let flags = |lines: &str| {
        let head = head(lines).unwrap();
        (head.keep_alive, head.expects, head.upgrade, head.trailers)
    };
    let new = "GET / HTTP/1.1\r\nHost: a\r\n";
    let old = "GET / HTTP/1.0\r\n";
    let table = [
        (new, "X: y", (true, false, false, false)),
        (old, "X: y", (false, false, false, false)),
        (old, "Connection: Keep-Alive", (true, false, false, false)),
        (old, "Connection: keep-alive, close", (false, false, false, false)),
        (new, "Connection: x , Close", (false, false, false, false)),
        (new, "Connection: keep-alive\r\nConnection: close", (false, false, false, false)),
        (new, "Expect: 100-Continue\r\nContent-Length: 1", (true, true, false, false)),
        (new, "Expect: 100-continue", (true, false, false, false)),
        (old, "Expect: 100-continue\r\nContent-Length: 1", (false, false, false, false)),
        (new, "Upgrade: websocket\r\nConnection: x, upgrade", (true, false, true, false)),
        (new, "Upgrade: websocket", (true, false, false, false)),
        (new, "Connection: upgrade", (true, false, false, false)),
        // Java's client says so with each first request, and goes on with HTTP/1.1.
        (
            new,
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA",
            (true, false, false, false),
        ),
        (new, "Connection: Upgrade\r\nUpgrade: h2c, websocket", (true, false, true, false)),
        (old, "Upgrade: websocket\r\nConnection: upgrade", (false, false, false, false)),
        (new, "TE: gzip;q=1, Trailers ;q=1", (true, false, false, true)),
        (new, "TE: xtrailers", (true, false, false, false)),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n", "X: y", (true, false, true, false)),
    ];
    for (first, lines, want) in table {
        assert_eq!(flags(&format!("{first}{lines}")), want, "{first:?} {lines:?}");
    }
}

#[test]
fn a_head_has_its_limits() {
    let many = |n: usize| format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(n));
    assert!(read(&many(MAX_HEADERS - 1)).is_ok());
    assert_eq!(read(&many(MAX_HEADERS)), Err(Malformed::TOO_MANY_HEADERS));
    let long = |n: usize| format!("GET / HTTP/1.0\r\nx: {}", "y".repeat(n));
    assert_eq!(read(&long(MOST - 20)), Ok(ParsedRequest::Partial));
    assert_eq!(read(&long(MOST - 19)), Err(Malformed::HEAD_TOO_LARGE));
    assert_eq!(read(&format!("{}\r\n\r\n", long(MOST))), Err(Malformed::HEAD_TOO_LARGE));
    let target = format!("GET /{} HTTP/1.0\r\n\r\n", "y".repeat(70_000));
    let target = Bytes::from(target);
    assert_eq!(parse_request(&target, 100_000, &mut HeaderMap::new()), Err(Malformed::HEAD_TOO_LARGE));
    assert!([Malformed::HEAD_TOO_LARGE, Malformed::TOO_MANY_HEADERS].iter().all(|why| why.is_too_large()));
    assert!(!Malformed::HOST.is_too_large());
}

/// Gives its pieces one after the other, then the end.
struct Pieces<'a>(Vec<&'a [u8]>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.0.first().is_some_and(|piece| piece.is_empty()) {
            self.0.remove(0);
        }
        if let Some(piece) = self.0.first_mut() {
            let (now, later) = piece.split_at(piece.len().min(buf.remaining()));
            buf.put_slice(now);
            *piece = later;
        }
        Poll::Ready(Ok(()))
    }
}

/// Heads and bodies, until the end or what is none.
fn all(mut io: Pieces<'_>) -> Vec<String> {
    let (mut inbox, mut told) = (Inbox::new(), Vec::new());
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let found = inbox.head(|bytes| {
            Ok::<_, Malformed>(match parse_request(bytes, MOST, &mut HeaderMap::new())? {
                ParsedRequest::Partial => None,
                ParsedRequest::Head(head, taken) => Some((head, taken)),
            })
        });
        let head = match found {
            Ok(Some(head)) => head,
            Ok(None) if inbox.head_len() > MOST => return told,
            Ok(None) => match inbox.poll_more(&mut cx, &mut io) {
                Poll::Ready(Ok(1..)) => continue,
                _ => {
                    // What has not come to its end may be none all the same.
                    let rest = inbox.take();
                    told.extend(
                        parse_request(&rest, MOST, &mut HeaderMap::new()).err().map(|why| why.to_string()),
                    );
                    return told;
                }
            },
            Err(why) => {
                told.push(why.to_string());
                return told;
            }
        };
        told.push(format!("{} {} {:?}", head.method, head.uri, head.headers));
        let mut decoder = Decoder::new(head.framing);
        let mut body = Vec::new();
        while !decoder.is_ended() {
            match inbox.poll_frame(&mut cx, &mut io, &mut decoder) {
                Poll::Ready(Ok(Some(frame))) => match frame.into_data() {
                    Ok(data) => body.extend_from_slice(&data),
                    Err(frame) => told.push(format!("{:?}", frame.into_trailers())),
                },
                Poll::Ready(Ok(None)) => break,
                Poll::Ready(Err(error)) => {
                    told.push(format!("{error:?}"));
                    return told;
                }
                Poll::Pending => panic!("it never waits"),
            }
        }
        told.push(body.escape_ascii().to_string());
        inbox.settle();
    }
}

fn said() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        3 => Just(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
        3 => Just(b"PUT / HTTP/1.1\r\nhost:a\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nx: y\r\n\r\n".to_vec()),
        2 => (0_usize..40_000).prop_map(|n| {
            let mut post = format!("POST / HTTP/1.0\nContent-Length: {n}\n\n").into_bytes();
            post.resize(post.len() + n, b'x');
            post
        }),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => Just(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
        1 => "[A-Z/ .0-9\r\n:x]{0,9}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn where_requests_are_cut_does_not_matter(
        said in said(), cuts in proptest::collection::vec(0_usize..60_000, 0..8)
    ) {
        let whole = all(Pieces(vec![&said]));
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % (said.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.insert(0, 0);
        cuts.push(said.len());
        let pieces = cuts.windows(2).map(|w| &said[w[0]..w[1]]).collect();
        prop_assert_eq!(&all(Pieces(pieces)), &whole);
        prop_assert_eq!(&all(Pieces(said.chunks(7).collect())), &whole);
        prop_assert_eq!(&all(Pieces(said.chunks(1).take(2_000).collect())), &all(Pieces(vec![&said[..said.len().min(2_000)]])));
    }
}

/// Each byte of a head is looked at a bounded number of times, however it comes.
#[test]
fn a_dribbled_head_is_read_from_its_beginning_a_few_times_only() {
    let text = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(3000));
    let text = format!("{}{text}", "\r\n".repeat(500));
    let (mut inbox, mut reads) = (Inbox::new(), 0);
    let mut io = Pieces(text.as_bytes().chunks(1).collect());
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let found = inbox.head(|bytes| {
            reads += 1;
            Ok::<_, Malformed>(match parse_request(bytes, MOST, &mut HeaderMap::new())? {
                ParsedRequest::Partial => None,
                ParsedRequest::Head(head, taken) => Some((head, taken)),
            })
        });
        if found.unwrap().is_some() {
            break;
        }
        assert!(matches!(inbox.poll_more(&mut cx, &mut io), Poll::Ready(Ok(1))));
    }
    // Once for each line feed that comes apart from what is before it, and never for what follows.
    assert!(reads <= 503, "{reads}");
}
