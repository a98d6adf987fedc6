//! Heads and bodies that two readers could understand differently (RFC 9112, sections 6, 7 and 11).

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::super::*;

fn read(head: &str, asked: Asked) -> Result<Parsed, Malformed> {
    parse(&Bytes::copy_from_slice(head.as_bytes()), asked, &mut HeaderMap::new())
}

fn head(lines: &str) -> Result<Head, Malformed> {
    let text = format!("{lines}\r\n\r\n");
    match read(&text, Asked::default())? {
        Parsed::Head(head, taken) if taken == text.len() => Ok(head),
        other => panic!("{other:?} of {text:?}"),
    }
}

#[test]
fn a_head_says_how_its_body_ends_in_one_way_or_is_none() {
    use Framing::{Chunked, Close, Length};
    let ok = |lines: &str, framing, keep| {
        let head = head(&format!("HTTP/1.1 200 OK\r\n{lines}")).unwrap();
        assert_eq!((head.framing, head.keep_alive), (framing, keep), "{lines}");
    };
    ok("Content-Length: 5", Length(5), true);
    ok("content-length: 5\r\ncontent-length: 5", Length(5), true);
    ok("content-length: 5, 5", Length(5), true);
    ok("content-length: 0", Length(0), true);
    ok("content-length: 18446744073709551615", Length(u64::MAX), true);
    ok("transfer-encoding: Chunked", Chunked, true);
    ok("x: y", Close, false);
    ok("content-length: 5\r\nconnection: x, Close", Length(5), false);
    ok("content-length: 5\r\nconnection: keep-alive\r\nconnection: close", Length(5), false);
    let one = head("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\ncontent-length: 5").unwrap();
    assert_eq!(one.headers.get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);

    let refused = [
        ("content-length: 5\r\ncontent-length: 6", Malformed::LENGTH),
        ("content-length: 5, 6", Malformed::LENGTH),
        ("content-length: 5,", Malformed::LENGTH),
        ("content-length: ", Malformed::LENGTH),
        ("content-length: +5", Malformed::LENGTH),
        ("content-length: -5", Malformed::LENGTH),
        ("content-length: 0x5", Malformed::LENGTH),
        ("content-length: 5 5", Malformed::LENGTH),
        ("content-length: 5.0", Malformed::LENGTH),
        ("content-length: 18446744073709551616", Malformed::LENGTH),
        ("content-length: \u{663}", Malformed::LENGTH),
        ("content-length: 5\r\ntransfer-encoding: chunked", Malformed::BOTH),
        ("transfer-encoding: chunked\r\ncontent-length: 5", Malformed::BOTH),
        ("transfer-encoding: gzip, chunked", Malformed::ENCODING),
        ("transfer-encoding: chunked, gzip", Malformed::ENCODING),
        ("transfer-encoding: gzip", Malformed::ENCODING),
        ("transfer-encoding: identity", Malformed::ENCODING),
        ("transfer-encoding: chunked, chunked", Malformed::ENCODING),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", Malformed::ENCODING),
        ("transfer-encoding: chunked;q=1", Malformed::ENCODING),
        ("transfer-encoding: xchunked", Malformed::ENCODING),
        ("transfer-encoding: \u{b}chunked", Malformed::NO_HEAD),
        ("transfer-encoding : chunked", Malformed::NO_HEAD),
        ("content-length : 5", Malformed::NO_HEAD),
        (" content-length: 5", Malformed::NO_HEAD),
        ("x: y\r\n content-length: 5", Malformed::NO_HEAD),
        ("content-length\0: 5", Malformed::NO_HEAD),
        ("x: a\0b", Malformed::NO_HEAD),
        ("x: a\rcontent-length: 5", Malformed::NO_HEAD),
        (": y", Malformed::NO_HEAD),
        ("x", Malformed::NO_HEAD),
    ];
    for (lines, why) in refused {
        assert_eq!(head(&format!("HTTP/1.1 200 OK\r\n{lines}")).unwrap_err(), why, "{lines:?}");
    }
}

