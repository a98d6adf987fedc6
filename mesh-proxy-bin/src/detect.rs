//! What a connection speaks, by its first bytes.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::BytesMut;
use mesh::tls::io::Rewind;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};

/// The most bytes that are looked at before a decision: no request line is longer in practice.
pub(crate) const MAX_DETECT: usize = 8 * 1024;
/// The longest method that is taken for one.
const MAX_METHOD: usize = 24;
/// How long a client may be silent before it is found out whether the server speaks first. Who has a request to
/// make connects for it and sends it at once.
pub(crate) const SILENCE: Duration = Duration::from_millis(20);
/// How much of what a server says first is read before the client gets it, in bytes.
const MAX_GREETING: usize = 4 * 1024;
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
    tokio::time::timeout(timeout, read(io, buffer)).await.unwrap_or(Ok(Spoken::Opaque))
}

/// Reads until it is clear what is spoken. What was read is in `buffer` also when this is given up.
async fn read<R: AsyncRead + Unpin>(io: &mut R, buffer: &mut BytesMut) -> io::Result<Spoken> {
    loop {
        if let Some(found) = spoken(buffer) {
            return Ok(found);
        }
        if io.read_buf(buffer).await? == 0 {
            return Ok(Spoken::Opaque);
        }
    }
}

/// A connection to where bytes go, about to be made, and what is known of it then.
pub(crate) type Dialing<'a, U, F> = Pin<Box<dyn Future<Output = Option<(U, F)>> + Send + 'a>>;
/// One that was made, and what is known of it. What was read of it is read again.
pub(crate) type Early<U, F> = Option<(Rewind<U>, F)>;

/// How long is waited for the first bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until the client's silence is taken for a protocol in which the server speaks first.
    pub(crate) whole: Duration,
    /// Until the server is asked whether it does.
    pub(crate) alone: Duration,
}

/// As [`detect`]. A client that is silent does not wait in vain where the server speaks first: the connection to where
/// bytes would go is made meanwhile (`dial`), and what comes from there before the client has said anything decides.
///
/// Gives that connection where bytes are to be carried over it. Where the
/// client speaks HTTP after all, it is closed without a byte. One that cannot be made, or that ends without a word,
/// says nothing about what is spoken.
pub(crate) async fn detect_both<'a, R, U, F>(
    io: &mut R,
    buffer: &mut BytesMut,
    patience: Patience,
    dial: impl FnOnce() -> Dialing<'a, U, F>,
) -> io::Result<(Spoken, Early<U, F>)>
where
    R: AsyncRead + Unpin,
    U: AsyncRead + Unpin,
{
    let deadline = Instant::now() + patience.whole;
    let alone = patience.alone.min(patience.whole);
    match tokio::time::timeout(alone, read(io, buffer)).await {
        Ok(found) => return Ok((found?, None)),
        // Who has begun goes on.
        Err(_) if !buffer.is_empty() || deadline <= Instant::now() => {
            let rest = deadline.saturating_duration_since(Instant::now());
            return Ok((detect(io, buffer, rest).await?, None));
        }
        Err(_) => {}
    }
    // Boxed: few connections come here, and the others have no room for it.
    Box::pin(race(io, buffer, deadline, dial())).await
}

async fn race<R, U, F>(
    io: &mut R,
    buffer: &mut BytesMut,
    deadline: Instant,
    mut dialing: Dialing<'_, U, F>,
) -> io::Result<(Spoken, Early<U, F>)>
where
    R: AsyncRead + Unpin,
    U: AsyncRead + Unpin,
{
    let (mut dialed, mut done, mut said) = (None, false, BytesMut::new());
    let spoken = {
        let mut client = pin!(read(io, buffer));
        let mut over = pin!(sleep_until(deadline));
        loop {
            tokio::select! {
                biased;
                found = client.as_mut() => break found?,
                made = dialing.as_mut(), if !done => (dialed, done) = (made, true),
                heard = hear(&mut dialed, &mut said), if dialed.is_some() => {
                    if heard {
                        break Spoken::Opaque;
                    }
                    dialed = None;
                }
                () = over.as_mut() => break Spoken::Opaque,
            }
        }
    };
    if spoken != Spoken::Opaque {
        return Ok((spoken, None));
    }
    // The application sees one connection, not a second instead of one that was about to be made.
    if !done {
        dialed = dialing.await;
    }
    Ok((spoken, dialed.map(|(io, known)| (Rewind::new(io, said.freeze()), known))))
}

