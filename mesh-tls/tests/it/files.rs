//! Identities from directories: files that somebody replaces, and the development CA.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_core::diagnostic::Effect;
use mesh_core::identity::SpiffeId;
use mesh_core::live::{self, Live};
use tokio::time::{Instant, timeout};
use tower_mesh_tls::dev_ca::{DevCa, DevIdentity, LEAF_LIFETIME, renew_at};
use tower_mesh_tls::file_identity::FileIdentity;
use tower_mesh_tls::modes::{Mode, TlsModes};
use tower_mesh_tls::{Clock, Credentials, TlsAccept, TlsConnect};

use crate::support::{Ca, Moved, id, mutual, nowhere, over_tcp};

/// Writes a whole identity, as a TLS secret has it.
fn write(dir: &Path, ca: &DevCa, account: &str) {
    let (certificate, key) = ca.issue_pem(&id(account)).unwrap();
    fs::write(dir.join("tls.crt"), certificate).unwrap();
    fs::write(dir.join("tls.key"), key).unwrap();
    fs::write(dir.join("ca.crt"), ca.certificate_pem()).unwrap();
}

fn serial(credentials: &Live<Credentials>) -> String {
    credentials.load().certificate().unwrap().serial.to_string()
}

/// Waits for the next publish, and says how long (by tokio's clock) it took.
async fn next(credentials: &Live<Credentials>, change: impl FnOnce()) -> Duration {
    let (before, mut changes) = (Instant::now(), credentials.changes());
    change();
    timeout(Duration::from_secs(60), changes.changed()).await.expect("nothing was published");
    before.elapsed()
}

#[tokio::test(start_paused = true)]
async fn replaced_files_are_taken_up_and_broken_ones_are_not() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    write(dir.path(), &ca.ca, "web");
    let source = FileIdentity::new(dir.path(), Clock::system());
    let live = source.live();
    assert_eq!(live.load().id(), Some(&id("web")));
    let first = serial(&live);
    tokio::spawn(source.run());

    let took = next(&live, || write(dir.path(), &ca.ca, "web")).await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let second = serial(&live);
    assert_ne!(first, second);
    assert_eq!((live.load().status().renewals, live.load().status().failures), (1, 0));

    let took = next(&live, || fs::write(dir.path().join("tls.crt"), "rubbish").unwrap()).await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let now = live.load_full();
    let error = now.status().last_error.clone().unwrap();
    assert_eq!(error.effect, Effect::LastGoodKept);
    assert!(error.to_string().contains("tls.crt: it holds no certificate"), "{error}");
    assert_eq!((serial(&live), now.status().failures), (second, 1));

    // The same complaint is made once.
    let mut changes = live.changes();
    assert!(timeout(Duration::from_secs(30), changes.changed()).await.is_err());

    next(&live, || write(dir.path(), &ca.ca, "other")).await;
    assert_eq!(live.load().id(), Some(&id("other")));
    assert!(live.load().status().last_error.is_none());

    next(&live, || fs::remove_file(dir.path().join("ca.crt")).unwrap()).await;
    assert!(live.load().status().last_error.as_ref().unwrap().message.contains("ca.crt: cannot be read"));
    assert_eq!(live.load().id(), Some(&id("other")));
}

/// Between the first and the last of three writes nothing fits; nobody hears of that.
#[tokio::test(start_paused = true)]
async fn files_that_are_half_replaced_are_not_complained_about() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    write(dir.path(), &ca.ca, "web");
    let source = FileIdentity::new(dir.path(), Clock::system());
    let live = source.live();
    tokio::spawn(source.run());
    let (certificate, key) = ca.ca.issue_pem(&id("web")).unwrap();
    fs::write(dir.path().join("tls.crt"), certificate).unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(live.load().status().last_error.is_none());
    next(&live, || fs::write(dir.path().join("tls.key"), key).unwrap()).await;
    assert_eq!((live.load().status().renewals, live.load().status().failures), (1, 0));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_flipped_symlink_is_seen() {
    use std::os::unix::fs::symlink;
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    for (version, account) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        write(&dir.path().join(version), &ca.ca, account);
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    let source = FileIdentity::new(dir.path(), Clock::system());
    let live = source.live();
    assert_eq!(live.load().id(), Some(&id("old")));
    tokio::spawn(source.run());
    let took = next(&live, || {
        symlink("..2", dir.path().join("..new")).unwrap();
        fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    })
    .await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert_eq!(live.load().id(), Some(&id("new")));
}

