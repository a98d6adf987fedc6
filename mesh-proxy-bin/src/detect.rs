//! What a connection speaks, by its first bytes.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The most bytes that are looked at before a decision: no request line is longer in practice.
pub(crate) const MAX_DETECT: usize = 8 * 1024;
/// The longest method that is taken for one.
const MAX_METHOD: usize = 24;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/1.1 as streams of HTTP/2; agreed on, never detected.
    Carried,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else, or nothing.
    Opaque,
}

/// Decides from `bytes`; `None` when more are needed.
pub(crate) fn spoken(bytes: &[u8]) -> Option<Spoken> {
    let head = bytes.get(..H2_PREFACE.len()).unwrap_or(bytes);
    if H2_PREFACE.starts_with(head) {
        return (head.len() == H2_PREFACE.len()).then_some(Spoken::Http2);
    }
    let method = bytes.iter().position(|b| !is_method(*b));
    let Some(method) = method else {
        return if bytes.len() > MAX_METHOD { Some(Spoken::Opaque) } else { None };
    };
    if method == 0 || method > MAX_METHOD || bytes.get(method) != Some(&b' ') {
        return Some(Spoken::Opaque);
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        let printable = bytes.iter().all(|b| (b' '..0x7f).contains(b) || *b == b'\r');
        return match printable {
            // A request line longer than we look: the HTTP server has a limit and an answer for it.
            true if bytes.len() >= MAX_DETECT => Some(Spoken::Http1),
            true => None,
            false => Some(Spoken::Opaque),
        };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    Some(if http { Spoken::Http1 } else { Spoken::Opaque })
}

fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

/// Reads until it is clear what is spoken; the bytes read stay in `buffer`. Silence for `timeout` is taken
/// for a protocol in which the server speaks first.
pub(crate) async fn detect<R: AsyncRead + Unpin>(
    io: &mut R,
    buffer: &mut BytesMut,
    timeout: Duration,
) -> io::Result<Spoken> {
    let reading = async {
        loop {
            if let Some(found) = spoken(buffer) {
                return Ok(found);
            }
            if io.read_buf(buffer).await? == 0 {
                return Ok(Spoken::Opaque);
            }
        }
    };
    tokio::time::timeout(timeout, reading).await.unwrap_or(Ok(Spoken::Opaque))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn first_bytes() {
        use Spoken::{Http1, Http2, Opaque};
        let table: [(&[u8], Option<Spoken>); 17] = [
            (b"", None),
            (b"GET", None),
            (b"GET / HTTP/1.1", None),
            (b"GET / HTTP/1.1\r\n", Some(Http1)),
            (b"GET http://a/ HTTP/1.1\r\nHost: a\r\n", Some(Http1)),
            (b"M-SEARCH * HTTP/1.0\n", Some(Http1)),
            (b"CONNECT a:80 HTTP/1.1\r\n", Some(Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Http2)),
            (b"PRI * HT", None),
            (b"PRI * HTTP/3.0\r\n", Some(Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Opaque)),
            (b"PING\r\n", Some(Opaque)),
            (b"GET key\r\n", Some(Opaque)),
            (b"get / HTTP/1.1\r\n", Some(Opaque)),
            (b"\x16\x03\x01", Some(Opaque)),
            (b"GET \x00", Some(Opaque)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Opaque)),
        ];
        for (bytes, want) in table {
            assert_eq!(spoken(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
        let long = [b"GET /".as_slice(), &[b'a'; MAX_DETECT]].concat();
        assert_eq!(spoken(&long), Some(Http1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_opaque_after_the_timeout() {
        let (mut near, _far) = tokio::io::duplex(64);
        let started = tokio::time::Instant::now();
        let mut buffer = BytesMut::new();
        let found = detect(&mut near, &mut buffer, Duration::from_secs(1)).await.unwrap();
        assert_eq!((found, started.elapsed()), (Spoken::Opaque, Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn dribbled_bytes_are_all_kept() {
        let (mut near, mut far) = tokio::io::duplex(1);
        let sent = b"GET / HTTP/1.1\r\n";
        tokio::spawn(async move { far.write_all(sent).await.map(|()| far) });
        let mut buffer = BytesMut::new();
        let found = detect(&mut near, &mut buffer, Duration::from_secs(1)).await.unwrap();
        assert_eq!((found, &buffer[..]), (Spoken::Http1, &sent[..]));
    }
}
