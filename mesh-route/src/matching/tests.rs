use super::*;
use crate::testing::{ask, request, table};
use http::HeaderValue;
use mesh_core::matcher::Regex;
use proptest::prelude::*;

/// A request line, headers, and whether it meets the condition.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

/// Requests that meet `matched` go to v2, all others to v1.
fn routed(matched: &str, requests: &[Case<'_>]) {
    let vs = format!(
        "spec:\n  hosts: [reviews]\n  http:\n  - match: [{matched}]\n    route: [{{destination: {{host: reviews, subset: v2}}}}]\n  - route: [{{destination: {{host: reviews, subset: v1}}}}]\n"
    );
    let table = table(&[&vs]);
    for (line, headers, want) in requests {
        let (method, path) = line.split_once(' ').unwrap();
        let uri = if path.contains("://") { path.to_owned() } else { format!("http://reviews:9080{path}") };
        let found = ask(&table, &request(&format!("{method} {uri}"), headers), 0);
        assert_eq!(found, if *want { "reviews/v2" } else { "reviews/v1" }, "{matched} on {line} {headers:?}");
    }
}

#[test]
fn uri() {
    routed(
        "{uri: {exact: /a}}",
        &[
            ("GET /a", &[], true),
            ("GET /a?q=1", &[], true),
            ("GET /a/", &[], false),
            ("GET /A", &[], false),
            ("GET /ab", &[], false),
        ],
    );
    // A raw prefix, not one of segments.
    routed(
        "{uri: {prefix: /foo}}",
        &[
            ("GET /foo", &[], true),
            ("GET /foobar", &[], true),
            ("GET /foo/bar", &[], true),
            ("GET /fo", &[], false),
            ("GET /Foo", &[], false),
        ],
    );
    routed("{uri: {prefix: ''}}", &[("GET /anything", &[], true)]);
    // The whole path, without the query.
    routed(
        "{uri: {regex: '/v[0-9]+/.*'}}",
        &[
            ("GET /v1/x", &[], true),
            ("GET /v12/", &[], true),
            ("GET /api/v1/x", &[], false),
            ("GET /v/x?a=/v1/", &[], false),
        ],
    );
    routed("{uri: {exact: /Foo}, ignoreUriCase: true}", &[("GET /fOO", &[], true), ("GET /fo", &[], false)]);
    routed("{uri: {prefix: /Foo}, ignoreUriCase: true}", &[("GET /fOObar", &[], true)]);
    routed("{uri: {regex: /Foo}, ignoreUriCase: true}", &[("GET /foo", &[], false), ("GET /Foo", &[], true)]);
}

#[test]
fn method_scheme_and_authority() {
    routed("{method: {exact: GET}}", &[("GET /", &[], true), ("POST /", &[], false), ("get /", &[], false)]);
    routed("{method: {regex: 'P.*'}}", &[("PUT /", &[], true), ("POST /", &[], true), ("GET /", &[], false)]);
    routed("{scheme: {exact: https}}", &[("GET https://reviews:9080/", &[], true), ("GET /", &[], false)]);
    // The authority is compared with its port, and as it came.
    routed(
        "{authority: {exact: reviews}}",
        &[("GET http://reviews/", &[], true), ("GET http://reviews:9080/", &[], false)],
    );
    routed(
        "{authority: {prefix: 'reviews.default'}}",
        &[("GET http://reviews.default.svc.cluster.local/", &[], true), ("GET /", &[], false)],
    );
}

#[test]
fn headers() {
    routed(
        "{headers: {x-user: {exact: jason}}}",
        &[
            ("GET /", &[("x-user", "jason")], true),
            ("GET /", &[("X-User", "jason")], true),
            ("GET /", &[("x-user", "Jason")], false),
            ("GET /", &[("x-user", "jason"), ("x-user", "jason")], false),
            ("GET /", &[], false),
        ],
    );
    routed("{headers: {x-user: {exact: 'a,b'}}}", &[("GET /", &[("x-user", "a"), ("x-user", "b")], true)]);
    routed("{headers: {x-user: {prefix: ja}}}", &[("GET /", &[("x-user", "jason")], true)]);
    routed("{headers: {x-user: {regex: '.*son'}}}", &[("GET /", &[("x-user", "jason")], true)]);
    for present in ["{}", "{regex: '*'}"] {
        routed(
            &format!("{{headers: {{x-user: {present}}}}}"),
            &[("GET /", &[("x-user", "")], true), ("GET /", &[("x-user", "x")], true), ("GET /", &[], false)],
        );
    }
    routed("{headers: {host: {exact: 'reviews:9080'}}}", &[("GET /", &[], true)]);
}

#[test]
fn without_headers() {
    routed(
        "{withoutHeaders: {x-user: {exact: jason}}}",
        &[
            ("GET /", &[], true),
            ("GET /", &[("x-user", "mary")], true),
            ("GET /", &[("x-user", "jason")], false),
        ],
    );
    // A missing header counts as the empty text.
    routed(
        "{withoutHeaders: {x-user: {regex: '.*'}}}",
        &[("GET /", &[], false), ("GET /", &[("x-user", "a")], false)],
    );
    routed(
        "{withoutHeaders: {x-user: {regex: '.+'}}}",
        &[("GET /", &[], true), ("GET /", &[("x-user", "a")], false)],
    );
    routed("{withoutHeaders: {x-user: {}}}", &[("GET /", &[], true), ("GET /", &[("x-user", "")], false)]);
}

#[test]
fn query_params() {
    routed(
        "{queryParams: {user: {exact: jason}}}",
        &[
            ("GET /?user=jason", &[], true),
            ("GET /?a=b&user=jason", &[], true),
            ("GET /?user=jason&user=mary", &[], true),
            ("GET /?user=mary&user=jason", &[], false),
            ("GET /?xuser=jason", &[], false),
            ("GET /", &[], false),
        ],
    );
    routed("{queryParams: {user: {prefix: ja}}}", &[("GET /?user=jason", &[], true)]);
    routed(
        "{queryParams: {user: {regex: '[a-z]+'}}}",
        &[("GET /?user=a", &[], true), ("GET /?user=1", &[], false)],
    );
    routed(
        "{queryParams: {user: {}}}",
        &[("GET /?user", &[], true), ("GET /?user=", &[], true), ("GET /?users=1", &[], false)],
    );
}

#[test]
fn all_of_a_match_and_any_of_the_list() {
    routed(
        "{uri: {prefix: /a}, headers: {x: {exact: '1'}, y: {}}}",
        &[
            ("GET /a", &[("x", "1"), ("y", "")], true),
            ("GET /a", &[("x", "1")], false),
            ("GET /b", &[("x", "1"), ("y", "")], false),
        ],
    );
    routed(
        "{uri: {prefix: /a}}, {headers: {x: {}}}",
        &[("GET /a", &[], true), ("GET /b", &[("x", "")], true), ("GET /b", &[], false)],
    );
}

#[test]
fn a_value_that_is_no_text_matches_nothing() {
    let mut headers = HeaderMap::new();
    headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
    let (uri, authority) = (Uri::from_static("/"), Authority::parse("a").unwrap());
    let view = RequestView::new(&Method::GET, &uri, &headers, &authority);
    let any = ValueMatcher::Value(StringMatcher::Regex(Regex::new(".*").unwrap()));
    let list = vec![(HeaderName::from_static("x"), any)];
    assert!(!Condition { headers: list.clone().into(), ..Condition::default() }.matches(&view));
    assert!(Condition { without_headers: list.into(), ..Condition::default() }.matches(&view));
}

#[test]
fn what_always_holds() {
    let uri = |m| Condition { uri: Some(m), ..Condition::default() };
    let regex = |s| StringMatcher::Regex(Regex::new(s).unwrap());
    assert!(Condition::default().is_always());
    assert!(uri(StringMatcher::Prefix("/".into())).is_always());
    assert!(uri(regex(".*")).is_always());
    assert!(!uri(StringMatcher::Prefix("/a".into())).is_always());
    assert!(!uri(StringMatcher::Exact("/".into())).is_always());
    let method = Some(StringMatcher::Exact("GET".into()));
    assert!(!Condition { method, ..uri(StringMatcher::Prefix("/".into())) }.is_always());
    assert_eq!(Condition::default().to_string(), "always");
}

proptest! {
    #[test]
    fn no_request_panics(path in "/[ -~é]{0,20}", query in "[ -~]{0,20}", name in "[a-z=&]{0,4}") {
        let (headers, authority) = (HeaderMap::new(), Authority::parse("a").unwrap());
        let uri = Uri::from_static("/");
        let mut view = RequestView::new(&Method::GET, &uri, &headers, &authority);
        view.path = &path;
        view.query = Some(&query);
        let found = view.query_param(&name);
        prop_assert!(found.is_none_or(|value| query.contains(value)));
        let prefix = Condition { uri: Some(StringMatcher::Prefix("/é".into()).ignore_case()), ..Condition::default() };
        let _ = prefix.matches(&view);
    }
}
