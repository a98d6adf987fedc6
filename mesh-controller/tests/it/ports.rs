//! The ports of a whole control plane, before a stand-in for the API server.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use mesh_tls::{Clock, Pem, Svid, TlsMaterial, TrustBundle};
use mesh_xds::ca::RequestError;
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fake::Fake;
use crate::running::{Identity, PATIENCE, Running, code};
use crate::tokens::token;

const HOUR: Duration = Duration::from_secs(3600);
const TWO_MINUTES: Duration = Duration::from_secs(120);
const WEB: &str = "spiffe---cluster.local-ns-shop-sa-web";

async fn running() -> (Fake, Running, String) {
    let fake = Fake::start().await;
    let good = token("good", HOUR);
    fake.good(&good, "shop", "web", "web-1");
    let running = Running::ready(fake.client.clone(), &[]).await;
    (fake, running, good)
}

/// A certificate is what a workload of the mesh needs, whatever its request asked for.
pub(crate) fn is_of(identity: &Identity, id: &str, roots: &str) {
    let [leaf, between @ .., root] = identity.chain.as_slice() else { panic!("no chain") };
    assert_eq!(root, roots);
    let shown = [leaf.as_str(), &between.concat()].concat();
    let key = identity.key.serialize_pem();
    let svid = Svid::from_pem(Pem::new("leaf", shown.as_bytes()), Pem::new("key", key.as_bytes())).unwrap();
    assert_eq!(svid.id().as_str(), id);
    let bundle = TrustBundle::new().with_domain(
        "cluster.local".parse().unwrap(),
        Pem::new("roots", roots.as_bytes()),
        SystemTime::now(),
    );
    TlsMaterial::new(svid, bundle.unwrap(), &Clock::system()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).unwrap();
    let (_, cert) = X509Certificate::from_der(&pem.contents).unwrap();
    assert!(!cert.is_ca());
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1, "one URI and nothing else");
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
}

