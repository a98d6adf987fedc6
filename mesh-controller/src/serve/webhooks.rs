//! The port for the API server: the webhooks, over HTTPS.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::accept::{Port, accept, handshake};
use super::drain::Draining;
use super::http::{JSON, Page, TEXT, page, serve_connection, whole, wrong_method};
use super::identity::ServerTls;
use crate::inject::{Labels, Settings};
use crate::kubernetes::told;
use crate::metrics::Metrics;
use crate::webhook::{NotAReview, mutate, validate};

/// The largest review, in bytes: the old and the new form of an object, which etcd bounds to 1.5 MiB each,
/// and what is around them.
pub const MAX_REVIEW: usize = 4 * 1024 * 1024;
/// How many reviews are worked at, at the same time; further ones wait.
pub const MAX_REVIEWS: usize = 32;
/// How long the API server is asked for a namespace that is not known yet.
pub const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(2);

/// Knows the labels of a namespace without asking anybody, or does not know them.
pub type KnownLabels = Arc<dyn Fn(&str) -> Option<Labels> + Send + Sync>;

/// Answers reviews. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks {
    settings: Arc<Settings>,
    known: KnownLabels,
    client: kube::Client,
    room: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Webhooks {
    /// Injects by `settings`. The labels of namespaces come from `known`, else from the API server.
    pub fn new(settings: Settings, known: KnownLabels, client: kube::Client, metrics: Arc<Metrics>) -> Self {
        let room = Arc::new(Semaphore::new(MAX_REVIEWS));
        Self { settings: Arc::new(settings), known, client, room, metrics }
    }

    /// Serves until the drain begins.
    pub async fn serve(
        self,
        listener: TcpListener,
        port: Port,
        tls: watch::Receiver<Option<ServerTls>>,
        drain: Draining,
    ) {
        let of = port.clone();
        accept(listener, &of, drain.clone(), |stream, peer, place| {
            let Some(ServerTls { webhooks: config, .. }) = tls.borrow().clone() else { return };
            let (webhooks, port, drain) = (self.clone(), port.clone(), drain.clone());
            tokio::spawn(async move {
                let _place = place;
                let Some(stream) = handshake(&port, config, stream, peer).await else { return };
                serve_connection(stream, port.limits.idle, drain, |request| webhooks.answer(request)).await;
            });
        })
        .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Page {
        let webhook = match request.uri().path() {
            "/inject" => "inject",
            "/validate" => "validate",
            path => {
                return page(
                    StatusCode::NOT_FOUND,
                    TEXT,
                    format!("there is no {path}; there are /inject and /validate\n"),
                );
            }
        };
        if request.method() != Method::POST {
            return wrong_method(&Method::POST);
        }
        // Never closed. The body is read with a place taken, so that this bounds its memory too.
        let _place = self.room.acquire().await.ok();
        let body = match whole(request, MAX_REVIEW).await {
            Ok(body) => body,
            Err(answer) => {
                self.metrics.webhook(webhook, "bad_request");
                return answer;
            }
        };
        let Ok(review) = serde_json::from_slice::<Value>(&body) else {
            self.metrics.webhook(webhook, "bad_request");
            return page(StatusCode::BAD_REQUEST, TEXT, "the body is no JSON\n");
        };
        drop(body);
        let answer = if webhook == "inject" { self.inject(&review).await } else { self.validate(&review) };
        match answer {
            Ok(answer) => {
                let decision = decision(&answer);
                self.metrics.webhook(webhook, decision);
                if decision == "refused" {
                    let text =
                        |pointer: &str| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                    let why = answer.pointer("/response/status/message").and_then(Value::as_str);
                    tracing::info!(
                        webhook,
                        kind = text("/request/kind/kind"),
                        namespace = text("/request/namespace"),
                        name = text("/request/name"),
                        why,
                        "refused"
                    );
                }
                page(StatusCode::OK, JSON, answer.to_string())
            }
            Err(error) => {
                self.metrics.webhook(webhook, "bad_request");
                page(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n"))
            }
        }
    }

    fn validate(&self, review: &Value) -> Result<Value, NotAReview> {
        validate::validate(&self.settings.root_namespace, review)
    }

    async fn inject(&self, review: &Value) -> Result<Value, NotAReview> {
        let namespace = review.pointer("/request/namespace").and_then(Value::as_str).unwrap_or_default();
        let labels = match (self.known)(namespace) {
            Some(labels) => Some(labels),
            None => self.ask(namespace).await,
        };
        mutate(&self.settings, |_| labels, review)
    }

    /// A namespace that was made a moment ago is known to the API server alone.
    async fn ask(&self, namespace: &str) -> Option<Labels> {
        if namespace.is_empty() {
            return None;
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        match tokio::time::timeout(NAMESPACE_TIMEOUT, api.get_metadata(namespace)).await {
            Ok(Ok(found)) => Some(found.metadata.labels.unwrap_or_default()),
            Ok(Err(error)) => {
                tracing::warn!(
                    namespace,
                    error = told(&error),
                    "the labels of a namespace cannot be found out"
                );
                None
            }
            Err(_) => None,
        }
    }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn decision(answer: &Value) -> &'static str {
    let response = answer.get("response").unwrap_or(answer);
    if response.get("allowed") != Some(&Value::Bool(true)) {
        "refused"
    } else if response.get("patch").is_some() {
        "changed"
    } else if response.get("warnings").and_then(Value::as_array).is_some_and(|w| !w.is_empty()) {
        "warned"
    } else {
        "allowed"
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::super::drain::Drain;
    use super::super::http::BODY_TIMEOUT;
    use super::*;
    use crate::args::{Cli, Command};

    /// A connection on which a review of so many bytes is asked, and `body` of it is sent.
    async fn asked(webhooks: &Webhooks, drain: &Drain, length: usize, body: &str) -> DuplexStream {
        let (mut near, far) = duplex(64 * 1024);
        let (webhooks, drain) = (webhooks.clone(), drain.handle());
        tokio::spawn(async move {
            serve_connection(far, BODY_TIMEOUT * 10, drain, |request| webhooks.answer(request)).await;
        });
        let head =
            format!("POST /validate HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        near.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        near
    }

    async fn status(mut connection: DuplexStream) -> String {
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_reviews_are_worked_at_and_the_next_waits() {
        let Command::Run(args) = Cli::parse_from(["mesh-controller", "run"]).command else { panic!() };
        let nobody = tower::service_fn(|_: Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("there is nobody"))
        });
        let client = kube::Client::new(nobody, "default");
        let webhooks = Webhooks::new(args.injection(), Arc::new(|_| None), client, Arc::default());
        let drain = Drain::new();
        for (silent, waits) in [(MAX_REVIEWS - 1, false), (MAX_REVIEWS, true)] {
            let begun = Instant::now();
            let mut unfinished = Vec::new();
            for _ in 0..silent {
                unfinished.push(asked(&webhooks, &drain, 9, "{").await);
                // It has taken its place before the next one comes.
                tokio::task::yield_now().await;
            }
            let answer = status(asked(&webhooks, &drain, 2, "{}").await).await;
            assert_eq!(answer, "HTTP/1.1 400 Bad Request", "it is no review");
            assert_eq!(begun.elapsed() >= BODY_TIMEOUT, waits, "{silent} silent ones");
            for connection in unfinished {
                assert_eq!(status(connection).await, "HTTP/1.1 408 Request Timeout");
            }
            assert!(begun.elapsed() < BODY_TIMEOUT * 2, "they wait at the same time");
        }
    }
}
