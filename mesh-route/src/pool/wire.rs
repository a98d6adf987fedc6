//! The form of a request on the wire: pure changes of heads between HTTP/1.1 and HTTP/2.

use http::header::{CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use mesh_core::cluster::ClusterKey;
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::http1::line;
use mesh_core::protocol::Protocol;

use super::connect::HttpVersion;

const HOP_BY_HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("http2-settings"),
    TRANSFER_ENCODING,
];

/// Which HTTP version a request should go out with: the one that the port declares; an undeclared port is
/// spoken to as the caller speaks. An upgrade needs HTTP/1.1. Whether that is carried is decided apart.
pub(super) fn wanted(protocol: Protocol, version: Version, upgrade: bool) -> HttpVersion {
    let http2 = protocol.is_http2()
        || (version == Version::HTTP_2 && !upgrade && !matches!(protocol, Protocol::Http1));
    if http2 { HttpVersion::Http2 } else { HttpVersion::Http1 }
}

/// Whether the caller asks for another protocol on this connection.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    // Hardly any head has the header, and to look at each name is less than to look one up.
    headers.keys().any(|name| *name == UPGRADE)
        && headers.get_all(UPGRADE).iter().any(line::asks_for_another)
        && lists(headers, "upgrade")
}

/// Gives the request the form that `to` wants: origin-form and `Host`, or an absolute URI without `Host`.
/// What concerned only the connection it came on is removed. Doing it again, also for the other version,
/// changes nothing else.
///
/// The URI's authority counts before `Host`; a request with neither is sent to the cluster's own name.
pub(super) fn prepare<B>(
    request: &mut Request<B>,
    to: HttpVersion,
    cluster: &ClusterKey,
) -> Result<(), Failure> {
    // Only what is no upgrade is carried.
    if to == HttpVersion::Http1 && is_upgrade(request.headers()) {
        strip(request.headers_mut(), true);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        return http1(request, cluster);
    }
    prepare_plain(request, to, cluster)
}

/// [`prepare`], for a request that is no upgrade.
pub(super) fn prepare_plain<B>(
    request: &mut Request<B>,
    to: HttpVersion,
    cluster: &ClusterKey,
) -> Result<(), Failure> {
    strip(request.headers_mut(), false);
    match to {
        HttpVersion::Http1 => http1(request, cluster),
        HttpVersion::Http2 | HttpVersion::Carried => http2(request, cluster),
    }
}

