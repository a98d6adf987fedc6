//! The authority in its Secret.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mesh_controller::authority::keeper::{Keeper, KeeperSettings};
use mesh_controller::authority::make;
use mesh_controller::metrics::Metrics;
use mesh_core::identity::TrustDomain;
use mesh_tls::Clock;
use serde_json::{Value, json};

use crate::fake::Fake;

const MADE: &str = "/api/v1/namespaces/mesh-system/secrets/mesh-ca";
const PLUGGED: &str = "/api/v1/namespaces/mesh-system/secrets/cacerts";
const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn settings() -> KeeperSettings {
    KeeperSettings {
        namespace: "mesh-system".into(),
        made: "mesh-ca".into(),
        plugged: "cacerts".into(),
        trust_domain: TrustDomain::default(),
    }
}

fn keeper(client: kube::Client, clock: Clock) -> (Keeper, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    (Keeper::new(client, settings(), clock, Arc::clone(&metrics)), metrics)
}

/// A clock that stands still until it is moved.
fn clock() -> (Clock, impl Fn(Duration)) {
    let start = SystemTime::now();
    let passed = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&passed);
    let clock = Clock::from_fn(move || start + Duration::from_secs(read.load(Ordering::Relaxed)));
    (clock, move |by: Duration| {
        passed.fetch_add(by.as_secs(), Ordering::Relaxed);
    })
}

fn secret(files: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<_, _> =
        files.iter().map(|(name, text)| ((*name).to_owned(), json!(BASE64_STANDARD.encode(text)))).collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "mesh-system"}, "data": data})
}

/// Several controllers that start at once have one authority, whoever wrote it.
pub(crate) async fn start_at_once(client: kube::Client) {
    let mut looks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        looks.spawn(async move {
            let (mut keeper, _) = keeper(client, Clock::system());
            let authority = keeper.authority();
            keeper.look().await.unwrap();
            let ca = authority.borrow().clone().unwrap();
            (ca.roots().to_string(), format!("{:?}", ca.not_after()))
        });
    }
    let all = looks.join_all().await;
    assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
}

#[tokio::test]
async fn two_that_start_at_once_make_one() {
    let fake = Fake::start().await;
    start_at_once(fake.client.clone()).await;
    assert_eq!(
        fake.get(MADE).unwrap()["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "mesh-controller"
    );
}

#[tokio::test]
async fn what_is_there_is_kept_and_put_back() {
    let fake = Fake::start().await;
    let (mut keeper, metrics) = keeper(fake.client.clone(), Clock::system());
    let mut authority = keeper.authority();
    assert!(authority.borrow().is_none());
    keeper.look().await.unwrap();
    let roots = authority.borrow_and_update().clone().unwrap().roots().clone();
    keeper.look().await.unwrap();
    assert!(!authority.has_changed().unwrap(), "nothing is different");
    assert!(!metrics.page().contains("ca_expiry_timestamp_seconds 0\n"));

    // Somebody deletes it: the same comes back, not another root.
    fake.delete(MADE);
    keeper.look().await.unwrap();
    assert!(!authority.has_changed().unwrap());
    assert!(fake.get(MADE).is_some());

    // The API server is away: what is in force stays.
    fake.away(true);
    let error = keeper.look().await.unwrap_err().to_string();
    assert!(error.contains("Secret mesh-system/cacerts") && error.contains("it is away"), "{error}");
    assert_eq!(authority.borrow().clone().unwrap().roots(), &roots);
}

#[tokio::test]
async fn an_intermediate_is_renewed_in_time_and_the_root_stays() {
    let fake = Fake::start().await;
    let (time, pass) = clock();
    let (mut one, _) = keeper(fake.client.clone(), time.clone());
    let (mut other, _) = keeper(fake.client.clone(), time.clone());
    let authority = one.authority();
    let now = || authority.borrow().clone().unwrap();
    one.look().await.unwrap();
    let first = now();

    pass(make::INTERMEDIATE_LIFE / 100 * (make::RENEW_AFTER - 1));
    one.look().await.unwrap();
    assert!(now().is_same(&first), "not yet");
    pass(make::INTERMEDIATE_LIFE / 50);
    let (a, b) = tokio::join!(one.look(), other.look());
    a.unwrap();
    b.unwrap();
    let second = now();
    assert_eq!(second.roots(), first.roots());
    assert!(second.not_after() > first.not_after());
    assert!(other.authority().borrow().clone().unwrap().is_same(&second), "both renewed alike");

    // All were away for longer than it lasts.
    pass(make::INTERMEDIATE_LIFE + DAY);
    one.look().await.unwrap();
    assert_eq!(now().roots(), first.roots());
    assert!(now().not_after() > second.not_after());
}

#[tokio::test]
async fn a_plugged_in_authority_goes_before_and_is_taken_up_while_running() {
    let fake = Fake::start().await;
    let (mut keeper, _) = keeper(fake.client.clone(), Clock::system());
    let authority = keeper.authority();
    keeper.look().await.unwrap();
    let made = authority.borrow().clone().unwrap();

    let own = make::authority(&TrustDomain::default(), SystemTime::now()).unwrap();
    let files = [
        ("ca-cert.pem", own.certificate.as_str()),
        ("ca-key.pem", &own.key),
        ("cert-chain.pem", &format!("{}{}", own.certificate, own.root)),
        ("root-cert.pem", &own.root),
    ];
    // One that cannot be used is not worked around: that would be another root in secret.
    let mut broken = files;
    broken[1].1 = &made.place()[..4];
    fake.put(PLUGGED, secret(&broken));
    let error = keeper.look().await.unwrap_err().to_string();
    assert!(error.starts_with("Secret mesh-system/cacerts, ca-key.pem: it is no PEM"), "{error}");
    assert!(authority.borrow().clone().unwrap().is_same(&made));
    fake.put(PLUGGED, secret(&files[..2]));
    let error = keeper.look().await.unwrap_err().to_string();
    assert_eq!(error, "Secret mesh-system/cacerts, root-cert.pem: the Secret does not have it");

    fake.put(PLUGGED, secret(&files));
    keeper.look().await.unwrap();
    let plugged = authority.borrow().clone().unwrap();
    assert_eq!(plugged.place(), "Secret mesh-system/cacerts");
    assert_ne!(plugged.roots(), made.roots());
}
