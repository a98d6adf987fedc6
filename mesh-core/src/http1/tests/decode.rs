//! Bodies, cut anywhere.

use http::HeaderMap;
use proptest::prelude::*;

use super::super::*;

/// What a body came to.
#[derive(Debug, PartialEq)]
struct Read {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Bytes behind the end.
    left: usize,
}

/// Reads `input`, given in pieces.
fn read<'a>(framing: Framing, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Read, Malformed> {
    let mut decoder = Decoder::new(framing);
    let mut read = Read { data: Vec::new(), trailers: None, ended: false, left: 0 };
    for mut piece in pieces {
        while !read.ended {
            let step = decoder.decode(piece)?;
            assert!(step.used <= piece.len());
            match step.what {
                What::More => {
                    assert_eq!(step.used, piece.len(), "all is used where more is asked for");
                    break;
                }
                What::Data(n) => {
                    assert!(n > 0);
                    read.data.extend(&piece[step.used - n..step.used]);
                }
                What::Trailers(trailers) => {
                    read.trailers = Some(trailers);
                    read.ended = true;
                }
                What::End => read.ended = true,
            }
            piece = &piece[step.used..];
        }
        if read.ended {
            read.left += piece.len();
        }
    }
    read.ended |= decoder.is_ended();
    Ok(read)
}

fn chunked(input: &[u8]) -> Result<Read, Malformed> {
    read(Framing::Chunked, [input])
}

#[test]
fn chunks_are_read_as_they_are_meant() {
    let table: [(&str, &str, usize); 9] = [
        ("0\r\n\r\n", "", 0),
        ("5\r\nhello\r\n0\r\n\r\n", "hello", 0),
        ("5\r\nhello\r\n1\r\n!\r\n000\r\n\r\nHTTP/1.1", "hello!", 8),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", 0),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789", 0),
        ("5;a=b;c=\"d;e\"\r\nhello\r\n0;x\r\n\r\n", "hello", 0),
        ("5 \t;a\r\nhello\r\n0  \r\n\r\n", "hello", 0),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", 0),
        ("0000000000000005\r\nhello\r\n0\r\n\r\n", "hello", 0),
    ];
    for (input, data, left) in table {
        let read = chunked(input.as_bytes()).unwrap();
        assert_eq!((&*read.data, read.ended, read.left), (data.as_bytes(), true, left), "{input:?}");
    }
    let trailers =
        chunked(b"0\r\ngrpc-status: 0\r\ncontent-length: 9\r\nhost: x\r\n\r\n").unwrap().trailers.unwrap();
    assert_eq!(
        trailers.iter().collect::<Vec<_>>(),
        [(&"grpc-status".parse().unwrap(), &"0".parse().unwrap())]
    );
    assert_eq!(chunked(b"5\r\nhello\r\n").map(|r| r.ended), Ok(false));
}

#[test]
fn what_is_no_chunk_is_refused() {
    let table = [
        "\r\n",
        "\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\n",
        " 1\r\n",
        "0x1\r\n",
        "1_0\r\n",
        ";a\r\n",
        "5\nhello",
        "5\rhello",
        "5\r\r\nhello",
        "5 5\r\n",
        "5 x\r\n",
        "5;a\nhello",
        "5;a\rb\r\n",
        "5;a\0\r\n",
        "5;\u{7f}\r\n",
        "00000000000000005\r\n",
        "10000000000000000\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "5\r\nhelloX",
        "5\r\nhello\n",
        "5\r\nhello\r0",
        "5\r\nhello0\r\n\r\n",
    ];
    for input in table {
        assert_eq!(chunked(input.as_bytes()), Err(Malformed::CHUNK), "{input:?}");
    }
    for input in [
        "0\r\nx\r\n\r\n",
        "0\r\n x: y\r\n\r\n",
        "0\r\nx: y\n\n\r\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\n\n\r\n\r\n",
    ] {
        assert_eq!(chunked(input.as_bytes()), Err(Malformed::TRAILERS), "{input:?}");
    }
}

