//! Whose a token is: Kubernetes says so.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_tls::Clock;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ca::Holder;
pub use super::cache::CacheLimits;
use super::cache::{Cache, Hash};
use crate::kubernetes::told;
use crate::metrics::Metrics;

/// Where a review says to which pod a token is bound.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// How the user of a service account begins.
const ACCOUNT: &str = "system:serviceaccount:";
/// The largest token that is looked at, in bytes; Kubernetes' have 1 to 2 KiB.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Which tokens are accepted.
#[derive(Debug, Clone)]
pub struct TokenSettings {
    /// For whom a token must be.
    pub audience: String,
    /// The domain of the identities.
    pub trust_domain: TrustDomain,
    /// Whether a token that is bound to no pod is accepted. Such a token is not void when the pod is gone.
    pub allow_unbound: bool,
    /// What asking costs at most.
    pub limits: TokenLimits,
}

/// What asking costs at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLimits {
    /// What is remembered.
    pub cache: CacheLimits,
    /// Questions at the same time. Default: 32.
    pub concurrent: usize,
    /// How long an answer may take, waiting for the others included. Default: 5 s.
    pub timeout: Duration,
}

impl Default for TokenLimits {
    fn default() -> Self {
        Self { cache: CacheLimits::default(), concurrent: 32, timeout: Duration::from_secs(5) }
    }
}

/// Why a token does not say who somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// It is for somebody else.
    WrongAudience,
    /// Its time is over.
    Expired,
    /// Kubernetes does not know it: made up, altered, or its pod or account is gone.
    NotAuthenticated,
    /// It is a person's or a node's, no service account's.
    NotAnAccount,
    /// It is bound to no pod.
    NoPod,
    /// The connection has proved to be somebody else.
    AnotherIdentity,
    /// Kubernetes cannot be asked now, and nothing good is known of it.
    Unavailable,
}

impl Reason {
    /// The reason as a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongAudience => "wrong_audience",
            Self::Expired => "expired",
            Self::NotAuthenticated => "not_authenticated",
            Self::NotAnAccount => "not_an_account",
            Self::NoPod => "no_pod",
            Self::AnotherIdentity => "another_identity",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A token that does not count, with the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// For the one who showed it. Holds nothing of others.
    pub message: String,
}

impl Refused {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A token that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    /// Whose it is.
    pub holder: Holder,
    /// Until when it is valid.
    pub expires: SystemTime,
}

