//! An identity that somebody else issues: the key is made here and stays here, the certificate comes back.
//!
//! This makes the request, checks what comes back, and puts it in force. Asking and waiting are others'.
//!
//! ```
//! use tower_mesh_tls::Clock;
//! use tower_mesh_tls::dev_ca::DevCa;
//! use tower_mesh_tls::issued::{Expected, Issued, IssuedIdentity, KeyAndRequest};
//! # let dir = tempfile::tempdir().unwrap();
//!
//! let expected = Expected::account(Default::default(), "default", Some("web"));
//! let mut identity = IssuedIdentity::new(expected, Clock::system());
//! let asked = KeyAndRequest::generate().unwrap();
//! assert!(asked.request_pem().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
//!
//! // What is for somebody else is refused, and says so.
//! let ca = DevCa::open(dir.path()).unwrap();
//! let (leaf, key) = ca.issue_pem(&"spiffe://cluster.local/ns/default/sa/other".parse().unwrap()).unwrap();
//! let issued = Issued::new(&[leaf, ca.certificate_pem().to_owned()], key, None).unwrap();
//! let error = identity.take_up(&issued).unwrap_err();
//! assert!(error.to_string().contains("sa/other"), "{error}");
//! assert!(identity.live().load().id().is_none());
//! ```

use std::fmt;
use std::time::{Duration, SystemTime};

use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::live::{Live, Publisher};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bundle::TrustBundle;
use crate::clock::Clock;
use crate::credentials::{Credentials, publish};
use crate::error::MaterialError;
use crate::material::TlsMaterial;
use crate::pem::{MAX_PEM, Pem};
use crate::svid::Svid;

/// What complaints about an answer name.
const ANSWER: &str = "the issued certificate";
const ANSWER_KEY: &str = "the key of the issued certificate";
const ANSWER_ROOTS: &str = "the roots of the issued certificate";

/// A new key, and the request for a certificate of it.
pub struct KeyAndRequest {
    key_pem: String,
    request_pem: String,
}

/// Who a workload must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    trust_domain: TrustDomain,
    namespace: String,
    account: Option<String>,
}

/// A certificate with its chain, its key and the roots of its mesh: what is put in force, and what is kept.
/// Never tells its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    chain_pem: String,
    key_pem: String,
    roots_pem: String,
}

/// The identity in force, and who it must be.
#[derive(Debug)]
pub struct IssuedIdentity {
    expected: Expected,
    clock: Clock,
    publisher: Publisher<Credentials>,
}

impl KeyAndRequest {
    /// A new ECDSA P-256 key. The request names nobody: who the certificate is for is the issuer's to know.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn generate() -> Result<Self, MaterialError> {
        let failed =
            |e: rcgen::Error| MaterialError::Tls { file: ANSWER_KEY.to_owned(), reason: e.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
        Ok(Self { key_pem: key.serialize_pem(), request_pem: request })
    }

    /// The request: PKCS #10 in PEM.
    pub fn request_pem(&self) -> &str {
        &self.request_pem
    }

    /// The key, to go with the answer.
    pub fn into_key_pem(self) -> String {
        self.key_pem
    }
}

impl fmt::Debug for KeyAndRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAndRequest").field("request_pem", &self.request_pem).finish_non_exhaustive()
    }
}

