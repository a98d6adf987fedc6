use super::*;
use proptest::prelude::*;

#[test]
fn prefixes_and_whole_paths() {
    let table = [
        ("/new", "/old/x", Some(4), "/new/x"),
        ("/", "/old/x", Some(4), "//x"),
        ("/", "/old/x", Some(5), "/x"),
        ("/new", "/old", Some(4), "/new"),
        ("/new", "/old/x", None, "/new"),
        ("/", "/x", Some(1), "/x"),
        // Nothing climbs out through what a rewrite puts together.
        ("/a/", "/x../y", Some(2), "/y"),
    ];
    for (to, path, prefix, want) in table {
        assert_eq!(
            PathRewrite::Replace(to.into()).apply(path, prefix).as_deref(),
            Ok(want),
            "{path} {prefix:?}"
        );
    }
    assert!(PathRewrite::Replace("/".into()).apply("/x../y", Some(2)).is_err());
}

#[test]
fn expressions() {
    let table = [
        ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
        ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
        ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
        ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
        ("b+", r"[\0]", "/abbbc", "/a[bbb]c"),
        ("b", r"\\", "/abc", "/a/c"),
        ("none", "x", "/abc", "/abc"),
        ("(x)?b", r"<\1>", "/abc", "/a<>c"),
        ("^/", "", "/abc", "/abc"),
    ];
    for (find, replacement, path, want) in table {
        let rewrite = PathRewrite::regex(find, replacement).unwrap();
        assert_eq!(rewrite.apply(path, None).as_deref(), Ok(want), "{find} on {path}");
    }
}

#[test]
fn what_cannot_be_an_expression() {
    assert!(matches!(PathRewrite::regex("(", ""), Err(InvalidRewrite::Regex(_))));
    assert!(matches!(PathRewrite::regex(&"a".repeat(1025), ""), Err(InvalidRewrite::Regex(_))));
    assert_eq!(PathRewrite::regex("(a)", r"\2"), Err(InvalidRewrite::Group(2)));
    assert_eq!(PathRewrite::regex("a", r"\x"), Err(InvalidRewrite::Escape));
    assert_eq!(PathRewrite::regex("a", r"x\"), Err(InvalidRewrite::Escape));
}

#[test]
fn a_path_cannot_grow_beyond_its_limit() {
    let grow = PathRewrite::regex("a", &"b".repeat(1000)).unwrap();
    assert!(grow.apply(&format!("/{}", "a".repeat(16)), None).is_ok());
    assert_eq!(grow.apply(&format!("/{}", "a".repeat(17)), None), Err(NotRewritten(TOO_LONG)));
    let long = PathRewrite::Replace(format!("/{}", "b".repeat(MAX_REWRITTEN)).into());
    assert_eq!(long.apply("/", None), Err(NotRewritten(TOO_LONG)));
}

#[test]
fn path_and_authority_are_set_where_they_stand() {
    let mut request = Request::get("http://a:1/x?q=1").header("host", "a:1").body(()).unwrap();
    set_path(&mut request, "/y").unwrap();
    set_authority(&mut request, "b").unwrap();
    assert_eq!(request.uri(), "http://b/y?q=1");
    assert_eq!(request.headers()["host"], "b");

    let mut request = Request::get("/x").header("host", "a:1").body(()).unwrap();
    set_authority(&mut request, "b:2").unwrap();
    assert_eq!(
        (request.uri().to_string().as_str(), &request.headers()["host"]),
        ("/x", &"b:2".parse().unwrap())
    );
}

proptest! {
    #[test]
    fn whatever_comes_out_is_a_normal_path(path in "/[a-c./%2e]{0,16}", prefix in 0_usize..20, to in "/[a./]{0,6}") {
        for rewrite in [PathRewrite::Replace(to.into()), PathRewrite::regex("a(b?)", r"\1.").unwrap()] {
            if let Ok(made) = rewrite.apply(&path, Some(prefix)) {
                prop_assert_eq!(normal_path(&made).unwrap(), made.clone());
            }
        }
    }
}
