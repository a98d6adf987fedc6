//! The frames of gRPC around a stream's messages, in as little memory as they can be.
//!
//! tonic's own keep two buffers for the life of a stream, each as large as the largest message that went through it.
//! With thousands of streams, each of which says something now and then, those are most of a server's memory. Here
//! a stream that says nothing holds no buffer: a request is read from the bytes that came, a response is written into
//! bytes of its own, and large content goes out of the bytes that all streams share.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::proto::discovery::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

/// From how many bytes on content is not copied into a response: it is sent as it is, shared by all. Less would
/// save no memory, and cost a TLS record for each.
const SHARED_FROM: usize = 8 * 1024;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Takes a request's body apart. Pure; [`Requests`] stands around it.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What is left of the bytes that came last.
    came: Bytes,
    /// The beginning of a message of which more is to come. No larger than what came of it.
    begun: Vec<u8>,
}

impl Frames {
    /// More bytes. Those before have been read as far as they go.
    fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.came.is_empty(), "what came before has been read");
        self.came = bytes;
    }

    /// The next message, where all of it is there.
    fn next(&mut self, most: usize) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        if self.begun.is_empty() {
            let whole = match length(&self.came, most)? {
                Some(length) if self.came.len() >= PREFIX + length => self.came.split_to(PREFIX + length),
                _ => {
                    self.begun.extend_from_slice(&self.came);
                    // Not kept: it may be a small part of something large.
                    self.came = Bytes::new();
                    return Ok(None);
                }
            };
            return decode(&whole).map(Some);
        }
        self.take_up_to(PREFIX);
        let Some(length) = length(&self.begun, most)? else { return Ok(None) };
        self.take_up_to(PREFIX + length);
        if self.begun.len() < PREFIX + length {
            return Ok(None);
        }
        decode(&std::mem::take(&mut self.begun)).map(Some)
    }

    /// Lets what has begun grow to so many bytes, as far as there are any.
    fn take_up_to(&mut self, length: usize) {
        let missing = length.saturating_sub(self.begun.len()).min(self.came.len());
        self.begun.extend_from_slice(&self.came.split_to(missing));
        if self.came.is_empty() {
            self.came = Bytes::new();
        }
    }

    /// Whether a message has begun and is not whole.
    fn is_within(&self) -> bool {
        !self.begun.is_empty()
    }
}

/// How long the message behind a prefix is; nothing where the prefix is not whole.
fn length(bytes: &[u8], most: usize) -> Result<Option<usize>, Status> {
    let Some(&[compressed, a, b, c, d]) = bytes.first_chunk() else { return Ok(None) };
    if compressed != 0 {
        return Err(Status::unimplemented("the request is compressed, which is not understood here"));
    }
    let length = u32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(length) if length <= most => Ok(Some(length)),
        _ => Err(Status::out_of_range(format!("a request of {length} bytes is larger than {most}"))),
    }
}

fn decode(whole: &[u8]) -> Result<DeltaDiscoveryRequest, Status> {
    let message = whole.get(PREFIX..).unwrap_or_default();
    DeltaDiscoveryRequest::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// The requests of a stream.
#[derive(Debug)]
pub(super) struct Requests {
    body: Body,
    frames: Frames,
    most: usize,
}

impl Requests {
    /// Reads `body`, whose messages have `most` bytes at most.
    pub(super) fn new(body: Body, most: usize) -> Self {
        Self { body, frames: Frames::default(), most }
    }

    /// The next request; nothing when the peer will ask nothing more, or is gone. May be dropped while it waits, and
    /// asked again.
    ///
    /// # Errors
    /// When it is too large, or no message.
    pub(super) async fn next(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        loop {
            if let Some(request) = self.frames.next(self.most)? {
                return Ok(Some(request));
            }
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => self.frames.push(bytes),
                Some(Err(status)) if status.code() != Code::Cancelled => return Err(status),
                None | Some(Ok(Err(_))) if self.frames.is_within() => {
                    return Err(Status::internal("the stream ended within a request"));
                }
                // It has ended or is cancelled; trailers say nothing.
                None | Some(_) => return Ok(None),
            }
        }
    }
}

/// A response as it goes out: bytes of its own for all that is small, and the shared bytes of what is large.
pub(super) fn pieces(mut response: DeltaDiscoveryResponse) -> Pieces {
    let length = response.encoded_len();
    let resources = std::mem::take(&mut response.resources);
    let shared: usize =
        resources.iter().map(|resource| value(resource).len()).filter(|size| is_shared(*size)).sum();
    let mut pieces = Vec::new();
    let mut own = BytesMut::with_capacity(PREFIX + length.saturating_sub(shared));
    own.put_u8(0);
    // A response is a few MiB at most: its parts are bounded.
    own.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    response.encode_raw(&mut own);
    for resource in resources {
        encode_key(RESOURCES, WireType::LengthDelimited, &mut own);
        encode_varint(resource.encoded_len() as u64, &mut own);
        if !is_shared(value(&resource).len()) {
            resource.encode_raw(&mut own);
            continue;
        }
        let Resource { version, resource, name } = resource;
        let Some(content) = resource else { continue };
        Resource { version, name, resource: None }.encode_raw(&mut own);
        encode_key(CONTENT, WireType::LengthDelimited, &mut own);
        encode_varint(content.encoded_len() as u64, &mut own);
        let Any { type_url, value } = content;
        Any { type_url, value: Bytes::new() }.encode_raw(&mut own);
        encode_key(VALUE, WireType::LengthDelimited, &mut own);
        encode_varint(value.len() as u64, &mut own);
        pieces.push(own.split().freeze());
        pieces.push(value);
    }
    if !own.is_empty() {
        pieces.push(own.freeze());
    }
    pieces.into_iter()
}