impl Expected {
    /// The workloads of a service account; without one, of any account of the namespace.
    pub fn account(trust_domain: TrustDomain, namespace: &str, account: Option<&str>) -> Self {
        Self { trust_domain, namespace: namespace.to_owned(), account: account.map(str::to_owned) }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether it is `id`.
    pub fn is(&self, id: &SpiffeId) -> bool {
        id.trust_domain() == self.trust_domain.as_str()
            && id.namespace() == Some(&self.namespace)
            && self.account.as_deref().is_none_or(|account| id.service_account() == Some(account))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.account.as_deref().unwrap_or("*");
        write!(f, "spiffe://{}/ns/{}/sa/{account}", self.trust_domain.as_str(), self.namespace)
    }
}

impl Issued {
    /// An issuer's answer: `chain` in PEM, the leaf first. What is self-signed at its end are the roots of the
    /// mesh; where nothing is, `roots` are.
    ///
    /// # Errors
    /// When it is too large, holds something else, or there are no roots.
    pub fn new(chain: &[String], key_pem: String, roots: Option<&str>) -> Result<Self, MaterialError> {
        let bad =
            |reason: &str| MaterialError::Malformed { file: ANSWER.to_owned(), reason: reason.to_owned() };
        if chain.iter().map(String::len).sum::<usize>() > MAX_PEM {
            return Err(bad(&format!("it is larger than {MAX_PEM} bytes")));
        }
        // An element may hold more than one certificate.
        let certificates = Pem::new(ANSWER, chain.join("\n").as_bytes()).certificates()?;
        let of_roots = certificates.iter().skip(1).rev().take_while(|der| is_self_signed(der)).count();
        let (chain, found) = certificates.split_at(certificates.len().saturating_sub(of_roots));
        let roots_pem = match (found.is_empty(), roots) {
            (false, _) => pem_of(found),
            (true, Some(roots)) => roots.to_owned(),
            (true, None) => return Err(bad("no root stands at the end of its chain")),
        };
        Ok(Self { chain_pem: pem_of(chain), key_pem, roots_pem })
    }

    /// What was kept of an earlier life: see [`parts`](Self::parts).
    pub fn of_parts(chain_pem: String, key_pem: String, roots_pem: String) -> Self {
        Self { chain_pem, key_pem, roots_pem }
    }

    /// Chain, key and roots in PEM, to be kept where nobody else reads.
    pub fn parts(&self) -> [&str; 3] {
        [&self.chain_pem, &self.key_pem, &self.roots_pem]
    }

    fn material(&self, expected: &Expected, clock: &Clock) -> Result<TlsMaterial, MaterialError> {
        let svid = Svid::from_pem(
            Pem::new(ANSWER, self.chain_pem.as_bytes()),
            Pem::new(ANSWER_KEY, self.key_pem.as_bytes()),
        )?;
        if !expected.is(svid.id()) {
            return Err(MaterialError::Stranger {
                expected: expected.to_string(),
                found: svid.id().to_string(),
            });
        }
        let roots = Pem::new(ANSWER_ROOTS, self.roots_pem.as_bytes());
        let bundle = TrustBundle::new().with_domain(expected.trust_domain.clone(), roots, clock.now())?;
        TlsMaterial::new(svid, bundle, clock)
    }
}

impl fmt::Debug for Issued {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

impl IssuedIdentity {
    /// No identity yet.
    pub fn new(expected: Expected, clock: Clock) -> Self {
        Self { expected, clock, publisher: Publisher::new(Credentials::none()) }
    }

    /// The identity in force.
    pub fn live(&self) -> Live<Credentials> {
        self.publisher.live()
    }

    /// Who it must be.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Puts a certificate in force, once it is valid now, names whom it must name and leads to its roots.
    ///
    /// # Errors
    /// What is wrong with it; the one in force stays. [`fail`](Self::fail) tells of it.
    pub fn take_up(&mut self, issued: &Issued) -> Result<(), MaterialError> {
        let material = issued.material(&self.expected, &self.clock)?;
        publish(&self.publisher, Ok(material), self.clock.now());
        Ok(())
    }

    /// Tells that there is no new certificate, and why.
    pub fn fail(&mut self, why: &str) {
        let current = self.publisher.load();
        let effect = if current.material().is_some() { Effect::LastGoodKept } else { Effect::NotApplied };
        let next = current.failed(Diagnostic::new(effect, why));
        self.publisher.publish(next);
    }

    /// First and last moment of the certificate in force.
    pub fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        let credentials = self.publisher.load();
        credentials.certificate().map(|c| (c.not_before, c.not_after))
    }

    /// How long the certificate in force is still valid; nothing where there is none.
    pub fn left(&self) -> Duration {
        let until = self.validity().map(|(_, until)| until);
        until.and_then(|until| until.duration_since(self.clock.now()).ok()).unwrap_or_default()
    }
}

fn is_self_signed(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, cert)| cert.issuer() == cert.subject())
}

