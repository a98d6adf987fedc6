//! What a line of the access log tells, and the two ways of writing it.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use mesh_core::cluster::EndpointAddress;
use mesh_core::facts::{Direction, Facts};
use mesh_core::failure::{Failure, FailureCode};

use super::escape::{Quoting, json_string, json_text, text_field};
use super::time;

/// A member's key with all that stands around it, so that it is copied as one piece.
macro_rules! key {
    ($key:literal) => {
        concat!(",\"", $key, "\":")
    };
}

/// How much of a path is logged, in bytes.
pub const MAX_PATH: usize = 2048;
/// How much of any other field that a peer sent is logged, in bytes.
pub const MAX_FIELD: usize = 512;
/// How much of an explanation is logged, in bytes.
pub const MAX_EXPLANATION: usize = 1024;
/// How many policies a line names.
pub const MAX_POLICIES: usize = 32;

/// One request or connection. Absent fields are `null` in JSON and `-` in text.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// When it began.
    pub start: SystemTime,
    /// The method.
    pub method: Option<&'a str>,
    /// Path and query, as they came in.
    pub path: Option<&'a [u8]>,
    /// `HTTP/1.1`, `HTTP/2`, ...
    pub protocol: Option<&'static str>,
    /// The HTTP status; 0 when the caller got none.
    pub response_code: u16,
    /// Envoy's response flag, `-` for none.
    pub response_flags: &'static str,
    /// Bytes of the request's body, or from the caller of a connection.
    pub bytes_received: u64,
    /// Bytes of the response's body, or to the caller of a connection.
    pub bytes_sent: u64,
    /// From beginning to end.
    pub duration: Duration,
    /// From the request to the headers of the answer, when an upstream answered.
    pub upstream_service_time: Option<Duration>,
    /// `x-forwarded-for`.
    pub x_forwarded_for: Option<&'a [u8]>,
    /// `user-agent`.
    pub user_agent: Option<&'a [u8]>,
    /// `x-request-id`.
    pub request_id: Option<&'a [u8]>,
    /// Whom the caller called: `:authority` or `Host`.
    pub authority: Option<&'a [u8]>,
    /// Connection, route and upstream.
    pub facts: &'a Facts,
    /// Why the mesh answered, if it did.
    pub failure: Option<&'a Failure>,
    /// Why the upstream's verified sidecar answered, if it said so: its code.
    pub upstream_reason: Option<FailureCode>,
    /// What the upstream's verified sidecar said about it.
    pub upstream_detail: Option<&'a [u8]>,
    /// The trace, as 32 hexadecimal digits.
    pub trace_id: Option<&'a [u8; 32]>,
}

impl<'a> Entry<'a> {
    /// An entry of which nothing but its facts and start is known.
    pub const fn new(facts: &'a Facts, start: SystemTime) -> Self {
        Self {
            start,
            method: None,
            path: None,
            protocol: None,
            response_code: 0,
            response_flags: "-",
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            request_id: None,
            authority: None,
            facts,
            failure: None,
            upstream_reason: None,
            upstream_detail: None,
            trace_id: None,
        }
    }

    /// Appends the entry as one line of JSON: Istio's keys in Istio's order, then `reason` (the code of
    /// [`Failure`]), `detail`, `resource` (at fault), `policies` (which decided, as `NAMESPACE/NAME`),
    /// `upstream_reason`, `source_principal` (as proved) and `trace_id`.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"start_time\":\"");
        time::push(out, self.start);
        out.push(b'"');
        let mut line = Json(out);
        line.string(key!("method"), self.method.map(str::as_bytes), MAX_FIELD);
        line.string(key!("path"), self.path, MAX_PATH);
        line.clean(key!("protocol"), self.protocol.map(str::as_bytes));
        line.number(key!("response_code"), Some(self.response_code.into()));
        line.clean(key!("response_flags"), Some(self.response_flags.as_bytes()));
        if self.failure.is_some() {
            line.built(key!("response_code_details"), |o| self.code_details(o));
            line.string(key!("connection_termination_details"), self.termination(), MAX_FIELD);
            line.built(key!("upstream_transport_failure_reason"), |o| self.transport_failure(o));
        } else {
            // What the three come to then, in one piece.
            line.key(match self.upstream_service_time {
                Some(_) => concat!(key!("response_code_details"), "\"via_upstream\""),
                None => concat!(key!("response_code_details"), "null"),
            });
            line.key(concat!(
                key!("connection_termination_details"),
                "null",
                key!("upstream_transport_failure_reason"),
                "null"
            ));
        }
        line.number(key!("bytes_received"), Some(self.bytes_received));
        line.number(key!("bytes_sent"), Some(self.bytes_sent));
        line.number(key!("duration"), Some(millis(self.duration)));
        line.number(key!("upstream_service_time"), self.upstream_service_time.map(millis));
        line.string(key!("x_forwarded_for"), self.x_forwarded_for, MAX_FIELD);
        line.string(key!("user_agent"), self.user_agent, MAX_FIELD);
        line.string(key!("request_id"), self.request_id, MAX_FIELD);
        line.string(key!("authority"), self.authority, MAX_FIELD);
        match self.upstream_address() {
            Some(address) => line.address(key!("upstream_host"), Some(address)),
            None => line.built(key!("upstream_host"), |o| self.upstream_host(o)),
        }
        self.upstream_cluster_json(&mut line);
        line.key(concat!(key!("upstream_local_address"), "null"));
        line.address(key!("downstream_local_address"), self.local_address());
        line.address(key!("downstream_remote_address"), self.remote_address());
        line.string(key!("requested_server_name"), self.server_name(), MAX_FIELD);
        line.string(key!("route_name"), self.route_name(), MAX_FIELD);

