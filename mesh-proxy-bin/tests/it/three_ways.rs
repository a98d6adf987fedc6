//! One AuthorizationPolicy and one VirtualService, run in three ways: as pure decisions, as layers in this
//! process, as sidecar processes. One table says what comes of each call; each way has to say so.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::path::Path;

use http::{Method, Request, Response};
use mesh::core::body::Body;
use mesh::core::facts::{Connection, Direction, PeerIdentity, Transport};
use mesh::core::failure::Failure;
use mesh::policy::authorization::{self, Decision};
use mesh::route::matching;
use mesh::route::policy::RoutePolicy;
use mesh::serve::ServedBody;
use mesh::{IdentitySource, Mesh};
use mesh_test::backend::Backend;
use mesh_test::client::{self, Call};
use mesh_test::ports;
use mesh_test::sidecar::Sidecar;
use mesh_test::yaml::{self, Dir, Workload};
use tokio::net::TcpListener;
use tower::{ServiceExt, service_fn};

use crate::stage::{HOST, Stage};

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
    to: [{operation: {methods: [GET, HEAD], paths: ["/reviews/*", "/folder"]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
    to: [{operation: {methods: [POST], hosts: ["reviews:9080"]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/mobile]}}]
    to: [{operation: {methods: [GET], paths: ["/reviews/*"]}}]
    when: [{key: "request.headers[x-tier]", values: [gold]}]
  - to: [{operation: {paths: ["/public/*"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  selector: {matchLabels: {app: reviews}}
  action: DENY
  rules:
  - to: [{operation: {paths: ["/reviews/secret*"]}}]
  - when: [{key: "request.headers[x-role]", values: ["*root"]}]
"#;

/// The field is called `principals`: this policy cannot be read, and admits nobody.
const CLOSED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: default}
spec:
  selector: {matchLabels: {app: closed}}
  rules:
  - from: [{source: {principles: [cluster.local/ns/default/sa/web]}}]
";

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /reviews/1}
  - match: [{uri: {exact: /gone}}]
    directResponse: {status: 410, body: {string: gone}}
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /nowhere}}]
    route: [{destination: {host: reviews, subset: v3}}]
  - match: [{uri: {prefix: /two/}}]
    rewrite: {uri: /reviews/}
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{headers: {canary: {exact: "yes"}}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 0}
    - {destination: {host: reviews, subset: v2}, weight: 100}
  - match: [{headers: {x-user: {exact: "a,b"}}}, {queryParams: {version: {exact: "2"}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 100}
    - {destination: {host: reviews, subset: v2}, weight: 0}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: closed, namespace: default}
spec:
  hosts: [closed]
  http:
  - match: [{uri: {prefix: /app}}]
    route: [{destination: {host: closed}}]
"#;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Workload `web`, through its mesh.
    Web,
    /// Workload `mobile`, through its mesh.
    Mobile,
    /// Nobody: in plaintext, at the door of `v1`.
    Stranger,
}
use By::{Mobile, Stranger, Web};

/// Who, method, host, path, headers; and the answer as [`Answer`] writes it.
type Row =
    (By, &'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

const TABLE: &[Row] = &[
    // Methods and paths.
    (Web, "GET", HOST, "/reviews/1", &[], "200 v1 /reviews/1"),
    (Web, "HEAD", HOST, "/reviews/1", &[], "200 v1 /reviews/1"),
    (Web, "DELETE", HOST, "/reviews/1", &[], "403 denied"),
    (Web, "GET", HOST, "/reviews", &[], "403 denied"),
    (Web, "GET", HOST, "/REVIEWS/1", &[], "403 denied"),
    (Web, "GET", HOST, "/reviews/1?x=/../y", &[], "200 v1 /reviews/1?x=/../y"),
    (Web, "GET", HOST, "/reviews/secret", &[], "403 denied"),
    (Web, "GET", HOST, "/public/secret", &[], "200 v1 /public/secret"),
    // Dot segments, plain and escaped: one path for routes, policy and application.
    (Web, "GET", HOST, "/x/../reviews/1", &[], "200 v1 /reviews/1"),
    (Web, "GET", HOST, "/reviews/./1", &[], "200 v1 /reviews/1"),
    (Web, "GET", HOST, "/reviews/../admin", &[], "403 denied"),
    (Web, "GET", HOST, "/public/%2e%2e/reviews/secret", &[], "403 denied"),
    (Web, "GET", HOST, "/x/../two/1", &[], "200 v2 /reviews/1"),
    (Web, "GET", HOST, "/public/..%2fadmin", &[], "403 denied"),
    (Web, "GET", HOST, "/reviews/%73ecret", &[], "403 denied"),
    (Web, "GET", HOST, "/../reviews/1", &[], "400 bad_request"),
    // Who calls.
    (Mobile, "GET", HOST, "/reviews/1", &[], "403 denied"),
    (Mobile, "GET", HOST, "/public/1", &[], "200 v1 /public/1"),
    (Mobile, "POST", HOST, "/reviews/1", &[("x-tier", "gold")], "403 denied"),
    (Stranger, "GET", HOST, "/reviews/1", &[], "403 denied"),
    (Stranger, "GET", HOST, "/reviews/1", &[("x-tier", "gold")], "403 denied"),
    (Stranger, "GET", HOST, "/public/1", &[], "200 v1 /public/1"),
    (Stranger, "GET", HOST, "/x/../public/1", &[], "200 v1 /public/1"),
    (Stranger, "GET", HOST, "/public/../reviews/1", &[], "403 denied"),
    (Stranger, "GET", HOST, "/../public/1", &[], "400 bad_request"),
    // Headers, repeated and joined with commas: each value has to match to be let in, one is enough to be kept
    // out; routes see them joined.
    (Mobile, "GET", HOST, "/reviews/1", &[("x-tier", "gold")], "200 v1 /reviews/1"),
    (Mobile, "GET", HOST, "/reviews/1", &[("x-tier", "gold"), ("x-tier", "gold")], "200 v1 /reviews/1"),
    (Mobile, "GET", HOST, "/reviews/1", &[("x-tier", "gold"), ("x-tier", "silver")], "403 denied"),
    (Mobile, "GET", HOST, "/reviews/1", &[("x-tier", "gold,silver")], "403 denied"),
    (Web, "GET", HOST, "/reviews/1", &[("x-role", "user"), ("x-role", "root")], "403 denied"),
    (Web, "GET", HOST, "/reviews/1", &[("x-role", "root"), ("x-role", "user")], "403 denied"),
    (Web, "GET", HOST, "/reviews/1", &[("x-role", "root,user")], "403 denied"),
    (Web, "GET", HOST, "/reviews/1", &[("x-role", "user")], "200 v1 /reviews/1"),
    (Web, "GET", HOST, "/reviews/1", &[("x-user", "a"), ("x-user", "b")], "200 v2 /reviews/1"),
    (Web, "GET", HOST, "/reviews/1", &[("x-user", "a,b")], "200 v2 /reviews/1"),
    (Web, "GET", HOST, "/reviews/1", &[("x-user", "b"), ("x-user", "a")], "200 v1 /reviews/1"),
    // Splits that leave one side out, queries, rewrites.
    (Web, "GET", HOST, "/reviews/1", &[("canary", "yes")], "200 v2 /reviews/1"),
    (Web, "GET", HOST, "/reviews/1", &[("canary", "no")], "200 v1 /reviews/1"),
    (Web, "DELETE", HOST, "/reviews/1", &[("canary", "yes")], "403 denied"),
    (Web, "GET", HOST, "/reviews/1?version=2", &[], "200 v2 /reviews/1?version=2"),
    (Web, "GET", HOST, "/two/7", &[], "200 v2 /reviews/7"),
    (Web, "GET", HOST, "/two/secret", &[], "403 denied"),
    // Hosts: routes leave the port out, policies compare with it.
    (Web, "GET", "reviews", "/reviews/1", &[], "200 v1 /reviews/1"),
    (Web, "GET", "REVIEWS:9080", "/reviews/1", &[], "200 v1 /reviews/1"),
    (Web, "GET", "reviews.default.svc.cluster.local:9080", "/reviews/1", &[], "200 v1 /reviews/1"),
    (Web, "POST", HOST, "/orders", &[], "200 v1 /orders"),
    (Web, "POST", "reviews", "/orders", &[], "403 denied"),
    (Web, "GET", "reviews:9081", "/reviews/1", &[], "502 unknown_host"),
    (Web, "GET", "nobody:9080", "/reviews/1", &[], "502 unknown_host"),
    // What routes answer by themselves.
    (Web, "GET", HOST, "/old", &[], "301 direct_response http://reviews:9080/reviews/1"),
    (Mobile, "DELETE", "reviews", "/old", &[], "301 direct_response http://reviews/reviews/1"),
    (Web, "GET", HOST, "/gone", &[], "410 direct_response"),
    (Web, "GET", HOST, "/fault/1", &[], "418 fault_injected"),
    (Web, "GET", HOST, "/nowhere", &[], "503 unknown_subset"),
    // A policy that cannot be read, and a host whose routes do not match.
    (Web, "GET", "closed:9080", "/app", &[], "403 policy_invalid"),
    (Web, "GET", "closed:9080", "/else", &[], "404 no_route"),
];

/// What comes of a call, as far as all three ways can see it.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    reason: Option<String>,
    location: Option<String>,
    /// Who answered, and the path that it was asked for.
    served: Option<(String, String)>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        let (by, path) = self.served.as_ref().map_or((None, None), |(by, path)| (Some(by), Some(path)));
        [&self.reason.as_ref(), &self.location.as_ref(), &by, &path]
            .into_iter()
            .flatten()
            .try_for_each(|word| write!(f, " {word}"))
    }
}