/// The number of `resources` in a response, as in the protocol's definition.
const RESOURCES: u32 = 2;
/// The number of `resource` in a resource.
const CONTENT: u32 = 2;
/// The number of `value` in an `Any`.
const VALUE: u32 = 2;

/// What goes out, in order.
pub(super) type Pieces = std::vec::IntoIter<Bytes>;

fn value(resource: &Resource) -> &[u8] {
    resource.resource.as_ref().map_or(&[], |content| &content.value)
}

const fn is_shared(size: usize) -> bool {
    size >= SHARED_FROM
}

/// The body of an answer: pieces as they come, and then how the stream ended.
pub(super) struct Replies<S> {
    pieces: Pin<Box<S>>,
    ended: bool,
}

impl<S> Replies<S> {
    /// Sends `pieces` until they end, or up to their first error.
    pub(super) fn new(pieces: S) -> Self {
        Self { pieces: Box::pin(pieces), ended: false }
    }
}

impl<S: Stream<Item = Result<Bytes, Status>>> HttpBody for Replies<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.pieces.as_mut().poll_next(cx)) {
            Some(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        // A message that is no header's value is left out by it.
        let said = status.add_header(&mut trailers);
        Poll::Ready(Some(said.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ResourceType::Host;

    fn request(nonce: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: Host.url().into(),
            response_nonce: nonce.into(),
            ..Default::default()
        }
    }

    fn framed(request: &DeltaDiscoveryRequest) -> Vec<u8> {
        let body = request.encode_to_vec();
        [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
    }

    fn resource(name: &str, size: usize) -> Resource {
        let value = Bytes::from(vec![7; size]);
        let content = Any { type_url: Host.url().into(), value };
        Resource { version: "v".into(), resource: Some(content), name: name.into() }
    }

    fn response(sizes: &[usize]) -> DeltaDiscoveryResponse {
        let resources = sizes.iter().enumerate().map(|(i, size)| resource(&format!("n{i}"), *size));
        DeltaDiscoveryResponse {
            type_url: Host.url().into(),
            nonce: "7".into(),
            resources: resources.collect(),
            removed_resources: vec!["gone".into()],
            ..Default::default()
        }
    }

    proptest! {
        /// However the bytes are divided on their way, the same requests come out, and nothing stays.
        #[test]
        fn requests_come_whole(
            nonces in proptest::collection::vec("[a-z]{0,300}", 0..6),
            cuts in proptest::collection::vec(1..40_usize, 0..60),
        ) {
            let sent: Vec<_> = nonces.iter().map(|nonce| request(nonce)).collect();
            let mut bytes = Bytes::from(sent.iter().flat_map(framed).collect::<Vec<_>>());
            let (mut frames, mut read) = (Frames::default(), Vec::new());
            let mut take = |bytes| {
                frames.push(bytes);
                while let Some(request) = frames.next(1000).unwrap() {
                    read.push(request);
                }
                prop_assert!(frames.begun.len() <= 1000 + PREFIX);
                Ok(())
            };
            for cut in cuts {
                take(bytes.split_to(cut.min(bytes.len())))?;
            }
            take(bytes)?;
            prop_assert_eq!(read, sent);
            prop_assert_eq!(frames.begun.capacity() + frames.came.len(), 0);
        }

        /// However large resources are, what goes out is the message that tonic would have sent.
        #[test]
        fn pieces_are_the_response(sizes in proptest::collection::vec(
            prop_oneof![0..2000_usize, SHARED_FROM - 2..SHARED_FROM + 2, Just(100_000)], 0..8,
        )) {
            let response = response(&sizes);
            let sent: Vec<u8> = pieces(response.clone()).flatten().collect();
            let (prefix, message) = sent.split_at(PREFIX);
            prop_assert_eq!(length(prefix, usize::MAX).unwrap(), Some(message.len()));
            prop_assert_eq!(DeltaDiscoveryResponse::decode(message).unwrap(), response);
        }
    }

    #[test]
    fn large_content_is_shared_and_small_content_goes_together() {
        let response = response(&[10, 100, SHARED_FROM, 10]);
        let shared = response.resources[2].resource.as_ref().unwrap().value.clone();
        let sent: Vec<_> = pieces(response).collect();
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[1].as_ptr(), shared.as_ptr());
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_length_alone() {
        let sent = framed(&request("x"));
        let size = sent.len() - PREFIX;
        let read = |bytes: &[u8], most| {
            let mut frames = Frames::default();
            frames.push(Bytes::copy_from_slice(bytes));
            frames.next(most)
        };
        assert!(read(&sent, size).unwrap().is_some());
        assert_eq!(read(&sent[..PREFIX], size - 1).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(read(&[0, 255, 255, 255, 255], 1 << 20).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(read(&[1, 0, 0, 0, 0], size).unwrap_err().code(), Code::Unimplemented);
        assert_eq!(read(&[0, 0, 0, 0, 1, 255], size).unwrap_err().code(), Code::Internal, "no message");
    }

    /// Who says that much will come, and sends little, has the server hold little.
    #[test]
    fn what_is_announced_is_not_set_aside() {
        let mut frames = Frames::default();
        let mut bytes = Bytes::from([&[0, 0, 15, 255, 255][..], &[1; 100]].concat());
        frames.push(bytes.split_to(3));
        assert!(frames.next(1 << 20).unwrap().is_none());
        frames.push(bytes);
        assert!(frames.next(1 << 20).unwrap().is_none());
        assert!(frames.is_within());
        assert!(frames.begun.capacity() < 512, "{}", frames.begun.capacity());
    }
}
