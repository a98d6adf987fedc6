//! Bodies: from bytes to data, trailers and the end.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::line::may_trail;
use super::{Framing, MAX_EXTENSION_BYTES, MAX_HEADERS, MAX_TRAILER_BYTES, Malformed};

/// Reads a body as its bytes come, wherever they are cut.
///
/// ```
/// use tower_mesh_core::http1::{Decoder, Framing, Step, What};
///
/// let mut decoder = Decoder::new(Framing::Chunked);
/// let input = b"5;x=y\r\nhello\r\n0\r\n\r\n";
/// assert_eq!(decoder.decode(input).unwrap(), Step { used: 12, what: What::Data(5) });
/// assert_eq!(decoder.decode(&input[12..]).unwrap(), Step { used: 7, what: What::End });
/// assert!(Decoder::new(Framing::Chunked).decode(b"-1\r\n").is_err());
/// ```
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// Bytes of chunk extensions so far, of all chunks.
    extensions: usize,
    trailers: Vec<u8>,
}

/// How far a decoder came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// So many bytes of the input are done with.
    pub used: usize,
    /// What they were.
    pub what: What,
}

/// What a decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Nothing yet: all of the input is used.
    More,
    /// So many bytes of data: the last ones of those that are used.
    Data(usize),
    /// The trailers, with which the body ends. What must not be in trailers is left out.
    Trailers(HeaderMap),
    /// The body has ended.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    Close,
    /// So many digits of a chunk's size, which is so much.
    Size(u8, u64),
    /// White space after the size.
    SizeSpace(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// Trailers, or the empty line in their place.
    Trailers,
    End,
}

/// Of a chunk's size; as many as 64 bits have.
const MAX_DIGITS: u8 = 16;

impl Decoder {
    /// For a body that ends so.
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, 0),
            Framing::Close => State::Close,
        };
        Self { state, extensions: 0, trailers: Vec::new() }
    }

    /// Whether the body has ended.
    pub const fn is_ended(&self) -> bool {
        matches!(self.state, State::End | State::Length(0))
    }

    /// How many bytes come as they are and nothing else can come among them, where that is known.
    pub const fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(length) => Some(length),
            State::End => Some(0),
            _ => None,
        }
    }

    /// The connection has ended: whether that is the end of the body.
    pub const fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::Close | State::End | State::Length(0))
    }

    /// How many bytes of this input, which comes next, are all that is missing, none of them data or trailers; the body
    /// has ended then. Else 0.
    #[inline]
    pub fn ends_with(&mut self, input: &[u8]) -> usize {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        if !matches!(self.state, State::DataCr) || !input.starts_with(END) {
            return 0;
        }
        self.state = State::End;
        END.len()
    }

    /// Reads on. Give the rest again, with what comes next, unless all was used.
    ///
    /// # Errors
    /// The body is not what its framing says, or goes over a limit. There is no reading on.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let mut used = 0;
        while let Some(rest) = input.get(used..) {
            if self.is_ended() {
                return Ok(Step { used, what: What::End });
            }
            let Some(first) = rest.first().copied() else { break };
            match self.state {
                State::Length(left) => {
                    let taken = within(rest.len(), left);
                    self.state = State::Length(left.saturating_sub(taken as u64));
                    return Ok(Step { used: used + taken, what: What::Data(taken) });
                }
                State::Close => {
                    return Ok(Step { used: used + rest.len(), what: What::Data(rest.len()) });
                }
                State::Data(left) => {
                    let taken = within(rest.len(), left);
                    let left = left.saturating_sub(taken as u64);
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    return Ok(Step { used: used + taken, what: What::Data(taken) });
                }
                State::Trailers => {
                    let (taken, done) = self.trailers(rest)?;
                    used += taken;
                    if let Some(trailers) = done {
                        self.state = State::End;
                        let what = if trailers.is_empty() { What::End } else { What::Trailers(trailers) };
                        return Ok(Step { used, what });
                    }
                }
                state => {
                    self.state = self.line(state, first)?;
                    used += 1;
                }
            }
        }
        Ok(Step { used, what: What::More })
    }

    /// One byte of what stands between data.
    fn line(&mut self, state: State, byte: u8) -> Result<State, Malformed> {
        Ok(match (state, byte) {
            (State::Size(digits, size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits >= MAX_DIGITS {
                    return Err(Malformed::CHUNK);
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                State::Size(digits + 1, (size << 4) | u64::from(digit))
            }
            (State::Size(0, _), _) => return Err(Malformed::CHUNK),
            (State::Size(_, size) | State::SizeSpace(size), b' ' | b'\t') => {
                self.extension()?;
                State::SizeSpace(size)
            }
            (State::Size(_, size) | State::SizeSpace(size), b';') => State::Extension(size),
            (State::Size(_, size) | State::SizeSpace(size) | State::Extension(size), b'\r') => {
                State::SizeLf(size)
            }
            // Not read, but for what others might take for the end of the line.
            (State::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension()?;
                State::Extension(size)
            }
            (State::SizeLf(0), b'\n') => State::Trailers,
            (State::SizeLf(size), b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0, 0),
            _ => return Err(Malformed::CHUNK),
        })
    }

    fn extension(&mut self) -> Result<(), Malformed> {
        self.extensions = self.extensions.saturating_add(1);
        if self.extensions > MAX_EXTENSION_BYTES { Err(Malformed::EXTENSIONS) } else { Ok(()) }
    }

    /// Collects trailers until their end; says how much of the input was theirs.
    fn trailers(&mut self, input: &[u8]) -> Result<(usize, Option<HeaderMap>), Malformed> {
        for (at, byte) in input.iter().enumerate() {
            self.trailers.push(*byte);
            if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
                let trailers = read_trailers(&std::mem::take(&mut self.trailers))?;
                return Ok((at + 1, Some(trailers)));
            }
            if self.trailers.len() > MAX_TRAILER_BYTES {
                return Err(Malformed::TRAILERS);
            }
        }
        Ok((input.len(), None))
    }
}

fn within(have: usize, left: u64) -> usize {
    usize::try_from(left).map_or(have, |left| left.min(have))
}

fn read_trailers(bytes: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = match httparse::parse_headers(bytes, &mut room) {
        Ok(httparse::Status::Complete((taken, parsed))) if taken == bytes.len() => parsed,
        _ => return Err(Malformed::TRAILERS),
    };
    let mut trailers = HeaderMap::with_capacity(parsed.len());
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Malformed::TRAILERS)?;
        let value = HeaderValue::from_bytes(header.value).map_err(|_| Malformed::TRAILERS)?;
        if may_trail(&name) {
            trailers.append(name, value);
        }
    }
    Ok(trailers)
}
