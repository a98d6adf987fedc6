//! Tokens, against a stand-in that can be away.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use mesh_controller::authority::token::{CacheLimits, MAX_TOKEN, Reason, TokenLimits, TokenSettings, Tokens};
use mesh_controller::metrics::Metrics;
use mesh_core::identity::TrustDomain;
use mesh_tls::Clock;
use serde_json::json;

use crate::fake::Fake;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// A token that says of itself that it lives so long.
pub(crate) fn token(name: &str, life: Duration) -> String {
    let end = (SystemTime::now() + life).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"aud": ["istio-ca"], "exp": end, "jti": name}).to_string();
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

const HOUR: Duration = Duration::from_secs(3600);

fn tokens(client: kube::Client, limits: TokenLimits) -> (Tokens, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let settings = TokenSettings {
        audience: "istio-ca".into(),
        trust_domain: TrustDomain::default(),
        allow_unbound: false,
        limits,
    };
    (Tokens::new(client, settings, Clock::system(), Arc::clone(&metrics)), metrics)
}

fn reason<T>(result: Result<T, mesh_controller::authority::token::Refused>) -> Option<Reason> {
    result.err().map(|refused| refused.reason)
}

#[tokio::test]
async fn a_token_is_asked_about_once() {
    let fake = Fake::start().await;
    let (tokens, metrics) = tokens(fake.client.clone(), TokenLimits::default());
    let good = token("good", HOUR);
    fake.good(&good, "shop", "web", "web-1");
    for _ in 0..3 {
        let holder = tokens.who(&good, None).await.unwrap();
        assert_eq!(holder.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(holder.pod.as_deref(), Some("web-1"));
    }
    assert_eq!(fake.asked("POST", REVIEWS), 1);
    assert_eq!(tokens.known(), 1);
    assert_eq!(reason(tokens.who("made up", None).await), Some(Reason::NotAuthenticated));
    assert_eq!(reason(tokens.who(&"x".repeat(MAX_TOKEN + 1), None).await), Some(Reason::NotAuthenticated));
    let other = "spiffe://cluster.local/ns/other/sa/web".parse().unwrap();
    assert_eq!(reason(tokens.who(&good, Some(&other)).await), Some(Reason::AnotherIdentity));
    let page = metrics.page();
    for line in [
        "tokens_total{outcome=\"accepted\"} 1",
        "tokens_total{outcome=\"cached\"} 2",
        "tokens_total{outcome=\"not_authenticated\"} 2",
        "tokens_total{outcome=\"another_identity\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn when_nobody_can_be_asked_a_token_that_was_good_counts() {
    let fake = Fake::start().await;
    // Nothing is fresh: each time is asked.
    let cache = CacheLimits { fresh: Duration::ZERO, refused: Duration::ZERO, ..CacheLimits::default() };
    let (tokens, metrics) = tokens(fake.client.clone(), TokenLimits { cache, ..TokenLimits::default() });
    let (good, unknown, ended) =
        (token("good", HOUR), token("unknown", HOUR), token("ended", Duration::ZERO));
    fake.good(&good, "shop", "web", "web-1");
    fake.good(&ended, "shop", "web", "web-1");
    tokens.who(&good, None).await.unwrap();
    tokens.who(&ended, None).await.unwrap();
    assert!(tokens.who("made up", None).await.is_err());

    fake.away(true);
    assert!(tokens.who(&good, None).await.is_ok());
    for token in [unknown.as_str(), &ended, "made up"] {
        assert_eq!(reason(tokens.who(token, None).await), Some(Reason::Unavailable));
    }
    assert!(metrics.page().contains("tokens_total{outcome=\"stale\"} 1"));

    // It is there again and says that the pod is gone.
    fake.away(false);
    fake.token(&good, json!({"authenticated": false}));
    assert_eq!(reason(tokens.who(&good, None).await), Some(Reason::NotAuthenticated));
    fake.away(true);
    assert_eq!(
        reason(tokens.who(&good, None).await),
        Some(Reason::Unavailable),
        "a refusal is not forgotten"
    );
}

#[tokio::test]
async fn who_does_not_answer_in_time_is_not_waited_for() {
    // Nobody accepts: the backlog does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let limits = TokenLimits { concurrent: 1, timeout: Duration::from_millis(50), ..TokenLimits::default() };
    let (tokens, _) = tokens(client, limits);
    let tokens = Arc::new(tokens);
    let mut all = tokio::task::JoinSet::new();
    for n in 0..20 {
        let tokens = Arc::clone(&tokens);
        all.spawn(async move { reason(tokens.who(&token(&n.to_string(), HOUR), None).await) });
    }
    // However many wait for their turn, none waits longer than the limit.
    assert!(all.join_all().await.iter().all(|said| *said == Some(Reason::Unavailable)));
}
