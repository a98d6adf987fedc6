//! Whether a request may pass.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use mesh_core::facts::{Connection, Facts, PeerIdentity, Transport};
use mesh_core::normal::normal_path;
use mesh_core::resource::authorization_policy::Action;
use mesh_core::resource::{AuthorizationPolicy, Object, Resource};
use mesh_core::yaml::read_file;
use mesh_policy::authorization::{ConnectionView, Context, RequestView, Rules};

type Policy = Arc<Resource<AuthorizationPolicy>>;

/// What lets a request in, in any reading of it, keeps it out where the same rule denies; no policy that
/// is added to others admits more than it says; and the decision is about the normal path, the one that
/// the router sees.
///
/// The text is policies in YAML, a line `===`, and a request: `METHOD TARGET`, then headers. Lines that
/// start with `:` tell of the connection (`:peer`, `:from`, `:port`, `:sni`).
pub fn authorize(data: &[u8]) {
    let Some((policies, request)) = crate::text(data).and_then(|text| text.split_once("\n===\n")) else {
        return;
    };
    let Some(request) = read_request(request) else { return };
    let policies = read_policies(policies);
    check(&policies, &request);
    dodge(&request);
}

fn check(policies: &[Policy], request: &Request<()>) {
    let compile = |policies: &[Policy]| Rules::compile(policies, &Context::default()).0;
    let passes = |policies: &[Policy], request: &Request<()>| {
        let rules = compile(policies);
        let decision = rules.check(&RequestView::of(request));
        if let Some(refusal) = decision.refusal() {
            assert!(refusal.policies().next().is_some() && !refusal.detail().is_empty());
        }
        decision.passes()
    };
    let connects = |policies: &[Policy], request: &Request<()>| {
        let facts = Facts::of(request).expect("facts");
        compile(policies).check_connection(&ConnectionView::of(facts.connection())).passes()
    };
    let all = passes(policies, request);
    let (deny, allow): (Vec<Policy>, Vec<Policy>) =
        policies.iter().cloned().partition(|p| p.spec.action == Action::Deny);
    assert_eq!(all, passes(&deny, request) && passes(&allow, request), "actions are not apart");

    for policy in policies {
        let turned = |action| {
            let mut turned = (**policy).clone();
            turned.meta.annotations.clear();
            turned.spec.action = action;
            [Arc::new(turned)]
        };
        let (allow, deny) = (turned(Action::Allow), turned(Action::Deny));
        assert!(
            !(passes(&allow, request) && passes(&deny, request)),
            "what lets a request in does not keep it out: {policy:?}"
        );
        assert!(
            !(connects(&allow, request) && connects(&deny, request)),
            "what lets a connection in does not keep it out: {policy:?}"
        );
    }

    if let Some(normal) = with_normal_path(request) {
        assert_eq!(
            all,
            passes(policies, &normal),
            "another decision about {} in its normal form",
            request.uri()
        );
    }
}

/// The fixed rules of a service that keeps `/admin` for itself.
static NOT_ADMIN: LazyLock<[Rules; 3]> = LazyLock::new(|| {
    ["{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}",
     "{action: ALLOW, rules: [{to: [{operation: {paths: [/public*]}}]}]}",
     "{action: ALLOW, rules: [{to: [{operation: {notPaths: [/admin*]}}]}]}"]
    .map(|spec| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        );
        Rules::compile(&read_policies(&text), &Context::default()).0
    })
});

/// No way of writing a path reaches `/admin` of an application that decodes it once, in whatever order it
/// decodes, merges slashes and resolves dots.
fn dodge(request: &Request<()>) {
    let path = request.uri().path();
    if *request.method() == Method::CONNECT {
        return;
    }
    let view = RequestView::of(request);
    let passes = NOT_ADMIN.each_ref().map(|rules| rules.check(&view).passes());
    let Ok(normal) = normal_path(path) else {
        assert_eq!(passes, [false; 3], "a path without normal form passes");
        return;
    };
    let decoded = decode(&normal);
    let readings = [
        Some(normal.to_string()),
        normal_path(&decoded).ok().map(|p| p.into_owned()),
        normal_path(&merge(&decoded)).ok().map(|p| p.into_owned()),
        normal_path(&decode(&merge(&normal))).ok().map(|p| p.into_owned()),
        Some(merge(&decoded)),
    ];
    for reading in readings.iter().flatten() {
        if reading.starts_with("/admin") {
            assert_eq!(passes, [false; 3], "{path} reaches {reading}");
        }
    }
}

fn decode(path: &str) -> String {
    let mut out = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = escaped.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).replace('\\', "/")
}

fn merge(path: &str) -> String {
    let mut path = path.to_owned();
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    path
}

/// The request as it would be sent on, when its path is written in another form.
fn with_normal_path(request: &Request<()>) -> Option<Request<()>> {
    let normal = normal_path(request.uri().path()).ok()?;
    if normal == request.uri().path() {
        return None;
    }
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(format!("{normal}{query}").parse().ok()?);
    let mut same = request.clone();
    *same.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(same)
}

fn read_policies(text: &str) -> Vec<Policy> {
    let reading = read_file(Path::new("fuzz.yaml"), text, &mesh_policy::validate);
    let objects = reading.resources.into_iter().filter_map(|r| r.object.or(r.closed));
    objects
        .filter_map(|object| match object {
            Object::AuthorizationPolicy(policy) => Some(policy),
            _ => None,
        })
        .take(16)
        .collect()
}

pub(crate) fn read_request(text: &str) -> Option<Request<()>> {
    let mut lines = text.lines();
    let (method, target) = lines.next()?.split_once(' ')?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
    *request.uri_mut() = target.parse().ok()?;
    let mut connection = Connection::builder();
    for line in lines.take(32) {
        let Some((name, value)) = line.split_once(": ") else { continue };
        connection = match name {
            ":peer" => match value.parse() {
                Ok(id) => connection.peer(PeerIdentity::new(id)),
                Err(_) => connection,
            },
            ":from" => match value.parse() {
                Ok(ip) => connection.peer_addr(std::net::SocketAddr::new(ip, 40_000)),
                Err(_) => connection,
            },
            ":port" => value.parse().into_iter().fold(connection, |c, port| c.workload_port(port)),
            ":sni" => connection.transport(Transport::Tls { sni: Some(value.into()), alpn: None }),
            _ => {
                let value: String = value.chars().take(256).collect();
                if let (Ok(name), Ok(value)) =
                    (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value))
                {
                    request.headers_mut().append(name, value);
                }
                connection
            }
        };
    }
    Facts::new(connection.build()).insert(&mut request);
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_holds_what_is_read() {
        for (file, count) in [
            (include_str!("../corpus/authorize/allow"), 1),
            (include_str!("../corpus/authorize/deny"), 2),
            (include_str!("../corpus/authorize/closed"), 1),
        ] {
            let (policies, request) = file.split_once("\n===\n").unwrap();
            assert_eq!(read_policies(policies).len(), count, "{file}");
            assert!(read_request(request).is_some(), "{file}");
        }
    }
}
