//! The certificate authority: who it is, whom it believes, what it issues.
//!
//! [`ca`] is an authority in memory, checked as strictly as its worst peer would; [`make`] makes one;
//! [`keeper`] keeps it in a Secret that all replicas share, or takes Istio's `cacerts`. [`csr`] takes the
//! public key out of a request, [`token`] asks Kubernetes whose a token is, and [`issuer`] puts both
//! together into the certificate service.
//!
//! A name comes from a token, never from a request or from a certificate.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//!
//! use mesh_controller::authority::ca::{Ca, Holder};
//! use mesh_controller::authority::make;
//! use mesh_core::identity::{SpiffeId, TrustDomain};
//! use mesh_tls::Clock;
//!
//! let domain = TrustDomain::default();
//! let made = make::authority(&domain, SystemTime::now()).unwrap();
//! let ca = Ca::open("Secret mesh-system/mesh-ca", &made.files(), &domain, &Clock::system()).unwrap();
//!
//! let key = rcgen::KeyPair::generate().unwrap();
//! let id = SpiffeId::for_account(&domain, "shop", "web").unwrap();
//! let holder = Holder { id: id.clone(), pod: Some("web-5d4f".into()) };
//! let issued = ca.issue(&key, &holder, Duration::from_secs(120), SystemTime::now()).unwrap();
//! assert_eq!(issued.chain.len(), 3, "the leaf, the intermediate, the root");
//! ```

pub mod ca;
pub mod csr;
pub mod issuer;
pub mod keeper;
pub mod make;
pub mod token;

mod cache;
#[cfg(test)]
mod tests;
