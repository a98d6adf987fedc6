//! Istio's labels and the values that Istio gives them, as a pure function of what is known.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use mesh_core::cluster::ServiceName;
use mesh_core::facts::{Direction, Facts, PeerIdentity, WorkloadLabels};
use mesh_core::identity::SpiffeId;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

/// What stands where a reporter cannot know.
pub const UNKNOWN: &str = "unknown";
/// What stands in the labels of the other side once the label budget is used up.
pub const OVERFLOW: &str = "_overflow";
/// The flag of a record in which nothing went wrong.
pub const NO_FLAG: &str = "-";
/// The flag of a request whose caller left before the answer was complete.
pub const DOWNSTREAM_CLOSED: &str = "DC";

/// The workload that the mesh stands beside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OwnWorkload {
    /// What telemetry says of it; the principal is its own SPIFFE ID.
    pub labels: WorkloadLabels,
    /// The service that its inbound requests are for; `None` when no service selects it.
    pub service: Option<ServiceName>,
    /// The services by the workload's ports, where several ports are served: these come first.
    pub ports: Vec<(u16, ServiceName)>,
}

impl OwnWorkload {
    /// The service that requests to a port of the workload are for.
    fn service_at(&self, port: Option<u16>) -> Option<&ServiceName> {
        let at = self.ports.iter().find(|(number, _)| Some(*number) == port);
        at.map(|(_, service)| service).or(self.service.as_ref())
    }
}

/// Label `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// HTTP that is no gRPC.
    Http,
    /// gRPC, by its content type.
    Grpc,
    /// Bytes.
    Tcp,
}

/// What became of a request or connection, as far as labels tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// What was spoken.
    pub protocol: RequestProtocol,
    /// The HTTP status; 0 when the caller got none.
    pub code: u16,
    /// The gRPC status, of gRPC calls that got one.
    pub grpc_status: Option<u8>,
    /// Envoy's response flag, [`NO_FLAG`] when nothing went wrong.
    pub flags: &'static str,
}

/// One set of labels: the identity of a series.
///
/// ```
/// use mesh_core::facts::Facts;
/// use tower_mesh_telemetry::metrics::{Labels, Outcome, OwnWorkload};
///
/// let labels = Labels::of(&OwnWorkload::default(), &Facts::default(), Outcome::http(200));
/// assert_eq!(labels.get("reporter").as_deref(), Some("destination"));
/// assert_eq!(labels.get("source_principal").as_deref(), Some("unknown"));
/// assert_eq!(labels.get("response_code").as_deref(), Some("200"));
/// assert_eq!(labels.get("path"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    reporter: Direction,
    source: WorkloadLabels,
    destination: WorkloadLabels,
    service: Option<ServiceName>,
    protocol: RequestProtocol,
    code: Code,
    grpc_status: Option<u8>,
    flags: &'static str,
    security: &'static str,
    overflown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Code {
    None,
    Status(u16),
    Overflow,
}

impl RequestProtocol {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl Outcome {
    /// An HTTP answer, nothing wrong with it.
    pub const fn http(code: u16) -> Self {
        Self { protocol: RequestProtocol::Http, code, grpc_status: None, flags: NO_FLAG }
    }

    /// A gRPC answer in HTTP status 200, nothing wrong with it.
    pub const fn grpc(status: u8) -> Self {
        Self { protocol: RequestProtocol::Grpc, code: 200, grpc_status: Some(status), flags: NO_FLAG }
    }

    /// A connection.
    pub const fn tcp(flags: &'static str) -> Self {
        Self { protocol: RequestProtocol::Tcp, code: 0, grpc_status: None, flags }
    }

    /// With this response flag; an empty one is [`NO_FLAG`].
    #[must_use]
    pub const fn flagged(mut self, flags: &'static str) -> Self {
        self.flags = if flags.is_empty() { NO_FLAG } else { flags };
        self
    }

    /// All of it in one number, for comparing without looking at text.
    pub(super) fn packed(self) -> u64 {
        let mut flags = [0_u8; 4];
        for (to, from) in flags.iter_mut().zip(self.flags.bytes()) {
            *to = from;
        }
        let protocol = match self.protocol {
            RequestProtocol::Http => 0,
            RequestProtocol::Grpc => 1,
            RequestProtocol::Tcp => 2,
        };
        u64::from(self.code) << 48
            | u64::from(self.grpc_status.map_or(0xff, |s| s.min(0xfe))) << 40
            | protocol << 32
            | u64::from(u32::from_le_bytes(flags))
    }
}

impl Labels {
    /// The labels of one request or connection.
    ///
    /// The reporter is `source` for outbound facts, `destination` for inbound ones. Principals are set
    /// only where the connection between the two was mutual TLS, as Istio does: nobody has proved anything
    /// otherwise. The source reporter cannot know what the destination enforces, so its
    /// `connection_security_policy` is `unknown`; the destination reporter knows of the source what its
    /// certificate proves and what the configuration says of its address.
    pub fn of(own: &OwnWorkload, facts: &Facts, outcome: Outcome) -> Self {
        let direction = facts.connection().direction();
        let (source, destination, service, security) = match direction {
            Direction::Outbound => {
                let upstream = facts.upstream();
                let peer = upstream.and_then(|u| u.peer.as_deref());
                let source = with_principal(&own.labels, peer.and(own.labels.principal.as_ref()));
                let there = upstream.map(|u| u.endpoint.labels());
                let destination = party(there.map(|l| &**l), peer);
                let cluster = facts.route().and_then(|r| r.cluster.as_ref());
                (source, destination, cluster.map(|c| c.service().clone()), UNKNOWN)
            }
            Direction::Inbound => {
                let connection = facts.connection();
                let peer = connection.peer().map(|p| &**p);
                let source = party(connection.peer_labels().map(|l| &**l), peer);
                let destination = with_principal(&own.labels, peer.and(own.labels.principal.as_ref()));
                let security = if peer.is_some() { "mutual_tls" } else { "none" };
                (source, destination, own.service_at(connection.workload_port()).cloned(), security)
            }
        };
        Self {
            reporter: direction,
            source,
            destination,
            service,
            protocol: outcome.protocol,
            code: if outcome.protocol == RequestProtocol::Tcp {
                Code::None
            } else {
                Code::Status(outcome.code)
            },
            grpc_status: outcome.grpc_status.filter(|_| outcome.protocol == RequestProtocol::Grpc),
            flags: outcome.flags,
            security,
            overflown: false,
        }
    }

