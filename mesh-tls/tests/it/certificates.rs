//! Certificates that are not as they should be, and kinds of keys that others use.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::failure::FailureCode;
use mesh_core::live::Live;
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize, SanType};
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower::ServiceExt;
use tower_mesh_tls::modes::{Mode, TlsModes};
use tower_mesh_tls::{
    AcceptError, Clock, ConnectError, Credentials, LeafError, MAX_CERTIFICATE, MAX_CHAIN, MaterialError, Pem,
    Svid, TlsAccept, TlsConnect, TlsMaterial, TrustBundle, spiffe_id_of,
};

use crate::support::{AnyCa, Leaf, SNI, arrived, id, mutual, nowhere, over_tcp, parts, stranger, uri};

/// Subject alternative names that no workload has, and the complaint about each.
fn corpus() -> Vec<(Vec<SanType>, &'static str)> {
    let good = uri(id("web").as_str());
    vec![
        (vec![], "no URI SAN"),
        (vec![SanType::DnsName("web.default".try_into().unwrap())], "no URI SAN"),
        (vec![good.clone(), good.clone()], "2 URI SANs"),
        (vec![good.clone(), uri("https://example.org/")], "2 URI SANs"),
        (vec![uri("https://cluster.local/ns/default/sa/web")], "not a SPIFFE ID"),
        (vec![uri("spiffe://cluster.local/ns/default/sa/web\0.evil")], "not a SPIFFE ID"),
        (vec![uri("spiffe://cluster.local/ns/default/sa/../admin")], "not a SPIFFE ID"),
        (vec![uri("SPIFFE://cluster.local/ns/default/sa/web")], "not a SPIFFE ID"),
        (vec![uri("")], "not a SPIFFE ID"),
        (vec![uri("spiffe://cluster.local")], "a whole trust domain"),
    ]
}

/// What our server says to a client that shows `shown` (chain and key).
async fn served(ca: &AnyCa, shown: &(String, String)) -> Result<(), AcceptError> {
    let material = ca.material(&Leaf::of("reviews"));
    let accept =
        TlsAccept::new(Live::fixed(Credentials::of(material)), Live::fixed(TlsModes::fixed(Mode::Strict)));
    let (near, far) = tokio::io::duplex(256 * 1024);
    let connector = TlsConnector::from(Arc::new(stranger(&[b"istio"], Some(shown))));
    let client = connector.connect(ServerName::try_from(SNI).unwrap(), near);
    let (accepted, _client) = tokio::join!(accept.oneshot(arrived(far)), client);
    accepted.map(drop)
}

/// What our client says to a server that shows `shown`.
async fn called(ca: &AnyCa, shown: &(String, String)) -> Result<(), ConnectError> {
    let (chain, key) = parts(shown);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let connect = TlsConnect::new(Live::fixed(Credentials::of(ca.material(&Leaf::of("web")))));
    let (near, far) = tokio::io::duplex(256 * 1024);
    let to = nowhere().tls(mutual(&["reviews"]));
    let (connected, _server) =
        tokio::join!(connect.secure(near, &to), TlsAcceptor::from(Arc::new(server)).accept(far));
    connected.map(drop)
}

#[tokio::test]
async fn a_certificate_without_exactly_one_spiffe_id_is_nobodys() {
    let ca = AnyCa::p256();
    for (sans, complaint) in corpus() {
        let shown = ca.issue(&Leaf { sans, ..Leaf::of("web") });
        let (chain, _) = parts(&shown);
        let error = spiffe_id_of(&chain[0]).unwrap_err();
        assert!(error.to_string().contains(complaint), "{error}");

        let own =
            Svid::from_pem(Pem::new("tls.crt", shown.0.as_bytes()), Pem::new("tls.key", shown.1.as_bytes()));
        let own = own.unwrap_err().to_string();
        assert!(own.starts_with("tls.crt: ") && own.contains(complaint), "{own}");

        let refused = served(&ca, &shown).await.unwrap_err().to_string();
        assert!(refused.contains(complaint), "{refused}");

        let refused = called(&ca, &shown).await.unwrap_err();
        assert_eq!(refused.code(), FailureCode::IdentityMismatch, "{refused}");
        assert!(refused.to_string().contains(complaint), "{refused}");
    }
    let signs = ca.issue(&Leaf { signs: true, ..Leaf::of("reviews") });
    assert!(served(&ca, &signs).await.unwrap_err().to_string().contains("may sign certificates"));
    assert_eq!(called(&ca, &signs).await.unwrap_err().code(), FailureCode::IdentityMismatch);
    // A DNS name beside the URI is fine.
    let mut both = Leaf::of("reviews");
    both.sans.push(SanType::DnsName("reviews.default".try_into().unwrap()));
    let shown = ca.issue(&both);
    served(&ca, &shown).await.unwrap();
    called(&ca, &shown).await.unwrap();
}

