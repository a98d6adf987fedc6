//! `AuthorizationPolicy`: who may do what.
//!
//! Every list in a rule narrows it, so a list that is written but empty is refused rather than read as
//! "anything".

use super::common::{Selector, TargetRef, non_empty};

mesh_types! {
    /// The spec of an `AuthorizationPolicy`.
    pub struct AuthorizationPolicy {
        /// The workloads it is for; absent means its namespace (in the root namespace: the mesh).
        pub selector: Option<Selector>,
        /// Legacy form of `targetRefs`.
        pub target_ref: Option<TargetRef>,
        /// The gateways or services it is for, in place of a selector.
        pub target_refs: Vec<TargetRef>,
        /// What it matches; one rule is enough. No rule matches nothing.
        pub rules: Vec<Rule>,
        /// What follows from a match.
        pub action: Action,
        /// Who decides, for `CUSTOM`.
        pub provider: Option<ExtensionProvider>,
    }

    /// Any of `from`, and any of `to`, and all of `when`; an empty rule matches everything.
    pub struct Rule {
        /// Who calls.
        #[serde(deserialize_with = "non_empty")]
        pub from: Vec<From>,
        /// What is called.
        #[serde(deserialize_with = "non_empty")]
        pub to: Vec<To>,
        /// Further conditions.
        #[serde(deserialize_with = "non_empty")]
        pub when: Vec<Condition>,
    }

    /// Who calls, in its own object.
    pub struct From {
        /// Who.
        pub source: Option<Source>,
    }

    /// What is called, in its own object.
    pub struct To {
        /// What.
        pub operation: Option<Operation>,
    }

    /// Who calls; all fields that are set must hold, each with any of its values.
    pub struct Source {
        /// Identities, `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
        #[serde(deserialize_with = "non_empty")]
        pub principals: Vec<String>,
        /// None of these identities.
        #[serde(deserialize_with = "non_empty")]
        pub not_principals: Vec<String>,
        /// Identities from a token, `ISSUER/SUBJECT`.
        #[serde(deserialize_with = "non_empty")]
        pub request_principals: Vec<String>,
        /// None of these identities from a token.
        #[serde(deserialize_with = "non_empty")]
        pub not_request_principals: Vec<String>,
        /// Namespaces of the caller's identity.
        #[serde(deserialize_with = "non_empty")]
        pub namespaces: Vec<String>,
        /// None of these namespaces.
        #[serde(deserialize_with = "non_empty")]
        pub not_namespaces: Vec<String>,
        /// Service accounts, `NAMESPACE/ACCOUNT` or `ACCOUNT` of the policy's namespace.
        #[serde(deserialize_with = "non_empty")]
        pub service_accounts: Vec<String>,
        /// None of these service accounts.
        #[serde(deserialize_with = "non_empty")]
        pub not_service_accounts: Vec<String>,
        /// Trust domains of the caller's identity.
        #[serde(deserialize_with = "non_empty")]
        pub trust_domains: Vec<String>,
        /// None of these trust domains.
        #[serde(deserialize_with = "non_empty")]
        pub not_trust_domains: Vec<String>,
        /// Addresses of the peer.
        #[serde(deserialize_with = "non_empty")]
        pub ip_blocks: Vec<String>,
        /// None of these addresses.
        #[serde(deserialize_with = "non_empty")]
        pub not_ip_blocks: Vec<String>,
        /// Addresses of the original client.
        #[serde(deserialize_with = "non_empty")]
        pub remote_ip_blocks: Vec<String>,
        /// None of these addresses of the original client.
        #[serde(deserialize_with = "non_empty")]
        pub not_remote_ip_blocks: Vec<String>,
    }

    /// What is called; all fields that are set must hold, each with any of its values.
    pub struct Operation {
        /// Authorities, with the port where the client sends one.
        #[serde(deserialize_with = "non_empty")]
        pub hosts: Vec<String>,
        /// None of these authorities.
        #[serde(deserialize_with = "non_empty")]
        pub not_hosts: Vec<String>,
        /// Ports of the workload, as text.
        #[serde(deserialize_with = "non_empty")]
        pub ports: Vec<String>,
        /// None of these ports.
        #[serde(deserialize_with = "non_empty")]
        pub not_ports: Vec<String>,
        /// Methods.
        #[serde(deserialize_with = "non_empty")]
        pub methods: Vec<String>,
        /// None of these methods.
        #[serde(deserialize_with = "non_empty")]
        pub not_methods: Vec<String>,
        /// Paths, without the query.
        #[serde(deserialize_with = "non_empty")]
        pub paths: Vec<String>,
        /// None of these paths.
        #[serde(deserialize_with = "non_empty")]
        pub not_paths: Vec<String>,
    }

    /// A condition on an attribute.
    pub struct Condition {
        /// The attribute, such as `request.headers[x-team]`.
        pub key: String,
        /// Any of these values.
        #[serde(deserialize_with = "non_empty")]
        pub values: Vec<String>,
        /// None of these values.
        #[serde(deserialize_with = "non_empty")]
        pub not_values: Vec<String>,
    }

    /// Who decides, for `CUSTOM`.
    pub struct ExtensionProvider {
        /// Its name in the mesh's configuration.
        pub name: String,
    }
}

mesh_enums! {
    /// What follows from a match.
    pub enum Action {
        /// The request may pass; without a match of any ALLOW policy it may not.
        #[default]
        Allow = "ALLOW",
        /// The request is refused.
        Deny = "DENY",
        /// The request is marked.
        Audit = "AUDIT",
        /// A provider decides.
        Custom = "CUSTOM",
    }
}
