use proptest::prelude::*;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in all {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    map
}

fn numbers() -> impl FnMut() -> u64 {
    let mut next = 0x10;
    move || {
        next += 1;
        next
    }
}

#[test]
fn traceparent_is_read_strictly() {
    let zeros = "0".repeat(55);
    let long = format!("00-{TRACE}-{SPAN}-01-more");
    let later = format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like");
    let later_bare = format!("cc-{TRACE}-{SPAN}-01");
    let cases: Vec<(String, bool)> = vec![
        (format!("00-{TRACE}-{SPAN}-01"), true),
        (format!("00-{TRACE}-{SPAN}-00"), true),
        (format!("00-{TRACE}-{SPAN}-ff"), true),
        (later, true),
        (later_bare, true),
        (format!("cc-{TRACE}-{SPAN}-01.what"), false),
        (format!("cc-{TRACE}-{SPAN}-01x"), false),
        (format!("ff-{TRACE}-{SPAN}-01"), false),
        (long, false),
        (format!("00-{TRACE}-{SPAN}-01-"), false),
        (format!("00-{}-{SPAN}-01", "0".repeat(32)), false),
        (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
        (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), false),
        (format!("00-{TRACE}-{}-01", SPAN.to_uppercase()), false),
        (format!("0X-{TRACE}-{SPAN}-01"), false),
        (format!("00-{TRACE}-{SPAN}-0g"), false),
        (format!("00_{TRACE}-{SPAN}-01"), false),
        (format!("00-{TRACE}_{SPAN}-01"), false),
        (format!("00-{TRACE}-{SPAN}_01"), false),
        (format!("00-{TRACE}-{SPAN}-1"), false),
        (format!("00-{}-{SPAN}-01", TRACE.get(1..).unwrap()), false),
        (format!("00-{TRACE}-{SPAN}"), false),
        (zeros, false),
        ("0".repeat(54), false),
        ("-".repeat(55), false),
        (String::new(), false),
        ("00".to_owned(), false),
    ];
    for (value, valid) in cases {
        let found = TraceContext::extract(&headers(&[("traceparent", &value)]));
        assert_eq!(found.is_some(), valid, "{value:?}");
        if let Some(found) = found {
            assert_eq!(
                (&hex128(found.trace_id())[..], &hex(found.span_id())[..]),
                (TRACE.as_bytes(), SPAN.as_bytes())
            );
        }
    }
    let twice = format!("00-{TRACE}-{SPAN}-01");
    assert!(TraceContext::extract(&headers(&[("traceparent", &twice), ("traceparent", &twice)])).is_none());
}

#[test]
fn a_hop_is_a_child_and_writes_version_zero() {
    let mut map =
        headers(&[("traceparent", &format!("cc-{TRACE}-{SPAN}-07-later")), ("tracestate", "a=1,b@c=2")]);
    let hop = Tracing::default().advance(&mut map, &mut numbers());
    assert_eq!(hop.parent_span_id(), Some(0xb7ad_6b71_6920_3331));
    // The sampled and random bits stay, what nobody knows goes.
    assert_eq!(map["traceparent"], format!("00-{TRACE}-0000000000000011-03"));
    assert_eq!(map["tracestate"], "a=1,b@c=2");
    assert!(!map.contains_key("b3") && !map.contains_key("x-b3-traceid"));

    let mut map = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-00"))]);
    Tracing::default().spans(Spans::Same).advance(&mut map, &mut numbers());
    assert_eq!(map["traceparent"], format!("00-{TRACE}-{SPAN}-00"));
}

#[test]
fn an_invalid_traceparent_starts_a_new_trace_and_drops_the_state() {
    let mut map = headers(&[("traceparent", &"0".repeat(55)), ("tracestate", "a=1")]);
    let hop = Tracing::default().sampling_percent(100.0).advance(&mut map, &mut numbers());
    assert_eq!(hop.trace_id(), 0x11 << 64 | 0x12);
    assert_eq!(map["traceparent"], "00-00000000000000110000000000000012-0000000000000013-01");
    assert!(!map.contains_key("tracestate"));
}

