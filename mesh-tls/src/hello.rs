//! The first bytes of a connection: is it TLS, and whose?
//!
//! [`sniff`] looks at what has arrived so far and decides nothing too early: it asks for more until it can
//! tell. It reads a ClientHello only as far as the names in it; whether the hello is any good is for
//! whoever terminates it. It is a pure function of bytes that a peer chose, so it is what a fuzzer calls.
//!
//! ```
//! use tower_mesh_tls::hello::{Sniff, sniff};
//!
//! assert_eq!(sniff(b""), Sniff::NeedMore);
//! assert_eq!(sniff(b"GET / HTTP/1.1\r\n"), Sniff::NotTls);
//! assert_eq!(sniff(&[0x16, 0x03, 0x01]), Sniff::NeedMore);
//! ```

use std::sync::Arc;

use crate::alpn::is_mesh_alpn;

/// The most bytes of a connection's start that are kept while its ClientHello arrives.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// The most TLS records that one ClientHello may be cut into.
pub const MAX_HELLO_RECORDS: usize = 16;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 0x01;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniff {
    /// It cannot be told yet.
    NeedMore,
    /// No TLS.
    NotTls,
    /// It starts like TLS; its ClientHello exceeds [`MAX_CLIENT_HELLO`] or [`MAX_HELLO_RECORDS`].
    TooLarge,
    /// TLS.
    ClientHello(ClientHello),
}

/// What a ClientHello asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The server name, when there is one and it is ASCII.
    pub sni: Option<Arc<str>>,
    /// Whether one of the offered protocols marks the mesh's own TLS.
    pub mesh: bool,
    /// How many protocols are offered.
    pub protocols: usize,
}

/// Whether a connection whose first bytes these are can still turn out to be TLS.
pub fn may_be_tls(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|b| *b == HANDSHAKE) && bytes.get(1).is_none_or(|b| *b == 0x03)
}

/// Looks at the first bytes of a connection.
pub fn sniff(bytes: &[u8]) -> Sniff {
    if bytes.is_empty() {
        return Sniff::NeedMore;
    }
    if !may_be_tls(bytes) {
        return Sniff::NotTls;
    }
    match handshake(bytes) {
        Ok(body) => match client_hello(&body) {
            Some(hello) => Sniff::ClientHello(hello),
            None => Sniff::NotTls,
        },
        // The buffer never grows beyond the bound, so that asking for more would wait for ever.
        Err(Sniff::NeedMore) if bytes.len() >= MAX_CLIENT_HELLO => Sniff::TooLarge,
        Err(other) => other,
    }
}

/// Joins the records of the first handshake message; gives its body.
fn handshake(bytes: &[u8]) -> Result<Vec<u8>, Sniff> {
    let mut message = Vec::new();
    let mut rest = bytes;
    for _ in 0..MAX_HELLO_RECORDS {
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) else {
            return Err(Sniff::NeedMore);
        };
        let &[kind, major, _, high, low] = header else { return Err(Sniff::NeedMore) };
        if kind != HANDSHAKE || major != 0x03 {
            return Err(Sniff::NotTls);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 {
            return Err(Sniff::NotTls);
        }
        let (payload, whole) = match after.split_at_checked(length) {
            Some((payload, next)) => {
                rest = next;
                (payload, true)
            }
            None => (after, false),
        };
        message.extend_from_slice(payload);
        if let Some((&[kind, a, b, c], body)) = message.split_first_chunk::<HANDSHAKE_HEADER>() {
            if kind != CLIENT_HELLO {
                return Err(Sniff::NotTls);
            }
            let wanted = u32::from_be_bytes([0, a, b, c]) as usize;
            if wanted > MAX_CLIENT_HELLO {
                return Err(Sniff::TooLarge);
            }
            if let Some(body) = body.get(..wanted) {
                return Ok(body.to_vec());
            }
        } else if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Sniff::NotTls);
        }
        if !whole {
            return Err(Sniff::NeedMore);
        }
    }
    Err(Sniff::TooLarge)
}

/// Reads fields of known length; `None` at the first one that is cut short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|b| u16::from_be_bytes(*b))
    }
    /// A vector with a length of one byte.
    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(n.into())
    }
    /// A vector with a length of two bytes.
    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n.into())
    }
}

/// Reads the body of a ClientHello (RFC 8446, section 4.1.2); `None` when it is malformed.
pub fn client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut r = Reader(body);
    r.take(2 + 32)?; // legacy_version, random
    r.vec8()?; // legacy_session_id
    r.vec16()?; // cipher_suites
    r.vec8()?; // legacy_compression_methods
    let mut hello = ClientHello::default();
    if r.0.is_empty() {
        return Some(hello); // an old client without extensions
    }
    let mut extensions = Reader(r.vec16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vec16()?;
        match kind {
            EXT_SERVER_NAME => hello.sni = server_name(data)?,
            EXT_ALPN => {
                let mut names = Reader(Reader(data).vec16()?);
                while !names.0.is_empty() {
                    hello.mesh |= is_mesh_alpn(names.vec8()?);
                    hello.protocols += 1;
                }
            }
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(data: &[u8]) -> Option<Option<Arc<str>>> {
    if data.is_empty() {
        return Some(None);
    }
    let mut names = Reader(Reader(data).vec16()?);
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vec16()?;
        if kind == 0 {
            let text = std::str::from_utf8(name).ok().filter(|s| s.bytes().all(|b| b.is_ascii_graphic()));
            return Some(text.map(Arc::from));
        }
    }
    Some(None)
}

#[cfg(test)]
mod tests;