    /// The same with [`OVERFLOW`] in everything that the other side determines; `all` takes what the
    /// answer determines, too, which leaves a handful of sets.
    pub(super) fn overflow(mut self, all: bool) -> Self {
        static SOMEBODY: LazyLock<WorkloadLabels> = LazyLock::new(|| {
            let text: Arc<str> = Arc::from(OVERFLOW);
            let text = || Arc::clone(&text);
            WorkloadLabels {
                workload: text(),
                namespace: text(),
                canonical_service: text(),
                canonical_revision: text(),
                app: text(),
                version: text(),
                cluster: text(),
                principal: None,
            }
        });
        self.overflown = true;
        match self.reporter {
            Direction::Outbound => {
                self.destination = SOMEBODY.clone();
                self.service = Some(ServiceName::new(OVERFLOW, OVERFLOW, OVERFLOW));
            }
            Direction::Inbound => self.source = SOMEBODY.clone(),
        }
        if all {
            if matches!(self.code, Code::Status(_)) {
                self.code = Code::Overflow;
            }
            self.grpc_status = None;
            self.flags = OVERFLOW;
        }
        self
    }

    /// The value of one label; `None` for a label that this set does not have.
    pub fn get(&self, name: &str) -> Option<String> {
        let mut found = None;
        // The visitor below never fails.
        let _ = self.visit(|n, value| {
            if n == name {
                found = Some(value.to_owned());
            }
            Ok(())
        });
        found
    }

    fn visit(&self, mut each: impl FnMut(&'static str, &str) -> fmt::Result) -> fmt::Result {
        let reporter = match self.reporter {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        };
        each("reporter", reporter)?;
        // Overflown principals are of many, one's own stays.
        let other_principal = if self.overflown { OVERFLOW } else { UNKNOWN };
        let (source_else, destination_else) = match self.reporter {
            Direction::Outbound => (UNKNOWN, other_principal),
            Direction::Inbound => (other_principal, UNKNOWN),
        };
        let s = &self.source;
        each("source_workload", known(&s.workload))?;
        each("source_canonical_service", known(&s.canonical_service))?;
        each("source_canonical_revision", known(&s.canonical_revision))?;
        each("source_workload_namespace", known(&s.namespace))?;
        each("source_principal", s.principal.as_ref().map_or(source_else, SpiffeId::as_str))?;
        each("source_app", known(&s.app))?;
        each("source_version", known(&s.version))?;
        each("source_cluster", known(&s.cluster))?;
        let d = &self.destination;
        each("destination_workload", known(&d.workload))?;
        each("destination_workload_namespace", known(&d.namespace))?;
        each("destination_principal", d.principal.as_ref().map_or(destination_else, SpiffeId::as_str))?;
        each("destination_app", known(&d.app))?;
        each("destination_version", known(&d.version))?;
        each("destination_canonical_service", known(&d.canonical_service))?;
        each("destination_canonical_revision", known(&d.canonical_revision))?;
        each("destination_cluster", known(&d.cluster))?;
        let service = self.service.as_ref();
        each("destination_service", service.map_or(UNKNOWN, |s| known(&s.host)))?;
        each("destination_service_name", service.map_or(UNKNOWN, |s| known(&s.name)))?;
        each("destination_service_namespace", service.map_or(UNKNOWN, |s| known(&s.namespace)))?;
        each("request_protocol", self.protocol.as_str())?;
        if self.protocol != RequestProtocol::Tcp {
            match self.code {
                Code::None => each("response_code", "0")?,
                Code::Status(code) => each("response_code", itoa::Buffer::new().format(code))?,
                Code::Overflow => each("response_code", OVERFLOW)?,
            }
            let mut buffer = itoa::Buffer::new();
            each("grpc_response_status", self.grpc_status.map_or("", |s| buffer.format(s)))?;
        }
        each("response_flags", self.flags)?;
        each("connection_security_policy", self.security)
    }
}

fn known(value: &str) -> &str {
    if value.is_empty() { UNKNOWN } else { value }
}

fn with_principal(labels: &WorkloadLabels, principal: Option<&SpiffeId>) -> WorkloadLabels {
    WorkloadLabels { principal: principal.cloned(), ..labels.clone() }
}

fn party(labels: Option<&WorkloadLabels>, peer: Option<&PeerIdentity>) -> WorkloadLabels {
    WorkloadLabels { principal: peer.map(|p| p.id().clone()), ..labels.cloned().unwrap_or_default() }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.visit(|name, value| (name, Cow::Borrowed(value)).encode(encoder.encode_label()))
    }
}