fn pem_of(certificates: &[rustls::pki_types::CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut pem = String::new();
    for der in certificates {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = text.as_str();
        while let Some((line, more)) = rest.split_at_checked(64) {
            pem.push_str(line);
            pem.push('\n');
            rest = more;
        }
        if !rest.is_empty() {
            pem.push_str(rest);
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev_ca::DevCa;

    fn ca() -> (tempfile::TempDir, DevCa) {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open(dir.path()).unwrap();
        (dir, ca)
    }

    fn web() -> Expected {
        Expected::account(TrustDomain::default(), "default", Some("web"))
    }

    fn id(text: &str) -> SpiffeId {
        text.parse().unwrap()
    }

    #[test]
    fn who_it_must_be() {
        for (account, found, is) in [
            (Some("web"), "spiffe://cluster.local/ns/default/sa/web", true),
            (None, "spiffe://cluster.local/ns/default/sa/web", true),
            (Some("web"), "spiffe://cluster.local/ns/default/sa/webs", false),
            (Some("web"), "spiffe://cluster.local/ns/other/sa/web", false),
            (None, "spiffe://cluster.local/ns/other/sa/web", false),
            (None, "spiffe://else.where/ns/default/sa/web", false),
            (None, "spiffe://cluster.local/web", false),
        ] {
            let expected = Expected::account(TrustDomain::default(), "default", account);
            assert_eq!(expected.is(&id(found)), is, "{expected} {found}");
        }
    }

    #[test]
    fn what_is_issued_is_put_in_force_and_comes_back_from_its_parts() {
        let (_dir, ca) = ca();
        let (leaf, key) = ca.issue_pem(&id("spiffe://cluster.local/ns/default/sa/web")).unwrap();
        let issued = Issued::new(&[leaf, ca.certificate_pem().to_owned()], key, None).unwrap();
        let mut identity = IssuedIdentity::new(web(), Clock::system());
        identity.take_up(&issued).unwrap();
        assert_eq!(identity.live().load().id().unwrap().service_account(), Some("web"));
        assert!(identity.left() > Duration::from_secs(60));

        let [chain, key, roots] = issued.parts().map(str::to_owned);
        let mut again = IssuedIdentity::new(web(), Clock::system());
        again.take_up(&Issued::of_parts(chain, key, roots)).unwrap();
        assert_eq!(again.validity(), identity.validity());
        assert!(!format!("{issued:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_cannot_be_used_is_said_and_the_last_good_one_stays() {
        let (_dir, ca) = ca();
        let (other_dir, other) = self::ca();
        let web_id = id("spiffe://cluster.local/ns/default/sa/web");
        let (leaf, key) = ca.issue_pem(&web_id).unwrap();
        let root = ca.certificate_pem().to_owned();
        // No root in the answer: those that are given count.
        let good = Issued::new(std::slice::from_ref(&leaf), key.clone(), Some(&root)).unwrap();
        let mut identity = IssuedIdentity::new(web(), Clock::system());
        identity.take_up(&good).unwrap();

        let none = Issued::new(std::slice::from_ref(&leaf), key.clone(), None);
        assert!(none.unwrap_err().to_string().contains("no root"));
        let foreign = Issued::new(&[leaf.clone(), other.certificate_pem().to_owned()], key, None).unwrap();
        assert!(identity.take_up(&foreign).unwrap_err().to_string().contains("does not lead to a root"));
        let (_, another_key) = ca.issue_pem(&web_id).unwrap();
        let unfit = Issued::new(&[leaf, root], another_key, None).unwrap();
        assert!(matches!(identity.take_up(&unfit), Err(MaterialError::KeyMismatch { .. })));
        let huge = Issued::new(&["x".repeat(MAX_PEM + 1)], String::new(), None);
        assert!(huge.unwrap_err().to_string().contains("larger"));

        let live = identity.live();
        assert_eq!((live.load().id(), live.load().status().failures), (Some(&web_id), 0));
        identity.fail("the issuer does not answer");
        assert_eq!(live.load().status().failures, 1);
        assert!(live.load().status().last_error.as_ref().unwrap().message.contains("does not answer"));
        drop(other_dir);
    }
}
