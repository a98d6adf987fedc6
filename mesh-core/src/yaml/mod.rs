//! From YAML (or JSON, which is YAML) to resources, with errors a person can mend by.
//!
//! A text is split into documents; each is read into a located tree ([`Node`]), bounded in size, depth and
//! alias expansion; the tree is read strictly into the kind's type. An error names file, line, resource,
//! field, and the nearest known name.

mod api;
mod closed;
mod de;
mod file;
mod node;
#[cfg(test)]
mod tests;

pub use api::{ReadObject, read_object};
pub use de::FieldError;
pub use file::{ReadResource, Reading, Validator, parse_objects, read_file};
pub use node::{
    Document, Entry, InvalidYaml, MAX_ALIAS_EXPANSION, MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_DOCUMENTS,
    MAX_NODES, Node, Number, Value, documents,
};
