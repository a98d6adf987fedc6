//! Resources of users on the wire.

use mesh_core::resource::{Invalid, Object};

use super::{DecodeError, MAX_OBJECTS};
use crate::proto::mesh as wire;

/// The longest reason of a closed reading that travels, in bytes.
const MAX_REASON_BYTES: usize = 4096;

pub(super) fn to_wire(objects: &[Object]) -> Vec<wire::Object> {
    let one = |object: &Object| wire::Object {
        kind: object.kind().to_owned(),
        namespace: object.meta().namespace.clone(),
        name: object.meta().name.clone(),
        json: object.to_json().into(),
        invalid: object.invalid().map_or_else(String::new, reason),
    };
    objects.iter().map(one).collect()
}

/// Never empty: that it is a closed reading must not get lost on the way.
fn reason(invalid: &Invalid) -> String {
    let mut end = invalid.reason.len().min(MAX_REASON_BYTES);
    while !invalid.reason.is_char_boundary(end) {
        end -= 1;
    }
    match invalid.reason.get(..end) {
        None | Some("") => "it could not be read".to_owned(),
        Some(reason) => reason.to_owned(),
    }
}

pub(super) fn of_wire(wire: &[wire::Object]) -> Result<Vec<Object>, DecodeError> {
    if wire.len() > MAX_OBJECTS {
        return Err(DecodeError::new("resources", format!("more than {MAX_OBJECTS}")));
    }
    wire.iter().enumerate().map(|(i, object)| one_of_wire(i, object)).collect()
}

fn one_of_wire(i: usize, wire: &wire::Object) -> Result<Object, DecodeError> {
    let named = |message: &str| {
        let short = |text: &str| text.chars().take(64).collect::<String>();
        let (kind, namespace, name) = (short(&wire.kind), short(&wire.namespace), short(&wire.name));
        DecodeError::new(format!("resources[{i}]"), format!("{kind} {namespace}/{name}: {message}"))
    };
    if wire.invalid.len() > MAX_REASON_BYTES {
        return Err(named("the reason of its closed reading is too long"));
    }
    let invalid = (!wire.invalid.is_empty()).then(|| Invalid { reason: wire.invalid.clone() });
    let object = Object::from_json(&wire.json, invalid).map_err(|error| named(&error.to_string()))?;
    let meta = object.meta();
    if object.kind() != wire.kind || meta.namespace != wire.namespace || meta.name != wire.name {
        return Err(named(&format!("the content is of {}", object.reference())));
    }
    Ok(object)
}
