//! What a caller can send too much of: it is refused, it costs little, and others do not notice.

use std::time::Duration;

use mesh_test::client::{self, Call, Conn, Protocol};

use crate::stage::{HOST, Stage};

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let stage = Stage::new();
    let _v1 = stage.replica("v1").await;
    let web = stage.web().await;

    let huge = "a".repeat(61 * 1024);
    for protocol in [Protocol::H1, Protocol::H2] {
        let mut conn = Conn::open(web.outbound(), protocol).await.unwrap();
        let reply = conn.send(&Call::get(HOST, "/").header("x-huge", &huge)).await.unwrap();
        assert_eq!((reply.status, reply.reason()), (431, Some("too_large")), "{protocol:?}");
        let reply = client::get(web.outbound(), HOST, "/").await.unwrap();
        assert_eq!(reply.status, 200);
    }
}

#[tokio::test]
async fn a_flood_of_resets_costs_little_and_others_are_served() {
    let stage = Stage::new();
    let _v1 = stage.replica("v1").await;
    let web = stage.web().await;
    assert_eq!(client::get(web.outbound(), HOST, "/").await.unwrap().status, 200);
    let before = web.proc.rss_kib().unwrap();

    let call = Call::get(HOST, "/delay/1000");
    let mut floods = 0;
    for _ in 0..20 {
        let Ok(mut conn) = Conn::open(web.outbound(), Protocol::H2).await else { continue };
        for _ in 0..500 {
            if conn.is_closed() {
                break;
            }
            // Long enough to be sent, too short to be answered: the stream is reset.
            let _ = tokio::time::timeout(Duration::from_micros(200), conn.start(&call)).await;
            floods += 1;
        }
    }
    assert!(floods > 20, "the flood was no flood");
    let reply = client::get(web.outbound(), HOST, "/").await.unwrap();
    assert_eq!(reply.status, 200);
    let grown = web.proc.rss_kib().unwrap().saturating_sub(before);
    assert!(grown < 64 * 1024, "the proxy grew by {grown} KiB under {floods} resets");
}
