//! What a control plane and its proxies send each other.

use std::sync::Arc;

use mesh_xds::client::{Change, Client, ClientLimits, Refusal};
use mesh_xds::proto::discovery::DeltaDiscoveryRequest;
use mesh_xds::server::{Answer, Names, Received, ServerLimits, Session};
use mesh_xds::{Encoded, MAX_RESOURCE_BYTES, Payload, ResourceType};
use prost::Message as _;
use tokio::time::Instant;

/// What is read of a resource is written in one form, which is read alike and has one version; and a snapshot
/// is taken whole or not at all.
///
/// The first byte says what the rest is: one of the four types, or a snapshot.
pub fn payload(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let Some(kind) = ResourceType::ALL.get(usize::from(first % 5)).copied() else {
        let client = Client::new("fuzz", ClientLimits::default());
        let mut applied = 0;
        let mut sink = |changes: &[Change]| {
            applied += changes.len();
            Vec::<Refusal>::new()
        };
        let taken = client.restore(body, &mut sink);
        assert!(*taken.as_ref().unwrap_or(&0) >= client.subscriptions().len());
        return assert!(taken.is_ok() || applied == 0);
    };
    match Payload::decode(kind, body) {
        Err(error) => assert!(error.to_string().len() < 64 * 1024, "a peer's bytes are quoted without bound"),
        Ok(payload) => {
            assert_eq!(payload.kind(), kind);
            // What is left out because it is the default may be written, so it may grow beyond the limit.
            let Ok(encoded) = payload.encode() else { return assert!(body.len() > MAX_RESOURCE_BYTES / 2) };
            let again = Payload::decode(kind, encoded.body());
            assert_eq!(again.as_ref(), Ok(&payload));
            assert_eq!(again.and_then(|p| Ok(p.encode())), Ok(Ok(encoded)));
        }
    }
}

struct Told(usize);

impl Names for Told {
    fn subscribed(&mut self, _: ResourceType, name: &str) -> Arc<str> {
        self.0 += 1;
        name.into()
    }

    fn unsubscribed(&mut self, _: ResourceType, _: &str) {
        self.0 -= 1;
    }
}

/// Whatever a proxy says: its stream keeps to its limits, at most one response of a type is on its way, and
/// nothing is sent that was not asked for.
///
/// The bytes are requests, each after its length in two bytes.
pub fn discovery(data: &[u8]) {
    let limits = ServerLimits { subscriptions: 8, response_items: 3, ..ServerLimits::default() };
    let most = limits.subscriptions;
    let mut session = Session::new(limits);
    let (mut told, now) = (Told(0), Instant::now());
    // Every other name exists.
    let answers = |kind: ResourceType, name: &str| match Encoded::new(kind, name.to_owned().into()) {
        Ok(content) if name.len() % 2 == 0 => Answer::Found(content),
        _ => Answer::Absent,
    };
    let mut on_the_way = Vec::new();
    let mut rest = data;
    while let Some((length, after)) = rest.split_at_checked(2) {
        let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        let (request, after) = after.split_at_checked(length).unwrap_or((after, &[]));
        rest = after;
        let Ok(request) = DeltaDiscoveryRequest::decode(request) else { continue };
        let url = request.type_url.clone();
        match session.receive(request, &mut told, now) {
            Err(violation) => return assert!(violation.to_string().len() < 4096),
            Ok(Received::Ack | Received::Nack(_)) => on_the_way.retain(|other| *other != url),
            Ok(_) => {}
        }
        let subscribed: Vec<_> =
            session.subscriptions().map(|(kind, name)| (kind, name.to_string())).collect();
        assert!(subscribed.len() <= most && subscribed.len() == told.0);
        for (kind, name) in &subscribed {
            assert_eq!(kind.check_name(name), Ok(()));
        }
        while let Some(response) = session.respond(&answers, now) {
            assert!(!on_the_way.contains(&response.type_url), "two responses of a type are on their way");
            on_the_way.push(response.type_url.clone());
            let resources = response.resources.iter().map(|resource| &resource.name);
            let names: Vec<_> = resources.chain(&response.removed_resources).collect();
            assert!(!names.is_empty() && names.len() <= 3);
            for name in names {
                assert!(subscribed.iter().any(|(kind, n)| kind.url() == response.type_url && n == name));
            }
        }
        assert!(session.status().iter().all(|of| of.waiting <= of.names.len()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Else the corpus would only show what is refused.
    #[test]
    fn the_corpus_holds_what_is_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/payload");
        for (kind, name) in ResourceType::ALL.into_iter().zip(["workload", "host", "endpoints", "address"]) {
            let data = fs::read(format!("{folder}/{name}")).unwrap();
            let read = Payload::decode(kind, &data[1..]);
            assert!(read.is_ok(), "{name}: {read:?}");
        }
        let data = fs::read(format!("{folder}/snapshot")).unwrap();
        let client = Client::new("fuzz", ClientLimits::default());
        assert_eq!(client.restore(&data[1..], &mut |_: &[Change]| Vec::new()), Ok(2));
    }
}