fn http1<B>(request: &mut Request<B>, cluster: &ClusterKey) -> Result<(), Failure> {
    *request.version_mut() = Version::HTTP_11;
    if let Some(authority) = request.uri().authority() {
        // Without user info, which a `Host` must not carry.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let same = request.headers().get(HOST).is_some_and(|h| h.as_bytes() == host.as_bytes());
        if !same {
            let value = HeaderValue::from_str(host).map_err(bad)?;
            request.headers_mut().insert(HOST, value);
        }
    } else if !request.headers().keys().any(|name| *name == HOST) {
        let value = HeaderValue::from_str(&own_name(cluster)).map_err(bad)?;
        request.headers_mut().insert(HOST, value);
    }
    let origin_form = request.uri().scheme().is_none() && request.uri().authority().is_none();
    if request.method() != Method::CONNECT && !origin_form {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    Ok(())
}

fn http2<B>(request: &mut Request<B>, cluster: &ClusterKey) -> Result<(), Failure> {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    if request.method() == Method::CONNECT || request.uri().authority().is_some() {
        return Ok(());
    }
    let authority = match &host {
        Some(host) => Authority::try_from(host.as_bytes()).map_err(bad)?,
        None => Authority::try_from(own_name(cluster)).map_err(bad)?,
    };
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = parts.scheme.or(Some(Scheme::HTTP));
    parts.authority = Some(authority);
    parts.path_and_query = parts.path_and_query.or_else(|| Some(PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(parts).map_err(bad)?;
    Ok(())
}

fn own_name(cluster: &ClusterKey) -> String {
    format!("{}:{}", cluster.host, cluster.port)
}

fn bad(error: impl Into<mesh_core::body::BoxError>) -> Failure {
    Failure::new(FailureCode::BadRequest).detail("the request's authority is not one").source(error)
}

/// What of a head concerns one connection only.
#[derive(Debug, Clone, Copy, Default)]
struct Own {
    connection: bool,
    hop_by_hop: bool,
    upgrade: bool,
    te: bool,
}

impl Own {
    /// Looks at each name once: most heads have none of these, and asking for each would be a dozen lookups.
    fn of(headers: &HeaderMap) -> Self {
        let mut own = Self::default();
        for name in headers.keys() {
            // `HOP_BY_HOP` once more, as texts, which are told apart by their lengths first.
            match name.as_str() {
                "connection" => own.connection = true,
                "upgrade" => own.upgrade = true,
                "te" => own.te = true,
                "keep-alive"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "http2-settings"
                | "transfer-encoding" => own.hop_by_hop = true,
                _ => {}
            }
        }
        own
    }
}

/// Removes what concerns one connection only (RFC 9110, section 7.6.1). `te: trailers` stays, because it is
/// true of this hop, too, and gRPC servers insist on it. `keep_upgrade` leaves `upgrade`.
pub(super) fn strip(headers: &mut HeaderMap, keep_upgrade: bool) {
    let own = Own::of(headers);
    if own.connection {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            // What is said as a rule, and names nothing that is not removed anyway.
            .filter(|name| !["keep-alive", "close"].iter().any(|usual| name.eq_ignore_ascii_case(usual)))
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            // Nobody may have these removed by naming them.
            .filter(|name| {
                ![HOST, TE, TRAILER, UPGRADE].contains(name) && !name.as_str().starts_with("x-mesh-")
            })
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // `keep-alive` is among them.
    if own.hop_by_hop {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
    if own.upgrade && !keep_upgrade {
        headers.remove(UPGRADE);
    }
    if own.te {
        let trailers = headers.get_all(TE).iter().filter_map(|v| v.to_str().ok()).any(|v| {
            v.split(',')
                .any(|t| t.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("trailers")))
        });
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

fn lists(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster() -> ClusterKey {
        ClusterKey::new("a.default.svc", 80, "")
    }

    #[test]
    fn the_port_decides_the_version_else_the_caller() {
        use HttpVersion::{Http1, Http2};
        let table = [
            (Protocol::Auto, Version::HTTP_11, false, Http1),
            (Protocol::Auto, Version::HTTP_2, false, Http2),
            (Protocol::Auto, Version::HTTP_2, true, Http1),
            (Protocol::Http1, Version::HTTP_2, false, Http1),
            (Protocol::Http2, Version::HTTP_11, false, Http2),
            (Protocol::Grpc, Version::HTTP_10, false, Http2),
        ];
        for (protocol, version, upgrade, want) in table {
            assert_eq!(wanted(protocol, version, upgrade), want, "{protocol:?} {version:?} {upgrade}");
        }
    }

    #[test]
    fn an_absolute_uri_becomes_host_and_path_and_back() {
        let mut request = Request::get("http://user@b:81/x?y=1").header("host", "liar").body(()).unwrap();
        prepare(&mut request, HttpVersion::Http1, &cluster()).unwrap();
        assert_eq!(
            (request.uri().to_string(), &request.headers()["host"]),
            ("/x?y=1".into(), &"b:81".parse().unwrap())
        );
        prepare(&mut request, HttpVersion::Http2, &cluster()).unwrap();
        assert_eq!(request.uri().to_string(), "http://b:81/x?y=1");
        assert!(!request.headers().contains_key("host"));
        assert_eq!(request.version(), Version::HTTP_2);
    }

    #[test]
    fn without_any_host_the_cluster_is_named() {
        for to in [HttpVersion::Http1, HttpVersion::Http2] {
            let mut request = Request::get("/").body(()).unwrap();
            prepare(&mut request, to, &cluster()).unwrap();
            let host = request.headers().get("host").map(|h| h.to_str().unwrap().to_owned());
            let host = host.or_else(|| request.uri().authority().map(ToString::to_string));
            assert_eq!(host.as_deref(), Some("a.default.svc:80"));
        }
        let mut bad = Request::get("/").header("host", "a b").body(()).unwrap();
        assert_eq!(
            prepare(&mut bad, HttpVersion::Http2, &cluster()).unwrap_err().code(),
            FailureCode::BadRequest
        );
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let mut request = Request::get("/")
            .header("host", "a")
            .header("connection", "keep-alive, x-hop, Host, x-mesh-reason")
            .header("keep-alive", "timeout=5")
            .header("x-hop", "1")
            .header("x-mesh-reason", "denied")
            .header("te", "gzip;q=1, Trailers")
            .header("upgrade", "h2c")
            .header("proxy-authorization", "secret")
            .header("transfer-encoding", "chunked")
            .body(())
            .unwrap();
        prepare(&mut request, HttpVersion::Http1, &cluster()).unwrap();
        let mut left: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "te", "x-mesh-reason"]);
        assert_eq!(request.headers()["te"], "trailers");
    }

    #[test]
    fn each_name_of_the_list_is_seen() {
        for name in &HOP_BY_HOP {
            let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
            assert!(Own::of(&headers).hop_by_hop, "{name}");
        }
    }

    #[test]
    fn an_upgrade_stays_on_http1_only() {
        let request = |to| {
            let mut r = Request::get("/")
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .body(())
                .unwrap();
            prepare(&mut r, to, &cluster()).unwrap();
            r
        };
        assert!(is_upgrade(request(HttpVersion::Http1).headers()));
        // What Java's client offers at the beginning of a connection.
        let mut offer = Request::get("/")
            .header("connection", "Upgrade, HTTP2-Settings")
            .header("upgrade", "h2c")
            .header("http2-settings", "AAEAAEAAAAIAAAAB")
            .body(())
            .unwrap();
        prepare(&mut offer, HttpVersion::Http1, &cluster()).unwrap();
        assert_eq!(offer.headers().keys().collect::<Vec<_>>(), ["host"]);
        assert!(!request(HttpVersion::Http2).headers().contains_key("upgrade"));
    }

    proptest! {
        #[test]
        fn preparing_twice_changes_nothing(
            host in "\\PC{0,12}", connection in "[a-z, -]{0,20}", path in "/[a-z/?]{0,9}", first: bool
        ) {
            let mut request = Request::get(path).body(()).unwrap();
            if let Ok(v) = HeaderValue::from_bytes(host.as_bytes()) { request.headers_mut().insert("host", v); }
            request.headers_mut().insert("connection", HeaderValue::from_str(&connection).unwrap());
            let to = if first { HttpVersion::Http1 } else { HttpVersion::Http2 };
            if prepare(&mut request, to, &cluster()).is_ok() {
                let (uri, headers) = (request.uri().clone(), request.headers().clone());
                prepare(&mut request, to, &cluster()).unwrap();
                prop_assert_eq!((request.uri(), request.headers()), (&uri, &headers));
            }
        }
    }
}
