use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_tls::Clock;
use mesh_xds::ResourceType;
use mesh_xds::proto::discovery::DeltaDiscoveryRequest;
use mesh_xds::server::{Answer, Discovery, Peer, ServerLimits};
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::body::Body;
use tower_service::Service;

use super::accept::{Port, PortLimits};
use super::admin::{Admin, FEW_NAMES, MAX_NAMES, MAX_PROXIES};
use super::drain::Drain;
use super::http::MAX_HEADERS;
use super::identity::{self, Names, ServerTls};
use crate::authority::ca::Ca;
use crate::authority::make;
use crate::metrics::Metrics;

const PATIENCE: Duration = Duration::from_secs(20);

type Nothing = fn(&Peer, ResourceType, &str) -> Answer;
const NOTHING: Nothing = |_, _, _| Answer::Absent;

fn names() -> Names {
    let id = SpiffeId::for_account(&TrustDomain::default(), "mesh-system", "mesh-controller").unwrap();
    Names { id, dns: vec!["localhost".into()], trust_domain: TrustDomain::default() }
}

fn authority() -> Arc<Ca> {
    let made = make::authority(&TrustDomain::default(), SystemTime::now()).unwrap();
    Arc::new(Ca::open("here", &made.files(), &TrustDomain::default(), &Clock::system()).unwrap())
}

fn port(metrics: &Arc<Metrics>, limits: PortLimits) -> Port {
    Port { name: "test", limits, metrics: Arc::clone(metrics) }
}

/// A port with the webhooks' TLS, on which nobody is answered.
async fn silent(limits: PortLimits) -> (SocketAddr, Arc<Metrics>, Drain) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new());
    let (tls, _) = ServerTls::issue(&authority(), &names(), &Clock::system()).unwrap();
    let drain = Drain::new();
    let (port, handle) = (port(&metrics, limits), drain.handle());
    tokio::spawn(async move {
        let of = port.clone();
        super::accept::accept(listener, &of, handle, |stream, peer, place| {
            let (port, config) = (port.clone(), Arc::clone(&tls.webhooks));
            tokio::spawn(async move {
                let stream = super::accept::handshake(&port, config, stream, peer).await;
                drop((stream, place));
            });
        })
        .await;
    });
    (address, metrics, drain)
}

async fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    let _ = read.expect("the connection is still open");
}

#[tokio::test]
async fn a_port_bears_so_many_connections_and_no_handshake_for_ever() {
    let limits = PortLimits { connections: 1, handshake: PATIENCE * 10, idle: PATIENCE };
    let (address, metrics, _drain) = silent(limits).await;
    let _first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    is_closed(&mut second).await;
    assert!(metrics.page().contains("connections_refused_total{port=\"test\",reason=\"too_many\"} 1"));
    assert!(metrics.page().contains("connections{port=\"test\"} 1"));

    let limits = PortLimits { connections: 1, handshake: Duration::from_millis(20), idle: PATIENCE };
    let (address, metrics, _drain) = silent(limits).await;
    for reason in ["handshake_timeout", "handshake_failed"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if reason == "handshake_failed" {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        }
        is_closed(&mut stream).await;
        let line = format!("connections_refused_total{{port=\"test\",reason=\"{reason}\"}} 1");
        assert!(metrics.page().contains(&line), "{}", metrics.page());
    }
}

fn admin(missing: Vec<String>) -> Admin {
    let (sender, missing) = watch::channel(missing);
    drop(sender);
    Admin::new(Arc::default(), missing, Vec::new)
}

#[test]
fn what_tells_of_others_is_for_this_pod_alone() {
    let ask = |path: &str, peer: &str| {
        let request = Request::get(path).body(()).unwrap();
        admin(Vec::new()).answer(&request, peer.parse::<IpAddr>().unwrap()).status()
    };
    for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(ask("/debug/proxies", peer), StatusCode::OK, "{peer}");
    }
    for peer in ["10.0.0.7", "::ffff:10.0.0.7", "fd00::7"] {
        assert_eq!(ask("/debug/proxies", peer), StatusCode::FORBIDDEN, "{peer}");
        assert_eq!(ask("/metrics", peer), StatusCode::OK, "{peer}");
    }
}

/// A stream of the workload `shop/NUMBER` that subscribes to so many hosts.
async fn stream(discovery: &Discovery<Nothing>, number: usize, hosts: usize) -> Body {
    let names = (0..hosts).map(|i| format!("h{i}")).collect();
    let ask = DeltaDiscoveryRequest {
        type_url: ResourceType::Host.url().into(),
        resource_names_subscribe: names,
        ..Default::default()
    };
    let message = ask.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = Bytes::from([&[0][..], &length, &message].concat());
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let mut request = Request::post(path).body(Body::new(Full::new(body))).unwrap();
    let identity = SpiffeId::for_account(&TrustDomain::default(), "shop", "web").unwrap();
    request.extensions_mut().insert(Peer { identity, workload: Some(format!("shop/{number}").into()) });
    let answer = discovery.clone().into_service().call(request).await.unwrap();
    let mut body = answer.into_body();
    // The first response: what was asked for has been read.
    body.frame().await.unwrap().unwrap();
    body
}

