//! One page with the sidecar's metrics and the application's.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use mesh::Mesh;
use mesh::telemetry::metrics::Exposition;
use serde::Deserialize;

use super::ask::{self, Ask};
use super::page as text_page;

/// The most that is read of the application's metrics, in bytes; more, and only the sidecar's own are shown.
pub(crate) const MAX_APP_METRICS: usize = 16 << 20;
/// How long the application's metrics may take; less, where the scraper waits less.
pub(crate) const MAX_SCRAPE: Duration = Duration::from_secs(10);

/// How long a scraper waits, in seconds.
const SCRAPE_TIMEOUT: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
const OPEN: &str = "application/openmetrics-text";
const CLASSIC: &str = "text/plain";

/// Where the application's metrics are: what Prometheus' annotations said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct AppMetrics {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
}

impl FromStr for AppMetrics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| {
            format!(r#"{e}; write such as {{"port": 9090, "path": "/metrics", "scheme": "http"}}"#)
        })
    }
}

/// The application's metrics, and in which of the two forms.
struct Scraped {
    text: String,
    open: bool,
}

impl AppMetrics {
    /// Asks for them in the form that the scraper wants.
    async fn scrape(&self, app: IpAddr, scraper: &HeaderMap) -> anyhow::Result<Scraped> {
        let mut headers = HeaderMap::new();
        let open = mesh::telemetry::metrics::negotiate(scraper.get(ACCEPT)) == Exposition::OpenMetrics;
        let accept = if open {
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        } else {
            "text/plain;version=0.0.4"
        };
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        if let Some(agent) = scraper.get(USER_AGENT) {
            headers.insert(USER_AGENT, agent.clone());
        }
        let tls = self.scheme.eq_ignore_ascii_case("https");
        let path = match self.path.as_str() {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let at = SocketAddr::new(app, self.port);
        let ask = Ask { at, tls, path, headers, most: MAX_APP_METRICS };
        let answer = ask::within(patience(scraper), ask.send()).await?;
        anyhow::ensure!(answer.status.is_success(), "status {}", answer.status);
        anyhow::ensure!(!answer.cut, "more than {MAX_APP_METRICS} bytes");
        let kind = answer.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or(CLASSIC);
        let open_answer = kind.starts_with(OPEN);
        anyhow::ensure!(open_answer || kind.starts_with(CLASSIC), "the form {kind:?} is not read");
        anyhow::ensure!(open || !open_answer, "OpenMetrics, which the scraper does not read");
        Ok(Scraped { text: String::from_utf8(answer.body.into())?, open: open_answer })
    }
}

/// How long the application may take: a little less than the scraper waits.
fn patience(scraper: &HeaderMap) -> Duration {
    let told = scraper.get(SCRAPE_TIMEOUT).and_then(|seconds| seconds.to_str().ok()?.parse::<f64>().ok());
    let told = told.and_then(|seconds| Duration::try_from_secs_f64(seconds * 0.9).ok());
    told.map_or(MAX_SCRAPE, |told| told.min(MAX_SCRAPE))
}

/// The page: the sidecar's own metrics are there whatever becomes of the application's.
pub(super) async fn page(
    mesh: &Mesh,
    app_metrics: Option<&AppMetrics>,
    app: IpAddr,
    scraper: &HeaderMap,
) -> Response<Full<Bytes>> {
    let scraped = match app_metrics {
        None => None,
        Some(from) => Some(from.scrape(app, scraper).await.inspect_err(|error| {
            tracing::info!(%error, port = from.port, "the application's metrics cannot be had");
        })),
    };
    // Both are shown in one form, so the application's decides where it cannot do what is asked for.
    let classic = HeaderValue::from_static(CLASSIC);
    let accept = match &scraped {
        Some(Ok(scraped)) if !scraped.open => Some(&classic),
        _ => scraper.get(ACCEPT),
    };
    let (kind, own) = mesh.metrics_page(accept);
    let text = match scraped {
        None => own,
        Some(Ok(scraped)) => merge(own, &scraped.text, true),
        Some(Err(_)) => merge(own, "", false),
    };
    let mut response = text_page(StatusCode::OK, text);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Both in one, of the same form. What the application calls by a name of the sidecar's is left out, since a name
/// may stand there once. Pure.
fn merge(own: String, app: &str, up: bool) -> String {
    const END: &str = "# EOF";
    let open = own.trim_end().ends_with(END);
    let names: HashSet<&str> = own.lines().filter_map(family).collect();
    let mut kept = Vec::new();
    for line in app.lines() {
        let line = line.trim_end();
        let taken = family(line).is_some_and(|name| {
            // `x_total` and its like are samples of the family `x`.
            let short = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
            names.contains(name) || short.is_some_and(|short| names.contains(short))
        });
        if !line.is_empty() && line != END && !taken {
            kept.push(line);
        }
    }
    let mut text = own;
    if open {
        let whole = text.trim_end().len() - END.len();
        text.truncate(whole);
    }
    text.push_str("# HELP mesh_app_metrics_up 1 where the application's metrics are below.\n");
    text.push_str("# TYPE mesh_app_metrics_up gauge\n");
    text.push_str(if up { "mesh_app_metrics_up 1\n" } else { "mesh_app_metrics_up 0\n" });
    for line in kept {
        text.push_str(line);
        text.push('\n');
    }
    if open {
        text.push_str(END);
        text.push('\n');
    }
    text
}

/// What the samples of a family may be called beside the family itself.
const SUFFIXES: [&str; 6] = ["_total", "_bucket", "_sum", "_count", "_created", "_info"];

/// The name that a line is about.
fn family(line: &str) -> Option<&str> {
    let mut words = line.split_ascii_whitespace();
    match words.next()? {
        "#" => match words.next()? {
            "HELP" | "TYPE" | "UNIT" => words.next(),
            _ => None,
        },
        comment if comment.starts_with('#') => None,
        sample => sample.split('{').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "# HELP istio_requests Requests.\n# TYPE istio_requests counter\n\
                       istio_requests_total{a=\"b\"} 1\n";

    #[test]
    fn a_name_stands_there_once_and_the_end_comes_last() {
        let app = "# HELP istio_requests_total Mine.\n# TYPE istio_requests_total counter\n\
                   istio_requests_total{a=\"c\"} 9\n\n# a remark\n# TYPE jobs gauge\njobs{x=\"# EOF\"} 3\r\n\
                   istio_requests_created 7\n# EOF\n";
        let up = "# HELP mesh_app_metrics_up 1 where the application's metrics are below.\n\
                  # TYPE mesh_app_metrics_up gauge\nmesh_app_metrics_up 1\n";
        let theirs = "# a remark\n# TYPE jobs gauge\njobs{x=\"# EOF\"} 3\n";
        assert_eq!(merge(OWN.to_owned(), app, true), format!("{OWN}{up}{theirs}"));
        assert_eq!(merge(format!("{OWN}# EOF\n"), app, true), format!("{OWN}{up}{theirs}# EOF\n"));
        let down = merge(format!("{OWN}# EOF\n"), "", false);
        assert!(down.ends_with("mesh_app_metrics_up 0\n# EOF\n"), "{down}");
    }

    #[test]
    fn the_application_has_less_time_than_the_scraper() {
        let of = |seconds: &'static str| {
            patience(&[(SCRAPE_TIMEOUT, HeaderValue::from_static(seconds))].into_iter().collect())
        };
        assert_eq!(of("5"), Duration::from_millis(4500));
        for other in ["500", "-1", "NaN", "soon"] {
            assert_eq!(of(other), MAX_SCRAPE, "{other}");
        }
        assert_eq!(patience(&HeaderMap::new()), MAX_SCRAPE);
    }

    #[test]
    fn what_is_no_place_of_metrics_is_refused() {
        let metrics: AppMetrics = r#"{"port": 9090, "path": "/m", "scheme": "http"}"#.parse().unwrap();
        assert_eq!((metrics.port, metrics.path.as_str()), (9090, "/m"));
        assert!("{}".parse::<AppMetrics>().unwrap_err().contains("write such as"));
    }
}
