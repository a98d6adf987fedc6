//! Where bytes are cut does not matter.

use proptest::prelude::*;

use super::*;

/// Requests, good and bad ones, and what is none.
fn said() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(&b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n"[..]),
        2 => Just(&b"POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"[..]),
        2 => Just(&b"PUT /c HTTP/1.1\r\nhost:a\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nx: y\r\n\r\n"[..]),
        2 => Just(&b"POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"[..]),
        1 => Just(&b"HEAD /a HTTP/1.1\nHost: a\n\n"[..]),
        1 => Just(&b"\r\n"[..]),
        1 => Just(&b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"[..]),
        1 => Just(&b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n"[..]),
        1 => Just(&b"POST /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"[..]),
        1 => Just(&b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"[..]),
        1 => Just(&b"GET\0"[..]),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// All that is answered to bytes that come in these pieces.
async fn answered(pieces: impl Iterator<Item = &[u8]>) -> String {
    let mut served = served(1 << 16);
    let mut all = Vec::new();
    for piece in pieces {
        if served.caller.write_all(piece).await.is_err() {
            break;
        }
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    // Everything is answered before the caller leaves, so that it is not left in the middle.
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    served.caller.shutdown().await.unwrap();
    served.caller.read_to_end(&mut all).await.unwrap();
    String::from_utf8(all).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_answers_are_the_same(said in said(), cuts in proptest::collection::vec(0_usize..300, 0..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let whole = answered([&*said].into_iter()).await;
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(said.len())).collect();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(said.len());
            let pieces = cuts.windows(2).map(|w| &said[w[0]..w[1]]);
            prop_assert_eq!(&answered(pieces).await, &whole);
            prop_assert_eq!(&answered(said.chunks(1)).await, &whole);
            Ok(())
        })?;
    }
}
