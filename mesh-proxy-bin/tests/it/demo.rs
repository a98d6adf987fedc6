//! The demo of the README holds what it promises, and prints plain lines where nobody draws.

use std::time::Duration;

use mesh_test::process;

use crate::stage::BIN;

#[tokio::test]
async fn the_demo_holds_and_prints_plain_lines() {
    let (status, output) = process::run(BIN, ["demo", "--duration", "5s"], Duration::from_secs(90)).await;
    assert!(status.success(), "{status}\n{output}");
    assert!(output.contains("everything held"), "{output}");
    assert!(output.contains("0 failed"), "{output}");
    assert!(output.contains("x-mesh-reason: denied"), "{output}");
    assert!(output.contains("default/reviews-readers"), "{output}");
    assert!(!output.contains('\x1b'), "colours and cursor movements are for terminals: {output:?}");
}

#[tokio::test]
async fn a_demo_too_short_to_judge_says_so() {
    let (status, output) = process::run(BIN, ["demo", "--duration", "1s"], Duration::from_secs(30)).await;
    assert!(!status.success());
    assert!(output.contains("--duration is too short; give it at least 4s"), "{output}");
}