impl Answer {
    /// A head, and the path that was asked for where the head does not tell.
    fn of<B>(response: &Response<B>, path: impl FnOnce(&str) -> String) -> Self {
        let header =
            |name| response.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        Self {
            status: response.status().as_u16(),
            reason: header("x-mesh-reason"),
            location: header("location"),
            served: header("x-served-by").map(|by| (by.clone(), path(&by))),
        }
    }

    fn failed(failure: &Failure) -> Self {
        Self::of(&failure.response::<()>(false), |_| String::new())
    }
}

fn request(row: &Row) -> Request<Body> {
    let (_, method, host, path, headers, _) = row;
    let request = Request::builder().method(*method).uri(*path).header("host", *host);
    headers.iter().fold(request, |r, (name, value)| r.header(*name, *value)).body(Body::empty()).unwrap()
}

fn path_of<B>(request: &Request<B>) -> String {
    request.uri().path_and_query().unwrap().to_string()
}

fn mesh(dir: &Path, workload: &str, identity: IdentitySource) -> (Mesh, mesh::Driver) {
    Mesh::builder().directory(dir).workload("default", workload).identity(identity).build().unwrap()
}

/// The rules and routes alone; nothing listens, nothing is called.
struct Pure(HashMap<&'static str, Mesh>);

impl Pure {
    fn new(dir: &Path) -> Self {
        let names = ["web", "mobile", "v1", "v2", "closed"];
        Self(names.map(|name| (name, mesh(dir, name, IdentitySource::None).0)).into())
    }

    fn answer(&self, row: &Row) -> Answer {
        self.decide(row).unwrap_or_else(|failure| Answer::failed(&failure))
    }

    fn decide(&self, row: &Row) -> Result<Answer, Failure> {
        let mut request = request(row);
        let called = match row.0 {
            Stranger => "v1".to_owned(),
            Web => match self.route("web", &mut request)? {
                Ok(called) => called,
                Err(answer) => return Ok(answer),
            },
            Mobile => match self.route("mobile", &mut request)? {
                Ok(called) => called,
                Err(answer) => return Ok(answer),
            },
        };
        let method = request.method().clone();
        mesh::core::normalize::normalize(&method, request.uri_mut())?;
        let mut connection = Connection::builder().direction(Direction::Inbound);
        if row.0 != Stranger {
            let account = if row.0 == Web { "web" } else { "mobile" };
            let id = format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap();
            connection =
                connection.transport(Transport::Tls { sni: None, alpn: None }).peer(PeerIdentity::new(id));
        }
        let connection = connection.build();
        let rules = self.0[&*called].rules().load_full();
        let view = authorization::RequestView::new(
            Some(&connection),
            request.method(),
            request.uri(),
            request.headers(),
        );
        match rules.check(&view) {
            Decision::Refuse(refusal) => Err(refusal.failure()),
            Decision::Pass(_) => {
                Ok(Answer { status: 200, served: Some((called, path_of(&request))), ..Answer::default() })
            }
        }
    }

    /// The workload that is called, or the answer that the route gives by itself.
    fn route(&self, from: &str, request: &mut Request<Body>) -> Result<Result<String, Answer>, Failure> {
        let table = self.0[from].routes().load_full();
        let authority = mesh::route::layer::normalize(request)?;
        let view = matching::RequestView::of(request, &authority);
        // No split of the table leaves anything to chance.
        let found = table.route(&view, 0)?;
        let cluster = found.cluster()?.map(|cluster| cluster.key().clone());
        if let Some(response) = found.answer::<Body>(&view) {
            return Ok(Err(Answer::of(&response, |_| String::new())));
        }
        let policy = found.matched_route().policy;
        let policy: &RoutePolicy = policy.downcast_ref().unwrap();
        if let Some(status) = policy.fault.decide(0, 0).abort {
            let failure = Failure::new(mesh::core::failure::FailureCode::FaultInjected);
            return Err(failure.status(status.http()));
        }
        found.apply(request, None)?;
        let key = cluster.unwrap();
        Ok(Ok(if key.subset.is_empty() { "closed".to_owned() } else { key.subset.to_string() }))
    }
}

/// The layers in this process: servers with mTLS in front of services, and clients.
struct Embedded {
    dir: Dir,
    clients: HashMap<&'static str, mesh::Client>,
    v1: std::net::SocketAddr,
}

impl Embedded {
    async fn start(ca: &Path) -> Self {
        let dir = Dir::new();
        let mut listeners = Vec::new();
        for (name, app) in [("v1", "reviews"), ("v2", "reviews"), ("closed", "closed")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let workload = Workload::new(name, "default", app, listener.local_addr().unwrap());
            dir.write(&format!("{name}.yaml"), workload.account(app).version(name).sidecar().to_string());
            listeners.push((name, listener));
        }
        for name in ["web", "mobile"] {
            let workload = Workload::new(name, "default", name, ports::loopback(1)).account(name).sidecar();
            dir.write(&format!("{name}.yaml"), workload.to_string());
        }
        write_configuration(&dir);
        let start = async |name| {
            let (mesh, driver) = mesh(dir.path(), name, IdentitySource::DevCa(ca.to_owned()));
            tokio::spawn(driver.run());
            mesh.readiness().ready().await;
            mesh
        };
        let v1 = listeners[0].1.local_addr().unwrap();
        for (name, listener) in listeners {
            let mesh = start(name).await;
            let app = service_fn(move |request: Request<ServedBody>| async move {
                let response =
                    Response::builder().header("x-served-by", name).header("x-path", path_of(&request));
                Ok::<_, Infallible>(response.body(Body::empty()).unwrap())
            });
            tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
        }
        let mut clients = HashMap::new();
        for name in ["web", "mobile"] {
            clients.insert(name, start(name).await.client());
        }
        Self { dir, clients, v1 }
    }

    async fn answer(&self, row: &Row) -> Answer {
        let from = match row.0 {
            Web => "web",
            Mobile => "mobile",
            Stranger => {
                let reply = client::send(self.v1, &call(row)).await.unwrap();
                return of_reply(&reply, |_| reply.header("x-path").unwrap_or_default().to_owned());
            }
        };
        let response = self.clients[from].clone().oneshot(request(row)).await.unwrap();
        Answer::of(&response, |_| response.headers()["x-path"].to_str().unwrap().to_owned())
    }
}

/// Sidecars as processes, and applications behind them.
struct Sidecars {
    _stage: Stage,
    apps: HashMap<&'static str, Backend>,
    sidecars: HashMap<&'static str, Sidecar>,
}

impl Sidecars {
    async fn start(stage: Stage) -> Self {
        stage.caller("mobile");
        write_configuration(&stage.dir);
        let (mut apps, mut sidecars) = (HashMap::new(), HashMap::new());
        for name in ["v1", "v2"] {
            let replica = stage.replica(name).await;
            apps.insert(name, replica.app);
            sidecars.insert(name, replica.sidecar);
        }
        let (app, inbound) = (Backend::start("closed").await, ports::free_addr());
        let workload = Workload::new("closed", "default", "closed", inbound).account("closed").sidecar();
        stage.dir.write("closed.yaml", workload.to_string());
        sidecars.insert("closed", stage.spec("closed").inbound(inbound, app.addr()).start().await);
        apps.insert("closed", app);
        for name in ["web", "mobile"] {
            sidecars.insert(name, stage.spec(name).outbound().start().await);
        }
        Self { _stage: stage, apps, sidecars }
    }

    async fn answer(&self, row: &Row) -> Answer {
        let to = match row.0 {
            Web => self.sidecars["web"].outbound(),
            Mobile => self.sidecars["mobile"].outbound(),
            Stranger => self.sidecars["v1"].inbound(),
        };
        let reply = client::send(to, &call(row)).await.unwrap_or_else(|e| panic!("{row:?}: {e}"));
        of_reply(&reply, |by| self.apps[by].seen().pop().unwrap().path)
    }
}

fn call(row: &Row) -> Call {
    let (_, method, host, path, headers, _) = row;
    let call = Call::new(Method::from_bytes(method.as_bytes()).unwrap(), host, path);
    headers.iter().fold(call, |call, (name, value)| call.header(name, value))
}

fn of_reply(reply: &client::Reply, path: impl FnOnce(&str) -> String) -> Answer {
    let mut response = Response::new(());
    *response.status_mut() = reply.status.try_into().unwrap();
    *response.headers_mut() = reply.headers.clone();
    Answer::of(&response, path)
}

fn write_configuration(dir: &Dir) {
    let services = ["reviews", "closed"].map(|name| yaml::service(name, "default", 9080));
    dir.write("services.yaml", yaml::documents(services));
    dir.write("subsets.yaml", yaml::destination_rule("reviews", "default", "reviews", &["v1", "v2"]));
    dir.write("routes.yaml", ROUTES);
    dir.write("policies.yaml", POLICIES);
    dir.write("unreadable.yaml", CLOSED);
}

/// Each row of the table has the same answer whichever way the mesh is run: status, reason, who answered,
/// and what it was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_table_three_ways() {
    let stage = Stage::new();
    // `write_configuration` has both services.
    stage.dir.remove("reviews.yaml");
    let embedded = Embedded::start(&stage.ca_dir()).await;
    let pure = Pure::new(embedded.dir.path());
    let sidecars = Sidecars::start(stage).await;
    let mut wrong = Vec::new();
    for row in TABLE {
        let (by, method, host, path, headers, want) = row;
        let ways = [
            ("pure", pure.answer(row)),
            ("embedded", embedded.answer(row).await),
            ("sidecars", sidecars.answer(row).await),
        ];
        for (way, answer) in ways {
            if answer.to_string() != *want {
                wrong.push(format!("{by:?} {method} {host} {path} {headers:?}: {way}: {answer}, not {want}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), TABLE.len(), wrong.join("\n"));
}
