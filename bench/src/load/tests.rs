use super::*;

const WRK: &str = "Running 4s test @ http://127.0.0.1:18080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.53ms  348.11us   8.57ms   86.24%
    Req/Sec    42.03k     1.60k   44.09k    85.00%
  Latency Distribution
     50%    1.45ms
     75%    1.60ms
     90%    1.82ms
     99%    2.91ms
  167297 requests in 4.00s, 33.82MB read
Requests/sec:  41819.31
Transfer/sec:      8.45MB
";

const H2LOAD: &str = "starting benchmark...
spawning thread #0: 4 total client(s). Timing-based test with 0s of warm-up time and 4s of main duration for measurements.
Warm-up started for thread #0.
Application protocol: h2c

finished in 4.00s, 24512.25 req/s, 1.12MB/s
requests: 98049 total, 98149 started, 98049 done, 98049 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 98049 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 4.49MB (4706608) total, 574.50KB (588294) headers (space savings 95.83%), 2.99MB (3137568) data
                     min         max         mean         sd        +/- sd
time for request:      412us     12.81ms      4.07ms       612us    80.51%
";

#[test]
fn wrk_is_read() {
    let outcome = parse_wrk(WRK).unwrap();
    assert_eq!(
        outcome,
        Outcome { requests: 167_297.0, seconds: 4.0, p50_ms: 1.45, p99_ms: 2.91, trouble: None }
    );
}

#[test]
fn what_goes_wrong_in_wrk_is_trouble() {
    let text = WRK.replace(
        "Requests/sec:",
        "  Socket errors: connect 0, read 3, write 0, timeout 0\n  Non-2xx or 3xx responses: 12\nRequests/sec:",
    );
    let trouble = parse_wrk(&text).unwrap().trouble.unwrap();
    assert_eq!(trouble, "Socket errors: connect 0, read 3, write 0, timeout 0; Non-2xx or 3xx responses: 12");
    let none = WRK.replace("167297 requests", "0 requests");
    assert!(parse_wrk(&none).unwrap().trouble.is_some());
    assert!(parse_wrk("unable to connect").is_err());
}

#[test]
fn h2load_is_read_with_its_log() {
    let log = "1700000000000001\t200\t400\n1700000000000002\t200\t600\n1700000000000003\t200\t9000\n";
    let outcome = parse_h2load(H2LOAD, log).unwrap();
    assert_eq!(
        outcome,
        Outcome { requests: 98_049.0, seconds: 4.0, p50_ms: 0.6, p99_ms: 9.0, trouble: None }
    );
}

#[test]
fn what_goes_wrong_in_h2load_is_trouble() {
    let text = H2LOAD.replace("0 5xx", "7 5xx").replace("0 errored", "2 errored");
    let trouble = parse_h2load(&text, "1\t200\t5\n").unwrap().trouble.unwrap();
    assert_eq!(trouble, "7 5xx; 2 errored");
    assert!(parse_h2load("nothing", "").is_err());
}

#[test]
fn durations_in_all_their_units() {
    let all = ["843.00us", "1.50ms", "2.00s", "1.00m", "1.00h"].map(milliseconds);
    assert_eq!(all, [Some(0.843), Some(1.5), Some(2000.0), Some(60_000.0), Some(3_600_000.0)]);
    assert_eq!(milliseconds("5"), None);
    assert_eq!(milliseconds("5 parsecs"), None);
}

#[test]
fn what_our_own_generators_find_goes_through_a_line() {
    let found = Found::new(3, 1.5, vec![9_000_000, 400_000, 600_000]);
    assert_eq!((found.p50_us, found.p999_us), (600.0, 9000.0));
    assert_eq!(Found::parse(&found.line()).unwrap(), found);
    assert!(Found::parse("1 2 3").is_err());
}
