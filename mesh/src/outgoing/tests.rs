use super::*;
use mesh_core::cluster::UpstreamTls;

const TEXT: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.0.1, selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: mysql, port: 3306}, {name: web, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-1, namespace: default}
spec: {address: 10.0.0.1, serviceAccount: reviews, labels: {app: reviews, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-0, namespace: default}
spec: {address: 10.0.0.5, serviceAccount: db, labels: {app: db, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-1, namespace: default}
spec: {address: 10.0.0.6, serviceAccount: db, labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: github, namespace: default}
spec: {hosts: [api.github.com], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]}
";

const REGISTRY_ONLY: &str = "
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: own, namespace: default}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
";

fn mesh(more: &str, unknown: UnknownDestinations) -> (Mesh, crate::Driver) {
    let objects = mesh_core::yaml::parse_objects("a.yaml", &format!("{TEXT}{more}")).unwrap();
    Mesh::builder().objects(objects).redirected(unknown).build().unwrap()
}

/// Where bytes go, and requests to an unknown host, each by the name of its cluster.
async fn told(mesh: &Mesh, original: &str) -> (Protocol, String, String) {
    let outgoing = mesh.outgoing(original.parse().unwrap()).await.unwrap();
    let name = |cluster: &Arc<Cluster>| format!("{}|{}", cluster.service().name, cluster.key().port);
    let bytes = match outgoing.bytes() {
        Ok(target) => {
            format!("{}{}", name(target.cluster()), if outgoing.is_endpoint() { " one" } else { "" })
        }
        Err(failure) => failure.code().as_str().to_owned(),
    };
    (outgoing.protocol(), bytes, outgoing.otherwise().map_or("closed".to_owned(), name))
}

#[tokio::test]
async fn the_original_destination_says_what_was_called() {
    use Protocol::{Auto, Http1, Tcp};
    use UnknownDestinations::{Allowed, Refused};
    let (open, _driver) = mesh("", Allowed);
    let (closed, _driver) = mesh("", Refused);
    let (by_sidecar, _driver) = mesh(REGISTRY_ONLY, Allowed);
    for (original, protocol, bytes, otherwise, bytes_closed, otherwise_closed) in [
        ("10.96.0.1:80", Http1, "reviews|80", "reviews|80", "reviews|80", "closed"),
        ("10.96.0.1:9000", Tcp, "reviews|9000", "reviews|9000", "reviews|9000", "closed"),
        ("[::ffff:10.96.0.1]:80", Http1, "reviews|80", "reviews|80", "reviews|80", "closed"),
        // A port that the service does not have.
        ("10.96.0.1:81", Auto, "PassthroughCluster|81", "PassthroughCluster|81", "unknown_host", "closed"),
        // Endpoints, by their own port.
        ("10.0.0.1:8080", Http1, "reviews|80 one", "reviews|80", "reviews|80 one", "reviews|80"),
        ("10.0.0.5:3306", Tcp, "db|3306 one", "db|3306", "db|3306 one", "db|3306"),
        ("10.0.0.6:8080", Auto, "db|8080 one", "db|8080", "db|8080 one", "db|8080"),
        ("10.0.0.1:80", Auto, "PassthroughCluster|80", "PassthroughCluster|80", "unknown_host", "closed"),
        ("192.0.2.7:443", Auto, "PassthroughCluster|443", "PassthroughCluster|443", "unknown_host", "closed"),
        (
            "192.0.2.7:3306",
            Tcp,
            "PassthroughCluster|3306",
            "PassthroughCluster|3306",
            "unknown_host",
            "closed",
        ),
        (
            "[2001:db8::1]:80",
            Auto,
            "PassthroughCluster|80",
            "PassthroughCluster|80",
            "unknown_host",
            "closed",
        ),
    ] {
        let want = (protocol, bytes.to_owned(), otherwise.to_owned());
        assert_eq!(told(&open, original).await, want, "{original}");
        let want = (protocol, bytes_closed.to_owned(), otherwise_closed.to_owned());
        assert_eq!(told(&closed, original).await, want, "{original}, refused");
        assert_eq!(told(&by_sidecar, original).await, want, "{original}, refused by a Sidecar");
    }
}

#[tokio::test]
async fn an_endpoint_is_called_with_its_own_tls_and_identity() {
    let (mesh, _driver) = mesh("", UnknownDestinations::Allowed);
    for (original, mutual) in [("10.0.0.5:8080", true), ("10.0.0.6:8080", false)] {
        let original: SocketAddr = original.parse().unwrap();
        let outgoing = mesh.outgoing(original).await.unwrap();
        let cluster = outgoing.bytes().unwrap().cluster();
        let endpoint = mesh_route::balance::at(&cluster.load_endpoints(), original).unwrap();
        assert_eq!(matches!(endpoint.key().tls, UpstreamTls::Mutual { .. }), mutual, "{original}");
    }
}

#[tokio::test]
async fn who_must_not_be_called_is_not_called_past_that() {
    let rule = "
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: default}
spec: {host: db, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}}
";
    let (mesh, _driver) = mesh(rule, UnknownDestinations::Allowed);
    let outgoing = mesh.outgoing("10.0.0.5:3306".parse().unwrap()).await.unwrap();
    let (facts, _record) = mesh.connection_record(&mesh_core::facts::Connection::builder().build());
    let failure = mesh.dial(outgoing.bytes().unwrap(), &facts).await.unwrap_err();
    assert_eq!(
        outgoing.otherwise().unwrap().service().name,
        outgoing.bytes().unwrap().cluster().service().name
    );
    assert_ne!(
        failure.code(),
        FailureCode::ConnectFailed,
        "nothing was tried, and nothing in plaintext: {failure}"
    );
}

#[tokio::test]
async fn the_applications_own_tls_finds_its_host_by_name() {
    let (mesh, _driver) = mesh("", UnknownDestinations::Refused);
    assert_eq!(
        &*mesh.outgoing_tls("api.github.com", 443).await.unwrap().cluster().service().name,
        "api.github.com"
    );
    assert!(mesh.outgoing_tls("api.github.com", 80).await.is_none(), "plain HTTP is declared there");
    assert!(mesh.outgoing_tls("example.com", 443).await.is_none());
    assert!(mesh.outgoing_tls("a b", 443).await.is_none());
}

#[tokio::test]
async fn what_nobody_knows_is_ended_when_it_is_refused_later() {
    let (mesh, _driver) = mesh("", UnknownDestinations::Allowed);
    let known = mesh.outgoing("10.96.0.1:80".parse().unwrap()).await.unwrap();
    let unknown = mesh.outgoing("192.0.2.7:80".parse().unwrap()).await.unwrap();
    let (refusing, _driver) = super::tests::mesh(REGISTRY_ONLY, UnknownDestinations::Allowed);
    let now = |mesh: &Mesh, outgoing: &Outgoing| {
        futures_util::FutureExt::now_or_never(mesh.outgoing_refused(outgoing)).is_some()
    };
    assert!(!now(&mesh, &unknown));
    assert!(now(&refusing, &unknown));
    assert!(!now(&refusing, &known));
}
