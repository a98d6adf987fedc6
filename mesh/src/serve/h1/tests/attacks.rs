//! What another reader could understand differently is refused on real sockets, and nothing behind it is read.

use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Each begins a request that smuggles, and has another one behind it.
const ATTACKS: [(&str, u16); 33] = [
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 5\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rContent-Length: 5\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nX: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    ("\u{16}\u{3}\u{1}\r\n\r\n", 400),
];

/// Bodies that are none, behind a head that is one.
const CHUNKS: [&str; 12] = [
    "-1\r\nx\r\n0\r\n\r\n",
    "+1\r\nx\r\n0\r\n\r\n",
    " 1\r\nx\r\n0\r\n\r\n",
    "0x1\r\nx\r\n0\r\n\r\n",
    "10000000000000000\r\nx\r\n0\r\n\r\n",
    "FFFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n",
    "1\nx\n0\n\n",
    "1\rx\r\n0\r\n\r\n",
    "1\r\nxy\r\n0\r\n\r\n",
    "1;a\nx\r\n0\r\n\r\n",
    "1;\0\r\nx\r\n0\r\n\r\n",
    "0\r\nx : y\r\n\r\n",
];

const BEHIND: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

async fn listening() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move { serve(io, &SETTINGS, echo, std::future::pending()).await.map(drop) });
        }
    });
    addr
}

async fn ask(addr: std::net::SocketAddr, text: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(text).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await.unwrap().unwrap();
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn what_smuggles_is_refused_and_nothing_behind_it_is_served() {
    let addr = listening().await;
    for (attack, want) in ATTACKS {
        let answer = ask(addr, format!("{attack}{BEHIND}").as_bytes()).await;
        assert_eq!(status(&answer), want, "{attack:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{attack:?}: {answer}");
        assert!(answer.contains("x-mesh-reason: bad_request\r\n"), "{attack:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{attack:?}: {answer}");
    }
    for body in CHUNKS {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = ask(addr, format!("{head}{body}{BEHIND}").as_bytes()).await;
        // The service heard of it, and answered.
        assert_eq!((status(&answer), answer.matches("HTTP/1.1").count()), (400, 1), "{body:?}: {answer}");
    }
}

#[tokio::test]
async fn what_is_too_much_is_refused() {
    let addr = listening().await;
    let line = "X: y\r\n";
    let table = [
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(SETTINGS.max_head)),
        // Without an end, and in the target.
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(SETTINGS.max_head)),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(SETTINGS.max_head)),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line.repeat(mesh_core::http1::MAX_HEADERS)),
    ];
    for attack in table {
        let answer = ask(addr, attack.as_bytes()).await;
        assert_eq!(status(&answer), 431, "{answer}");
        assert!(answer.contains("x-mesh-reason: too_large\r\n"), "{answer}");
    }
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n", line.repeat(98));
    assert_eq!(status(&ask(addr, many.as_bytes()).await), 200);
    // Empty lines before a request count.
    let empty = "\r\n".repeat(SETTINGS.max_head);
    assert_eq!(status(&ask(addr, empty.as_bytes()).await), 431);
    let extended = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;{}\r\nx\r\n0\r\n\r\n",
        "y".repeat(mesh_core::http1::MAX_EXTENSION_BYTES + 1)
    );
    assert_eq!(status(&ask(addr, extended.as_bytes()).await), 400);
}