#[tokio::test(start_paused = true)]
async fn files_may_come_later_and_a_certificate_that_expires_stays() {
    let (moved, clock) = Moved::new();
    let (ca_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = DevCa::open_with(ca_dir.path(), clock.clone()).unwrap();
    let source = FileIdentity::new(dir.path(), clock.clone());
    let live = source.live();
    assert!(live.load().material().is_none());
    assert_eq!(live.load().status().last_error.as_ref().unwrap().effect, Effect::NotApplied);
    tokio::spawn(source.run());
    next(&live, || write(dir.path(), &ca, "web")).await;
    assert!(!live.load().expired(clock.now()));

    moved.by(LEAF_LIFETIME + Duration::from_secs(1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(live.load().expired(clock.now()));
    assert_eq!(live.load().id(), Some(&id("web")));

    // An expired one is not taken up.
    let old = serial(&live);
    let (certificate, key) = ca.issue_pem(&id("web")).unwrap();
    moved.by(LEAF_LIFETIME + Duration::from_secs(1));
    next(&live, || {
        fs::write(dir.path().join("tls.crt"), certificate).unwrap();
        fs::write(dir.path().join("tls.key"), key).unwrap();
    })
    .await;
    assert!(live.load().status().last_error.as_ref().unwrap().message.contains("the certificate expired at"));
    assert_eq!(serial(&live), old);
}

#[tokio::test]
async fn new_handshakes_use_the_new_certificate_and_open_connections_stay() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    write(dir.path(), &ca.ca, "reviews");
    let source = FileIdentity::new(dir.path(), Clock::system());
    let accept = TlsAccept::new(source.live(), Live::fixed(TlsModes::fixed(Mode::Strict)));
    let connect: TlsConnect = ca.connect("web");
    let call = || nowhere().tls(mutual(&["reviews"]));
    let (accepted, connected) = over_tcp(&accept, &connect, call()).await;
    let (mut old_server, mut old_client) = (accepted.unwrap(), connected.unwrap());

    let live = source.live();
    tokio::spawn(source.run());
    next(&live, || write(dir.path(), &ca.ca, "reviews")).await;
    let (_, connected) = over_tcp(&accept, &connect, call()).await;
    assert_ne!(
        connected.unwrap().peer.unwrap().fingerprint(),
        old_client.peer.as_ref().unwrap().fingerprint()
    );
    old_client.io.write_all(b"x").await.unwrap();
    assert_eq!(old_server.io.read_u8().await.unwrap(), b'x');
}

#[test]
fn many_who_start_at_once_share_one_ca() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/ca");
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| DevCa::open(&path).unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let first = made[0].certificate_pem();
    assert!(made.iter().all(|ca| ca.certificate_pem() == first));
    // Each can vouch for the others' workloads.
    for ca in &made {
        ca.material(&id("web")).unwrap();
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path.join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_ca_that_is_broken_is_named_and_never_replaced() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |clock: Clock| DevCa::open_with(dir.path(), clock).map(drop);
    open(Clock::system()).unwrap();
    let (moved, clock) = Moved::new();
    moved.by(Duration::from_secs(11 * 365 * 24 * 3600));
    let error = open(clock).unwrap_err().to_string();
    assert!(error.contains("ca.crt: the authority expired at"), "{error}");

    DevCa::open(other.path()).unwrap();
    fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
    let error = open(Clock::system()).unwrap_err().to_string();
    assert!(error.contains("ca.key: the private key does not match the certificate in"), "{error}");
    fs::write(dir.path().join("ca.key"), "rubbish").unwrap();
    let error = open(Clock::system()).unwrap_err().to_string();
    assert!(
        error.contains("ca.key: it holds no usable private key") && !error.contains("rubbish"),
        "{error}"
    );
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(open(Clock::system()).unwrap_err().to_string().contains("ca.key: cannot be read"));
    fs::write(dir.path().join("ca.crt"), "rubbish").unwrap();
    assert!(open(Clock::system()).unwrap_err().to_string().contains("ca.key: cannot be read"));

    // A process that died between the two files: nobody has seen that key's certificate.
    fs::remove_file(dir.path().join("ca.crt")).unwrap();
    fs::write(dir.path().join("ca.key"), "rubbish").unwrap();
    fs::write(dir.path().join("ca.new"), "rubbish").unwrap();
    open(Clock::system()).unwrap();
}

#[test]
fn renewal_is_drawn_around_half_of_the_time() {
    let start = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let at = |draw| renew_at(start, start + LEAF_LIFETIME, draw).duration_since(start).unwrap().as_secs();
    assert_eq!((at(0.0), at(0.5), at(1.0)), (1620, 1800, 1980));
    assert_eq!(renew_at(start, start - LEAF_LIFETIME, 0.3), start);
}

#[tokio::test(start_paused = true)]
async fn the_development_ca_renews_and_follows_the_account() {
    let (moved, clock) = Moved::new();
    let dir = tempfile::tempdir().unwrap();
    let (workload, who) = live::channel(None::<SpiffeId>);
    let source = DevIdentity::new(dir.path(), who, clock.clone());
    let live = source.live();
    assert!(live.load().material().is_none());
    tokio::spawn(source.run());
    tokio::task::yield_now().await;

    let took = next(&live, || workload.publish(Some(id("web")))).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(live.load().id(), Some(&id("web")));

    let took = next(&live, || workload.publish(Some(id("reviews")))).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(live.load().id(), Some(&id("reviews")));

    let mut changes = live.changes();
    moved.by(Duration::from_secs(1600));
    assert!(timeout(Duration::from_secs(5), changes.changed()).await.is_err(), "too early");
    let old = serial(&live);
    next(&live, || moved.by(Duration::from_secs(400))).await;
    assert_ne!(serial(&live), old);
    assert_eq!(live.load().status().renewals, 2);

    // The whole process slept: the clock is past the expiry.
    next(&live, || moved.by(3 * LEAF_LIFETIME)).await;
    assert!(!live.load().expired(clock.now()));

    // Another authority in the same place.
    let root =
        |live: &Live<Credentials>| live.load().material().unwrap().bundle().roots().next().unwrap().1.clone();
    let before = root(&live);
    let other = tempfile::tempdir().unwrap();
    DevCa::open_with(other.path(), clock.clone()).unwrap();
    next(&live, || {
        fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        fs::copy(other.path().join("ca.crt"), dir.path().join("ca.crt")).unwrap();
    })
    .await;
    assert_ne!(root(&live), before);

    // An authority that is broken leaves the last good certificate.
    fs::write(dir.path().join("ca.key"), "rubbish").unwrap();
    next(&live, || moved.by(LEAF_LIFETIME)).await;
    let now = live.load_full();
    assert_eq!(now.status().last_error.as_ref().unwrap().effect, Effect::LastGoodKept);
    assert_eq!(now.id(), Some(&id("reviews")));
    assert!(now.expired(clock.now()));

    // Mended: the next try is not far.
    fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
    next(&live, || moved.by(Duration::from_secs(6))).await;
    assert!(live.load().status().last_error.is_none() && !live.load().expired(clock.now()));
}