#[test]
fn tracestate_is_bounded() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let state = |values: &[&str]| {
        let mut all = vec![("traceparent", parent.as_str())];
        all.extend(values.iter().map(|v| ("tracestate", *v)));
        let mut map = headers(&all);
        Tracing::default().advance(&mut map, &mut numbers());
        map.get("tracestate").map(|v| v.to_str().unwrap().to_owned())
    };
    assert_eq!(state(&["a=1", "b=2"]).as_deref(), Some("a=1,b=2"));
    assert_eq!(state(&["a=1,,b=2 ,"]).as_deref(), Some("a=1,,b=2 ,"));
    for bad in ["", " ", "a", "=1", "a=", "A=1", "a=1=2", "a@b@c=1", "a=\u{e9}", "-a=1"] {
        assert_eq!(state(&[bad]), None, "{bad:?}");
    }
    // One more than the limit of members.
    let members = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    assert!(state(&[&members(MAX_TRACESTATE_MEMBERS)]).is_some());
    assert_eq!(state(&[&members(MAX_TRACESTATE_MEMBERS + 1)]), None);
    // Long members go first, then the last ones.
    let long = format!("long={}", "x".repeat(200));
    let short: Vec<String> = (0..5).map(|i| format!("k{i}={}", "y".repeat(90))).collect();
    let all = format!("{},{long},{}", short[0], short[1..].join(","));
    assert_eq!(state(&[&all]), Some(short.join(",")));
    let many: Vec<String> = (0..10).map(|i| format!("k{i}={}", "y".repeat(90))).collect();
    let kept = state(&[&many.join(",")]).unwrap();
    assert!(kept.len() <= MAX_TRACESTATE);
    assert_eq!(kept, many[..5].join(","));
    let huge = format!("a={}", "x".repeat(9000));
    assert_eq!(state(&[&huge]), None);
}

#[test]
fn b3_in_several_headers() {
    let mut map = headers(&[
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-parentspanid", "0000000000000001"),
        ("x-b3-sampled", "1"),
    ]);
    let read = TraceContext::extract(&map).unwrap();
    assert_eq!((read.parent_span_id(), read.sampling()), (Some(1), Sampling::Keep));
    Tracing::default().advance(&mut map, &mut numbers());
    assert_eq!(map["x-b3-traceid"], TRACE);
    assert_eq!(map["x-b3-spanid"], "0000000000000011");
    assert_eq!(map["x-b3-parentspanid"], SPAN);
    assert_eq!(map["x-b3-sampled"], "1");
    assert!(!map.contains_key("traceparent"), "a trace travels in the forms in which it came");
}

#[test]
fn b3_keeps_short_ids_short_and_debug_debug() {
    let mut map = headers(&[("x-b3-traceid", SPAN), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]);
    let hop = Tracing::default().sampling_percent(0.0).advance(&mut map, &mut numbers());
    assert_eq!(hop.sampling(), Sampling::Debug);
    assert_eq!((map["x-b3-traceid"].to_str().unwrap(), map["x-b3-flags"].to_str().unwrap()), (SPAN, "1"));
    assert!(!map.contains_key("x-b3-sampled"));
}

#[test]
fn b3_in_one_header() {
    for (value, sampling) in [
        (format!("{TRACE}-{SPAN}"), Some(Sampling::Undecided)),
        (format!("{TRACE}-{SPAN}-1"), Some(Sampling::Keep)),
        (format!("{TRACE}-{SPAN}-0-{SPAN}"), Some(Sampling::Drop)),
        (format!("{SPAN}-{SPAN}-d"), Some(Sampling::Debug)),
        (format!("{TRACE}-{SPAN}-2"), None),
        (format!("{TRACE}-{SPAN}-1-"), None),
        (format!("{TRACE}-{SPAN}-1-{SPAN}-x"), None),
        (format!("{TRACE}-{}", "0".repeat(16)), None),
        (format!("{}-{SPAN}-1", "0".repeat(32)), None),
        (TRACE.to_owned(), None),
        ("0".to_owned(), None),
        ("-".repeat(9), None),
    ] {
        let read = TraceContext::extract(&headers(&[("b3", &value)]));
        assert_eq!(read.map(|r| r.sampling()), sampling, "{value}");
    }
    let mut map = headers(&[("b3", &format!("{TRACE}-{SPAN}-1"))]);
    Tracing::default().advance(&mut map, &mut numbers());
    assert_eq!(map["b3"], format!("{TRACE}-0000000000000011-1-{SPAN}"));
}

