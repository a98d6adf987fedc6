//! The application's probes and hooks, which the kubelet asks for here because it has no identity of the mesh.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;

use super::ask::{self, Ask};
use super::page;

/// How long a probe may take that says nothing of it: Kubernetes' default.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a hook may take, which has no timeout in Kubernetes: as long as most pods have to end.
pub(crate) const HOOK_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest timeout of a probe that counts.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// How much of the application's answer is passed on, in bytes; the kubelet reads no more.
pub(crate) const MAX_BODY: usize = 10 * 1024;
/// How many probes there may be.
pub(crate) const MAX_PROBES: usize = 1024;

/// The originals, by the path under which the kubelet asks for them here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probes(HashMap<String, Probe>);

/// A probe as Kubernetes writes it; ports are numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<Tcp>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Tcp {
    port: u16,
}

#[derive(Debug, Clone, Deserialize)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all: HashMap<String, Probe> = serde_json::from_str(text)
            .map_err(|e| format!("{e}; write an object from paths to probes, ports as numbers"))?;
        if all.len() > MAX_PROBES {
            return Err(format!("{} probes; at most {MAX_PROBES} are allowed", all.len()));
        }
        for (path, probe) in &all {
            let kinds = [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
            if kinds.iter().filter(|is| **is).count() != 1 {
                return Err(format!("{path}: write one of httpGet, tcpSocket, grpc"));
            }
        }
        Ok(Self(all))
    }
}

impl HttpGet {
    /// What the application is asked: as the kubelet would, whose own `User-Agent` and `Accept` go along.
    fn ask(&self, app: IpAddr, kubelet: &HeaderMap) -> Ask {
        let mut headers = HeaderMap::new();
        for name in [USER_AGENT, ACCEPT] {
            if let Some(value) = kubelet.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        for header in &self.http_headers {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&header.value)) else { continue };
            match name {
                // One value each; an empty one means: none.
                HOST | USER_AGENT | ACCEPT if value.is_empty() => drop(headers.remove(name)),
                HOST | USER_AGENT | ACCEPT => drop(headers.insert(name, value)),
                name => drop(headers.append(name, value)),
            }
        }
        let path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        let tls = self.scheme.eq_ignore_ascii_case("https");
        Ask { at: SocketAddr::new(app, self.port), tls, path, headers, most: MAX_BODY }
    }
}

impl Probes {
    /// Asks the application at `app` what the kubelet would have asked, and answers what it would have found.
    pub(crate) async fn ask<B>(&self, app: IpAddr, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let Some(probe) = self.0.get(path) else {
            return page(StatusCode::NOT_FOUND, format!("no probe of this pod is {path}\n"));
        };
        let timeout = match probe.timeout_seconds {
            Some(seconds) => Duration::from_secs(seconds.max(1)).min(MAX_TIMEOUT),
            None if path.starts_with("/app-lifecycle/") => HOOK_TIMEOUT,
            None => DEFAULT_TIMEOUT,
        };
        match ask::within(timeout, probe.run(app, request.headers())).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%error, path, "a probe of the application failed");
                page(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n"))
            }
        }
    }
}

impl Probe {
    async fn run(&self, app: IpAddr, kubelet: &HeaderMap) -> anyhow::Result<Response<Full<Bytes>>> {
        if let Some(get) = &self.http_get {
            let answer = get.ask(app, kubelet).send().await?;
            // What leads elsewhere counts as good, and the kubelet must not follow it from here.
            let status = if answer.status.is_redirection() { StatusCode::OK } else { answer.status };
            let mut response = page(status, answer.body);
            if let Some(kind) = answer.headers.get(CONTENT_TYPE) {
                response.headers_mut().insert(CONTENT_TYPE, kind.clone());
            }
            return Ok(response);
        }
        if let Some(tcp) = &self.tcp_socket {
            ask::connect(SocketAddr::new(app, tcp.port)).await?;
        }
        if let Some(grpc) = &self.grpc {
            let at = SocketAddr::new(app, grpc.port);
            ask::health(at, grpc.service.as_deref().unwrap_or_default()).await?;
        }
        Ok(page(StatusCode::OK, "ok\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_probe_is_refused_with_the_path() {
        for (text, said) in [
            ("[]", "write an object from paths to probes"),
            (r#"{"/a": {}}"#, "/a: write one of httpGet, tcpSocket, grpc"),
            (r#"{"/a": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}"#, "/a: write one of"),
            (r#"{"/a": {"httpGet": {"port": "http"}}}"#, "ports as numbers"),
            (r#"{"/a": {"exec": {}}}"#, "unknown field `exec`"),
        ] {
            let error = text.parse::<Probes>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let many = (0..=MAX_PROBES).map(|i| format!(r#""/{i}": {{"tcpSocket": {{"port": 1}}}}"#));
        let many = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
        assert!(many.parse::<Probes>().unwrap_err().contains("at most 1024"));
    }

    #[test]
    fn the_application_is_asked_what_the_kubelet_would_have_asked() {
        let text = r#"{"/x": {"httpGet": {"path": "ok?a=b", "port": 8080, "scheme": "HTTPS", "httpHeaders":
            [{"name": "Host", "value": "app.test"}, {"name": "X-A", "value": "1"}, {"name": "X-A", "value": "2"},
             {"name": "Accept", "value": ""}, {"name": "bad name", "value": "x"}]}}}"#;
        let probes: Probes = text.parse().unwrap();
        let kubelet = [(USER_AGENT, "kube-probe/1.34"), (ACCEPT, "*/*"), (HOST, "10.0.0.1:15020")];
        let kubelet = kubelet.into_iter().map(|(n, v)| (n, HeaderValue::from_static(v))).collect();
        let ask = probes.0["/x"].http_get.as_ref().unwrap().ask("10.0.0.1".parse().unwrap(), &kubelet);
        assert_eq!(
            (ask.at.to_string().as_str(), ask.tls, ask.path.as_str()),
            ("10.0.0.1:8080", true, "/ok?a=b")
        );
        let mut headers: Vec<_> =
            ask.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        headers.sort();
        assert_eq!(headers, ["host: app.test", "user-agent: kube-probe/1.34", "x-a: 1", "x-a: 2"]);
    }
}
