//! Where a request goes.

use std::path::Path;
use std::sync::Arc;

use mesh_core::cluster::{ClusterKey, ClusterSettings, Registry, ServiceName};
use mesh_core::failure::FailureCode;
use mesh_core::normal::{Authority, normal_path};
use mesh_core::resource::{Object, Resource, VirtualService};
use mesh_core::yaml::read_file;
use mesh_policy::authorization::{Context, RequestView as PolicyView, Rules};
use mesh_route::matching::{Condition, RequestView};
use mesh_route::table::{Action, CompileContext, HostRoutes, Resolved, RouteTable, compile_http};

use crate::authorize::read_request;

const REVIEWS: &str = "reviews.default.svc.cluster.local";

/// The first rule whose condition holds is taken and no other, a draw chooses a destination that has
/// weight, and a path that a route takes by its exact text is the path that a policy of that text is about.
///
/// The text is a VirtualService for `reviews` in YAML, a line `===`, and a request as for
/// [`authorize`](crate::authorize()); its `host` header is whom it calls.
pub fn route(data: &[u8]) {
    let Some((service, request)) = crate::text(data).and_then(|text| text.split_once("\n===\n")) else {
        return;
    };
    let Some(mut request) = read_request(request) else { return };
    let Some(service) = read_service(service) else { return };
    let named = request.headers().get("host").and_then(|h| h.to_str().ok());
    let Ok(authority) = Authority::parse(named.unwrap_or("reviews:9080")) else { return };

    // On entry the path is made normal, once.
    let Ok(path) = normal_path(request.uri().path()).map(|path| path.into_owned()) else { return };
    let mut parts = request.uri().clone().into_parts();
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let Ok(path_and_query) = format!("{path}{query}").parse() else { return };
    parts.path_and_query = Some(path_and_query);
    let Ok(uri) = http::Uri::from_parts(parts) else { return };
    *request.uri_mut() = uri;

    let registry = Registry::new();
    let cluster = registry.cluster(
        &ClusterKey::new(REVIEWS, 9080, ""),
        &ServiceName::new(REVIEWS, "reviews", "default"),
        ClusterSettings::default(),
        vec![],
    );
    let labels = Default::default();
    let context = CompileContext {
        namespace: "default",
        labels: &labels,
        cluster_domain: "cluster.local",
        host: REVIEWS,
        port: 9080,
        resolve: &|_| Resolved::Cluster(Arc::clone(&cluster)),
    };
    let compiled = compile_http(Some(&service), &context);
    let host = Arc::new(HostRoutes::new(REVIEWS, [(9080, compiled.routes.clone())]));
    let table = RouteTable::builder().host(["reviews", REVIEWS, "*.wild.example"], &host).build();
    let view = RequestView::of(&request, &authority);
    assert_eq!(view.path, if path.is_empty() { "/" } else { &path });

    let known =
        ["reviews", REVIEWS].contains(&authority.name()) || authority.name().ends_with(".wild.example");
    let holds = |condition: Option<&Condition>| condition.is_none_or(|c| c.matches(&view));
    let wanted = compiled.routes.iter().find(|(condition, _)| holds(*condition));
    for draw in [0, 1, u64::MAX / 2, u64::MAX, data.len() as u64] {
        match table.route(&view, draw) {
            Err(failure) => match failure.code() {
                FailureCode::UnknownHost => assert!(!known || authority.port().is_some_and(|p| p != 9080)),
                FailureCode::NoRoute => assert!(known && wanted.is_none()),
                other => panic!("{other:?} is no failure of a table"),
            },
            Ok(found) => {
                let (_, rule) = wanted.expect("a rule was taken although none holds");
                assert!(known && Arc::ptr_eq(found.rule(), rule), "not the first rule that holds");
                assert!(found.condition().is_none_or(|c| c.matches(&view)));
                assert_eq!(found.port(), 9080);
                let forwards = matches!(rule.action, Action::Forward(_));
                assert_eq!(found.destination().is_some(), forwards, "a rule without destination forwards");
            }
        }
    }
    same_path(&request, &view);
}

/// What the router calls the path, the policies call it, too.
fn same_path(request: &http::Request<()>, view: &RequestView<'_>) {
    // In a pattern a `*` at an end and braces mean something else than themselves.
    if request.uri().path().is_empty() || view.path.contains(['*', '{', '}']) {
        return;
    }
    let quoted = serde_json::Value::from(view.path);
    let text = format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p}}, \
         spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [{quoted}]}}}}]}}]}}}}"
    );
    let Some(Object::AuthorizationPolicy(policy)) = read_one(&text) else { return };
    let rules = Rules::compile(&[policy], &Context::default()).0;
    assert!(
        !rules.check(&PolicyView::of(request)).passes(),
        "a policy sees another path than {:?}",
        view.path
    );
}

fn read_one(text: &str) -> Option<Object> {
    read_file(Path::new("fuzz.yaml"), text, &|_| Vec::new()).resources.into_iter().find_map(|r| r.object)
}

fn read_service(text: &str) -> Option<Arc<Resource<VirtualService>>> {
    match read_one(text)? {
        Object::VirtualService(service) => Some(service),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_holds_what_is_read() {
        for file in [include_str!("../corpus/route/matches"), include_str!("../corpus/route/none")] {
            let (service, request) = file.split_once("\n===\n").unwrap();
            assert!(read_service(service).is_some() && read_request(request).is_some(), "{file}");
        }
    }
}