#[test]
fn a_decision_without_a_trace_is_kept() {
    for (name, value, sampled) in
        [("b3", "0", false), ("b3", "1", true), ("x-b3-sampled", "0", false), ("x-b3-sampled", "true", true)]
    {
        let mut map = headers(&[(name, value)]);
        let percent = if sampled { 0.0 } else { 100.0 };
        let hop = Tracing::default().sampling_percent(percent).advance(&mut map, &mut numbers());
        assert_eq!(hop.is_sampled(), sampled, "{name}: {value}");
        assert!(TraceContext::extract(&map).is_some());
    }
}

#[test]
fn where_forms_disagree_traceparent_wins_and_all_are_rewritten() {
    let other = "1".repeat(32);
    let mut map = headers(&[
        ("b3", &format!("{other}-{SPAN}-0")),
        ("x-b3-traceid", &"2".repeat(32)),
        ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
    ]);
    let hop = Tracing::default().advance(&mut map, &mut numbers());
    assert_eq!(hop.formats(), Formats::W3C | Formats::B3_MULTI | Formats::B3_SINGLE);
    assert_eq!(map["b3"], format!("{TRACE}-0000000000000011-1-{SPAN}"));
    assert_eq!(map["x-b3-traceid"], TRACE);
    assert_eq!(map["traceparent"], format!("00-{TRACE}-0000000000000011-01"));
}

#[test]
fn new_traces_are_written_as_configured_and_sampled_at_the_rate() {
    let mut map = HeaderMap::new();
    Tracing::default().formats(Formats::W3C | Formats::B3_MULTI).advance(&mut map, &mut numbers());
    assert!(map.contains_key("traceparent") && map.contains_key("x-b3-traceid"));
    assert!(!map.contains_key("b3"));

    let mut random = fastrand::Rng::with_seed(7);
    let tracing = Tracing::default();
    let sampled = (0..100_000).filter(|_| tracing.samples(random.u64(..))).count();
    assert!((800..1200).contains(&sampled), "{sampled}");
    assert!((0..1000).all(|_| Tracing::default().sampling_percent(100.0).samples(random.u64(..))));
    assert!(!Tracing::default().sampling_percent(0.0).samples(0));
    assert!(Tracing::default().sampling_percent(100.0).samples(u64::MAX));
}

#[test]
fn ids_are_never_zero() {
    let mut map = HeaderMap::new();
    let hop = Tracing::default().advance(&mut map, &mut || 0);
    assert!(hop.trace_id() != 0 && hop.span_id() != 0);
    assert!(TraceContext::extract(&map).is_some());
}

#[cfg(feature = "otel")]
#[test]
fn opentelemetry_sees_the_same_trace() {
    let map = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01")), ("tracestate", "a=1")]);
    let span = TraceContext::extract(&map).unwrap().span_context();
    assert!(span.is_valid() && span.is_remote() && span.is_sampled());
    assert_eq!(
        (span.trace_id().to_string(), span.span_id().to_string()),
        (TRACE.to_owned(), SPAN.to_owned())
    );
    assert_eq!(span.trace_state().get("a"), Some("1"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_continued_and_written(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz(&data);
    }

    #[test]
    fn nearly_valid_headers_are_read_continued_and_written(
        parts in proptest::collection::vec("(00|cc|ff|0)-[0-9a-f]{31,32}-[0-9a-f]{16}(-0[0-9])?(-[0-9a-f]{16})?|[01d]|[a-z]=[0-9]{0,140}", 0..14)
    ) {
        fuzz(parts.join("\n").as_bytes());
    }

    #[test]
    fn what_is_written_is_read_again(trace in 1_u128.., span in 1_u64.., sampled: bool, formats in 1_u8..8) {
        let context = TraceContext::start(trace, span, Sampling::of(sampled), Formats(formats));
        let mut map = HeaderMap::new();
        context.inject(&mut map);
        prop_assert_eq!(TraceContext::extract(&map), Some(context));
    }
}
