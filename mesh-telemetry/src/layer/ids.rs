//! Request id and trace context go into a request's headers. What is new of both shares one allocation.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::request_id::{self, UUID_LEN, uuid_text};
use crate::trace::{TRACEPARENT_LEN, TraceContext, Tracing};

/// Continues or starts the trace (none without `tracing`) and, where `request_ids`, sees to `x-request-id`. What is
/// right already stays as it is. Gives the request's id and where in which trace it is.
pub(super) fn mark(
    headers: &mut HeaderMap,
    tracing: Option<&Tracing>,
    request_ids: bool,
    draw: &mut impl FnMut() -> u64,
) -> (Option<HeaderValue>, Option<TraceContext>) {
    let context = tracing.map(|tracing| tracing.next(headers, draw));
    let parent = context.as_ref().and_then(|context| context.new_traceparent(headers));
    let mut parent_value = None;
    let request_id = request_ids.then(|| {
        request_id::ensure_with(headers, || {
            let mut both = [0; UUID_LEN + TRACEPARENT_LEN];
            let (id, rest) = both.split_at_mut(UUID_LEN);
            id.copy_from_slice(&uuid_text(draw(), draw()));
            if let Some(parent) = &parent {
                rest.copy_from_slice(parent);
            }
            // The count of references is part of the same allocation: clones make none either.
            let mut both = Bytes::from_owner(both);
            let id = both.split_to(UUID_LEN);
            parent_value = parent.is_some().then_some(both);
            id
        })
    });
    if let Some(context) = &context {
        let parent_value = parent_value.or_else(|| parent.map(Bytes::from_owner));
        context.inject_with(headers, parent_value);
    }
    (request_id, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_id::REQUEST_ID_HEADER;
    use crate::trace::{Formats, Spans, TRACEPARENT};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// Does what the public functions do one after the other, whatever came in.
    #[test]
    fn both_are_what_each_alone_would_be() {
        let parents: [&[&str]; 4] = [&[], &[PARENT], &[PARENT, PARENT], &["cc-1"]];
        let ids: [&[&str]; 4] = [&[], &["kept"], &["a", "b"], &["not sane"]];
        let tracings = [
            None,
            Some(Tracing::default()),
            Some(Tracing::default().spans(Spans::Same)),
            Some(Tracing::default().formats(Formats::B3_SINGLE | Formats::B3_MULTI)),
        ];
        for (parents, ids) in parents.iter().flat_map(|p| ids.iter().map(move |i| (p, i))) {
            for (tracing, request_ids) in tracings.iter().flat_map(|t| [(t, true), (t, false)]) {
                let mut headers = HeaderMap::new();
                for parent in *parents {
                    headers.append(TRACEPARENT, HeaderValue::from_static(parent));
                }
                for id in *ids {
                    headers.append(REQUEST_ID_HEADER, HeaderValue::from_static(id));
                }
                let mut apart = headers.clone();
                let draw = || 0x5555_5555_5555_5555;
                let got = mark(&mut headers, tracing.as_ref(), request_ids, &mut { draw });
                let context = tracing.as_ref().map(|t| t.advance(&mut apart, &mut { draw }));
                let id = request_ids.then(|| request_id::ensure(&mut apart, draw));
                assert_eq!(headers, apart, "{parents:?} {ids:?} {tracing:?}");
                assert_eq!(got, (id, context), "{parents:?} {ids:?} {tracing:?}");
            }
        }
    }

    #[test]
    fn what_is_new_is_one_allocation_and_what_is_right_is_not_touched() {
        let tracing = Tracing::default().spans(Spans::Same);
        let mut headers = HeaderMap::new();
        mark(&mut headers, Some(&tracing), true, &mut || 7);
        let id = headers[REQUEST_ID_HEADER].as_bytes().as_ptr_range();
        let parent = headers[TRACEPARENT].as_bytes().as_ptr_range();
        assert_eq!(id.end, parent.start);
        mark(&mut headers, Some(&tracing), true, &mut || 8);
        assert_eq!(headers[REQUEST_ID_HEADER].as_bytes().as_ptr_range(), id);
        assert_eq!(headers[TRACEPARENT].as_bytes().as_ptr_range(), parent);
    }
}
