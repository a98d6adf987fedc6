//! Tells the API server by which roots the webhooks are known.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Api, Patch, PatchParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kubernetes::told;
use crate::serve::identity::ServerTls;

/// How often the configurations are looked at: so long one that somebody put back without its roots does not
/// work.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often as long as the roots have not been seen in them: the controller is not ready until then.
pub const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a look may take.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// The JSON patch that writes `roots` (PEM) into each webhook of a configuration; none where they are in all.
/// It holds only for the configuration that was looked at.
///
/// ```
/// use mesh_controller::webhook::bundle::patch;
/// use serde_json::json;
///
/// let configuration = json!({
///     "metadata": {"resourceVersion": "7"},
///     "webhooks": [{"name": "a", "clientConfig": {}}, {"name": "b", "clientConfig": {"caBundle": "cm9vdHM="}}],
/// });
/// let patch = patch(&configuration, "roots").unwrap();
/// assert_eq!(patch, json!([
///     {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
///     {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "cm9vdHM="},
/// ]));
/// ```
pub fn patch(configuration: &Value, roots: &str) -> Option<Value> {
    let bundle = BASE64_STANDARD.encode(roots);
    let webhooks = configuration.get("webhooks").and_then(Value::as_array)?;
    let other =
        |webhook: &Value| webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str) != Some(&bundle);
    let wrong = webhooks.iter().enumerate().filter(|(_, webhook)| other(webhook));
    let mut patch: Vec<_> = wrong
        .map(|(n, _)| json!({"op": "add", "path": format!("/webhooks/{n}/clientConfig/caBundle"), "value": bundle}))
        .collect();
    if patch.is_empty() {
        return None;
    }
    let version = configuration.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    patch.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
    Some(Value::Array(patch))
}

/// Keeps the roots in both configurations called `name`, while this replica leads. The caller spawns it. It
/// needs the rights to get and patch them; where one does not exist, there is nothing to do.
///
/// `believed` turns true, for good, once the roots were seen in both, whoever wrote them: until then the API server
/// believes no replica.
pub async fn keep(
    client: kube::Client,
    name: String,
    mut tls: watch::Receiver<Option<ServerTls>>,
    mut leader: watch::Receiver<bool>,
    believed: watch::Sender<bool>,
) {
    loop {
        let roots = tls.borrow_and_update().as_ref().map(|tls| tls.roots.clone());
        let leads = *leader.borrow_and_update();
        let known = *believed.borrow();
        if let Some(roots) = roots.filter(|_| leads || !known) {
            let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone());
            let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone());
            let both =
                tokio::join!(look(mutating, &name, &roots, leads), look(validating, &name, &roots, leads));
            if both == (true, true) {
                believed.send_replace(true);
            }
        }
        let pause = if *believed.borrow() { LOOK_EVERY } else { LOOK_AGAIN };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = tls.changed() => if changed.is_err() { return },
            changed = leader.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks at one configuration and, where it may `write`, puts right what it lacks. Says whether it has the roots now, or
/// does not exist.
async fn look<K>(api: Api<K>, name: &str, roots: &str, write: bool) -> bool
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize + kube::Resource,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let look = async {
        let Some(found) = api.get_opt(name).await? else { return Ok(true) };
        let found = serde_json::to_value(found).map_err(kube::Error::SerdeError)?;
        let Some(patch) = patch(&found, roots) else { return Ok(true) };
        if !write {
            return Ok(false);
        }
        let patch: json_patch::Patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
        api.patch(name, &PatchParams::default(), &Patch::<()>::Json(patch)).await?;
        tracing::info!(kind, name, "the CA bundle was written");
        Ok(true)
    };
    match tokio::time::timeout(LOOK_TIMEOUT, look).await {
        Ok(Ok(is_there)) => is_there,
        Ok(Err(error)) => {
            tracing::warn!(
                kind,
                name,
                error = told(&error),
                "the CA bundle cannot be looked after; tried again"
            );
            false
        }
        Err(_) => {
            tracing::warn!(kind, name, "the API server does not answer; the CA bundle is tried again");
            false
        }
    }
}
