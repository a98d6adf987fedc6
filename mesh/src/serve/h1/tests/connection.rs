//! How a connection goes on, and how it ends.

use super::*;

#[tokio::test]
async fn requests_follow_one_another_also_unasked() {
    let mut served = served(1 << 16);
    served.say("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(served.answer().await.1, "GET /a ");
    // Three at once, the second with a body, the third in chunks.
    served
        .say(
            "GET /b HTTP/1.1\r\nHost: a\r\n\r\nPOST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
             POST /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nx: y\r\n\r\n\
             \r\nGET /e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
    for want in ["GET /b ", "POST /c hello", "POST /d abcde {\"x\": \"y\"}"] {
        let (head, body) = served.answer().await;
        assert!(!head.contains("connection"), "{head}");
        assert_eq!(body, want);
    }
    let (head, body) = served.answer().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!((body.as_str(), served.rest().await.as_str()), ("GET /e ", ""));
    assert!(matches!(served.task.await.unwrap(), Ok(Ended::Done)));
}

#[tokio::test]
async fn http_1_0_ends_with_its_answer_unless_it_asks() {
    let mut one = served(1 << 16);
    one.say("GET /a HTTP/1.0\r\n\r\n").await;
    assert_eq!(one.rest().await, "HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\nGET /a ");
    let mut two = served(1 << 16);
    for _ in 0..2 {
        two.say("GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").await;
        assert_eq!(
            two.answer().await.0,
            "HTTP/1.0 200 OK\r\ncontent-length: 7\r\nconnection: keep-alive\r\n\r\n"
        );
    }
    // Without chunks the end of the connection is the body's.
    let mut three = served(1 << 16);
    three.say("POST /stream HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(three.rest().await, "HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc");
}

#[tokio::test]
async fn a_body_streams_there_and_back() {
    let mut served = served(1 << 16);
    served.say("POST /stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    assert!(served.head().await.contains("transfer-encoding: chunked"));
    let mut chunk = [0; 8];
    served.caller.read_exact(&mut chunk).await.unwrap();
    assert_eq!(&chunk, b"3\r\nabc\r\n");
    served.say("2\r\nde\r\n0\r\n\r\nGET /empty HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut rest = [0; 12];
    served.caller.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"2\r\nde\r\n0\r\n\r\n");
    assert_eq!(served.answer().await.0, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
}

/// What is not read is not taken from the caller: it has to wait.
#[tokio::test]
async fn a_slow_reader_holds_its_caller_up() {
    let (mut caller, io) = duplex(1024);
    let (got, mut take) = tokio::sync::mpsc::channel::<Request<Body>>(1);
    tokio::spawn(async move {
        let service = |request: Request<Body>| {
            let got = got.clone();
            async move {
                got.send(request).await.unwrap();
                std::future::pending::<Result<Response<Body>, Infallible>>().await
            }
        };
        let _ = serve(io, &SETTINGS, service, std::future::pending()).await;
    });
    caller.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
    let mut request = take.recv().await.unwrap();
    let sending = tokio::spawn(async move {
        caller.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        caller
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!sending.is_finished(), "a million bytes went somewhere");
    let mut read = 0;
    while read < 1_000_000 {
        read += request.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, 1_000_000);
    assert!(http_body::Body::is_end_stream(request.body()));
    sending.await.unwrap();
}

#[tokio::test]
async fn who_waits_to_send_is_told_when_somebody_wants_it() {
    let mut one = served(1 << 16);
    one.say("POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n").await;
    assert_eq!(one.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    one.say("ok").await;
    assert_eq!(one.answer().await.1, "POST /a ok");
    // Nobody wants it: what comes next nobody knows, so that nothing may.
    one.say("POST /blind HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    let (head, body) = one.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("connection: close\r\n"), "{head}");
    assert_eq!((body.as_str(), one.rest().await.as_str()), ("blind", ""));
    // Without a body there is nothing to wait for, and HTTP/1.0 knows of none of it.
    let mut two = served(1 << 16);
    two.say("GET /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(two.answer().await.1, "GET /a ");
    two.say("POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(two.answer().await.1, "POST /a ok");
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_read_out_or_ends_the_connection() {
    let mut one = served(1 << 16);
    one.say("POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").await;
    assert_eq!(one.answer().await.1, "blind");
    one.say("lloGET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(one.answer().await.1, "GET /a ");

    // More than that: the answer is there, whatever comes.
    let mut two = served(1 << 10);
    two.say("POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n").await;
    let (mut read, mut write) = tokio::io::split(two.caller);
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while write.write_all(&[b'x'; 1024]).await.is_ok() {
            sent += 1024;
        }
        sent
    });
    let mut all = String::new();
    read.read_to_string(&mut all).await.unwrap();
    assert!(all.ends_with("\r\n\r\nblind"), "{all}");
    two.task.await.unwrap().unwrap();
    drop(read);
    let sent = sending.await.unwrap();
    assert!(sent <= 3 * MAX_DRAINED, "{sent} bytes were taken");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_has_no_time() {
    let mut served = served(1 << 10);
    served.say("POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx").await;
    let started = Instant::now();
    assert_eq!(served.answer().await.1, "blind");
    assert_eq!(served.rest().await, "");
    assert_eq!(started.elapsed(), DRAIN_TIME);
    drop(served.caller);
    served.task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_from_the_last_answer_on() {
    let mut served = served(1 << 16);
    let second = Duration::from_secs(1);
    for _ in 0..3 {
        tokio::time::sleep(second * 20).await;
        served.say("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(served.answer().await.1, "GET /a ");
    }
    let started = Instant::now();
    tokio::time::sleep(second * 10).await;
    served.say("GET /a HTTP/1.1\r\n").await;
    assert_eq!(served.rest().await, "");
    assert_eq!(started.elapsed().as_secs(), 30);
    assert!(matches!(served.task.await.unwrap(), Err(Error::Late)));
}

#[tokio::test]
async fn who_leaves_takes_the_request_along() {
    // In both directions, or in one: nobody waits for an answer who has hung up.
    for half in [true, false] {
        let mut one = served(1 << 16);
        one.say("GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::task::yield_now().await;
        if half {
            one.caller.shutdown().await.unwrap();
        } else {
            drop(one.caller);
        }
        assert!(matches!(one.task.await.unwrap(), Err(Error::Io(_))), "{half}");
    }
    // Before a request, and between two, it is no error; amid a head it is.
    for (said, well) in [("", true), ("GET /a HTTP/1.1\r\nHost: a\r\n\r\n", true), ("GET /a HT", false)] {
        let mut one = served(1 << 16);
        one.say(said).await;
        if said.ends_with("\r\n\r\n") {
            one.answer().await;
        }
        one.caller.shutdown().await.unwrap();
        assert_eq!(one.rest().await, "");
        assert_eq!(one.task.await.unwrap().is_ok(), well, "{said:?}");
    }
    // Amid a body whoever reads it learns of it.
    let mut one = served(1 << 16);
    one.say("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").await;
    one.caller.shutdown().await.unwrap();
    assert!(one.rest().await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_was_begun() {
    // An idle connection lingers, and a request that comes meanwhile is answered as the last one.
    for ask in [true, false] {
        let mut one = served(1 << 16);
        one.say("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(!one.answer().await.0.contains("close"));
        let started = Instant::now();
        one.stop.take().unwrap().send(()).unwrap();
        if ask {
            tokio::time::sleep(Duration::from_millis(100)).await;
            one.say("GET /b HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let (head, body) = one.answer().await;
            assert!(head.contains("connection: close\r\n"), "{head}");
            assert_eq!(body, "GET /b ");
        }
        assert_eq!(one.rest().await, "");
        let millis = started.elapsed().as_millis();
        assert_eq!(millis, if ask { 100 } else { 500 });
        assert!(matches!(one.task.await.unwrap(), Ok(Ended::Done)));
    }
    // A request that had begun is answered, however long it takes.
    let mut one = served(1 << 16);
    one.say("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\no").await;
    tokio::task::yield_now().await;
    one.stop.take().unwrap().send(()).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    one.say("k").await;
    let (head, body) = one.answer().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!((body.as_str(), one.rest().await.as_str()), ("POST /a ok", ""));
}

#[tokio::test]
async fn a_request_for_another_protocol_is_given_back_unread() {
    for request in [
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst",
        "CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\nfirst",
    ] {
        let mut one = served(1 << 16);
        one.say("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(one.answer().await.1, "GET /a ");
        one.say(request).await;
        let Ok(Ended::Upgrade(mut io)) = one.task.await.unwrap() else { panic!("{request}") };
        let mut all = vec![0; request.len()];
        io.read_exact(&mut all).await.unwrap();
        assert_eq!(all, request.as_bytes());
    }
}

#[tokio::test]
async fn an_answer_without_a_body_has_none() {
    let mut served = served(1 << 16);
    for (request, want) in [
        ("HEAD /a", "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n"),
        ("GET /204", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET /304", "HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("GET /empty", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ] {
        served.say(&format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(served.head().await, want, "{request}");
    }
    served.say("GET /close HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(served.rest().await.ends_with("\r\n\r\nGET /close "));
}
