//! Against programs that are none of ours.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use mesh_core::facts::{LocalAddr, PeerAddr};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_mesh_tls::AcceptedStream;
use tower_mesh_tls::modes::Mode;

use crate::support::{Ca, id};

/// `openssl s_client` with a certificate of the mesh's CA is served and sees whom it talks to; with one of
/// another CA it fails in the handshake.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs openssl"]
async fn openssl_is_served_with_the_meshs_certificate_only() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    for (ca, good) in [(&ours, true), (&theirs, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = ca.ca.issue_pem(&id("web")).unwrap();
        fs::write(dir.path().join("crt"), certificate).unwrap();
        fs::write(dir.path().join("key"), key).unwrap();
        fs::write(dir.path().join("ca"), ours.ca.certificate_pem()).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut child = Command::new("openssl")
            .current_dir(dir.path())
            .args(["s_client", "-connect", &address.to_string(), "-cert", "crt", "-key", "key"])
            .args(["-CAfile", "ca", "-showcerts", "-ign_eof"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        let (io, peer) = listener.accept().await.unwrap();
        let stream = AcceptedStream::new(io, PeerAddr(peer), LocalAddr(address));
        let accepted = ours.accept("reviews", Mode::Strict).oneshot(stream).await;
        assert_eq!(accepted.is_ok(), good);
        if let Ok(mut accepted) = accepted {
            assert_eq!(accepted.connection.peer().unwrap().id(), &id("web"));
            accepted.io.write_all(b"served by the mesh\n").await.unwrap();
            accepted.io.shutdown().await.unwrap();
        }
        let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.contains("served by the mesh"), good, "{text}");
        if good {
            assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
            let leaf = dir.path().join("leaf");
            let start = text.find("-----BEGIN CERTIFICATE").unwrap();
            fs::write(&leaf, &text[start..]).unwrap();
            let shown = Command::new("openssl")
                .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
                .arg(&leaf)
                .output()
                .unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(shown.contains(&format!("URI:{}", id("reviews"))), "{shown}");
        } else {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(errors.contains("alert"), "{errors}");
        }
    }
}
