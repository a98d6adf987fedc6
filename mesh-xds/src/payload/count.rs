//! Counts the items of a message before memory is taken for them.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::DecodeError;

/// Refuses a message with more than `most` fields of number `tag`.
pub(super) fn limit(body: &[u8], tag: u32, most: usize, field: &str) -> Result<(), DecodeError> {
    within(walk(body, tag, &mut |_| 1)?, most, field)
}

/// Refuses a message of which the messages in fields of number `outer` have more than `most` fields of
/// number `inner` together.
pub(super) fn limit_below(
    body: &[u8],
    outer: u32,
    inner: u32,
    most: usize,
    field: &str,
) -> Result<(), DecodeError> {
    // What is not a message inside is for the decoder to refuse.
    let total = walk(body, outer, &mut |inside| walk(inside, inner, &mut |_| 1).unwrap_or_default())?;
    within(total, most, field)
}

fn within(found: usize, most: usize, field: &str) -> Result<(), DecodeError> {
    if found > most {
        return Err(DecodeError::new(field, format!("{found} are more than {most}")));
    }
    Ok(())
}

/// Adds up `weigh` of all fields of number `tag` that hold bytes.
fn walk(mut body: &[u8], tag: u32, weigh: &mut dyn FnMut(&[u8]) -> usize) -> Result<usize, DecodeError> {
    let broken = |error: prost::DecodeError| DecodeError::new("message", error.to_string());
    let mut total = 0_usize;
    while !body.is_empty() {
        let (found, wire_type) = decode_key(&mut body).map_err(broken)?;
        if found == tag && wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut body).map_err(broken)?;
            let inside = usize::try_from(length).ok().and_then(|length| body.split_at_checked(length));
            let Some((inside, rest)) = inside else {
                return Err(DecodeError::new("message", "it is cut short"));
            };
            total = total.saturating_add(weigh(inside));
            body = rest;
        } else {
            skip_field(wire_type, found, &mut body, DecodeContext::default()).map_err(broken)?;
        }
    }
    Ok(total)
}
