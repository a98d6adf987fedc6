//! Whether a pod gets a sidecar.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::refusal::Refusal;
use super::settings::{PROXY_CONTAINER, Settings};
use super::{STATUS_ANNOTATION, view};

/// The label and annotation by which a pod asks for a sidecar, or declines one. The label goes first.
pub const POD_SWITCH: &str = "sidecar.istio.io/inject";
/// The label by which a namespace asks for this mesh or declines it, whatever it says of Istio.
pub const OWN_SWITCH: &str = "mesh.dev/injection";
/// The label by which a namespace asks for a mesh or declines one.
pub const NAMESPACE_SWITCH: &str = "istio-injection";
/// The label by which a namespace or a pod asks for one of several controllers.
pub const REVISION: &str = "istio.io/rev";

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether a pod gets a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It does.
    Inject,
    /// It is left as it is.
    Skip(Skip),
}

/// Why a pod is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Skip {
    /// It shares the network of its node: redirecting would take the node's traffic.
    HostNetwork,
    /// Its namespace is Kubernetes' or the mesh's own.
    SystemNamespace,
    /// It has a sidecar of this mesh.
    AlreadyInjected,
    /// The pod declines.
    PodDeclines,
    /// The namespace declines, by this label and value.
    NamespaceDeclines(&'static str, String),
    /// Another controller is asked for, by this revision.
    OtherRevision(String),
    /// Nobody asked.
    NotAsked,
}

impl Skip {
    /// Whether the pod would be left alone in a namespace with any other labels as well.
    pub fn whatever_the_namespace_says(&self) -> bool {
        match self {
            Self::HostNetwork | Self::SystemNamespace | Self::AlreadyInjected | Self::PodDeclines => true,
            Self::NamespaceDeclines(..) | Self::OtherRevision(_) | Self::NotAsked => false,
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str("it uses the network of its node (spec.hostNetwork)"),
            Self::SystemNamespace => f.write_str("its namespace is left alone"),
            Self::AlreadyInjected => f.write_str("it has a sidecar already"),
            Self::PodDeclines => write!(f, "it says {POD_SWITCH}=false"),
            Self::NamespaceDeclines(label, value) => write!(f, "its namespace says {label}={value}"),
            Self::OtherRevision(revision) => write!(f, "it is the business of revision {revision:?}"),
            Self::NotAsked => write!(
                f,
                "neither its namespace ({NAMESPACE_SWITCH}=enabled, {OWN_SWITCH}=enabled, {REVISION}) nor it \
                 ({POD_SWITCH}=true) asks for a sidecar"
            ),
        }
    }
}

/// Whether `pod` (a Pod, or a template of one) in a namespace with these labels gets a sidecar.
///
/// In this order, which is Istio's:
///
/// 1. Pods on their node's network, in system namespaces, or with a sidecar of this mesh are left alone.
/// 2. A namespace that says `mesh.dev/injection` or else `istio-injection` decides: any value but `enabled`
///    declines for all its pods; `enabled` asks for the default revision, and a pod may decline.
/// 3. Else `istio.io/rev` of the namespace, else of the pod, asks for that revision, and a pod may decline.
/// 4. Else a pod may ask for the default revision.
/// 5. Else [`Settings::by_default`] decides.
///
/// # Errors
///
/// When the pod's wish cannot be read: to guess would mean plain text where none is wanted, or the other way
/// round.
pub fn decide(
    settings: &Settings,
    namespace: &str,
    namespace_labels: &Labels,
    pod: &Value,
) -> Result<Decision, Refusal> {
    let skip = |why| Ok(Decision::Skip(why));
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return skip(Skip::HostNetwork);
    }
    if settings.system_namespaces.iter().any(|n| n == namespace) {
        return skip(Skip::SystemNamespace);
    }
    if already(pod) {
        return skip(Skip::AlreadyInjected);
    }
    let label = |name: &str| namespace_labels.get(name).map(String::as_str);
    let switch = [OWN_SWITCH, NAMESPACE_SWITCH].into_iter().find_map(|name| Some((name, label(name)?)));
    if let Some((name, value)) = switch
        && value != "enabled"
    {
        return skip(Skip::NamespaceDeclines(name, value.to_owned()));
    }
    let wish = pod_wish(pod)?;
    if wish == Some(false) {
        return skip(Skip::PodDeclines);
    }
    let revision = match switch {
        Some(_) => None,
        None => label(REVISION).or_else(|| view::label(pod, REVISION)),
    };
    let asked = switch.is_some() || revision.is_some() || wish == Some(true) || settings.by_default;
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    match asked {
        false => skip(Skip::NotAsked),
        // Who runs the command or makes injection the default means the controller that was so set.
        true if revision == settings.revision || (settings.by_default && revision == DEFAULT_REVISION) => {
            Ok(Decision::Inject)
        }
        true => skip(Skip::OtherRevision(revision.to_owned())),
    }
}

/// The revision that is meant where none is named.
const DEFAULT_REVISION: &str = "default";

/// Whether the pod has a sidecar of ours. The annotation alone does not count: it is easily copied.
fn already(pod: &Value) -> bool {
    view::annotation(pod, STATUS_ANNOTATION).is_some()
        && view::list(pod, "/spec/initContainers").iter().any(|c| {
            view::name(c) == PROXY_CONTAINER
                && c.get("restartPolicy").and_then(Value::as_str) == Some("Always")
        })
}

/// What the pod itself says.
fn pod_wish(pod: &Value) -> Result<Option<bool>, Refusal> {
    let (place, value) = match (view::label(pod, POD_SWITCH), view::annotation(pod, POD_SWITCH)) {
        (Some(value), _) => ("labels", value),
        (None, Some(value)) => ("annotations", value),
        (None, None) => return Ok(None),
    };
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" => Ok(Some(true)),
        "false" | "no" | "n" | "off" => Ok(Some(false)),
        "" => Ok(None),
        _ => Err(Refusal::new(
            format!("metadata.{place}[{POD_SWITCH}]"),
            format!("{value:?} is neither \"true\" nor \"false\"; write one of them"),
        )),
    }
}
