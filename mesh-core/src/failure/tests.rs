use super::*;

#[test]
fn the_table_says_what_the_design_says() {
    let table = [
        ("unknown_host", "", 502),
        ("no_route", "NR", 404),
        ("unknown_subset", "NC", 503),
        ("no_healthy_endpoint", "UH", 503),
        ("connect_failed", "UF", 503),
        ("tls_failed", "UF", 503),
        ("identity_mismatch", "UF", 503),
        ("upstream_reset", "UC", 503),
        ("overflow", "UO", 503),
        ("timeout", "UT", 504),
        ("denied", "", 403),
        ("unauthenticated", "", 401),
        ("rate_limited", "RL", 429),
        ("policy_invalid", "", 403),
        ("bad_request", "DPE", 400),
        ("draining", "", 503),
        ("config_unavailable", "", 503),
    ];
    for (code, flag, status) in table {
        let found = FailureCode::ALL.iter().find(|c| c.as_str() == code).unwrap();
        let spec = found.spec();
        assert_eq!((spec.flag, spec.status.as_u16()), (flag, status), "{code}");
    }
    assert_eq!(FailureCode::FaultInjected.spec().flag, "FI");
    assert_eq!(FailureCode::HeadersTooLarge.spec().status, 431);
    assert_eq!(FailureCode::BodyTooLarge.spec().status, 413);
}

#[test]
fn what_was_unsent_can_always_be_retried() {
    for code in FailureCode::ALL {
        assert!(code.spec().retry_helps || !code.spec().unsent, "{code:?}");
    }
}

#[test]
fn a_grpc_call_is_answered_in_headers() {
    let response = Failure::new(FailureCode::Denied).response::<String>(true);
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.headers()["x-mesh-reason"], "denied");
}

#[test]
fn a_failure_is_found_through_its_wrappers() {
    let wrapped = std::io::Error::other(Failure::new(FailureCode::ConnectFailed));
    assert_eq!(Failure::of(Box::new(wrapped)).code(), FailureCode::ConnectFailed);
    assert_eq!(Failure::of("odd".into()).code(), FailureCode::Internal);
}

#[test]
fn the_detail_header_is_bounded_and_printable() {
    let failure = Failure::new(FailureCode::Denied).detail(format!("a\r\nb{}", "x".repeat(9999)));
    let value = failure.detail_header().unwrap();
    assert!(value.len() <= MAX_DETAIL);
    assert!(value.as_bytes().starts_with(b"abx"));
    assert!(Failure::new(FailureCode::Denied).detail_header().is_none());
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (value, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x=y", true),
        ("application/grpc-web", false),
        ("text/plain", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
        assert_eq!(is_grpc(&headers), grpc, "{value}");
    }
}