#[tokio::test]
async fn time_purpose_and_trust_domain_are_checked() {
    let ca = AnyCa::p256();
    let past = SystemTime::now() - Duration::from_secs(10);
    let expired = ca.issue(&Leaf { until: past, ..Leaf::of("reviews") });
    let error = served(&ca, &expired).await.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
    let error = called(&ca, &expired).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::TlsFailed, "{error}");

    let client_only =
        ca.issue(&Leaf { usages: vec![ExtendedKeyUsagePurpose::ClientAuth], ..Leaf::of("reviews") });
    served(&ca, &client_only).await.unwrap();
    assert_eq!(called(&ca, &client_only).await.unwrap_err().code(), FailureCode::TlsFailed);
    let server_only =
        ca.issue(&Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::of("reviews") });
    called(&ca, &server_only).await.unwrap();
    assert!(served(&ca, &server_only).await.is_err());

    // The root is ours; it does not speak for that domain.
    let elsewhere = vec![uri("spiffe://elsewhere/ns/default/sa/reviews")];
    let elsewhere = ca.issue(&Leaf { sans: elsewhere, ..Leaf::of("reviews") });
    let error = served(&ca, &elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("no trust bundle is known for its trust domain \"elsewhere\""), "{error}");
    assert_eq!(called(&ca, &elsewhere).await.unwrap_err().code(), FailureCode::TlsFailed);
}

#[tokio::test]
async fn chains_and_certificates_are_bounded() {
    let ca = AnyCa::p256();
    let (certificate, key) = ca.issue(&Leaf::of("reviews"));
    let chain = |n: usize| (certificate.clone() + &ca.pem.repeat(n - 1), key.clone());
    served(&ca, &chain(MAX_CHAIN)).await.unwrap();
    called(&ca, &chain(MAX_CHAIN)).await.unwrap();
    let long = chain(MAX_CHAIN + 1);
    let error = served(&ca, &long).await.unwrap_err().to_string();
    assert!(error.contains("its chain has 9 certificates"), "{error}");
    assert_eq!(called(&ca, &long).await.unwrap_err().code(), FailureCode::TlsFailed);
    let own = Svid::from_pem(Pem::new("tls.crt", long.0.as_bytes()), Pem::new("tls.key", key.as_bytes()));
    assert!(matches!(own, Err(MaterialError::Leaf { error: LeafError::ChainTooLong(9), .. })));

    let big = ca.issue(&Leaf { comment: vec![0x04; MAX_CERTIFICATE], ..Leaf::of("reviews") });
    let error = served(&ca, &big).await.unwrap_err().to_string();
    assert!(error.contains("more than 16384"), "{error}");
    assert_eq!(called(&ca, &big).await.unwrap_err().code(), FailureCode::TlsFailed);
}

#[tokio::test]
async fn rsa_and_p384_are_accepted() {
    let rsa = || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let p384 = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    for (ca, leaf) in [(rsa(), rsa()), (p384(), p384()), (rsa(), KeyPair::generate().unwrap())] {
        let ca = AnyCa::new(ca);
        let theirs = ca.material(&Leaf { key: leaf, ..Leaf::of("reviews") });
        let theirs = Live::fixed(Credentials::of(theirs));
        let ours = Live::fixed(Credentials::of(ca.material(&Leaf::of("web"))));
        let strict = Live::fixed(TlsModes::fixed(Mode::Strict));
        let to = || nowhere().tls(mutual(&["reviews"]));
        let accept = TlsAccept::new(theirs.clone(), strict.clone());
        let (accepted, connected) = over_tcp(&accept, &TlsConnect::new(ours.clone()), to()).await;
        assert_eq!(accepted.unwrap().connection.peer().unwrap().id(), &id("web"));
        connected.unwrap();
        let accept = TlsAccept::new(ours, strict);
        let to = nowhere().tls(mutual(&["web"]));
        let (accepted, connected) = over_tcp(&accept, &TlsConnect::new(theirs), to).await;
        assert_eq!(accepted.unwrap().connection.peer().unwrap().id(), &id("reviews"));
        connected.unwrap();
    }
}

