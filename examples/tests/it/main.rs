//! Runs each example as a program, and asserts what it shows.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests, which clippy sees in test functions only"
)]

use std::path::PathBuf;
use std::process::Command;

/// Cargo builds the examples along with the tests, beside their folder.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build --examples`", path.display());
    path
}

/// What an example says on standard output; it has to end by itself, and well.
fn run(name: &str) -> String {
    let output = Command::new(example(name)).env_remove("RUST_LOG").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// The number behind `label: ` on a line of its own; 0 where there is none.
fn number(text: &str, label: &str) -> u32 {
    let line = text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(": "));
    line.map_or(0, |number| number.parse().unwrap())
}

#[test]
fn one_layer_on_axum() {
    let said = run("one_layer_axum");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "GET /reviews/1 -> 200",
            "DELETE /reviews/1 -> 403 (x-mesh-reason: denied)",
            "GET /reviews/../metrics -> 403 (x-mesh-reason: denied)",
            "GET /metrics ->",
        ],
        "{said}"
    );
    let counted = |code: &str, count: &str| {
        let code = format!("response_code=\"{code}\"");
        lines[4..].iter().any(|line| line.contains(&code) && line.ends_with(count))
    };
    assert!(counted("200", " 1") && counted("403", " 2"), "{said}");
}

#[test]
fn a_client_with_a_canary() {
    let said = run("canary_client");
    let (v1, v2) = (number(&said, "v1"), number(&said, "v2"));
    assert_eq!(v1 + v2, 500, "{said}");
    // 50 are expected; the bounds are more than four standard deviations away.
    assert!((20..=80).contains(&v2), "{said}");
    assert!(number(&said, "failures made by a backend of v1") > 0, "{said}");
    assert_eq!(number(&said, "failures seen by the caller"), 0, "{said}");
}

#[test]
fn two_programs_with_mtls() {
    let said = run("mtls_pair");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "the server is spiffe://cluster.local/ns/default/sa/reviews",
            "a client is spiffe://cluster.local/ns/default/sa/web",
            "  answered 200: hello spiffe://cluster.local/ns/default/sa/web",
            "a client is spiffe://cluster.local/ns/default/sa/stranger",
            "  refused with 403, x-mesh-reason: denied",
            "a client without mTLS is not let in",
        ]
    );
}
