//! What somebody sees who listens on the node's bridge.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_e2e::{App, Capture, Namespace, in_namespace, tls13_only, yaml};
use mesh_test::wait;
use serde_json::json;

use super::mesh::{INJECTED, REVIEWS, answered};

const PORT: u16 = 9080;
/// Calls of which each version is to answer some.
const CALLS: usize = 60;
/// What is in each message: in the body of the call, and in a header of the answer.
const WORDS: [&str; 2] = ["a secret of web's", "reviews-v"];
/// At least so many segments to and from each pod: there is a request and an answer in each call.
const SEGMENTS: usize = 20;
/// How long it may take until what was sent is in the capture.
const WITHIN: Duration = Duration::from_secs(20);

#[tokio::test]
#[ignore = "needs a cluster"]
async fn between_sidecars_there_is_nothing_but_tls_1_3() {
    in_namespace("wire", INJECTED, async |namespace: Namespace| {
        let reviews = yaml::deployment("reviews");
        namespace.apply(&reviews.clone().version("v1").to_string()).await;
        namespace.apply(&reviews.version("v2").without_service().to_string()).await;
        for deployment in ["reviews-v1", "reviews-v2"] {
            namespace.rolled_out(deployment).await;
        }
        // Before its caller is there, since connections are kept: each is seen from its first byte on.
        let capture = Capture::start(PORT).await;
        namespace.apply(&yaml::deployment("web").to_string()).await;
        namespace.rolled_out("web").await;
        let web = namespace.app("web").await;
        answered(&web, REVIEWS, 200).await;
        let call = |url: &str| json!({"url": url, "method": "POST", "body": WORDS[0]});
        for _ in 0..CALLS {
            let outcome = web.call(&call(REVIEWS)).await;
            assert_eq!(outcome.status, Some(200), "{outcome:?}");
            assert!(outcome.served_by.is_some_and(|name| name.starts_with(WORDS[1])));
        }

        // The same call from outside of the mesh, which PERMISSIVE admits: it is seen for what it is.
        let pods = namespace.pods("reviews").await;
        assert_eq!(pods.len(), 2);
        in_namespace("stranger", &[], async |outside: Namespace| {
            outside.apply(&yaml::deployment("stranger").to_string()).await;
            outside.rolled_out("stranger").await;
            let stranger = outside.app("stranger").await;
            for pod in &pods {
                let url = format!("http://{}:{PORT}/", App::of(pod).address());
                let outcome = stranger.call(&call(&url)).await;
                assert_eq!(outcome.status, Some(200), "{outcome:?}");
            }
            let servers: Vec<_> =
                pods.iter().map(|pod| SocketAddr::new(App::of(pod).address(), PORT)).collect();
            for server in &servers {
                wait::until_ok(WITHIN, "a complaint of plaintext", async || {
                    match tls13_only(&capture.seen(), stranger.address(), *server, &WORDS) {
                        Err(complaint) if complaint.contains("in plaintext") => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                })
                .await;
            }
            let capture = capture.stop().await;
            for server in servers {
                let seen = tls13_only(&capture, web.address(), server, &WORDS);
                println!("from web to reviews at {server}: {seen:?}");
                let seen = seen.unwrap();
                assert!(seen.segments >= SEGMENTS, "{seen:?}");
            }
        })
        .await;
    })
    .await;
}
