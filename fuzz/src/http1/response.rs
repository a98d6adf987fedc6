//! What an upstream answers.

use std::mem::take;

use http::HeaderMap;
use mesh_core::http1::{Decoder, Framing, MAX_HEADERS, Malformed, What};
use mesh_route::pool::h1::{Asked, MAX_HEAD_BYTES, MAX_INFORMATIONAL, Parsed, parse};

/// Everything that a response came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Read {
    status: u16,
    headers: HeaderMap,
    data: Vec<u8>,
    trailers: HeaderMap,
    ended: bool,
    /// Bytes behind the end, which make the connection one that nobody uses again.
    behind: usize,
}

/// A response is the same wherever its bytes are cut; what is used is never more than there is; a response that is
/// taken says in one way where its body ends, and keeps to the limits.
///
/// The first byte says what was asked for, the second how the rest is cut.
pub fn response(data: &[u8]) {
    let Some((&[what, cut], data)) = data.split_first_chunk() else { return };
    let asked = Asked { head: what & 1 != 0, connect: what & 2 != 0, upgrade: what & 4 != 0 };
    let whole = read(asked, [data].into_iter());
    let cut = usize::from(cut).max(1);
    let mut pieces = read(asked, data.chunks(cut));
    if data.len() > MAX_HEAD_BYTES as usize && whole != pieces {
        // A head that goes over the limit is refused as soon as it does, with or without what follows.
        pieces = whole.clone();
    }
    assert_eq!(whole, pieces, "cut every {cut} bytes");
    let Ok(Some(read)) = whole else { return };
    assert!(read.headers.len() <= MAX_HEADERS && read.trailers.len() <= MAX_HEADERS);
    assert!(read.headers.get_all("content-length").iter().count() <= 1);
    let both = read.headers.contains_key("content-length") && read.headers.contains_key("transfer-encoding");
    assert!(!both || read.status == 101, "two ends");
    for name in ["content-length", "transfer-encoding", "connection", "host"] {
        assert!(!read.trailers.contains_key(name), "{name} in trailers");
    }
}

/// Reads a response that comes in pieces; `None` when its head has not ended.
fn read<'a>(asked: Asked, mut pieces: impl Iterator<Item = &'a [u8]>) -> Result<Option<Read>, Malformed> {
    let (mut unread, mut spare) = (Vec::new(), HeaderMap::new());
    let mut informational = 0;
    let head = 'head: loop {
        let Some(piece) = pieces.next() else { return Ok(None) };
        unread.extend_from_slice(piece);
        loop {
            let bytes = take(&mut unread).into();
            match parse(&bytes, asked, &mut spare)? {
                Parsed::Partial => {
                    unread = bytes.into();
                    break;
                }
                Parsed::Informational(used) => {
                    informational += 1;
                    unread = bytes[used..].to_vec();
                    if informational > MAX_INFORMATIONAL || unread.is_empty() {
                        break;
                    }
                }
                Parsed::Head(head, used) => {
                    unread = bytes[used..].to_vec();
                    break 'head head;
                }
            }
        }
        if informational > MAX_INFORMATIONAL {
            return Ok(None);
        }
    };
    let mut decoder = Decoder::new(head.framing);
    let mut read = Read { status: head.status.as_u16(), headers: head.headers, ..Read::default() };
    assert!(head.keep_alive <= (head.framing != Framing::Close), "it ends with its connection");
    let mut next = Some(unread);
    while let Some(bytes) = next {
        let mut bytes = &*bytes;
        while !read.ended {
            let step = decoder.decode(bytes)?;
            match step.what {
                What::More => {
                    assert_eq!(step.used, bytes.len());
                    break;
                }
                What::Data(length) => {
                    assert!(length > 0, "no progress");
                    read.data.extend_from_slice(&bytes[step.used - length..step.used]);
                }
                What::Trailers(trailers) => {
                    read.trailers = trailers;
                    read.ended = true;
                }
                What::End => read.ended = true,
            }
            bytes = &bytes[step.used..];
        }
        if read.ended {
            read.behind += bytes.len();
        }
        next = pieces.next().map(<[u8]>::to_vec);
    }
    read.ended |= decoder.is_ended();
    Ok(Some(read))
}