#[tokio::test]
async fn a_page_shows_so_many_proxies_and_names() {
    let discovery = Discovery::new(NOTHING, ServerLimits::default());
    let mut streams = vec![stream(&discovery, 0, MAX_NAMES + 1).await];
    for number in 1..=MAX_PROXIES {
        streams.push(stream(&discovery, number, 1).await);
    }
    let (_, missing) = watch::channel(Vec::new());
    let admin = Admin::new(Arc::default(), missing, move || discovery.proxies());
    let mut told = Vec::new();
    for path in ["/debug/proxies", "/debug/proxies?workload=shop%2F0"] {
        let request = Request::get(path).body(()).unwrap();
        let page = admin.answer(&request, IpAddr::from([127, 0, 0, 1])).into_body();
        let page = page.collect().await.unwrap().to_bytes();
        told.push(serde_json::from_slice::<serde_json::Value>(&page).unwrap());
    }
    let [all, one] = told.as_slice() else { panic!() };
    let length = |list: &serde_json::Value| list.as_array().unwrap().len();
    assert_eq!((&all["connected"], length(&all["proxies"])), (&json!(MAX_PROXIES + 1), MAX_PROXIES));
    assert_eq!(all["shown"], MAX_PROXIES);
    assert_eq!(length(&all["proxies"][0]["types"][0]["names"]), FEW_NAMES);
    assert_eq!(one["shown"], 1);
    let host = &one["proxies"][0]["types"][0];
    assert_eq!((&host["subscriptions"], length(&host["names"])), (&json!(MAX_NAMES + 1), MAX_NAMES));
}

#[test]
fn readiness_says_what_is_missing() {
    let local = IpAddr::from([127, 0, 0, 1]);
    let ask = |admin: Admin, method: Method, path: &str| {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        admin.answer(&request, local).status()
    };
    assert_eq!(ask(admin(Vec::new()), Method::GET, "/ready"), StatusCode::OK);
    let waiting = || admin(vec!["there is no CA yet".into()]);
    assert_eq!(ask(waiting(), Method::GET, "/ready"), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask(waiting(), Method::GET, "/live"), StatusCode::OK);
    assert_eq!(ask(waiting(), Method::POST, "/ready"), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(waiting(), Method::GET, "/x"), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_silent_or_endless_request_does_not_keep_a_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new());
    let limits = PortLimits { idle: Duration::from_millis(20), ..PortLimits::ADMIN };
    let drain = Drain::new();
    tokio::spawn(admin(Vec::new()).serve(listener, port(&metrics, limits), drain.handle()));
    let mut silent = TcpStream::connect(address).await.unwrap();
    is_closed(&mut silent).await;
    let mut endless = TcpStream::connect(address).await.unwrap();
    let headers = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(MAX_HEADERS * 2));
    let _ = endless.write_all(headers.as_bytes()).await;
    is_closed(&mut endless).await;
    assert!(drain.drain(PATIENCE).await);
}

#[tokio::test(start_paused = true)]
async fn the_controllers_certificate_is_renewed_and_follows_the_authority() {
    let (ca_sender, ca) = watch::channel(None);
    let (sender, mut tls) = watch::channel(None::<ServerTls>);
    let start = SystemTime::now();
    let paused = tokio::time::Instant::now();
    let clock = Clock::from_fn(move || start + paused.elapsed());
    let metrics = Arc::new(Metrics::new());
    tokio::spawn(identity::keep(ca, names(), clock, Arc::clone(&metrics), sender));
    tokio::time::sleep(identity::LOOK_EVERY * 3).await;
    assert!(tls.borrow_and_update().is_none(), "there is no CA");

    ca_sender.send_replace(Some(authority()));
    tls.changed().await.unwrap();
    let first = tls.borrow_and_update().clone().unwrap();
    let begun = tokio::time::Instant::now();
    tls.changed().await.unwrap();
    let life = begun.elapsed();
    assert!(
        life >= identity::LIFE / 2 && life <= identity::LIFE * 2 / 3 + identity::LOOK_EVERY * 2,
        "{life:?}"
    );
    assert_eq!(tls.borrow_and_update().clone().unwrap().roots, first.roots);

    let other = authority();
    ca_sender.send_replace(Some(Arc::clone(&other)));
    let begun = tokio::time::Instant::now();
    tls.changed().await.unwrap();
    assert!(begun.elapsed() < identity::LOOK_EVERY);
    assert_eq!(&tls.borrow().clone().unwrap().roots, other.roots());
}