/// Asks Kubernetes whose tokens are.
pub struct Tokens {
    client: kube::Client,
    settings: TokenSettings,
    cache: Mutex<Cache>,
    room: Semaphore,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Tokens {
    /// Asks through `client`, which needs the right to create `tokenreviews`.
    pub fn new(client: kube::Client, settings: TokenSettings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let cache = Mutex::new(Cache::new(settings.limits.cache.clone()));
        let room = Semaphore::new(settings.limits.concurrent);
        Self { client, settings, cache, room, clock, metrics }
    }

    /// Whose `token` is; on a connection that has `shown` a certificate, it has to be that one's.
    ///
    /// What was said less than a minute ago is not asked again. When Kubernetes cannot be asked, a token that
    /// was good counts until it expires, within the cache's limit.
    ///
    /// # Errors
    /// See [`Reason`].
    pub async fn who(&self, token: &str, shown: Option<&SpiffeId>) -> Result<Holder, Refused> {
        let (how, said) = self.decide(token).await;
        let said = said.and_then(|reviewed| {
            if shown.is_none_or(|shown| *shown == reviewed.holder.id) {
                return Ok(reviewed);
            }
            let message = "the token is another's than the connection's certificate";
            Err(Refused::new(Reason::AnotherIdentity, message))
        });
        self.metrics.token(said.as_ref().map_or_else(|refused| refused.reason.as_str(), |_| how));
        said.map(|reviewed| reviewed.holder)
    }

    async fn decide(&self, token: &str) -> (&'static str, Result<Reviewed, Refused>) {
        if token.len() > MAX_TOKEN {
            let message = format!("the token has more than {MAX_TOKEN} bytes");
            return ("accepted", Err(Refused::new(Reason::NotAuthenticated, message)));
        }
        let hash = Hash::of(token);
        if let Some(said) = self.cache().fresh(hash, Instant::now(), self.clock.now()) {
            return ("cached", said);
        }
        let claims = Claims::of(token);
        let asked = tokio::time::timeout(self.settings.limits.timeout, self.review(token)).await;
        let status = match asked {
            Ok(Ok(status)) => status,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => told(&error),
                    _ => format!("no answer in {:?}", self.settings.limits.timeout),
                };
                let stale = self.cache().stale(hash, Instant::now(), self.clock.now());
                if let Some(reviewed) = stale {
                    tracing::warn!(id = %reviewed.holder.id, why, "the API server cannot be asked; a token that was good before counts");
                    return ("stale", Ok(reviewed));
                }
                tracing::warn!(why, "the API server cannot be asked whose a token is");
                let message = "Kubernetes cannot be asked whose the token is; try again later";
                return ("accepted", Err(Refused::new(Reason::Unavailable, message)));
            }
        };
        let said = read(&status, &claims, &self.settings, self.clock.now());
        self.cache().learn(hash, said.clone(), Instant::now(), self.clock.now());
        ("accepted", said)
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, kube::Error> {
        // The semaphore is never closed.
        let _room = self.room.acquire().await.ok();
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.settings.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// How many tokens something is known of.
    pub fn known(&self) -> usize {
        self.cache().len()
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a token says of itself. Believed for nothing but the words of a refusal, and for the end of a token
/// that Kubernetes has vouched for.
#[derive(Debug, Default)]
struct Claims {
    audiences: Option<Vec<String>>,
    expires: Option<SystemTime>,
}

impl Claims {
    fn of(token: &str) -> Self {
        Self::read(token).unwrap_or_default()
    }

    fn read(token: &str) -> Option<Self> {
        let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        let claims: Value = serde_json::from_slice(&payload).ok()?;
        let audiences = match claims.get("aud")? {
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => return None,
        };
        let expires = claims
            .get("exp")
            .and_then(Value::as_u64)
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        Some(Self { audiences: Some(audiences), expires })
    }
}

/// What a review says, in our words. Pure.
fn read(
    status: &TokenReviewStatus,
    claims: &Claims,
    settings: &TokenSettings,
    now: SystemTime,
) -> Result<Reviewed, Refused> {
    let audience = &settings.audience;
    let for_another = || {
        let message = format!("the token is for another audience than {audience:?}");
        Err(Refused::new(Reason::WrongAudience, message))
    };
    if status.authenticated != Some(true) {
        if claims.expires.is_some_and(|end| end <= now) {
            return Err(Refused::new(Reason::Expired, "the token has expired; read its file again"));
        }
        if claims.audiences.as_ref().is_some_and(|all| !all.contains(audience)) {
            return for_another();
        }
        let message = "Kubernetes does not know the token: it is no service account's, or its pod is gone";
        return Err(Refused::new(Reason::NotAuthenticated, message));
    }
    // A server that knows nothing of audiences says nothing of them, and has not checked ours.
    if !status.audiences.as_ref().is_some_and(|all| all.contains(audience)) {
        return for_another();
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT).and_then(|name| name.split_once(':'));
    let id = account.and_then(|(namespace, account)| {
        SpiffeId::for_account(&settings.trust_domain, namespace, account).ok()
    });
    let Some(id) = id else {
        return Err(Refused::new(Reason::NotAnAccount, "the token is not a service account's"));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |name: &str| match extra.get(name).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() && !value.contains('/') => Some(value.as_str()),
        _ => None,
    };
    let pod = one(POD_NAME).zip(one(POD_UID)).map(|(name, _)| Arc::from(name));
    if pod.is_none() && !settings.allow_unbound {
        let message = "the token is bound to no pod: use a projected token of the pod (a volume of the sort \
                       serviceAccountToken), or start the controller with --allow-unbound-tokens";
        return Err(Refused::new(Reason::NoPod, message));
    }
    // One without an end is asked about again each time.
    let expires = claims.expires.unwrap_or(now);
    Ok(Reviewed { holder: Holder { id, pod }, expires })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(in crate::authority) fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn settings() -> TokenSettings {
        TokenSettings {
            audience: "istio-ca".into(),
            trust_domain: TrustDomain::default(),
            allow_unbound: false,
            limits: TokenLimits::default(),
        }
    }

    const NOW: u64 = 1_700_000_000;

    fn said(status: Value, claims: &Value, settings: &TokenSettings) -> Result<Reviewed, Reason> {
        let status = serde_json::from_value(status).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        read(&status, &Claims::of(&token(claims)), settings, now).map_err(|refused| refused.reason)
    }

    fn good() -> Value {
        json!({"authenticated": true, "audiences": ["istio-ca"], "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {POD_NAME: ["web-1"], POD_UID: ["u-1"], "authentication.kubernetes.io/node-name": ["n"]},
        }})
    }

    #[test]
    fn a_review_says_who_it_is() {
        let reviewed = said(good(), &json!({"aud": ["istio-ca"], "exp": NOW + 60}), &settings()).unwrap();
        assert_eq!(reviewed.holder.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(reviewed.holder.pod.as_deref(), Some("web-1"));
        assert_eq!(reviewed.expires, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + 60));
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let fine = json!({"aud": "istio-ca", "exp": NOW + 60});
        let no = json!({"authenticated": false, "error": "[invalid bearer token, ...]"});
        let with = |pointer: &str, value: Value| {
            let mut status = good();
            *status.pointer_mut(pointer).unwrap() = value;
            status
        };
        let name = |name: &str| with("/user/username", json!(name));
        for (status, claims, reason) in [
            (no.clone(), json!({"aud": ["other"], "exp": NOW + 60}), Reason::WrongAudience),
            (no.clone(), json!({"aud": ["istio-ca"], "exp": NOW}), Reason::Expired),
            (no.clone(), fine.clone(), Reason::NotAuthenticated),
            (no.clone(), json!("no claims"), Reason::NotAuthenticated),
            (json!({}), fine.clone(), Reason::NotAuthenticated),
            // It knows the token and has not looked for whom it is.
            (with("/audiences", json!([])), fine.clone(), Reason::WrongAudience),
            (with("/audiences", json!(null)), fine.clone(), Reason::WrongAudience),
            (
                with("/audiences", json!(["https://kubernetes.default.svc"])),
                fine.clone(),
                Reason::WrongAudience,
            ),
            (name("system:node:a"), fine.clone(), Reason::NotAnAccount),
            (name("system:serviceaccount:shop"), fine.clone(), Reason::NotAnAccount),
            (name("system:serviceaccount:shop:web:x"), fine.clone(), Reason::NotAnAccount),
            (name("system:serviceaccount:shop:we/b"), fine.clone(), Reason::NotAnAccount),
            (name("system:serviceaccount::web"), fine.clone(), Reason::NotAnAccount),
            (name("kubernetes-admin"), fine.clone(), Reason::NotAnAccount),
            (with("/user/extra", json!({})), fine.clone(), Reason::NoPod),
            (with("/user/extra", json!({POD_NAME: ["web-1"]})), fine.clone(), Reason::NoPod),
            (with("/user/extra", json!({POD_NAME: ["a", "b"], POD_UID: ["u"]})), fine.clone(), Reason::NoPod),
            (with("/user/extra", json!({POD_NAME: ["a/b"], POD_UID: ["u"]})), fine.clone(), Reason::NoPod),
        ] {
            assert_eq!(said(status.clone(), &claims, &settings()), Err(reason), "{status} {claims}");
        }
        let mut open = settings();
        open.allow_unbound = true;
        let reviewed = said(with("/user/extra", json!({})), &fine, &open).unwrap();
        assert_eq!(reviewed.holder.pod, None);
    }

    #[test]
    fn no_text_makes_the_claims_panic() {
        for text in ["", ".", "..", "a.b.c", "a.e30.c", "a.bnVsbA.c", "a.eyJhdWQiOjd9.c", "a.eyJleHAiOi0xfQ"]
        {
            assert!(Claims::of(text).expires.is_none(), "{text}");
        }
        assert!(Claims::of(&token(&json!({"aud": "a", "exp": u64::MAX}))).audiences.is_some());
    }
}
