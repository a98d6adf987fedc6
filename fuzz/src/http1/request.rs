//! What a caller asks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, Version};
use mesh_core::http1::{
    Decoder, Framing, Inbox, MAX_HEADERS, Malformed, ParsedRequest, RequestHead, parse_request,
};
use tokio::io::{AsyncRead, ReadBuf};

/// The largest head here, small enough for a fuzzer to find it.
const MAX_HEAD: usize = 2048;

/// Everything that one request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    head: RequestHead,
    data: Vec<u8>,
    trailers: HeaderMap,
    ended: bool,
}

/// Gives its pieces one after the other, then the end.
struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A piece is no larger than what is read at once.
        buf.put_slice(self.0.next().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

/// Requests that follow one another are the same wherever their bytes are cut; one that is taken says in one way where
/// its body ends and which host it means, and keeps to the limits; and nothing is read behind what is none.
///
/// The first byte says how the rest is cut.
pub fn request(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    // More than one read brings is what the other cuts are for.
    let data = &data[..data.len().min(8 * 1024)];
    let (whole, why) = read(data.chunks(data.len().max(1)));
    let (pieces, why_pieces) = read(data.chunks(usize::from(cut).max(1)));
    if why != Some(Malformed::HEAD_TOO_LARGE) && why_pieces != Some(Malformed::HEAD_TOO_LARGE) {
        // A head that goes over the limit is refused as soon as it does, with or without what follows.
        assert_eq!((&whole, why), (&pieces, why_pieces), "cut every {cut} bytes");
    }
    for Read { head, data, trailers, ended } in &whole {
        assert!(head.headers.len() <= MAX_HEADERS && trailers.len() <= MAX_HEADERS);
        let count = |name| head.headers.get_all(name).iter().count();
        let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
        assert!(lengths + codings <= 1, "two ends");
        assert!(count("host") == 1 || (count("host") == 0 && head.version == Version::HTTP_10), "no one host");
        let framing = match (head.headers.get("content-length"), codings) {
            (_, 1) => Framing::Chunked,
            (Some(length), _) => match length.to_str().unwrap().parse().unwrap() {
                0 => Framing::None,
                length => Framing::Length(length),
            },
            (None, _) => Framing::None,
        };
        assert_eq!(head.framing, framing);
        if let (Framing::Length(length), true) = (framing, *ended) {
            assert_eq!(data.len() as u64, length);
        }
        for name in ["content-length", "transfer-encoding", "connection", "host"] {
            assert!(!trailers.contains_key(name), "{name} in trailers");
        }
    }
}

/// Reads requests until the end, or what is none.
fn read(pieces: std::slice::Chunks<'_, u8>) -> (Vec<Read>, Option<Malformed>) {
    let (mut io, mut inbox, mut all) = (Pieces(pieces), Inbox::new(), Vec::new());
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let found = inbox.head(|bytes| {
            Ok::<_, Malformed>(match parse_request(bytes, MAX_HEAD, &mut HeaderMap::new())? {
                ParsedRequest::Partial => None,
                ParsedRequest::Head(head, taken) => {
                    assert!(taken <= bytes.len() && taken <= MAX_HEAD);
                    Some((head, taken))
                }
            })
        });
        let head = match found {
            Ok(Some(head)) => head,
            Ok(None) if inbox.head_len() > MAX_HEAD => return (all, Some(Malformed::HEAD_TOO_LARGE)),
            Ok(None) => match inbox.poll_more(&mut cx, &mut io) {
                Poll::Ready(Ok(1..)) => continue,
                // What has not come to its end may be none all the same.
                _ => {
                    let rest = inbox.take();
                    return (all, parse_request(&rest, MAX_HEAD, &mut HeaderMap::new()).err());
                }
            },
            Err(why) => return (all, Some(why)),
        };
        let mut decoder = Decoder::new(head.framing);
        let mut read = Read { head, data: Vec::new(), trailers: HeaderMap::new(), ended: false };
        let failed = loop {
            if decoder.is_ended() {
                break false;
            }
            match inbox.poll_frame(&mut cx, &mut io, &mut decoder) {
                Poll::Ready(Ok(Some(frame))) => match frame.into_data() {
                    Ok(data) => {
                        assert!(!data.is_empty(), "no progress");
                        read.data.extend_from_slice(&data);
                    }
                    Err(frame) => read.trailers = frame.into_trailers().unwrap_or_default(),
                },
                Poll::Ready(Ok(None)) => break false,
                Poll::Ready(Err(_)) => break true,
                Poll::Pending => unreachable!("it never waits"),
            }
        };
        read.ended = !failed;
        all.push(read);
        if failed {
            return (all, None);
        }
        inbox.settle();
    }
}
