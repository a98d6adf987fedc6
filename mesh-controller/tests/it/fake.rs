//! As much of an API server as the controller's rooms talk to, over real HTTP. It can be slow, or say nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A stand-in for the API server.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    pub(crate) client: kube::Client,
}

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// What is said of a token.
    tokens: BTreeMap<String, Value>,
    version: u64,
    away: bool,
    asked: BTreeMap<String, usize>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut config = kube::Config::new(url);
        config.default_retry = false;
        config.read_timeout = Some(Duration::from_secs(30));
        let state = Arc::<Mutex<State>>::default();
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { state, client: kube::Client::try_from(config).unwrap() }
    }

    /// From now on every answer is 503, or not.
    pub(crate) fn away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// What a review of `token` says.
    pub(crate) fn token(&self, token: &str, status: Value) {
        self.state.lock().unwrap().tokens.insert(token.to_owned(), status);
    }

    /// A token of a pod's account: as Kubernetes says it.
    pub(crate) fn good(&self, token: &str, namespace: &str, account: &str, pod: &str) {
        self.token(
            token,
            json!({"authenticated": true, "audiences": ["istio-ca"], "user": {
                "username": format!("system:serviceaccount:{namespace}:{account}"),
                "extra": {
                    "authentication.kubernetes.io/pod-name": [pod],
                    "authentication.kubernetes.io/pod-uid": ["u-1"],
                },
            }}),
        );
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path.to_owned(), object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub(crate) fn delete(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }

    /// How often a path was asked for, with a method.
    pub(crate) fn asked(&self, method: &str, path: &str) -> usize {
        self.state.lock().unwrap().asked.get(&format!("{method} {path}")).copied().unwrap_or_default()
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let (status, said) = {
        let mut state = state.lock().unwrap();
        *state.asked.entry(format!("{} {path}", parts.method)).or_default() += 1;
        if state.away {
            failure(503, "ServiceUnavailable", "it is away")
        } else {
            state.act(&parts.method, &path, body)
        }
    };
    // Others get their turn between a read and a write.
    tokio::task::yield_now().await;
    let mut response = Response::new(Full::new(said.to_string().into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    Ok(response)
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    (code, status)
}

impl State {
    fn act(&mut self, method: &Method, path: &str, mut body: Value) -> (u16, Value) {
        if path == "/apis/authentication.k8s.io/v1/tokenreviews" {
            let token = body["spec"]["token"].as_str().unwrap_or_default();
            let unknown = json!({"authenticated": false, "error": "[invalid bearer token]"});
            body["status"] = self.tokens.get(token).cloned().unwrap_or(unknown);
            return (201, body);
        }
        self.version += 1;
        let version = json!(self.version.to_string());
        match *method {
            Method::GET => match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => failure(404, "NotFound", "not found"),
            },
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
                if self.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists", "it is there already");
                }
                body["metadata"]["resourceVersion"] = version;
                self.objects.insert(path, body.clone());
                (201, body)
            }
            Method::PUT => {
                let Some(object) = self.objects.get(path) else {
                    return failure(404, "NotFound", "not found");
                };
                if object["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict", "it is another version by now");
                }
                body["metadata"]["resourceVersion"] = version;
                self.objects.insert(path.to_owned(), body.clone());
                (200, body)
            }
            Method::PATCH => {
                let Some(mut object) = self.objects.get(path).cloned() else {
                    return failure(404, "NotFound", "not found");
                };
                let patch: json_patch::Patch = serde_json::from_value(body).unwrap();
                if json_patch::patch(&mut object, &patch).is_err() {
                    return failure(422, "Invalid", "the patch does not fit");
                }
                object["metadata"]["resourceVersion"] = version;
                self.objects.insert(path.to_owned(), object.clone());
                (200, object)
            }
            _ => failure(405, "MethodNotAllowed", "no such method"),
        }
    }
}