#[test]
fn what_does_not_fit_together_names_file_and_times() {
    let (ca, other) = (AnyCa::p256(), AnyCa::p256());
    let (certificate, key) = ca.issue(&Leaf::of("web"));
    let (_, other_key) = ca.issue(&Leaf::of("web"));
    let svid = |certificate: &str, key: &str| {
        Svid::from_pem(Pem::new("d/tls.crt", certificate.as_bytes()), Pem::new("d/tls.key", key.as_bytes()))
    };
    let said = |e: MaterialError| e.to_string();
    assert_eq!(
        said(svid(&certificate, &other_key).unwrap_err()),
        "d/tls.key: the private key does not match the certificate in d/tls.crt: replace both together"
    );
    assert_eq!(
        said(svid(&certificate, "").unwrap_err()),
        "d/tls.key: it holds no private key (BEGIN PRIVATE KEY)"
    );
    assert!(said(svid(&key, &key).unwrap_err()).starts_with("d/tls.crt: it holds no certificate"));
    let broken = certificate.replace("-----END", "!!\n-----END");
    assert!(said(svid(&broken, &key).unwrap_err()).starts_with("d/tls.crt: it is no PEM"));

    let material = |svid: Svid, bundle, clock: &Clock| TlsMaterial::new(svid, bundle, clock).map(drop);
    let good = svid(&certificate, &key).unwrap();
    let error = said(material(good.clone(), other.bundle(), &Clock::system()).unwrap_err());
    assert!(
        error.starts_with("d/tls.crt: the certificate's chain does not lead to a root in ca.crt: "),
        "{error}"
    );
    let error = said(material(good.clone(), TrustBundle::new(), &Clock::system()).unwrap_err());
    assert!(error.contains("no trust bundle is known for its trust domain \"cluster.local\""), "{error}");

    let at = |seconds: i64| {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        start.checked_add(Duration::from_secs(seconds.unsigned_abs())).unwrap()
    };
    let timed = Leaf { from: at(0), until: at(60), ..Leaf::of("web") };
    let (certificate, key) = ca.issue(&timed);
    let timed = svid(&certificate, &key).unwrap();
    let error = said(material(timed.clone(), ca.bundle(), &Clock::from_fn(move || at(61))).unwrap_err());
    assert_eq!(
        error,
        "d/tls.crt: the certificate expired at 2001-09-09T01:47:40Z, and it is 2001-09-09T01:47:41Z"
    );
    let before = Clock::from_fn(|| SystemTime::UNIX_EPOCH + Duration::from_secs(999_999_999));
    let error = said(material(timed.clone(), ca.bundle(), &before).unwrap_err());
    assert!(error.contains("valid from 2001-09-09T01:46:40Z on, and it is 2001-09-09T01:46:39Z"), "{error}");
    material(timed, ca.bundle(), &Clock::from_fn(move || at(30))).unwrap();

    let debug = format!("{good:?} {:?}", Pem::new("k", key.as_bytes()));
    assert!(!debug.contains("PRIVATE") && !debug.contains(key.lines().nth(1).unwrap()), "{debug}");
}

#[test]
fn a_bundle_keeps_what_is_valid_and_says_what_is_not() {
    let ca = AnyCa::p256();
    let now = SystemTime::now();
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000_000_000);
    let with = |text: &str, now| {
        TrustBundle::new().with_domain("td".parse().unwrap(), Pem::new("ca.crt", text.as_bytes()), now)
    };
    assert_eq!(with(&(ca.pem.clone() + &AnyCa::p256().pem), now).unwrap().roots().count(), 2);
    assert_eq!(with("", now).unwrap_err().to_string(), "ca.crt: it holds no certificate (BEGIN CERTIFICATE)");
    let error = with(&ca.pem, far).unwrap_err().to_string();
    assert!(error.starts_with("ca.crt: all its roots have expired, the last at 4096-01-01"), "{error}");
    let many = ca.pem.repeat(tower_mesh_tls::MAX_ROOTS + 1);
    assert!(with(&many, now).unwrap_err().to_string().contains("257 roots, more than 256"));
    let huge = " ".repeat(tower_mesh_tls::MAX_PEM + 1);
    assert!(with(&huge, now).unwrap_err().to_string().contains("larger than 1048576 bytes"));
}

proptest::proptest! {
    #[test]
    fn a_changed_certificate_is_read_without_panic(at in 0usize..500, to: u8, cut in 0usize..500) {
        static DER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let der = DER.get_or_init(|| parts(&AnyCa::p256().issue(&Leaf::of("web"))).0[0].to_vec());
        let mut changed = der.clone();
        if let Some(byte) = changed.get_mut(at) {
            *byte = to;
        }
        let _ = spiffe_id_of(&changed);
        let _ = spiffe_id_of(&der[..cut.min(der.len())]);
    }
}
