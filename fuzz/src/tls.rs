//! What a peer says before and during a handshake.

use std::io::Read;

use mesh_core::identity::SpiffeId;
use mesh_tls::alpn::is_mesh_alpn;
use mesh_tls::hello::{MAX_CLIENT_HELLO, Sniff, client_hello as read_hello, may_be_tls, sniff};
use mesh_tls::sni::{MAX_SNI, OutboundSni, outbound_sni};
use mesh_tls::{Pem, Svid, spiffe_id_of};

/// An identity that is read from a certificate stands in it, letter by letter.
///
/// The bytes are a certificate in DER, or in PEM where they start like it.
pub fn certificate(data: &[u8]) {
    check(spiffe_id_of(data).ok(), data);
    if data.starts_with(b"-----") {
        let _ = Svid::from_pem(Pem::new("fuzz.crt", data), Pem::new("fuzz.key", data));
        for der in pem(data) {
            check(spiffe_id_of(&der).ok(), &der);
        }
    }
}

fn check(id: Option<SpiffeId>, der: &[u8]) {
    if let Some(id) = id {
        let text = id.as_str().as_bytes();
        assert!(der.windows(text.len()).any(|w| w == text), "{id} stands nowhere in the certificate");
    }
}

fn pem(data: &[u8]) -> Vec<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::pem_slice_iter(data).flatten().map(|der| der.to_vec()).collect()
}

/// An answer is never taken back as more bytes arrive, does not depend on how the hello is cut into
/// records, and agrees with what rustls reads.
pub fn client_hello(data: &[u8]) {
    let data = data.get(..MAX_CLIENT_HELLO).unwrap_or(data);
    let answer = sniff(data);
    for cut in [1, 2, 5, 6, 9, 10, data.len() / 2, data.len().saturating_sub(1)] {
        let early = sniff(data.get(..cut).unwrap_or(data));
        assert!(early == Sniff::NeedMore || early == answer, "{early:?} became {answer:?}");
    }
    assert!(may_be_tls(data) || answer == Sniff::NotTls);
    if data.len() == MAX_CLIENT_HELLO {
        assert_ne!(answer, Sniff::NeedMore, "asks for more than there may be");
    }
    if let Sniff::ClientHello(hello) = &answer
        && let Some(sni) = &hello.sni
    {
        assert!(sni.bytes().all(|b| b.is_ascii_graphic()));
        let _ = OutboundSni::parse(sni);
    }
    against_rustls(data, &answer);

    // The same bytes as the body of a hello, in one record and in two.
    let body = data.get(..8192).unwrap_or(data);
    let want = read_hello(body).map_or(Sniff::NotTls, Sniff::ClientHello);
    let mut message = vec![1];
    message.extend(u32::try_from(body.len()).unwrap_or_default().to_be_bytes().iter().skip(1));
    message.extend(body);
    let cut = message.len() / 3;
    for parts in [&[&*message][..], &[&message[..cut], &message[cut..]][..]] {
        let mut framed = Vec::new();
        for part in parts {
            framed.extend([0x16, 3, 1]);
            framed.extend(u16::try_from(part.len()).unwrap_or_default().to_be_bytes());
            framed.extend(*part);
        }
        assert_eq!(sniff(&framed), want);
        against_rustls(&framed, &want);
    }
}

/// Whoever terminates TLS behind us must not read another name or protocol than we did.
fn against_rustls(data: &[u8], ours: &Sniff) {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = data;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut (&mut rest as &mut dyn Read)) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            Err(_) => return,
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello();
                let hello = match ours {
                    Sniff::ClientHello(hello) => hello,
                    Sniff::TooLarge => return,
                    other => panic!("rustls reads a ClientHello where we find {other:?}"),
                };
                let name = hello.sni.as_deref().map(str::to_ascii_lowercase);
                if let Some(theirs) = theirs.server_name() {
                    assert_eq!(name, Some(theirs.to_ascii_lowercase()));
                }
                let protocols: Vec<&[u8]> = theirs.alpn().into_iter().flatten().collect();
                assert_eq!(hello.protocols, protocols.len());
                assert_eq!(hello.mesh, protocols.iter().any(|p| is_mesh_alpn(p)));
                return;
            }
        }
    }
}

/// A server name is read as it was built, and built as it was read.
///
/// The text is a server name; or three lines: port, subset, host.
pub fn sni(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    if let Some(sni) = OutboundSni::parse(text) {
        assert!(text.len() <= MAX_SNI && sni.port > 0 && !sni.host.is_empty() && !sni.subset.contains('.'));
        assert_eq!(format!("outbound_.{}_.{}_.{}", sni.port, sni.subset, sni.host), text);
        if let Ok(built) = outbound_sni(sni.port, sni.subset, sni.host) {
            assert_eq!(built, text);
        }
    }
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (port, subset, host) = (next().parse().unwrap_or(80), next(), next());
    match outbound_sni(port, subset, host) {
        Ok(name) => {
            assert!(name.len() <= MAX_SNI);
            assert_eq!(OutboundSni::parse(&name), Some(OutboundSni { port, subset, host }));
        }
        Err(error) => assert!(error.to_string().len() < 8 * 1024, "a name is quoted without bound"),
    }
}
