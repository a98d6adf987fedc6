//! What passes between pods, as somebody on the node's bridge sees it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// The bridge of the pods.
const BRIDGE: &str = "pods0";
/// What tshark prints of each segment, a column each.
const FIELDS: [&str; 7] =
    ["ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "tcp.flags.syn", "tcp.seq_raw", "tcp.payload"];
/// The longest TLS record: 2^14 bytes and what encryption may add to them.
const MAX_RECORD: usize = (1 << 14) + 256;
/// What no byte of an HTTP message in plaintext gets by.
const PLAIN: [&[u8]; 3] = [b" HTTP/1.", b"HTTP/1.1 ", b"PRI * HTTP/2.0"];

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// Whether it opens a connection.
    pub syn: bool,
    /// Its number in the direction's bytes, as on the wire.
    pub seq: u32,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// A capture at work.
#[derive(Debug)]
pub struct Capture {
    tshark: Child,
    segments: Arc<Mutex<Vec<Segment>>>,
    reading: JoinHandle<()>,
}

/// What [`tls13_only`] has looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Connections.
    pub connections: usize,
    /// Segments with bytes in them.
    pub segments: usize,
    /// Bytes, those that were sent again counted once.
    pub bytes: usize,
}

impl Capture {
    /// Listens to a port of the pods. What is sent after this is in the capture.
    ///
    /// # Panics
    /// When tshark cannot.
    pub async fn start(port: u16) -> Self {
        let mut command = Command::new("tshark");
        command.args(["-i", BRIDGE, "-f", &format!("tcp port {port}"), "-l", "-T", "fields"]);
        command.args(FIELDS.iter().flat_map(|field| ["-e", field]));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut tshark =
            command.spawn().unwrap_or_else(|e| panic!("tshark: {e}; run the tests with `just e2e`"));
        let (Some(out), Some(err)) = (tshark.stdout.take(), tshark.stderr.take()) else {
            panic!("tshark has outputs")
        };
        let mut said = BufReader::new(err).lines();
        let mut all = String::new();
        loop {
            match said.next_line().await {
                Ok(Some(line)) if line.contains("Capture started") => break,
                Ok(Some(line)) => all.push_str(&(line + "\n")),
                _ => panic!("tshark ended: {all}"),
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let segments = Arc::<Mutex<Vec<Segment>>>::default();
        let read = Arc::clone(&segments);
        let reading = tokio::spawn(async move {
            let mut lines = BufReader::new(out).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let segment = segment(&line).unwrap_or_else(|| panic!("tshark printed {line:?}"));
                read.lock().unwrap_or_else(PoisonError::into_inner).push(segment);
            }
        });
        Self { tshark, segments, reading }
    }

    /// What has been seen so far. It takes a moment until a segment is.
    pub fn seen(&self) -> Vec<Segment> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it; gives what was seen. What was sent just before may be missing.
    ///
    /// # Panics
    /// When tshark does not end.
    pub async fn stop(mut self) -> Vec<Segment> {
        // It prints what it has and ends; a kill would lose that.
        if let Some(id) = self.tshark.id() {
            let _ = Command::new("kill").args(["-INT", &id.to_string()]).status().await;
        }
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), self.tshark.wait()).await;
        assert!(ended.is_ok(), "tshark does not end");
        if let Err(error) = (&mut self.reading).await {
            panic!("what tshark printed: {error}");
        }
        self.seen()
    }
}

/// Reads what tshark prints of one segment.
fn segment(line: &str) -> Option<Segment> {
    let mut columns = line.split('\t');
    let mut address = || {
        let ip: IpAddr = columns.next()?.parse().ok()?;
        Some(SocketAddr::new(ip, columns.next()?.parse().ok()?))
    };
    let (from, to) = (address()?, address()?);
    let syn = matches!(columns.next()?, "1" | "True");
    let seq = columns.next()?.parse().ok()?;
    let hex: String = columns.next().unwrap_or_default().chars().filter(|c| *c != ':').collect();
    let payload = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok());
    Some(Segment { from, to, syn, seq, payload: payload.collect::<Option<_>>()? })
}