#[test]
fn only_a_whole_status_line_of_http1_begins_a_response() {
    for line in [
        "HTTP/2.0 200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/0.9 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 099 x",
        "HTTP/1.1 200 a\0b",
        "GET / HTTP/1.1",
        "SSH-2.0-OpenSSH",
        "\u{16}\u{3}\u{1}",
    ] {
        assert_eq!(head(line).unwrap_err(), Malformed::NO_HEAD, "{line:?}");
    }
    let odd = head("HTTP/1.1 200 Fine\r\ncontent-length: 0").unwrap();
    assert_eq!((odd.status, odd.reason.as_deref()), (StatusCode::OK, Some(&b"Fine"[..])));
    assert_eq!(head("HTTP/1.1 999\r\ncontent-length: 0").unwrap().status.as_u16(), 999);
}

#[test]
fn the_request_and_the_status_decide_whether_there_is_a_body() {
    let plain = Asked::default();
    let to_head = Asked { head: true, ..plain };
    let connect = Asked { connect: true, ..plain };
    let upgrade = Asked { upgrade: true, ..plain };
    let table = [
        (to_head, "HTTP/1.1 200 OK\r\ncontent-length: 5", Framing::None, true),
        (to_head, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", Framing::None, true),
        (to_head, "HTTP/1.1 200 OK", Framing::None, true),
        (plain, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5", Framing::None, true),
        (plain, "HTTP/1.1 204 No Content", Framing::None, true),
        (plain, "HTTP/1.1 204 No Content\r\ncontent-length: 0", Framing::None, true),
        // What follows, if anything, is no response.
        (plain, "HTTP/1.1 204 No Content\r\ncontent-length: 5", Framing::None, false),
        (plain, "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked", Framing::None, false),
        (plain, "HTTP/1.0 200 OK\r\ncontent-length: 5", Framing::Length(5), false),
        (plain, "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: Keep-Alive", Framing::Length(5), true),
        (plain, "HTTP/1.0 200 OK\r\nconnection: keep-alive", Framing::Close, false),
        (connect, "HTTP/1.1 200 OK\r\ncontent-length: 5", Framing::None, false),
        (connect, "HTTP/1.1 403 Forbidden\r\ncontent-length: 5", Framing::Length(5), true),
        (upgrade, "HTTP/1.1 101 Switching Protocols\r\nupgrade: x", Framing::None, false),
        (upgrade, "HTTP/1.1 200 OK\r\ncontent-length: 5", Framing::Length(5), true),
    ];
    for (asked, lines, framing, keep) in table {
        let text = format!("{lines}\r\n\r\n");
        let Ok(Parsed::Head(head, _)) = read(&text, asked) else { panic!("{lines}") };
        assert_eq!((head.framing, head.keep_alive), (framing, keep), "{asked:?} {lines}");
    }
    let refused = [
        (plain, "HTTP/1.1 101 Switching Protocols\r\nupgrade: x", Malformed::UPGRADE),
        (plain, "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked", Malformed::ENCODING),
        (to_head, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked", Malformed::BOTH),
        (to_head, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6", Malformed::LENGTH),
    ];
    for (asked, lines, why) in refused {
        assert_eq!(read(&format!("{lines}\r\n\r\n"), asked).unwrap_err(), why, "{lines}");
    }
    let text = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200";
    assert_eq!(read(text, plain), Ok(Parsed::Informational(37)));
}

#[test]
fn a_head_has_its_limits() {
    let line = "x: y\r\n";
    let many = |n: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", line.repeat(n));
    assert!(read(&many(MAX_HEADERS), Asked::default()).is_ok());
    assert_eq!(read(&many(MAX_HEADERS + 1), Asked::default()), Err(Malformed::TOO_MANY_HEADERS));
    let long = |n: usize| format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(n));
    let most = MAX_HEAD_BYTES as usize;
    assert_eq!(read(&long(most - 21), Asked::default()), Ok(Parsed::Partial));
    assert_eq!(read(&long(most - 20), Asked::default()), Err(Malformed::HEAD_TOO_LARGE));
    assert_eq!(read(&format!("{}\r\n\r\n", long(most)), Asked::default()), Err(Malformed::HEAD_TOO_LARGE));
}
