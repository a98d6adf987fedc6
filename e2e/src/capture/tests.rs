use super::*;

const CLIENT: &str = "10.0.0.1";
const SERVER: &str = "10.0.0.2:9080";

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], &length[..], body].concat()
}

fn client_hello() -> Vec<u8> {
    record(22, &[1, 0, 0, 4, 3, 3, 0, 0])
}

fn server_hello(version: u16) -> Vec<u8> {
    let [high, low] = version.to_be_bytes();
    // Key share, then the version.
    let extensions = [0, 51, 0, 2, 9, 9, 0, 43, 0, 2, high, low];
    let body = [&[3, 3][..], &[7; 32], &[1, 5], &[0x13, 1, 0, 0, 12], &extensions].concat();
    record(22, &[&[2, 0, 0, body.len() as u8], &body[..]].concat())
}

/// A connection on which both sides send that, in segments of so many bytes.
fn connection(port: u16, size: usize, calls: &[u8], answers: &[u8]) -> Vec<Segment> {
    let (client, server) = (SocketAddr::new(CLIENT.parse().unwrap(), port), SERVER.parse().unwrap());
    let mut all = Vec::new();
    for (from, to, bytes, first) in [(client, server, calls, u32::MAX - 3), (server, client, answers, 70)] {
        all.push(Segment { from, to, syn: true, seq: first, payload: Vec::new() });
        for (i, piece) in bytes.chunks(size).enumerate() {
            let seq = first.wrapping_add(1).wrapping_add((i * size) as u32);
            all.push(Segment { from, to, syn: false, seq, payload: piece.to_vec() });
        }
    }
    all
}

fn look(capture: &[Segment]) -> Result<Seen, String> {
    tls13_only(capture, CLIENT.parse().unwrap(), SERVER.parse().unwrap(), &["a secret"])
}

#[test]
fn tls_1_3_is_taken_for_what_it_is() {
    let calls = [client_hello(), record(20, &[1]), record(23, &[4; 300])].concat();
    let answers = [server_hello(0x0304), record(20, &[1]), record(23, &[5; 3000])].concat();
    for size in [1, 7, 1400, 1 << 16] {
        let mut capture = connection(4000, size, &calls, &answers);
        // Another pod's.
        capture.extend(connection(4001, size, b"GET / HTTP/1.1\r\n", b"").into_iter().map(|mut segment| {
            segment.from.set_ip("10.0.0.9".parse().unwrap());
            segment
        }));
        let once = look(&capture).unwrap();
        assert_eq!((once.connections, once.bytes), (1, calls.len() + answers.len()));
        // Seen twice, and out of order.
        capture.extend(capture.clone());
        capture.reverse();
        assert_eq!(look(&capture).unwrap().bytes, once.bytes);
    }
}

#[test]
fn anything_else_is_complained_of() {
    let good = [client_hello(), record(23, &[4; 30])].concat();
    let answer = [server_hello(0x0304), record(23, &[5; 30])].concat();
    let with = |calls: &[&[u8]], answers: &[&[u8]]| connection(4000, 100, &calls.concat(), &answers.concat());
    let mut late = with(&[&good], &[&answer]);
    late.retain(|segment| !segment.syn);
    let mut holed = connection(4000, 10, &good, &answer);
    holed.remove(2);
    let plain = b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n".as_slice();
    let page = b"HTTP/1.1 200 OK\r\n\r\nhello".as_slice();
    for (capture, said) in [
        (Vec::new(), "no connection of"),
        (with(&[plain], &[page]), "in plaintext"),
        (with(&[b"PING\r\n"], &[b"PONG\r\n"]), "no record of TLS at byte 0"),
        (with(&[&good], &[page]), "the server: \"HTTP/1.1 \" in plaintext"),
        (with(&[&good, plain], &[&answer]), "in plaintext"),
        (with(&[&good, b"nothing of HTTP"], &[&answer]), "no record of TLS at byte 48"),
        (with(&[&good, &record(23, b"a secret")], &[&answer]), "\"a secret\" in plaintext"),
        (with(&[&good], &[&server_hello(0x0303)]), "version Some(0303)"),
        (with(&[&good], &[&record(22, &[2, 0, 0, 2, 3, 3])]), "version None"),
        (with(&[&good], &[&good]), "not of type 2"),
        (with(&[&good], &[&record(21, &[2, 40])]), "a record of type 21 at byte 0"),
        (with(&[&good, &record(22, &[11, 0, 0, 1, 0])], &[&answer]), "a record of type 22"),
        (with(&[&good, &record(21, &[2, 40])], &[&answer]), "an alert in plaintext"),
        (with(&[&good], &[]), "it has sent nothing"),
        (late, "the capture lacks its beginning"),
        (holed, "are missing in the capture"),
    ] {
        let complaint = look(&capture).unwrap_err();
        assert!(complaint.contains(said), "{complaint}, not {said}");
    }
}

#[test]
fn what_tshark_prints_is_read() {
    let read = segment("10.0.0.1\t4000\t10.0.0.2\t9080\t1\t4294967295\t16:03:01").unwrap();
    let again = segment("10.0.0.1\t4000\t10.0.0.2\t9080\tTrue\t4294967295\t160301").unwrap();
    assert_eq!(read, again);
    assert_eq!((read.seq, read.syn, &read.payload[..]), (u32::MAX, true, &[0x16, 3, 1][..]));
    assert_eq!((read.from.port(), read.to.to_string()), (4000, "10.0.0.2:9080".to_owned()));
    assert!(segment("10.0.0.1\t4000\t10.0.0.2\t9080\t0\t5\t").unwrap().payload.is_empty());
    assert!(segment("").is_none());
}
