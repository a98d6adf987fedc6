use http::request::Builder;
use mesh_core::cluster::ClusterKey;
use proptest::prelude::*;

use super::super::connect::HttpVersion;
use super::super::wire::prepare;
use super::*;

fn cluster() -> ClusterKey {
    ClusterKey::new("a.default.svc", 80, "")
}

fn h2(uri: &str) -> Builder {
    Request::get(uri).version(Version::HTTP_2)
}

fn built(builder: Builder) -> Request<()> {
    builder.body(()).unwrap()
}

#[test]
fn what_http2_cannot_say_is_not_carried() {
    let h1 = |host: &[u8]| Request::get("/").header("host", host);
    let table = [
        (h1(b"reviews:9080"), true),
        (Request::get("/"), true), // the cluster's own name is given
        (Request::get("http://reviews/x").header("host", "a b"), true),
        (Request::options("*").header("host", "a").header("content-length", "0"), true),
        (h1(b""), false),
        (h1(b"a b"), false),
        (h1(b"user@a"), false),
        (h1(b"\xffa"), false),
        (h1(b"a").header("host", "a"), false),
        (Request::get("http://user@reviews/x"), false),
        (Request::connect("a:1"), false),
        (h1(b"a").header("connection", "Upgrade").header("upgrade", "websocket"), false),
        // Asks for nothing: it is no longer there when it goes on.
        (h1(b"a").header("upgrade", "h2c"), true),
    ];
    for (builder, want) in table {
        let request = built(builder);
        for ended in [false, true] {
            assert_eq!(can_carry(&request, ended), want, "{request:?}");
        }
    }
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS] {
        let bare = built(Request::builder().method(&method).header("host", "a"));
        assert_eq!((can_carry(&bare, true), can_carry(&bare, false)), (false, true));
        let told =
            built(Request::builder().method(&method).header("host", "a").header("content-length", "0"));
        assert!(can_carry(&told, true));
    }
}

#[test]
fn what_a_proxy_of_ours_never_sends_is_refused() {
    let table = [
        (h2("/"), "no valid :authority"),
        (h2("/").header("host", "reviews"), "no valid :authority"),
        (h2("http://user@reviews/"), "no valid :authority"),
        (h2("http://reviews/").header("host", "ratings"), "host is not :authority"),
        (h2("http://reviews/").header("host", "Reviews"), "host is not :authority"),
        (h2("http://reviews/").header("host", "reviews").header("host", "ratings"), "host is not"),
        (h2("http://reviews/").header("content-length", "1").header("content-length", "1"), "content-length"),
        (Request::connect("reviews:80").version(Version::HTTP_2), "CONNECT"),
        (h2("*").method("GET"), "no valid :authority"),
    ];
    for (builder, why) in table {
        let mut request = built(builder);
        let error = restore(&mut request).unwrap_err();
        assert!(error.to_string().contains(why) || error.explanation().contains(why), "{request:?} {error}");
        let h2 = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<h2::Error>());
        assert_eq!(h2.and_then(h2::Error::reason), Some(h2::Reason::PROTOCOL_ERROR));
    }
}

#[test]
fn star_and_cookies_and_a_host_that_agrees_pass() {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some("reviews".parse().unwrap());
    uri.path_and_query = Some("*".parse().unwrap());
    let mut star =
        Request::options(Uri::from_parts(uri).unwrap()).header("host", "reviews").body(()).unwrap();
    restore(&mut star).unwrap();
    assert_eq!(star.uri().to_string(), "*");
    assert_eq!(star.headers()["host"], "reviews");

    for (pieces, want) in [(vec!["a=1"], "a=1"), (vec!["a=1", "b=2", "c"], "a=1; b=2; c")] {
        let mut request = built(pieces.iter().fold(h2("http://reviews/"), |b, p| b.header("cookie", *p)));
        restore(&mut request).unwrap();
        assert_eq!(request.headers().get_all("cookie").iter().collect::<Vec<_>>(), [want]);
    }
}

proptest! {
    /// Carried or not, what arrives is the same.
    #[test]
    fn carrying_changes_nothing(
        host in "[a-zA-Z0-9.:@-]{0,9}", path in "/[a-z/?%]{0,9}", absolute: bool, method in "GET|POST|OPTIONS",
    ) {
        let uri = if absolute { format!("http://{host}{path}") } else { path };
        let builder = Request::builder().method(method.as_str()).uri(uri).header("host", &host);
        let Ok(mut plain) = builder.header("x-a", "1").body(()) else { return Ok(()) };
        if !can_carry(&plain, false) {
            return Ok(());
        }
        let mut carried = plain.clone();
        prepare(&mut plain, HttpVersion::Http1, &cluster()).unwrap();
        prepare(&mut carried, HttpVersion::Carried, &cluster()).unwrap();
        restore(&mut carried).unwrap();
        prop_assert_eq!((carried.version(), carried.uri()), (plain.version(), plain.uri()));
        prop_assert_eq!(carried.headers(), plain.headers());
    }
}