        line.clean(key!("reason"), self.failure.map(|f| f.code().as_str().as_bytes()));
        let explanation = self.failure.map(Failure::explanation).filter(|e| !e.is_empty());
        let detail = explanation.as_deref().map(str::as_bytes).or(self.upstream_detail);
        line.string(key!("detail"), detail, MAX_EXPLANATION);
        if let Some(failure) = self.failure {
            line.built(key!("resource"), |o| {
                if let Some(resource) = failure.at_fault() {
                    o.extend_from_slice(resource.kind().as_bytes());
                    o.push(b' ');
                    o.extend_from_slice(resource.namespaced_name().as_bytes());
                }
            });
            line.key(key!("policies"));
            line.0.push(b'[');
            for (at, policy) in self.policies().enumerate() {
                if at > 0 {
                    line.0.push(b',');
                }
                json_string(line.0, policy.as_bytes(), MAX_FIELD);
            }
            line.0.push(b']');
        } else {
            line.key(concat!(key!("resource"), "null", key!("policies"), "[]"));
        }
        line.clean(key!("upstream_reason"), self.upstream_reason.map(|c| c.as_str().as_bytes()));
        let peer = self.facts.peer().map(|p| p.id().as_str().as_bytes());
        line.string(key!("source_principal"), peer, MAX_FIELD);
        line.string(key!("trace_id"), self.trace_id.map(<[u8; 32]>::as_slice), MAX_FIELD);
        out.extend_from_slice(b"}\n");
    }

    /// Appends the entry as one line of text in Istio's default format.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        use Quoting::{Bare, Quoted};
        out.push(b'[');
        time::push(out, self.start);
        out.extend_from_slice(b"] \"");
        let mut line = Text(out);
        line.part(Quoted, self.method.map(str::as_bytes), MAX_FIELD);
        line.0.push(b' ');
        line.part(Quoted, self.path, MAX_PATH);
        line.0.push(b' ');
        line.part(Quoted, self.protocol.map(str::as_bytes), MAX_FIELD);
        line.0.push(b'"');
        line.number(Some(self.response_code.into()));
        line.field(Bare, Some(self.response_flags.as_bytes()));
        line.built(Bare, |o| self.code_details(o));
        line.field(Bare, self.termination());
        line.built(Quoted, |o| self.transport_failure(o));
        line.number(Some(self.bytes_received));
        line.number(Some(self.bytes_sent));
        line.number(Some(millis(self.duration)));
        line.number(self.upstream_service_time.map(millis));
        line.field(Quoted, self.x_forwarded_for);
        line.field(Quoted, self.user_agent);
        line.field(Quoted, self.request_id);
        line.field(Quoted, self.authority);
        line.built(Quoted, |o| self.upstream_host(o));
        line.built(Bare, |o| self.upstream_cluster(o));
        line.field(Bare, None);
        line.built(Bare, |o| push_some(o, self.local_address()));
        line.built(Bare, |o| push_some(o, self.remote_address()));
        line.field(Bare, self.server_name());
        line.field(Bare, self.route_name());
        out.push(b'\n');
    }

    fn policies(&self) -> impl Iterator<Item = &'a str> {
        let policies = self.failure.map(Failure::deciding_policies).unwrap_or_default();
        policies.iter().take(MAX_POLICIES).map(|p| p.namespaced_name())
    }

    /// `via_upstream`, or the mesh's own code with the policies that decided: Envoy's place for it, so that
    /// the text format names them, too.
    fn code_details(&self, out: &mut Vec<u8>) {
        match self.failure {
            Some(failure) => {
                out.extend_from_slice(failure.code().as_str().as_bytes());
                for (at, policy) in self.policies().enumerate() {
                    out.push(if at == 0 { b'[' } else { b',' });
                    out.extend_from_slice(policy.as_bytes());
                }
                if !failure.deciding_policies().is_empty() {
                    out.push(b']');
                }
            }
            None if self.upstream_service_time.is_some() => out.extend_from_slice(b"via_upstream"),
            None => {}
        }
    }

    /// Of a connection that is no request: why it was ended.
    fn termination(&self) -> Option<&'static [u8]> {
        let failure = self.failure.filter(|_| self.method.is_none())?;
        Some(failure.code().as_str().as_bytes())
    }

    fn transport_failure(&self, out: &mut Vec<u8>) {
        use FailureCode::{ConnectFailed, IdentityMismatch, TlsFailed};
        if let Some(failure) = self.failure
            && matches!(failure.code(), ConnectFailed | TlsFailed | IdentityMismatch)
        {
            let explanation = failure.explanation();
            out.extend_from_slice(
                explanation.as_bytes().get(..MAX_EXPLANATION).unwrap_or(explanation.as_bytes()),
            );
        }
    }

    fn upstream_host(&self, out: &mut Vec<u8>) {
        let Some(upstream) = self.facts.upstream() else {
            return;
        };
        match (self.upstream_address(), &upstream.endpoint.key().address) {
            (Some(address), _) => push_address(out, address),
            (None, EndpointAddress::Socket(address)) => push_address(out, address.0),
            (None, EndpointAddress::Name(name, port)) => {
                out.extend_from_slice(name.as_bytes());
                push_port(out, *port);
            }
        }
    }

    /// Where the request went, as far as that is an address.
    fn upstream_address(&self) -> Option<SocketAddr> {
        let upstream = self.facts.upstream()?;
        match (upstream.address, &upstream.endpoint.key().address) {
            (Some(address), _) => Some(address.0),
            (None, EndpointAddress::Socket(address)) => Some(address.0),
            (None, EndpointAddress::Name(..)) => None,
        }
    }

    /// [`upstream_cluster`](Self::upstream_cluster) as a member: the names of a known cluster go straight into the line.
    fn upstream_cluster_json(&self, line: &mut Json<'_>) {
        let Some(cluster) = self.facts.route().and_then(|r| r.cluster.as_ref()) else {
            return line.built(key!("upstream_cluster"), |o| self.upstream_cluster(o));
        };
        let key = cluster.key();
        if key.host.len() + key.subset.len() > MAX_FIELD {
            return line.built(key!("upstream_cluster"), |o| self.upstream_cluster(o));
        }
        line.key(concat!(key!("upstream_cluster"), "\"outbound|"));
        push_number(line.0, key.port.into());
        for part in [&key.subset, &key.host] {
            line.0.push(b'|');
            json_text(line.0, part.as_bytes());
        }
        line.0.push(b'"');
    }

    /// Istio's names of clusters: `outbound|PORT|SUBSET|HOST` or `inbound|PORT||`.
    fn upstream_cluster(&self, out: &mut Vec<u8>) {
        let connection = self.facts.connection();
        if let Some(cluster) = self.facts.route().and_then(|r| r.cluster.as_ref()) {
            let key = cluster.key();
            out.extend_from_slice(b"outbound|");
            push_number(out, key.port.into());
            for part in [&key.subset, &key.host] {
                out.push(b'|');
                out.extend_from_slice(part.as_bytes());
            }
        } else if let (Direction::Inbound, Some(port)) = (connection.direction(), connection.workload_port())
        {
            out.extend_from_slice(b"inbound|");
            push_number(out, port.into());
            out.extend_from_slice(b"||");
        }
    }

    fn local_address(&self) -> Option<SocketAddr> {
        let connection = self.facts.connection();
        let original = connection.original_dst().map(|a| a.0);
        original.or(connection.local_addr().map(|a| a.0))
    }

    fn remote_address(&self) -> Option<SocketAddr> {
        self.facts.connection().peer_addr().map(|address| address.0)
    }

    fn server_name(&self) -> Option<&'a [u8]> {
        self.facts.connection().sni().map(str::as_bytes)
    }

    fn route_name(&self) -> Option<&'a [u8]> {
        self.facts.route().map(|r| r.name.as_bytes())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    // Most numbers of a line have one digit.
    match u8::try_from(number) {
        Ok(digit @ 0..10) => out.push(b'0' + digit),
        _ => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
    }
}

