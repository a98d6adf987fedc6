//! The application protocols that Istio's sidecars name in the handshake.
//!
//! A client of the mesh offers names of Istio's beside the real protocol. That is how a server in
//! PERMISSIVE mode tells the mesh's TLS, which it terminates, from an application's own, which it passes
//! on. `istio-peer-exchange` is recognised and never offered or chosen: whoever agrees on it must exchange
//! a message of Envoy's before the first byte of the application.
//!
//! ```
//! use tower_mesh_tls::alpn::{MeshAlpn, Negotiated, is_mesh_alpn};
//!
//! assert!(is_mesh_alpn(b"istio-peer-exchange") && !is_mesh_alpn(b"h2"));
//! assert_eq!(MeshAlpn::Http2.offers()[0], b"istio-h2");
//! assert!(MeshAlpn::Tcp.offers().iter().all(|name| *name != b"istio-peer-exchange"));
//! assert_eq!(Negotiated::of(Some(b"h2")), Some(Negotiated::Http2));
//! ```

/// Every name that marks TLS as the mesh's own.
pub const MESH_ALPN: [&[u8]; 5] =
    [b"istio", b"istio-peer-exchange", b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"];

/// What a server of the mesh agrees to, best first.
pub const SERVER_ALPN: [&[u8]; 3] = [b"h2", b"http/1.1", b"istio"];

/// Whether `name` marks TLS as the mesh's own.
pub fn is_mesh_alpn(name: &[u8]) -> bool {
    MESH_ALPN.contains(&name)
}

/// What a client of the mesh is about to speak inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeshAlpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

impl MeshAlpn {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tcp];

    /// The names that the client offers, as Istio's sidecars do.
    pub const fn offers(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Self::Http2 => &[b"istio-h2", b"istio", b"h2"],
            Self::Tcp => &[b"istio"],
        }
    }
}

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Negotiated {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// The mesh's TLS around bytes that are not told: HTTP may be found by looking.
    Mesh,
}

impl Negotiated {
    /// Reads the agreed name; `None` where nothing (that we know) was agreed on.
    pub fn of(name: Option<&[u8]>) -> Option<Self> {
        match name? {
            b"http/1.1" | b"istio-http/1.1" | b"istio-http/1.0" | b"http/1.0" => Some(Self::Http1),
            b"h2" | b"istio-h2" => Some(Self::Http2),
            b"istio" | b"istio-peer-exchange" => Some(Self::Mesh),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The choice that rustls makes: the server's first name that the client offers too.
    fn agreed(offered: &[&[u8]]) -> Option<&'static [u8]> {
        SERVER_ALPN.into_iter().find(|name| offered.contains(name))
    }

    #[test]
    fn every_offer_is_the_meshs_and_ends_on_the_real_protocol() {
        for (kind, name) in [
            (MeshAlpn::Http1, b"http/1.1".as_slice()),
            (MeshAlpn::Http2, b"h2".as_slice()),
            (MeshAlpn::Tcp, b"istio".as_slice()),
        ] {
            assert!(kind.offers().iter().any(|n| is_mesh_alpn(n)));
            assert_eq!(agreed(kind.offers()), Some(name));
        }
        // What an Envoy of Istio's offers for TCP.
        assert_eq!(agreed(&[b"istio-peer-exchange", b"istio"]), Some(b"istio".as_slice()));
    }
}