#[tokio::test]
async fn nothing_is_served_before_the_cluster_is_known() {
    let fake = Fake::start().await;
    let running = Running::start(fake.client.clone(), &[]);
    mesh_test::wait::until(PATIENCE, "the CA", async || {
        let (status, said) = running.admin("/ready").await;
        status == StatusCode::SERVICE_UNAVAILABLE && said == "not ready: the cluster has not been read yet\n"
    })
    .await;
    assert_eq!(running.admin("/live").await.0, StatusCode::OK);
    assert!(TcpStream::connect(running.args.listen).await.is_err());
    assert!(TcpStream::connect(running.args.webhook).await.is_err());
    running.synced.send_replace(true);
    mesh_test::wait::until(PATIENCE, "the ports", async || {
        TcpStream::connect(running.args.listen).await.is_ok()
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_is_the_tokens_whatever_the_request_says() {
    let (fake, running, good) = running().await;
    let identity = running.certificate(&good, TWO_MINUTES, None).await.unwrap();
    is_of(&identity, "spiffe://cluster.local/ns/shop/sa/web", &running.roots());

    // Renewed on a connection that shows it.
    let renewed = running.certificate(&good, TWO_MINUTES, Some(&identity)).await.unwrap();
    assert_ne!(renewed.chain[0], identity.chain[0]);

    let other = token("other", HOUR);
    fake.good(&other, "shop", "reviews", "reviews-1");
    fake.away(true);
    for (token, shown, refused) in [
        ("made up", None, false),
        // It has been good a moment ago.
        (good.as_str(), None, true),
    ] {
        match running.certificate(token, TWO_MINUTES, shown).await {
            Ok(_) => assert!(refused),
            Err(error) => assert!(matches!(error, RequestError::Unavailable(_)), "{error}"),
        }
    }
    fake.away(false);
    for (token, shown) in [("made up", None), (other.as_str(), Some(&identity))] {
        let error = running.certificate(token, TWO_MINUTES, shown).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, RequestError::Refused(_)), "{error}");
    }
    let counted = |reason: &str| format!("mesh_controller_certificates_refused_total{{reason=\"{reason}\"}}");
    assert_eq!(running.metric("mesh_controller_certificates_issued_total").await, 3);
    for reason in ["not_authenticated", "another_identity", "unavailable"] {
        assert_eq!(running.metric(&counted(reason)).await, 1, "{reason}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_stream_is_its_tokens_or_its_certificates() {
    let (fake, running, good) = running().await;
    assert_eq!(running.who(Some(&good), None).await.unwrap(), [WEB, "shop-web-1"]);
    assert_eq!(code(running.who(None, None).await), Code::Unauthenticated);
    assert_eq!(code(running.who(Some("made up"), None).await), Code::Unauthenticated);

    // The certificate tells the pod as well.
    let web = running.certificate(&good, TWO_MINUTES, None).await.unwrap();
    assert_eq!(running.who(None, Some(&web)).await.unwrap(), [WEB, "shop-web-1"]);
    assert_eq!(running.who(Some(&good), Some(&web)).await.unwrap(), [WEB, "shop-web-1"]);
    // A bad token is not mended by a certificate, and another's is a contradiction.
    assert_eq!(code(running.who(Some("made up"), Some(&web)).await), Code::Unauthenticated);
    let other = token("other", HOUR);
    fake.good(&other, "other", "web", "web-1");
    assert_eq!(code(running.who(Some(&other), Some(&web)).await), Code::Unauthenticated);

    // Who shows what another authority has signed has shown nothing.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = "spiffe://cluster.local/ns/shop/sa/web".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    let pem = params.self_signed(&key).unwrap().pem();
    let stranger = Identity { chain: vec![pem.clone(), pem], key };
    assert_eq!(code(running.who(None, Some(&stranger)).await), Code::Unauthenticated);
    assert_eq!(running.who(Some(&good), Some(&stranger)).await.unwrap(), [WEB, "shop-web-1"]);

    // Nobody can be asked: what was known counts, else the certificate, else it is for later.
    fake.away(true);
    assert_eq!(running.who(Some(&good), None).await.unwrap(), [WEB, "shop-web-1"]);
    let unseen = token("unseen", HOUR);
    assert_eq!(running.who(Some(&unseen), Some(&web)).await.unwrap(), [WEB, "shop-web-1"]);
    assert_eq!(code(running.who(Some(&unseen), None).await), Code::Unavailable);
    running.stop().await;
}

#[tokio::test]
async fn the_admin_pages_show_the_proxies() {
    let (_fake, running, good) = running().await;
    let (status, page) = running.admin("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.ends_with("# EOF\n") && page.contains("mesh_controller_proxies 0"), "{page}");
    let stream = running.stream(Some(&good), None).await.unwrap();
    assert_eq!(running.metric("mesh_controller_proxies").await, 1);
    assert_eq!(running.metric("mesh_controller_pushes_total").await, 1);
    let (status, page) = running.admin("/debug/proxies?workload=shop/web-1").await;
    assert_eq!(status, StatusCode::OK);
    let page: Value = serde_json::from_str(&page).unwrap();
    let proxy = &page["proxies"][0];
    assert_eq!(proxy["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(proxy["workload"], "shop/web-1");
    assert_eq!(proxy["types"][0]["type"], "Address");
    assert_eq!(proxy["types"][0]["names"], serde_json::json!(["10.0.0.1"]));
    assert!(proxy["types"][0]["inFlightSeconds"].is_number(), "it has not been taken yet: {proxy}");
    let (_, page) = running.admin("/debug/proxies?workload=shop/web-2").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!((&page["connected"], &page["shown"]), (&1.into(), &0.into()));
    drop(stream);
    assert_eq!(running.admin("/nowhere").await.0, StatusCode::NOT_FOUND);
    running.stop().await;
}

#[tokio::test]
async fn a_proxy_that_says_nothing_is_no_obstacle_to_the_end() {
    let (_fake, running, _) = running().await;
    let silent = TcpStream::connect(running.proxies_address()).await.unwrap();
    running.stop().await;
    drop(silent);
}