fn push_port(out: &mut Vec<u8>, port: u16) {
    out.push(b':');
    push_number(out, port.into());
}

fn push_some(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    if let Some(address) = address {
        push_address(out, address);
    }
}

fn push_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            // Digit by digit, which is less than four numbers: `255.255.255.255` at most.
            let mut text = [0; 15];
            let mut places = text.iter_mut();
            let mut put = |byte| {
                if let Some(place) = places.next() {
                    *place = byte;
                }
            };
            for (at, octet) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    put(b'.');
                }
                if octet >= 100 {
                    put(b'0' + octet / 100);
                }
                if octet >= 10 {
                    put(b'0' + octet / 10 % 10);
                }
                put(b'0' + octet % 10);
            }
            let left = places.len();
            out.extend_from_slice(text.get(..text.len() - left).unwrap_or_default());
        }
        // Writing to a vector does not fail.
        IpAddr::V6(ip) => {
            let _ = write!(out, "[{ip}]");
        }
    }
    push_port(out, address.port());
}

/// The rest of an object that is open and has one member.
struct Json<'a>(&'a mut Vec<u8>);

impl Json<'_> {
    /// Takes what [`key!`] makes.
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(key.as_bytes());
    }

    fn string(&mut self, key: &'static str, value: Option<&[u8]>, max: usize) {
        self.key(key);
        match value {
            Some(value) => json_string(self.0, value, max),
            None => self.0.extend_from_slice(b"null"),
        }
    }

    /// A string of ours in which nothing has to be escaped.
    fn clean(&mut self, key: &'static str, value: Option<&[u8]>) {
        self.key(key);
        match value {
            Some(value) => {
                self.0.push(b'"');
                self.0.extend_from_slice(value);
                self.0.push(b'"');
            }
            None => self.0.extend_from_slice(b"null"),
        }
    }

    fn address(&mut self, key: &'static str, address: Option<SocketAddr>) {
        self.key(key);
        match address {
            Some(address) => {
                self.0.push(b'"');
                push_address(self.0, address);
                self.0.push(b'"');
            }
            None => self.0.extend_from_slice(b"null"),
        }
    }

    fn number(&mut self, key: &'static str, value: Option<u64>) {
        self.key(key);
        match value {
            Some(value) => push_number(self.0, value),
            None => self.0.extend_from_slice(b"null"),
        }
    }

    /// A string that is put together from names and addresses; `null` when nothing is written.
    fn built(&mut self, key: &'static str, build: impl FnOnce(&mut Vec<u8>)) {
        super::escape::with_scratch(|scratch| {
            build(scratch);
            let value = Some(scratch.as_slice()).filter(|s| !s.is_empty());
            self.string(key, value, MAX_EXPLANATION);
        });
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl Text<'_> {
    fn part(&mut self, quoting: Quoting, value: Option<&[u8]>, max: usize) {
        match value {
            Some(value) if !value.is_empty() => text_field(self.0, value, quoting, max),
            _ => self.0.push(b'-'),
        }
    }

    fn field_of(&mut self, quoting: Quoting, value: Option<&[u8]>, max: usize) {
        self.0.push(b' ');
        if quoting == Quoting::Quoted {
            self.0.push(b'"');
        }
        self.part(quoting, value, max);
        if quoting == Quoting::Quoted {
            self.0.push(b'"');
        }
    }

    fn field(&mut self, quoting: Quoting, value: Option<&[u8]>) {
        self.field_of(quoting, value, MAX_FIELD);
    }

    fn number(&mut self, value: Option<u64>) {
        self.0.push(b' ');
        match value {
            Some(value) => push_number(self.0, value),
            None => self.0.push(b'-'),
        }
    }

    fn built(&mut self, quoting: Quoting, build: impl FnOnce(&mut Vec<u8>)) {
        super::escape::with_scratch(|scratch| {
            build(scratch);
            self.field_of(quoting, Some(scratch), MAX_EXPLANATION);
        });
    }
}

#[cfg(test)]
mod tests;
