//! The application protocols that Istio's sidecars name in the handshake.
//!
//! A client of the mesh offers names of Istio's beside the real protocol. That is how a server in
//! PERMISSIVE mode tells the mesh's TLS, which it terminates, from an application's own, which it passes
//! on. `istio-peer-exchange` is recognised and never offered or chosen: whoever agrees on it must exchange
//! a message of Envoy's before the first byte of the application.
//!
//! One name is our own, [`CARRIED`]: HTTP/1.1 requests, several at once, each as a stream of HTTP/2. Many of
//! them share a TLS record and a write, and what stands on both sides sees HTTP/1.1. A client that is about to
//! speak HTTP/1.1 offers it before Istio's names; whoever does not know it agrees on one of those.
//!
//! ```
//! use tower_mesh_tls::alpn::{MeshAlpn, Negotiated, is_mesh_alpn};
//!
//! assert!(is_mesh_alpn(b"istio-peer-exchange") && !is_mesh_alpn(b"h2"));
//! assert_eq!(MeshAlpn::Http2.offers()[0], b"istio-h2");
//! assert_eq!(MeshAlpn::Carried.offers()[1..], *MeshAlpn::Http1.offers());
//! assert!(MeshAlpn::Tcp.offers().iter().all(|name| *name != b"istio-peer-exchange"));
//! assert_eq!(Negotiated::of(Some(b"h2")), Some(Negotiated::Http2));
//! ```

/// HTTP/1.1 carried over HTTP/2, between two proxies of this project: each stream is one HTTP/1.1 request and
/// its answer, in HTTP/2's form. Not HTTP/2 itself: whoever takes such a stream must give it back the form of
/// HTTP/1.1 before anything looks at it.
pub const CARRIED: &[u8] = b"tower-mesh-http/1.1-over-h2";

/// Every name that marks TLS as the mesh's own.
pub const MESH_ALPN: [&[u8]; 6] =
    [b"istio", b"istio-peer-exchange", b"istio-http/1.0", b"istio-http/1.1", b"istio-h2", CARRIED];

/// What a server of the mesh agrees to, best first.
pub const SERVER_ALPN: [&[u8]; 4] = [CARRIED, b"h2", b"http/1.1", b"istio"];

/// Whether `name` marks TLS as the mesh's own.
pub fn is_mesh_alpn(name: &[u8]) -> bool {
    MESH_ALPN.contains(&name)
}

/// What a client of the mesh is about to speak inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeshAlpn {
    /// HTTP/1.1, one request at a time.
    Http1,
    /// HTTP/1.1, [carried](CARRIED) where the server knows how, else one request at a time.
    Carried,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

impl MeshAlpn {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Http1, Self::Carried, Self::Http2, Self::Tcp];

    /// The names that the client offers: those that Istio's sidecars do, and ours before them.
    pub const fn offers(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Self::Carried => &[CARRIED, b"istio-http/1.1", b"istio", b"http/1.1"],
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
    /// HTTP/1.1 as streams of HTTP/2: [`CARRIED`].
    Carried,
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
            CARRIED => Some(Self::Carried),
            b"istio" | b"istio-peer-exchange" => Some(Self::Mesh),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The choice that rustls and Envoy make: the server's first name that the client offers too.
    fn agreed(server: &[&[u8]], offered: &[&[u8]]) -> Option<Negotiated> {
        let name = server.iter().find(|name| offered.contains(name))?;
        Negotiated::of(Some(name))
    }

    #[test]
    fn every_offer_is_the_meshs_and_ends_on_the_real_protocol() {
        use Negotiated::{Carried, Http1, Http2, Mesh};
        // Servers: ours, one of ours that does not know `CARRIED`, and Envoys of Istio's.
        let ours: &[&[u8]] = &SERVER_ALPN;
        let old: &[&[u8]] = &SERVER_ALPN[1..];
        let envoy: &[&[u8]] = &[b"istio-http/1.1", b"istio-http/1.0", b"istio-h2", b"h2", b"http/1.1"];
        let permissive: &[&[u8]] = &[b"istio-peer-exchange", b"h2", b"http/1.1"];
        let table = [
            (MeshAlpn::Http1, [Http1; 4].map(Some)),
            (MeshAlpn::Carried, [Carried, Http1, Http1, Http1].map(Some)),
            (MeshAlpn::Http2, [Http2; 4].map(Some)),
            (MeshAlpn::Tcp, [Some(Mesh), Some(Mesh), None, None]),
        ];
        for (kind, wants) in table {
            assert!(kind.offers().iter().any(|n| is_mesh_alpn(n)));
            let got = [ours, old, envoy, permissive].map(|server| agreed(server, kind.offers()));
            assert_eq!(got, wants, "{kind:?}");
        }
        // Clients: Envoys of Istio's (for TCP, HTTP/1.1 and HTTP/2), and others.
        let clients: [(&[&[u8]], Option<Negotiated>); 6] = [
            (&[b"istio-peer-exchange", b"istio"], Some(Mesh)),
            (&[b"istio-http/1.1", b"istio", b"http/1.1"], Some(Http1)),
            (&[b"istio-h2", b"istio", b"h2"], Some(Http2)),
            (&[b"h2", b"http/1.1"], Some(Http2)),
            (&[b"http/1.1"], Some(Http1)),
            (&[b"tower-mesh-http/1.1-over-h3"], None),
        ];
        for (offers, want) in clients {
            assert_eq!(agreed(ours, offers), want, "{offers:?}");
        }
    }
}
