//! Certificate and bundle with everything that TLS needs, built and checked before it is put in force.
//!
//! TLS 1.3 only, with an explicit crypto provider (no process-wide default is read or set). Session
//! resumption is off on both sides: a resumed session would not be verified again.

use std::fmt;
use std::sync::{Arc, OnceLock};

use mesh_core::identity::TrustDomain;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

use crate::alpn::{MeshAlpn, SERVER_ALPN};
use crate::bundle::TrustBundle;
use crate::clock::Clock;
use crate::error::MaterialError;
use crate::svid::Svid;
use crate::verify::{PeerVerifier, told};

/// A workload's identity in force: what it shows and whom it believes.
#[derive(Clone)]
pub struct TlsMaterial {
    svid: Svid,
    bundle: TrustBundle,
    server: Arc<ServerConfig>,
    clients: [Arc<ClientConfig>; 4],
}

/// The crypto provider, made once; it holds tables and no state.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// SHA-256, from the crypto provider.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(bytes));
    hash.and_then(|h| h.as_ref().try_into().ok()).unwrap_or_default()
}

impl TlsMaterial {
    /// Checks that `svid` is valid now and leads to `bundle`, as a peer with the same bundle would in
    /// either role, and makes everything that TLS needs.
    ///
    /// # Errors
    /// When it is not valid now (with the times), or does not lead to the roots of its own trust domain.
    pub fn new(svid: Svid, bundle: TrustBundle, clock: &Clock) -> Result<Self, MaterialError> {
        let now = clock.now();
        let file = || svid.file.to_string();
        if now > svid.not_after() {
            return Err(MaterialError::Expired { file: file(), not_after: svid.not_after(), now });
        }
        if now < svid.not_before() {
            return Err(MaterialError::NotYetValid { file: file(), not_before: svid.not_before(), now });
        }
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(PeerVerifier::new(bundle.clone(), svid.id().clone(), algorithms));
        let untrusted = |e: rustls::Error| MaterialError::Untrusted {
            file: file(),
            bundle_file: bundle
                .of(svid.id().trust_domain())
                .map_or_else(|| "the trust bundle".to_owned(), |roots| roots.file.to_string()),
            reason: told(&e),
        };
        if let Some((leaf, rest)) = svid.certified().cert.split_first() {
            verifier.check_server(leaf, rest, clock.unix()).map_err(untrusted)?;
            verifier.check_client(leaf, rest, clock.unix()).map_err(untrusted)?;
        }
        let tls = |e: rustls::Error| MaterialError::Tls { file: file(), reason: e.to_string() };
        let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(svid.certified())));

        let versions = &[&rustls::version::TLS13];
        let time = Arc::new(clock.clone());
        let mut server = ServerConfig::builder_with_details(Arc::clone(&provider), time.clone())
            .with_protocol_versions(versions)
            .map_err(tls)?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(resolver.clone());
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = SERVER_ALPN.iter().map(|name| name.to_vec()).collect();

        let mut client = ClientConfig::builder_with_details(provider, time)
            .with_protocol_versions(versions)
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(resolver);
        client.resumption = Resumption::disabled();
        let clients = MeshAlpn::ALL.map(|kind| {
            let mut config = client.clone();
            config.alpn_protocols = kind.offers().iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        });
        Ok(Self { server: Arc::new(server), clients, svid, bundle })
    }

    /// The certificate shown to others.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// Who is believed.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The trust domain of the workload itself.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        TrustDomain::new(self.svid.id().trust_domain()).ok()
    }

    pub(crate) fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    pub(crate) fn client_config(&self, alpn: MeshAlpn) -> &Arc<ClientConfig> {
        let [http1, carried, http2, tcp] = &self.clients;
        match alpn {
            MeshAlpn::Http1 => http1,
            MeshAlpn::Carried => carried,
            MeshAlpn::Http2 => http2,
            MeshAlpn::Tcp => tcp,
        }
    }
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("svid", &self.svid)
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}
