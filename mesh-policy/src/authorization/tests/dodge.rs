//! What a caller could write in several ways gets past no rule, whatever way it chooses.

use super::*;
use http::HeaderValue;

type Headers = &'static [&'static [u8]];

/// `[ALLOW values, ALLOW notValues, DENY values, DENY notValues]`: whether the request passes.
fn header_answers(values: &[&[u8]]) -> [bool; 4] {
    let mut request = get(&web(), "/");
    for value in values {
        request.headers_mut().append("x-role", HeaderValue::from_bytes(value).unwrap());
    }
    let rule =
        |list: &str| format!(r#"{{"when": [{{"key": "request.headers[x-role]", "{list}": ["admin"]}}]}}"#);
    [
        passes(&one("ALLOW", &rule("values")), &request),
        passes(&one("ALLOW", &rule("notValues")), &request),
        passes(&one("DENY", &rule("values")), &request),
        passes(&one("DENY", &rule("notValues")), &request),
    ]
}

#[test]
fn headers() {
    let table: [(&[&[u8]], [bool; 4]); 9] = [
        // absent: is not admin
        (&[], [false, true, true, false]),
        // one
        (&[b"admin"], [true, false, false, true]),
        (&[b"user"], [false, true, true, false]),
        // many: not surely admin, and not surely somebody else
        (&[b"user", b"admin"], [false, false, false, false]),
        (&[b"admin", b"admin"], [true, false, false, true]),
        // comma-joined
        (&[b"user,admin"], [false, false, false, false]),
        (&[b"user, admin"], [false, false, false, false]),
        // empty
        (&[b""], [false, true, true, false]),
        // not UTF-8: nobody knows
        (&[b"\xff"], [false, false, false, false]),
    ];
    for (values, want) in table {
        assert_eq!(header_answers(values), want, "{values:?}");
    }
}

fn path_answers(path: &str) -> [bool; 4] {
    let request = get(&web(), path);
    let rule = |list: &str| format!(r#"{{"to": [{{"operation": {{"{list}": ["/admin", "/admin/*"]}}}}]}}"#);
    [
        passes(&one("ALLOW", &rule("paths")), &request),
        passes(&one("ALLOW", &rule("notPaths")), &request),
        passes(&one("DENY", &rule("paths")), &request),
        passes(&one("DENY", &rule("notPaths")), &request),
    ]
}

#[test]
fn paths() {
    let in_and_out = [true, false, false, true];
    let elsewhere = [false, true, true, false];
    let unsure = [false, false, false, false];
    let table = [
        ("/admin", in_and_out),
        ("/admin/x", in_and_out),
        ("/admin/x%20y", in_and_out),
        ("/public", elsewhere),
        ("/public%20", elsewhere),
        ("/x/../admin", in_and_out),
        ("/admin/../public", elsewhere),
        ("/admin/%2e%2e/public", elsewhere),
        ("//admin", unsure),
        ("/%61dmin", unsure),
        ("/%2fadmin", unsure),
        ("/x/..%2fadmin", unsure),
        // Starts with what is let in, and is something else once decoded.
        ("/admin/..%2fpublic", unsure),
        // `/y` to who merges slashes before dots are resolved, `/admin/y` to who does not.
        ("/x/..%2fadmin%2f%2f../y", unsure),
        ("/../admin", unsure),
        ("/ADMIN", elsewhere),
    ];
    for (path, want) in table {
        assert_eq!(path_answers(path), want, "{path}");
    }
}

fn host_answers(uri: &str, headers: &[&[u8]]) -> [bool; 4] {
    let mut request = get(&web(), uri);
    for value in headers {
        request.headers_mut().append("host", HeaderValue::from_bytes(value).unwrap());
    }
    let rule = |list: &str| format!(r#"{{"to": [{{"operation": {{"{list}": ["a.com"]}}}}]}}"#);
    [
        passes(&one("ALLOW", &rule("hosts")), &request),
        passes(&one("ALLOW", &rule("notHosts")), &request),
        passes(&one("DENY", &rule("hosts")), &request),
        passes(&one("DENY", &rule("notHosts")), &request),
    ]
}

#[test]
fn hosts() {
    let it = [true, false, false, true];
    let other = [false, true, true, false];
    let unsure = [false, false, false, false];
    let table: [(&str, Headers, [bool; 4]); 12] = [
        ("/", &[], other),
        ("/", &[b"a.com"], it),
        ("/", &[b"A.COM"], it),
        ("/", &[b"b.com"], other),
        ("/", &[b"a.com", b"b.com"], unsure),
        ("/", &[b"a.com,b.com"], other),
        ("/", &[b""], other),
        ("/", &[b"\xff"], unsure),
        ("/", &[b"a.com."], unsure),
        ("http://a.com/", &[b"b.com"], unsure),
        ("http://a.com/", &[b"a.com"], it),
        ("http://x@a.com/", &[], unsure),
    ];
    for (uri, headers, want) in table {
        assert_eq!(host_answers(uri, headers), want, "{uri} {headers:?}");
    }
}

/// An identity that is not in Istio's exact form is not let in by its parts, and is kept out by them.
#[test]
fn identities_of_another_form() {
    let rule = |list: &str, value: &str| format!(r#"{{"from": [{{"source": {{"{list}": ["{value}"]}}}}]}}"#);
    for (name, ns, sa) in [
        ("cluster.local/ns/a/sa/b", [true, false, false, true], [true, false, false, true]),
        ("cluster.local/ns/a/sa/b/extra", [false; 4], [false; 4]),
        ("cluster.local/ns/a/x/sa/b", [false; 4], [false; 4]),
        ("cluster.local/x/a/sa/b", [false, true, true, false], [false, true, true, false]),
    ] {
        let request = get(&connection().peer(id(name)).build(), "/");
        let answers = |list: &str, not: &str, value: &str| {
            [
                passes(&one("ALLOW", &rule(list, value)), &request),
                passes(&one("ALLOW", &rule(not, value)), &request),
                passes(&one("DENY", &rule(list, value)), &request),
                passes(&one("DENY", &rule(not, value)), &request),
            ]
        };
        assert_eq!(answers("namespaces", "notNamespaces", "a"), ns, "{name}");
        assert_eq!(answers("serviceAccounts", "notServiceAccounts", "a/b"), sa, "{name}");
    }
}