/// Looks at every connection of `client` to `server` (a pod's address and port) in a capture, from its first byte to
/// its last: both sides must send whole records of TLS, the first of them a ClientHello and a ServerHello that settles
/// on TLS 1.3, and those after that encrypted; and `words`, which were in the messages, must not be found.
///
/// # Errors
/// What is not so, or that there is no such connection.
pub fn tls13_only(
    capture: &[Segment],
    client: IpAddr,
    server: SocketAddr,
    words: &[&str],
) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let mut connections: BTreeMap<SocketAddr, [Vec<&Segment>; 2]> = BTreeMap::new();
    for segment in capture {
        let (there, side) = match segment {
            Segment { from, to, .. } if from.ip() == client && *to == server => (*from, 0),
            Segment { from, to, .. } if *from == server && to.ip() == client => (*to, 1),
            _ => continue,
        };
        seen.segments += usize::from(!segment.payload.is_empty());
        let connection = connections.entry(there).or_default();
        if let Some(side) = connection.get_mut(side) {
            side.push(segment);
        }
    }
    if connections.is_empty() {
        return Err(format!("no connection of {client} to {server} was seen"));
    }
    for (from, [calls, answers]) in connections {
        let within = |side: &str, why: String| format!("{from} to {server}, {side}: {why}");
        let called = joined(&calls).map_err(|why| within("the client", why))?;
        let answered = joined(&answers).map_err(|why| within("the server", why))?;
        for (side, bytes) in [("the client", &called), ("the server", &answered)] {
            let words = words.iter().map(|word| word.as_bytes());
            for word in PLAIN.into_iter().chain(words) {
                if bytes.windows(word.len()).any(|window| window == word) {
                    return Err(within(side, format!("{:?} in plaintext", String::from_utf8_lossy(word))));
                }
            }
        }
        records(&called, 1).map_err(|why| within("the client", why))?;
        let hello = records(&answered, 2).map_err(|why| within("the server", why))?;
        match chosen_version(hello) {
            Some(0x0304) => {}
            other => {
                return Err(within("the server", format!("it settles on version {other:04x?}, not on 1.3")));
            }
        }
        seen.connections += 1;
        seen.bytes += called.len() + answered.len();
    }
    Ok(seen)
}

/// What one side has sent, from its first byte on.
fn joined(segments: &[&Segment]) -> Result<Vec<u8>, String> {
    let first = segments.iter().find(|segment| segment.syn).ok_or("the capture lacks its beginning")?;
    let start = first.seq.wrapping_add(1);
    // By place; what is seen twice is there twice.
    let mut pieces: Vec<(usize, &[u8])> = segments
        .iter()
        .filter(|segment| !segment.payload.is_empty())
        .map(|segment| (segment.seq.wrapping_sub(start) as usize, segment.payload.as_slice()))
        .collect();
    pieces.sort_by_key(|(place, _)| *place);
    let mut bytes = Vec::new();
    for (place, piece) in pieces {
        // A probe of a connection that is kept alive repeats the byte before.
        let Some(known) = bytes.len().checked_sub(place) else {
            return Err(format!(
                "{} bytes from {} on are missing in the capture",
                place - bytes.len(),
                bytes.len()
            ));
        };
        bytes.extend_from_slice(piece.get(known..).unwrap_or_default());
    }
    Ok(bytes)
}

/// Looks through the records of one side, of which the first must be the handshake message of that type. Gives that
/// message's body.
fn records(bytes: &[u8], hello: u8) -> Result<&[u8], String> {
    const CHANGE_CIPHER_SPEC: u8 = 20;
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    const DATA: u8 = 23;
    let (mut rest, mut first, mut place) = (bytes, None, 0);
    while !rest.is_empty() {
        let [kind, 3, 1 | 3, high, low, after @ ..] = rest else {
            return Err(format!("no record of TLS at byte {place}: {:02x?}", rest.get(..16).unwrap_or(rest)));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > MAX_RECORD {
            return Err(format!("a record of {length} bytes at byte {place}"));
        }
        let whole = after.get(..length);
        match (*kind, first) {
            // The end of a capture may be in the middle of a record.
            (HANDSHAKE, None) => first = Some(whole.ok_or("the first record is not whole")?),
            (DATA | CHANGE_CIPHER_SPEC, Some(_)) => {}
            // Before there are keys for it; afterwards alerts are data.
            (ALERT, Some(_)) => return Err(format!("an alert in plaintext at byte {place}")),
            (kind, _) => return Err(format!("a record of type {kind} at byte {place}")),
        }
        place += 5 + length;
        rest = after.get(length..).unwrap_or_default();
    }
    match first {
        Some([kind, _, _, _, body @ ..]) if *kind == hello => Ok(body),
        Some(other) => Err(format!("its first message is {:02x?}, not of type {hello}", other.first())),
        None => Err("it has sent nothing".into()),
    }
}

/// The version that a ServerHello settles on: that of its extension `supported_versions`.
fn chosen_version(hello: &[u8]) -> Option<u16> {
    const SUPPORTED_VERSIONS: u16 = 43;
    let pair = |bytes: &[u8]| Some(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    // Version, random, then the session's id.
    let id = usize::from(*hello.get(34)?);
    // Cipher suite, compression, length of the extensions.
    let mut rest = hello.get(35 + id + 5..)?;
    loop {
        let (kind, length) = (pair(rest)?, usize::from(pair(rest.get(2..)?)?));
        let body = rest.get(4..4 + length)?;
        if kind == SUPPORTED_VERSIONS {
            return pair(body);
        }
        rest = rest.get(4 + length..)?;
    }
}

#[cfg(test)]
#[path = "capture/tests.rs"]
mod tests;
