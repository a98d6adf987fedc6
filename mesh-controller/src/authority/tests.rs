use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_tls::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize, SignatureAlgorithm,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::{BACKDATE, CA_CERT, CA_KEY, CERT_CHAIN, Ca, Files, Holder, MAX_INTERMEDIATES, ROOT_CERT};
use super::csr::{CsrError, public_key};
use super::make::{self, Made};

const DAY: Duration = Duration::from_secs(86_400);
const PLACE: &str = "Secret a/b";

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn holder(pod: Option<&str>) -> Holder {
    let id = SpiffeId::for_account(&domain(), "shop", "web").unwrap();
    Holder { id, pod: pod.map(Arc::from) }
}

/// An authority that differs from a good one in what a test wants.
struct Link {
    params: CertificateParams,
    key: KeyPair,
}

impl Link {
    fn new(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = if *algorithm == PKCS_RSA_SHA256 {
            KeyPair::generate_rsa_for(algorithm, RsaKeySize::_2048).unwrap()
        } else {
            KeyPair::generate_for(algorithm).unwrap()
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let now = SystemTime::now();
        params.not_before = (now - DAY).into();
        params.not_after = (now + DAY * 365).into();
        Self { params, key }
    }

    fn with(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }

    fn root(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    fn below(&self, above: &Self) -> String {
        let issuer = Issuer::from_params(&above.params, &above.key);
        self.params.signed_by(&self.key, &issuer).unwrap().pem()
    }
}

struct Texts {
    certificate: String,
    key: String,
    chain: String,
    roots: String,
}

impl Texts {
    fn of(made: &Made) -> Self {
        Self {
            certificate: made.certificate.clone(),
            key: made.key.clone(),
            chain: made.certificate.clone(),
            roots: made.root.clone(),
        }
    }

    fn open_at(&self, now: SystemTime) -> Result<Ca, String> {
        let files = Files {
            certificate: self.certificate.as_bytes(),
            key: self.key.as_bytes(),
            chain: self.chain.as_bytes(),
            roots: self.roots.as_bytes(),
        };
        let clock = Clock::from_fn(move || now);
        Ca::open(PLACE, &files, &domain(), &clock).map_err(|error| error.to_string())
    }

    fn open(&self) -> Result<Ca, String> {
        self.open_at(SystemTime::now())
    }
}

fn made() -> Made {
    make::authority(&domain(), SystemTime::now()).unwrap()
}

#[test]
fn a_leaf_is_a_workloads_and_nothing_more() {
    let ca = Texts::of(&made()).open().unwrap();
    let key = KeyPair::generate().unwrap();
    let now = SystemTime::now();
    let life = Duration::from_secs(120);
    let issued = ca.issue(&key, &holder(Some("web-1")), life, now).unwrap();
    let again = ca.issue(&key, &holder(None), life, now).unwrap();
    assert_ne!(issued.serial, again.serial, "the same key twice is no reason for the same number");
    assert_eq!(issued.not_after, now + life);
    assert_eq!(issued.chain.last().unwrap(), &**ca.roots());

    let (_, pem) = x509_parser::pem::parse_x509_pem(issued.chain[0].as_bytes()).unwrap();
    let (_, cert) = X509Certificate::from_der(&pem.contents).unwrap();
    assert_eq!(cert.raw_serial().len(), 16);
    assert!(!cert.is_ca());
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (from, until) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    assert_eq!(u64::try_from(from).unwrap(), seconds(now - BACKDATE));
    assert_eq!(u64::try_from(until).unwrap(), seconds(now + life));
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
}

#[test]
fn no_leaf_outlives_what_signs_it() {
    let ca = Texts::of(&made()).open().unwrap();
    let key = KeyPair::generate().unwrap();
    let issued = ca.issue(&key, &holder(None), DAY * 10_000, SystemTime::now()).unwrap();
    assert_eq!(issued.not_after, ca.not_after());
    let error = ca.issue(&key, &holder(None), DAY, ca.not_after()).unwrap_err().to_string();
    assert!(error.starts_with("Secret a/b, ca-cert.pem: it expired at"), "{error}");
}

#[test]
fn chains_of_other_keys_and_lengths_are_taken() {
    for algorithm in [&PKCS_RSA_SHA256, &PKCS_ECDSA_P384_SHA384] {
        let (root, upper, lower) =
            (Link::new("root", algorithm), Link::new("upper", algorithm), Link::new("lower", algorithm));
        let (root_pem, upper_pem) = (root.root(), upper.below(&root));
        let texts = |chain: String| Texts {
            certificate: lower.below(&upper),
            key: lower.key.serialize_pem(),
            chain,
            roots: root_pem.clone(),
        };
        // In any order, with the certificate itself and the root in it or not, as people make them.
        for chain in [
            upper_pem.clone(),
            format!("{}{upper_pem}{root_pem}", lower.below(&upper)),
            format!("{root_pem}{upper_pem}"),
        ] {
            let ca = texts(chain).open().unwrap();
            let key = KeyPair::generate().unwrap();
            let issued = ca.issue(&key, &holder(None), DAY, SystemTime::now()).unwrap();
            assert_eq!(issued.chain.len(), 4, "leaf, lower, upper, root");
        }
        // A root that signs by itself, and several roots.
        let other = Link::new("other", algorithm).root();
        let alone = Texts {
            certificate: root_pem.clone(),
            key: root.key.serialize_pem(),
            chain: String::new(),
            roots: format!("{root_pem}{other}"),
        };
        let ca = alone.open().unwrap();
        let issued = ca.issue(&upper.key, &holder(None), DAY, SystemTime::now()).unwrap();
        assert_eq!(issued.chain.len(), 2);
        assert_eq!(issued.chain[1].matches("BEGIN").count(), 2);
    }
}

#[test]
fn what_a_peer_would_not_believe_is_not_taken() {
    let good = made();
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let root = Link::new("root", p256);
    let of = |link: &Link| Texts {
        certificate: link.below(&root),
        key: link.key.serialize_pem(),
        chain: String::new(),
        roots: root.root(),
    };
    let leaf = Link::new("leaf", p256).with(|params| params.is_ca = IsCa::NoCa);
    let silent =
        Link::new("silent", p256).with(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let old = Link::new("old", p256).with(|params| params.not_after = (SystemTime::now() - DAY / 2).into());
    let early = Link::new("early", p256).with(|params| params.not_before = (SystemTime::now() + DAY).into());
    let for_mail = Link::new("mail", p256)
        .with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]);
    // The root allows nothing but leaves below it.
    let narrow =
        Link::new("narrow", p256).with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let lower = Link::new("lower", p256);
    let too_deep = Texts {
        certificate: lower.below(&narrow),
        key: lower.key.serialize_pem(),
        chain: String::new(),
        roots: narrow.root(),
    };
    // Another root of the same name: names fit, signatures do not.
    let namesake = Texts { roots: Link::new("root", p256).root(), ..of(&lower) };
    let mut long = vec![Link::new("0", p256)];
    let mut chain = String::new();
    for n in 1..=MAX_INTERMEDIATES + 1 {
        let next = Link::new(&n.to_string(), p256);
        chain.push_str(&next.below(&long[n - 1]));
        long.push(next);
    }
    let last = &long[long.len() - 1];
    let too_long = Texts {
        certificate: last.below(&long[long.len() - 2]),
        key: last.key.serialize_pem(),
        chain,
        roots: long[0].root(),
    };
    let with = |change: fn(&mut Texts)| {
        let mut texts = Texts::of(&good);
        change(&mut texts);
        texts
    };

    for (n, (texts, file, said)) in [
        (of(&leaf), CA_CERT, "it is no CA"),
        (of(&silent), CA_CERT, "key usage lacks keyCertSign"),
        (of(&old), CA_CERT, "expired at"),
        (of(&early), CA_CERT, "compare the clocks"),
        (of(&for_mail), CERT_CHAIN, "what it signs would not be believed"),
        (too_deep, CERT_CHAIN, "pathlen"),
        (namesake, CERT_CHAIN, "what it signs would not be believed"),
        (too_long, CERT_CHAIN, "more than 6 certificates"),
        (with(|t| t.certificate = String::new()), CA_CERT, "it holds no certificate"),
        (with(|t| t.certificate.push_str(&t.roots.clone())), CA_CERT, "2 certificates, not one"),
        (with(|t| t.certificate = t.key.clone()), CA_CERT, "it holds no certificate"),
        (with(|t| t.key = KeyPair::generate().unwrap().serialize_pem()), CA_KEY, "does not match"),
        (with(|t| t.key = t.certificate.clone()), CA_KEY, "it is no PEM of a private key"),
        (with(|t| t.key = "x".repeat(1024 * 1024 + 1)), CA_KEY, "larger than"),
        (with(|t| t.roots = "nothing".into()), ROOT_CERT, "it holds no certificate"),
        (with(|t| t.roots = made().root), CERT_CHAIN, "what it signs would not be believed"),
        (with(|t| t.chain = "-----BEGIN CERTIFICATE-----\nx".into()), CERT_CHAIN, "it is no PEM"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = texts.open().map(|_| ()).expect_err(&format!("{n}: {said}"));
        assert!(error.starts_with(&format!("{PLACE}, {file}: ")) && error.contains(said), "{said}: {error}");
        assert!(!error.contains("PRIVATE"), "{error}");
    }
    let missing = Texts { chain: good.root.clone(), roots: Link::new("x", p256).root(), ..Texts::of(&good) };
    let error = missing.open().map(|_| ()).unwrap_err();
    assert!(error.contains("the chain does not lead to a root in root-cert.pem"), "{error}");
    let later = SystemTime::now() + make::ROOT_LIFE + DAY;
    assert!(Texts::of(&good).open_at(later).is_err());
}

#[test]
fn an_end_that_is_near_is_told() {
    let ca = Texts::of(&made()).open().unwrap();
    assert_eq!(super::issuer::warning(&ca, SystemTime::now()), None);
    let said = super::issuer::warning(&ca, ca.not_after() - DAY).unwrap();
    assert!(said.contains("Secret a/b: the CA's certificate expires at"), "{said}");
    let said = super::issuer::warning(&ca, ca.root_not_after() - DAY).unwrap();
    assert!(said.contains("the last root expires at"), "{said}");
}

#[test]
fn a_request_is_taken_by_its_key_alone() {
    let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
    for key in [
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ] {
        assert!(public_key(&request(&key)).is_ok(), "{:?}", key.algorithm());
    }
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    assert_eq!(public_key(&request(&ed25519)).unwrap_err(), CsrError::Key);
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    assert_eq!(public_key(&request(&p521)).unwrap_err(), CsrError::Key);

    // Whoever changes a byte of it has not the key.
    let good = request(&KeyPair::generate().unwrap());
    let (_, pem) = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap();
    let proved = pem.contents;
    let armoured = |der: &[u8]| {
        use base64::Engine;
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
    };
    assert!(public_key(&armoured(&proved)).is_ok());
    let (_, read) = X509CertificationRequest::from_der(&proved).unwrap();
    let signed = read.certification_request_info.raw.len();
    let start = proved.windows(signed).position(|at| at == read.certification_request_info.raw).unwrap();
    for n in start..start + signed {
        let mut changed = proved.clone();
        changed[n] ^= 1;
        assert!(public_key(&armoured(&changed)).is_err(), "byte {n}");
    }
    for n in 0..proved.len() {
        assert!(public_key(&armoured(&proved[..n])).is_err(), "{n} bytes");
    }
    let followed = [proved.as_slice(), b"x"].concat();
    assert_eq!(public_key(&armoured(&followed)).unwrap_err(), CsrError::Malformed);
}
