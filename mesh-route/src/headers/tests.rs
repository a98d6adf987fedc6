use super::*;
use mesh_core::facts::Connection;

fn ops(yaml_set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderOperations {
    let map = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    HeaderOperations {
        set: map(yaml_set),
        add: map(add),
        remove: remove.iter().map(|s| (*s).to_owned()).collect(),
    }
}

#[test]
fn removal_then_set_then_add() {
    let written = ops(&[("a", "set"), ("b", "set")], &[("a", "add"), ("c", "add")], &["a", "d"]);
    let mut request =
        Request::get("/").header("a", "old").header("c", "old").header("d", "old").body(()).unwrap();
    HeaderOps::request(&written).unwrap().apply_to_request(&mut request, None);
    let all = |name: &str| -> Vec<_> {
        request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect()
    };
    assert_eq!(all("a"), ["set", "add"]);
    assert_eq!(all("b"), ["set"]);
    assert_eq!(all("c"), ["old", "add"]);
    assert!(all("d").is_empty());
}

#[test]
fn operators() {
    let facts = Facts::new(Connection::builder().peer_addr("10.0.0.7:4000".parse().unwrap()).build());
    let table = [
        ("100%%", Some("100%")),
        ("%%%%", Some("%%")),
        ("a-%REQ(x-user)%-b", Some("a-jason-b")),
        ("%REQ(twice)%", Some("1,2")),
        ("%REQ(absent)%", None),
        ("x%REQ(absent)%", Some("x")),
        ("%REQ(:method)% %REQ(:path)% %REQ(:authority)%", Some("GET /p?q=1 reviews:9080")),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("10.0.0.7:4000")),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", Some("10.0.0.7")),
        ("%PROTOCOL%", Some("HTTP/1.1")),
    ];
    for (value, want) in table {
        let mut request = Request::get("/p?q=1")
            .header("host", "reviews:9080")
            .header("x-user", "jason")
            .header("twice", "1")
            .header("twice", "2")
            .body(())
            .unwrap();
        let compiled = HeaderOps::request(&ops(&[("out", value)], &[], &["x-user"])).unwrap();
        compiled.apply_to_request(&mut request, Some(&facts));
        assert_eq!(request.headers().get("out").map(|v| v.to_str().unwrap()), want, "{value}");
    }
    let mut headers = HeaderMap::new();
    headers.insert("server", HeaderValue::from_static("x"));
    let compiled = HeaderOps::response(&ops(&[("was", "%RESP(server)%")], &[], &["server"])).unwrap();
    compiled.apply_to_response(&mut headers, Version::HTTP_2, None);
    assert_eq!(headers["was"], "x");
    assert!(!headers.contains_key("server"));
}

#[test]
fn what_is_refused_names_its_field() {
    let set = |name, value| HeaderOps::request(&ops(&[(name, value)], &[], &[])).unwrap_err();
    assert_eq!(set("x", "50%").field, "set[x]");
    assert!(set("x", "50%").message.contains("write %%"));
    assert!(set("x", "%START_TIME%").message.contains("%START_TIME% is not supported yet"));
    assert!(set("x", "%RESP(a)%").message.contains("%REQ(name)%"));
    assert!(set("x", "a\nb").message.contains("cannot carry"));
    for name in [":method", "connection", "transfer-encoding", "content-length", "x-mesh-reason", "a b"] {
        assert_eq!(set(name, "v").field, format!("set[{name}]"));
    }
    assert!(set("host", "user@a").message.contains("no authority"));
    assert_eq!(HeaderOps::request(&ops(&[], &[], &["host"])).unwrap_err().field, "remove[host]");
    assert_eq!(HeaderOps::response(&ops(&[], &[("host", "a")], &[])).unwrap_err().field, "add[host]");
    assert_eq!(HeaderOps::response(&ops(&[("%", "")], &[], &[])).map(|o| o.is_empty()), Ok(false));
}

#[test]
fn the_authority_has_three_names_and_set_beats_add() {
    for name in [":authority", "host", "authority", "Host"] {
        let compiled = HeaderOps::request(&ops(&[(name, "b:80")], &[], &[])).unwrap();
        assert_eq!(compiled.authority(), Some("b:80"), "{name}");
        assert!(compiled.is_empty());
    }
    let both = HeaderOps::request(&ops(&[("host", "set")], &[("host", "add")], &[])).unwrap();
    assert_eq!(both.authority(), Some("set"));
    let add = HeaderOps::request(&ops(&[], &[("host", "add")], &[])).unwrap();
    assert_eq!(add.authority(), Some("add"));
}