/// Whether a server says something before it ends.
async fn hear<U, F>(server: &mut Option<(U, F)>, said: &mut BytesMut) -> bool
where
    U: AsyncRead + Unpin,
{
    let Some((server, _)) = server else { return false };
    said.reserve(MAX_GREETING);
    server.read_buf(said).await.is_ok_and(|read| read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream};

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

    const PATIENCE: Patience = Patience { whole: Duration::from_secs(1), alone: SILENCE };

    /// What a server does to whom it is connected with.
    #[derive(Clone, Copy)]
    enum Server {
        Greets(&'static [u8]),
        Waits,
        Ends,
        CannotBeReached,
    }

    /// What is found with a client that sends that after so many milliseconds, how long it takes, and what came of the
    /// connection to the server: nothing where none was made, or what it said before the client did.
    async fn found(client: Option<(u64, &'static [u8])>, server: Server) -> (Spoken, u64, Option<String>) {
        let (mut near, mut far) = tokio::io::duplex(64);
        let speaking = async {
            if let Some((after, bytes)) = client {
                tokio::time::sleep(Duration::from_millis(after)).await;
                far.write_all(bytes).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let (begun, mut buffer) = (Instant::now(), BytesMut::new());
        let dial = || -> Dialing<'_, DuplexStream, ()> {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let (near, mut far) = tokio::io::duplex(64);
                match server {
                    Server::CannotBeReached => return None,
                    Server::Ends => drop(far),
                    Server::Waits => drop(tokio::spawn(async move { far.read_u8().await })),
                    Server::Greets(greeting) => {
                        drop(tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            far.write_all(greeting).await.unwrap();
                        }));
                    }
                }
                Some((near, ()))
            })
        };
        let (spoken, early) = tokio::select! {
            found = detect_both(&mut near, &mut buffer, PATIENCE, dial) => found.unwrap(),
            () = speaking => unreachable!(),
        };
        let took = begun.elapsed().as_millis() as u64;
        let said = early.map(|(early, ())| String::from_utf8(early.into_parts().0.to_vec()).unwrap());
        (spoken, took, said)
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_first_decides() {
        use Server::{CannotBeReached, Ends, Greets, Waits};
        use Spoken::{Http1, Opaque};
        let get = b"GET / HTTP/1.1\r\n".as_slice();
        let said = |text: &str| Some(text.to_owned());
        for (client, server, want) in [
            // A client that begins at once, and so nobody else is asked.
            (Some((0, get)), Greets(b"hello"), (Http1, 0, None)),
            (Some((19, b"\0".as_slice())), Greets(b"hello"), (Opaque, 19, None)),
            // 20 of silence, 5 for the connection, 10 for the greeting.
            (None, Greets(b"hello"), (Opaque, 35, said("hello"))),
            (Some((500, get)), Greets(b"hello"), (Opaque, 35, said("hello"))),
            // The client is faster in the end.
            (Some((30, get)), Greets(b"hello"), (Http1, 30, None)),
            (Some((500, get)), Waits, (Http1, 500, None)),
            (Some((500, b"\0")), Waits, (Opaque, 500, said(""))),
            // While the connection is being made: it is waited for, and used.
            (Some((22, b"\0")), Waits, (Opaque, 25, said(""))),
            (Some((22, get)), Waits, (Http1, 22, None)),
            // Who has begun and hesitates is not taken for somebody who waits.
            (Some((0, b"GET /")), Greets(b"hello"), (Opaque, 1000, None)),
            // Nobody says anything.
            (None, Waits, (Opaque, 1000, said(""))),
            // A server of which nothing can be learnt.
            (None, CannotBeReached, (Opaque, 1000, None)),
            (Some((500, get)), CannotBeReached, (Http1, 500, None)),
            (None, Ends, (Opaque, 1000, None)),
            (Some((500, get)), Ends, (Http1, 500, None)),
        ] {
            assert_eq!(found(client, server).await, want, "{client:?}");
        }
    }
}
