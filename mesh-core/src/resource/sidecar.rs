//! `Sidecar`: what a workload's proxy takes in and can reach.

use super::common::{SidecarPort, WorkloadSelector};
use super::destination_rule::ConnectionPoolSettings;
use super::virtual_service::Destination;

mesh_types! {
    /// The spec of a `Sidecar`.
    pub struct Sidecar {
        /// The workloads it is for; absent means its namespace.
        pub workload_selector: Option<WorkloadSelector>,
        /// Inbound listeners, in place of those that follow from services.
        pub ingress: Vec<IstioIngressListener>,
        /// The hosts that are visible; absent means all.
        pub egress: Vec<IstioEgressListener>,
        /// Limits on what comes in.
        pub inbound_connection_pool: Option<ConnectionPoolSettings>,
        /// What becomes of calls to hosts that nobody knows.
        pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    }

    /// An inbound listener.
    pub struct IstioIngressListener {
        /// Its port.
        pub port: Option<SidecarPort>,
        /// Its address.
        pub bind: String,
        /// How traffic gets to it.
        pub capture_mode: CaptureMode,
        /// Where requests are handed to.
        pub default_endpoint: String,
        /// TLS of its own.
        pub tls: Option<ServerTlsSettings>,
        /// Limits on what comes in here.
        pub connection_pool: Option<ConnectionPoolSettings>,
    }

    /// What can be reached.
    pub struct IstioEgressListener {
        /// Its port; absent means all.
        pub port: Option<SidecarPort>,
        /// Its address.
        pub bind: String,
        /// How traffic gets to it.
        pub capture_mode: CaptureMode,
        /// `NAMESPACE/HOST`, with `*`, `.` and `~` as namespaces.
        pub hosts: Vec<String>,
    }

    /// What becomes of calls to hosts that nobody knows.
    pub struct OutboundTrafficPolicy {
        /// Refused or passed on.
        pub mode: OutboundTrafficPolicyMode,
        /// A service that gets them.
        pub egress_proxy: Option<Destination>,
    }

    /// TLS of a listener.
    pub struct ServerTlsSettings {
        /// Whether plain HTTP is redirected.
        pub https_redirect: bool,
        /// The mode.
        pub mode: ServerTlsMode,
        /// The file of the certificate.
        pub server_certificate: String,
        /// The file of the key.
        pub private_key: String,
        /// The file of the authorities of clients.
        pub ca_certificates: String,
        /// The file of revoked certificates.
        pub ca_crl: String,
        /// A Kubernetes Secret in place of files.
        pub credential_name: String,
        /// Several of them.
        pub credential_names: Vec<String>,
        /// A Secret or ConfigMap with the authorities of clients.
        pub ca_cert_credential_name: String,
        /// Several certificates from files.
        pub tls_certificates: Vec<TlsCertificate>,
        /// Names of which a client's certificate must carry one.
        pub subject_alt_names: Vec<String>,
        /// Hashes of the client's key.
        pub verify_certificate_spki: Vec<String>,
        /// Hashes of the client's certificate.
        pub verify_certificate_hash: Vec<String>,
        /// The least version.
        pub min_protocol_version: TlsProtocol,
        /// The greatest version.
        pub max_protocol_version: TlsProtocol,
        /// Cipher suites.
        pub cipher_suites: Vec<String>,
        /// Key exchange groups.
        pub ecdh_curves: Vec<String>,
        /// Whether the client's certificate is taken unverified.
        pub insecure_skip_verify: Option<bool>,
    }

    /// A certificate from files.
    pub struct TlsCertificate {
        /// The file of the certificate.
        pub server_certificate: String,
        /// The file of the key.
        pub private_key: String,
        /// The file of the authorities.
        pub ca_certificates: String,
    }
}

mesh_enums! {
    /// How traffic gets to a listener.
    pub enum CaptureMode {
        /// As the environment says.
        #[default]
        Default = "DEFAULT",
        /// It is redirected.
        Iptables = "IPTABLES",
        /// It is sent there by its caller.
        None = "NONE",
    }

    /// What becomes of calls to hosts that nobody knows.
    pub enum OutboundTrafficPolicyMode {
        /// Refused.
        #[default]
        RegistryOnly = "REGISTRY_ONLY",
        /// Passed on.
        AllowAny = "ALLOW_ANY",
    }

    /// TLS of a listener.
    pub enum ServerTlsMode {
        /// Passed on unopened.
        #[default]
        Passthrough = "PASSTHROUGH",
        /// We show a certificate.
        Simple = "SIMPLE",
        /// Both do.
        Mutual = "MUTUAL",
        /// Passed on unopened, to where the server name says.
        AutoPassthrough = "AUTO_PASSTHROUGH",
        /// Both do, with the mesh's identities.
        IstioMutual = "ISTIO_MUTUAL",
        /// The client may.
        OptionalMutual = "OPTIONAL_MUTUAL",
    }

    /// A version of TLS.
    pub enum TlsProtocol {
        /// The default.
        #[default]
        Auto = "TLS_AUTO",
        /// 1.0.
        V1_0 = "TLSV1_0",
        /// 1.1.
        V1_1 = "TLSV1_1",
        /// 1.2.
        V1_2 = "TLSV1_2",
        /// 1.3.
        V1_3 = "TLSV1_3",
    }
}
