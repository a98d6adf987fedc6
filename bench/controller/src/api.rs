//! The API server: objects as JSON, by their paths.

use std::path::Path;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::world::Write;

/// Requests at the same time.
const AT_ONCE: usize = 32;

/// A client with an administrator's rights.
#[derive(Clone)]
pub struct Api(kube::Client);

impl Api {
    /// By a kubeconfig.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn open(file: &Path) -> Result<Self> {
        let config = Kubeconfig::read_from(file).with_context(|| file.display().to_string())?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Ok(Self(kube::Client::try_from(config)?))
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let request = Request::builder().method(method).uri(path).header("content-type", content);
        self.0.request(request.body(body)?).await.with_context(|| path.to_owned())
    }

    /// Reads an object; nothing where there is none.
    ///
    /// # Errors
    /// When the API server says anything else.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        match self.send(Method::GET, path, "application/json", &Value::Null).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object, or anything else that is posted.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.send(Method::POST, path, "application/json", object).await
    }

    /// Changes fields of an object.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn merge(&self, path: &str, change: &Value) -> Result<Value> {
        self.send(Method::PATCH, path, "application/merge-patch+json", change).await
    }

    /// Writes objects, many at once; one that is there already stays as it is.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn fill(&self, writes: Vec<Write>) -> Result<()> {
        let one = |write: Write| async move {
            match self.post(&write.path, &write.object).await {
                Ok(_) => {}
                Err(error) if code(&error) == Some(409) => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(status) = &write.status {
                let name = write.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                self.merge(&format!("{}/{name}/status", write.path), status).await?;
            }
            Ok(())
        };
        stream::iter(writes).map(one).buffer_unordered(AT_ONCE).try_collect::<()>().await
    }

    /// A token of an account, bound to a Pod, for the mesh's audience.
    ///
    /// # Errors
    /// When there is no such Pod.
    pub async fn token(&self, namespace: &str, account: &str, pod: &str) -> Result<String> {
        let found = self.get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}")).await?;
        let uid =
            found.as_ref().and_then(|pod| pod.pointer("/metadata/uid")).context("there is no such pod")?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid});
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": ["istio-ca"], "expirationSeconds": 7200, "boundObjectRef": bound},
        });
        let answer = self.post(&path, &asked).await?;
        let token = answer.pointer("/status/token").and_then(Value::as_str).context("no token came")?;
        Ok(token.to_owned())
    }
}

/// What the API server said.
fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}