#[test]
fn a_body_has_its_limits() {
    let extended = |n: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "y".repeat(n));
    assert!(chunked(extended(MAX_EXTENSION_BYTES).as_bytes()).unwrap().ended);
    assert_eq!(chunked(extended(MAX_EXTENSION_BYTES + 1).as_bytes()), Err(Malformed::EXTENSIONS));
    // Together, not each.
    let each = format!("1;{}\r\nx\r\n", "y".repeat(MAX_EXTENSION_BYTES / 2));
    assert_eq!(chunked(each.repeat(3).as_bytes()), Err(Malformed::EXTENSIONS));
    let spaces = format!("1{}\r\nx", " ".repeat(MAX_EXTENSION_BYTES + 1));
    assert_eq!(chunked(spaces.as_bytes()), Err(Malformed::EXTENSIONS));

    let trailers = |n: usize| format!("0\r\nx: {}\r\n\r\n", "y".repeat(n));
    assert!(chunked(trailers(MAX_TRAILER_BYTES - 7).as_bytes()).unwrap().ended);
    assert_eq!(chunked(trailers(MAX_TRAILER_BYTES).as_bytes()), Err(Malformed::TRAILERS));
    let many = |n: usize| format!("0\r\n{}\r\n", "x: y\r\n".repeat(n));
    assert!(chunked(many(MAX_HEADERS).as_bytes()).unwrap().ended);
    assert_eq!(chunked(many(MAX_HEADERS + 1).as_bytes()), Err(Malformed::TRAILERS));
}

#[test]
fn lengths_and_the_end_of_a_connection_are_ends() {
    let table = [
        (Framing::None, "", true, 2),
        (Framing::Length(0), "", true, 2),
        (Framing::Length(1), "a", true, 1),
        (Framing::Length(2), "ab", true, 0),
        (Framing::Length(3), "ab", false, 0),
        (Framing::Close, "ab", false, 0),
    ];
    for (framing, data, ended, left) in table {
        let found = read(framing, [&b"ab"[..]]).unwrap();
        assert_eq!((&*found.data, found.ended, found.left), (data.as_bytes(), ended, left), "{framing:?}");
    }
    assert!(Decoder::new(Framing::Close).ends_with_connection());
    assert!(!Decoder::new(Framing::Length(1)).ends_with_connection());
    assert!(!Decoder::new(Framing::Chunked).ends_with_connection());
}

fn framings() -> impl Strategy<Value = Framing> {
    prop_oneof![
        Just(Framing::None),
        (0_u64..40).prop_map(Framing::Length),
        Just(Framing::Chunked),
        Just(Framing::Close)
    ]
}

/// Something like a chunked body, or not.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        5 => Just(b"5\r\nhello\r\n".to_vec()),
        2 => Just(b"3;x=y\r\nabc\r\n".to_vec()),
        2 => Just(b"0\r\n\r\n".to_vec()),
        1 => Just(b"0\r\nx: y\r\n\r\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
        1 => "[0-9a-fA-F; \r\n:x]{0,6}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn where_a_body_is_cut_does_not_matter(
        framing in framings(), body in bodies(), cuts in proptest::collection::vec(0_usize..64, 0..6)
    ) {
        let whole = read(framing, [&*body]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(body.len())).collect();
        cuts.sort_unstable();
        cuts.insert(0, 0);
        cuts.push(body.len());
        let pieces = cuts.windows(2).map(|w| &body[w[0]..w[1]]);
        prop_assert_eq!(&read(framing, pieces), &whole);
        prop_assert_eq!(&read(framing, body.chunks(1)), &whole);
    }

    #[test]
    fn what_is_sent_in_chunks_is_read(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..9)) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend(format!("{:x}\r\n", chunk.len()).bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        let read = chunked(&body).unwrap();
        prop_assert_eq!((read.data, read.ended, read.left), (chunks.concat(), true, 0));
    }
}
