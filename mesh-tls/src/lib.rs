//! Who is speaking: SPIFFE identities, their certificates, and mutual TLS as services.
//!
//! A workload's [`Credentials`] (certificate, key, trust bundle) come from a source: files
//! ([`file_identity`]) or a development CA in a directory ([`dev_ca`]). [`TlsAccept`] takes accepted
//! connections and says who is on the other end, in the mode that PeerAuthentication asks for
//! ([`modes`]); [`TlsConnect`] makes connections to endpoints that must be who the caller expects. Both
//! speak what Istio's sidecars speak ([`alpn`], [`sni`]).
//!
//! ```
//! use mesh_core::cluster::{Expect, UpstreamTls};
//! use mesh_core::facts::{LocalAddr, PeerAddr};
//! use mesh_core::live::Live;
//! use tower_mesh_tls::alpn::{MeshAlpn, Negotiated};
//! use tower_mesh_tls::dev_ca::DevCa;
//! use tower_mesh_tls::modes::{Mode, TlsModes};
//! use tower_mesh_tls::{AcceptedStream, ConnectTo, Credentials, TlsAccept, TlsConnect};
//! use tokio::net::TcpListener;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let dir = tempfile::tempdir().unwrap();
//! let ca = DevCa::open(dir.path()).unwrap();
//! let web = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
//! let reviews: mesh_core::identity::SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
//!
//! let modes = Live::fixed(TlsModes::fixed(Mode::Strict));
//! let accept = TlsAccept::new(Live::fixed(Credentials::of(ca.material(&reviews).unwrap())), modes);
//! let connect = TlsConnect::new(Live::fixed(Credentials::of(ca.material(&web).unwrap())));
//!
//! let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
//! let to = ConnectTo::socket(listener.local_addr().unwrap().into())
//!     .tls(UpstreamTls::Mutual {
//!         sni: "outbound_.9080_._.reviews.default.svc.cluster.local".into(),
//!         expect: Expect::AnyOf([reviews.clone()].into()),
//!     })
//!     .alpn(MeshAlpn::Http2);
//! let server = async {
//!     let (io, peer) = listener.accept().await.unwrap();
//!     let local = io.local_addr().unwrap();
//!     accept.oneshot(AcceptedStream::new(io, PeerAddr(peer), LocalAddr(local))).await
//! };
//! let (accepted, connected) = tokio::join!(server, connect.oneshot(to));
//! let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
//!
//! assert_eq!(accepted.connection.peer().unwrap().id(), &web);
//! assert_eq!(connected.peer.unwrap().id(), &reviews);
//! assert_eq!(connected.alpn, Some(Negotiated::Http2));
//! # }
//! ```

pub mod accept;
pub mod alpn;
mod bundle;
pub mod clock;
pub mod connect;
mod credentials;
pub mod dev_ca;
mod error;
pub mod file_identity;
pub mod hello;
pub mod io;
pub mod issued;
mod material;
pub mod modes;
pub mod named;
mod pem;
pub mod sni;
mod svid;
mod verify;

pub use accept::{AcceptError, Accepted, AcceptedStream, TlsAccept};
pub use bundle::{MAX_ROOTS, TrustBundle};
pub use clock::Clock;
pub use connect::{ConnectError, ConnectTo, Connected, TlsConnect};
pub use credentials::{Credentials, IdentityStatus};
pub use error::{LeafError, MaterialError};
pub use io::MaybeTls;
pub use material::TlsMaterial;
pub use pem::{MAX_PEM, Pem};
pub use svid::{CertificateInfo, MAX_CERTIFICATE, MAX_CHAIN, Svid, spiffe_id_of};
