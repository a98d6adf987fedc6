//! A small mesh for unit tests: services with subsets, and tables compiled from YAML by the real parser.

use std::sync::Arc;

use http::Request;
use mesh_core::cluster::{ClusterKey, ClusterSettings, Registry, ServiceName};
use mesh_core::diagnostic::Diagnostic;
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::normal::Authority;
use mesh_core::resource::{Labels, Object, Resource, VirtualService};
use mesh_core::yaml::parse_objects;

use crate::matching::RequestView;
use crate::table::{CompileContext, DestinationRef, HostRoutes, Resolved, RouteTable, compile_http};

/// Name, ports, subsets; all in namespace `default`.
const SERVICES: [(&str, &[u16], &[&str]); 4] = [
    ("reviews", &[9080], &["v1", "v2", "v3"]),
    ("ratings", &[9080], &["v1"]),
    ("httpbin", &[8000], &[]),
    ("multi", &[80, 8080], &[]),
];

pub(crate) fn fqdn(name: &str) -> String {
    format!("{name}.default.svc.cluster.local")
}

/// The VirtualService of a text that holds one, whole or from `spec` on.
pub(crate) fn virtual_service(text: &str) -> Resource<VirtualService> {
    let text = if text.contains("apiVersion") {
        text.to_owned()
    } else {
        format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: test}}\n{text}")
    };
    let objects = parse_objects("test.yaml", &text).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
    let Some(Object::VirtualService(vs)) = objects.first() else { panic!("no VirtualService in {text}") };
    (**vs).clone()
}

/// Who calls.
pub(crate) struct Caller {
    pub(crate) namespace: &'static str,
    pub(crate) labels: Labels,
}

impl Default for Caller {
    fn default() -> Self {
        Self { namespace: "default", labels: Labels::new() }
    }
}

pub(crate) fn resolve(registry: &Registry, to: &DestinationRef<'_>) -> Resolved {
    let missing = || {
        Resolved::Missing(
            Failure::new(FailureCode::UnknownSubset).detail(format!("{} {}", to.host, to.subset)),
        )
    };
    let Some((name, ports, subsets)) = SERVICES.iter().find(|(name, ..)| fqdn(name) == to.host) else {
        return missing();
    };
    let port = to.port.unwrap_or(if let [only] = ports { *only } else { to.default_port });
    if !ports.contains(&port) || !(to.subset.is_empty() || subsets.contains(&to.subset)) {
        return missing();
    }
    let key = ClusterKey::new(to.host, port, to.subset);
    let service = ServiceName::new(to.host, name, "default");
    Resolved::Cluster(registry.cluster(&key, &service, ClusterSettings::default(), vec![]))
}

/// The routes of `service` under `vs`, and what was said about it.
pub(crate) fn host_routes(
    service: &str,
    vs: Option<&Resource<VirtualService>>,
    caller: &Caller,
) -> (Arc<HostRoutes>, Vec<Diagnostic>) {
    let registry = Registry::new();
    let (_, ports, _) = SERVICES.iter().find(|(name, ..)| *name == service).unwrap();
    let mut diagnostics = Vec::new();
    let compiled = ports.iter().map(|port| {
        let host = fqdn(service);
        let context = CompileContext {
            namespace: caller.namespace,
            labels: &caller.labels,
            cluster_domain: "cluster.local",
            host: &host,
            port: *port,
            resolve: &|to| resolve(&registry, to),
        };
        let compiled = compile_http(vs, &context);
        diagnostics.extend(compiled.diagnostics);
        (*port, compiled.routes)
    });
    let routes = Arc::new(HostRoutes::new(&fqdn(service), compiled.collect::<Vec<_>>()));
    (routes, diagnostics)
}

/// Every service, those that `texts` name as hosts under their VirtualService.
pub(crate) fn table(texts: &[&str]) -> RouteTable {
    let resources: Vec<_> = texts.iter().map(|text| virtual_service(text)).collect();
    let mut builder = RouteTable::builder();
    for (name, ..) in SERVICES {
        let vs = resources.iter().find(|vs| {
            vs.spec
                .hosts
                .iter()
                .any(|host| crate::table::full_host(host, "default", "cluster.local") == fqdn(name))
        });
        let (routes, diagnostics) = host_routes(name, vs, &Caller::default());
        assert!(!diagnostics.iter().any(Diagnostic::is_error), "{diagnostics:#?}");
        builder = builder.host([name, &fqdn(name)], &routes);
    }
    builder.build()
}

/// What a request comes to, told in one word: the destination's name (`reviews/v1`), the status of a route
/// that answers, or the code of the failure.
pub(crate) fn ask(table: &RouteTable, request: &Request<()>, draw: u64) -> String {
    let host = request.uri().authority().map(|a| a.as_str().to_owned());
    let host = host.unwrap_or_else(|| request.headers()[http::header::HOST].to_str().unwrap().to_owned());
    let authority = Authority::parse(&host).unwrap();
    let found = match table.route(&RequestView::of(request, &authority), draw) {
        Ok(found) => found,
        Err(failure) => return failure.code().as_str().to_owned(),
    };
    match found.cluster() {
        Err(failure) => failure.code().as_str().to_owned(),
        Ok(None) => found.to_string().rsplit(' ').next().unwrap().to_owned(),
        Ok(Some(cluster)) => {
            let key = cluster.key();
            let name = key.host.split('.').next().unwrap();
            match &*key.subset {
                "" => format!("{name}:{}", key.port),
                subset => format!("{name}/{subset}"),
            }
        }
    }
}

/// `METHOD URI` and headers.
pub(crate) fn request(line: &str, headers: &[(&str, &str)]) -> Request<()> {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut builder = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}
