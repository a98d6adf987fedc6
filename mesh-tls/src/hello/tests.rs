use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;

use super::*;

/// What rustls sends with these protocols and this name.
fn hello_of(alpn: &[&[u8]], name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|n| n.to_vec()).collect();
    let name = ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same hello in records of `size` bytes.
fn cut(hello: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in hello[RECORD_HEADER..].chunks(size) {
        out.extend([HANDSHAKE, 3, 1]);
        out.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend(part);
    }
    out
}

const NAME: &str = "outbound_.9080_._.reviews.default.svc.cluster.local";

#[test]
fn istios_names_are_told_from_an_applications() {
    for (alpn, mesh) in [
        (&[b"istio-peer-exchange".as_slice(), b"istio"][..], true),
        (&[b"http/1.1", b"istio-http/1.1"], true),
        (&[b"h2", b"http/1.1"], false),
        (&[], false),
    ] {
        let Sniff::ClientHello(hello) = sniff(&hello_of(alpn, NAME)) else { panic!("{alpn:?}") };
        assert_eq!((hello.mesh, hello.protocols), (mesh, alpn.len()));
        assert_eq!(hello.sni.as_deref(), Some(NAME));
    }
}

#[test]
fn a_hello_that_dribbles_in_is_waited_for() {
    let whole = hello_of(&[b"istio"], NAME);
    for n in 0..whole.len() {
        assert_eq!(sniff(&whole[..n]), Sniff::NeedMore, "{n} of {}", whole.len());
    }
    let mut more = whole.clone();
    more.extend(b"early");
    assert!(matches!(sniff(&more), Sniff::ClientHello(_)));
}

#[test]
fn a_hello_in_several_records_is_joined_up_to_the_bound() {
    let whole = hello_of(&[b"istio"], NAME);
    let size = whole.len().div_ceil(MAX_HELLO_RECORDS - 1);
    let Sniff::ClientHello(hello) = sniff(&cut(&whole, size)) else { panic!() };
    assert!(hello.mesh);
    assert_eq!(sniff(&cut(&whole, 1)), Sniff::TooLarge);
}

#[test]
fn an_oversize_hello_is_told_at_its_header_and_at_the_bound() {
    let mut long = vec![HANDSHAKE, 3, 1, 0x40, 0, CLIENT_HELLO, 0, 0x40, 1];
    assert_eq!(sniff(&long), Sniff::TooLarge);
    long[8] = 0;
    long.resize(MAX_CLIENT_HELLO - 1, 0);
    assert_eq!(sniff(&long), Sniff::NeedMore);
    long.push(0);
    assert_eq!(sniff(&long), Sniff::TooLarge);
}

#[test]
fn what_only_starts_like_tls_is_not_tls() {
    for bytes in [
        &b"\x16\x02"[..],
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x15\x03\x01",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
    ] {
        assert_eq!(sniff(bytes), Sniff::NotTls, "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = sniff(&bytes);
        let _ = client_hello(&bytes);
        let mut framed = vec![HANDSHAKE, 3, 1, 0x10, 0, CLIENT_HELLO, 0];
        framed.extend(&bytes);
        let _ = sniff(&framed);
    }

    #[test]
    fn a_changed_byte_is_no_panic(at in 0usize..400, to in any::<u8>()) {
        let mut hello = hello_of(&[b"istio"], NAME);
        if let Some(b) = hello.get_mut(at) { *b = to; }
        let _ = sniff(&hello);
    }

    #[test]
    fn more_bytes_never_take_an_answer_back(extra in proptest::collection::vec(any::<u8>(), 0..50)) {
        let mut bytes = hello_of(&[b"istio-h2", b"h2"], NAME);
        let answer = sniff(&bytes);
        bytes.extend(extra);
        prop_assert_eq!(sniff(&bytes), answer);
    }
}
