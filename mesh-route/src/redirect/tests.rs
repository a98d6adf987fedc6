use http::{HeaderMap, Method, Uri};
use mesh_core::normal::Authority;

use super::*;

fn location(redirect: &Redirect, uri: &str, host: &str, prefix: Option<usize>) -> String {
    let (uri, headers): (Uri, _) = (uri.parse().unwrap(), HeaderMap::new());
    let authority = Authority::parse(host).unwrap();
    redirect.location(&RequestView::new(&Method::GET, &uri, &headers, &authority), prefix)
}

#[test]
fn locations() {
    let none = Redirect::default;
    let scheme = |s: &str| Redirect { scheme: Some(s.into()), ..Redirect::default() };
    let full = |p: &str| Some(RedirectPath::Full(p.into()));
    let prefix = |p: &str| Some(RedirectPath::Prefix(p.into()));
    let table = [
        (Redirect { path: full("/new"), ..none() }, "/old?q=1", "a", "http://a/new?q=1"),
        (Redirect { path: full("/new?x=2"), ..none() }, "/old?q=1", "a", "http://a/new?x=2"),
        (Redirect { path: prefix("/v2"), ..none() }, "/v1/x?q=1", "a:8080", "http://a:8080/v2/x?q=1"),
        (Redirect { authority: Some("b".into()), ..none() }, "/x", "a:8080", "http://b/x"),
        (Redirect { authority: Some("b".into()), port: Some(81), ..none() }, "/x", "a", "http://b:81/x"),
        // The port of the request stays, but for a well-known one when the scheme changes.
        (none(), "/x", "a:8080", "http://a:8080/x"),
        (none(), "/x", "a:80", "http://a:80/x"),
        (scheme("https"), "/x", "a:80", "https://a/x"),
        (scheme("https"), "/x", "a:8080", "https://a:8080/x"),
        (scheme("http"), "https://a:443/x", "a:443", "http://a/x"),
        // A default port is not printed.
        (Redirect { port: Some(80), ..none() }, "/x", "a:8080", "http://a/x"),
        (Redirect { port: Some(443), ..scheme("https") }, "/x", "a:8080", "https://a/x"),
        (Redirect { port: Some(443), ..none() }, "/x", "a:8080", "http://a:443/x"),
        (Redirect { port: Some(8443), ..scheme("https") }, "/x", "a:80", "https://a:8443/x"),
        (Redirect { port: Some(8443), ..none() }, "/x", "[::1]:80", "http://[::1]:8443/x"),
        (Redirect { port: Some(8443), ..none() }, "/x", "[::1]", "http://[::1]:8443/x"),
    ];
    for (redirect, uri, host, want) in table {
        assert_eq!(location(&redirect, uri, host, Some(3)), want, "{redirect:?} of {host}{uri}");
    }
}

#[test]
fn answers_are_the_meshs_own() {
    let response: Response<String> = {
        let (uri, headers) = (Uri::from_static("/x"), HeaderMap::new());
        let authority = Authority::parse("a").unwrap();
        let view = RequestView::new(&Method::GET, &uri, &headers, &authority);
        Redirect { status: StatusCode::PERMANENT_REDIRECT, ..Redirect::default() }.response(&view, None)
    };
    assert_eq!(
        (response.status(), response.headers()["location"].as_bytes()),
        (StatusCode::PERMANENT_REDIRECT, &b"http://a/x"[..])
    );
    assert_eq!(response.headers()["x-mesh-reason"], "direct_response");

    let direct = DirectResponse { status: StatusCode::IM_A_TEAPOT, body: Bytes::from_static(b"tea") };
    let response: Response<http_body_util::Full<Bytes>> = direct.response();
    assert_eq!(
        (response.status(), &response.headers()["content-type"]),
        (StatusCode::IM_A_TEAPOT, &"text/plain".parse().unwrap())
    );
}
