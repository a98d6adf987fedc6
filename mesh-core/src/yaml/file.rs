//! A file's documents as resources.

use std::path::Path;

use serde::Deserialize;

use super::closed::{closed_reading, is_security};
use super::de::{nearest, suggestion};
use super::node::{Document, Node, Value, documents};
use crate::diagnostic::{Diagnostic, Effect, Origin, ResourceRef};
use crate::resource::{
    DEFAULT_NAMESPACE, Kind, KindVisitor, OUR_GROUPS, Object, ObjectMeta, Resource, SUPPORTED, api_version,
    metadata_problems, unsupported_kind, with_kind,
};

/// Another crate's word on whether it can do what a resource asks. A diagnostic that
/// [is an error](Diagnostic::is_error) refuses the resource; any other is passed on.
pub type Validator<'a> = dyn Fn(&Object) -> Vec<Diagnostic> + 'a;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// The resources, in the order of the file.
    pub resources: Vec<ReadResource>,
    /// What is wrong with the file rather than with one of its resources, and which documents are skipped.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether every document is YAML and says which resource it is, so that a resource that is missing
    /// from the file is known to have been taken out.
    pub whole: bool,
}

/// A resource of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadResource {
    /// Which one.
    pub reference: ResourceRef,
    /// Where it stands.
    pub origin: Origin,
    /// Whether its name was readable; when not, the reference is made up from its place.
    pub named: bool,
    /// The resource, where nothing is wrong with it.
    pub object: Option<Object>,
    /// Its closed reading, where something is wrong with it and it has one.
    pub closed: Option<Object>,
    /// What is wrong with it, and what is to be said of it besides.
    pub diagnostics: Vec<Diagnostic>,
}

/// All resources of a text, or everything that is wrong with it. `name` stands for the file in messages.
///
/// Documents of foreign kinds are skipped.
///
/// # Errors
///
/// Every [error](Diagnostic::is_error) in the text.
pub fn parse_objects(name: &str, text: &str) -> Result<Vec<Object>, Vec<Diagnostic>> {
    let reading = read_file(Path::new(name), text, &|_| Vec::new());
    let mut objects = Vec::new();
    let mut errors: Vec<Diagnostic> = reading.diagnostics.into_iter().filter(Diagnostic::is_error).collect();
    for resource in reading.resources {
        errors.extend(resource.diagnostics.into_iter().filter(Diagnostic::is_error));
        objects.extend(resource.object);
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

/// Reads a file's text. Pure; never panics, whatever the text.
///
/// Errors of resources are given the effect [`Effect::NotApplied`]: whether a last good form or a closed
/// reading takes the resource's place is for the caller, who knows what was in force.
pub fn read_file(file: &Path, text: &str, validate: &Validator<'_>) -> Reading {
    let mut reader = Reader { file, validate, reading: Reading { whole: true, ..Reading::default() } };
    for document in documents(text) {
        reader.document(&document);
    }
    reader.reading
}

/// Reads one document that is a tree already.
pub(super) fn read_node(file: &Path, root: &Node, validate: &Validator<'_>) -> Reading {
    let mut reader = Reader { file, validate, reading: Reading { whole: true, ..Reading::default() } };
    reader.item(&Item { node: root, document: 0, within: String::new() });
    reader.reading
}

struct Reader<'a> {
    file: &'a Path,
    validate: &'a Validator<'a>,
    reading: Reading,
}

/// A document (or an item of a list) with its place.
struct Item<'a> {
    node: &'a Node,
    document: u32,
    /// Where in a `List` it stands, as `items[3]`; empty for a whole document.
    within: String,
}

impl Reader<'_> {
    fn origin(&self, line: u32, document: u32) -> Origin {
        Origin::new(self.file, line, document)
    }

    /// Something is wrong that hides which resource was meant.
    fn unreadable(&mut self, origin: Origin, field: &str, message: impl Into<String>) {
        self.reading.whole = false;
        let diagnostic = Diagnostic::new(Effect::NotApplied, message).field(field).origin(origin);
        self.reading.diagnostics.push(diagnostic);
    }

    fn document(&mut self, document: &Document) {
        match &document.root {
            Ok(root) => self.item(&Item { node: root, document: document.index, within: String::new() }),
            Err(error) => {
                self.unreadable(self.origin(error.line, document.index), "", error.message.clone());
            }
        }
    }

    fn item(&mut self, item: &Item<'_>) {
        let node = item.node;
        let origin = self.origin(node.line, item.document);
        if !matches!(node.value, Value::Map(_)) {
            return self.unreadable(
                origin,
                &item.within,
                "a resource is an object with apiVersion, kind and metadata",
            );
        }
        let text_of = |field: &str| node.get(field).and_then(Node::as_text).filter(|t| !t.is_empty());
        let Some(kind) = text_of("kind") else {
            return self.unreadable(origin, &item.within, "the document has no kind; is it a resource?");
        };
        let Some(version) = text_of("apiVersion") else {
            return self.unreadable(
                origin,
                &item.within,
                format!("the document (kind {kind}) has no apiVersion"),
            );
        };
        if kind.ends_with("List") && node.get("items").is_some_and(|i| i.is_null() || i.as_list().is_some()) {
            if !item.within.is_empty() {
                return self.unreadable(origin, &item.within, "a list within a list");
            }
            let items = node.get("items").and_then(Node::as_list).unwrap_or_default();
            for (i, node) in items.iter().enumerate() {
                self.item(&Item { node, document: item.document, within: format!("items[{i}]") });
            }
            return;
        }
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let visitor = ReadKind { reader: self, item, origin, version, slip: None };
        let Err(mut visitor) = with_kind(group, kind, visitor) else { return };
        let Some(meant) = Slip::find(group, version, kind) else {
            let origin = visitor.origin;
            return self.foreign(item, origin, group, version, kind);
        };
        let (group, kind) = (meant.group, meant.kind);
        visitor.slip = Some(meant);
        // The kinds that may be meant are all kinds that we read.
        let _ = with_kind(group, kind, visitor);
    }

    /// A kind that is not among those we read.
    fn foreign(&mut self, item: &Item<'_>, origin: Origin, group: &str, version: &str, kind: &str) {
        let name = item
            .node
            .get("metadata")
            .and_then(|m| m.get("name"))
            .and_then(Node::as_scalar)
            .unwrap_or_default();
        let namespace = item.node.get("metadata").and_then(|m| m.get("namespace")).and_then(Node::as_scalar);
        if OUR_GROUPS.contains(&group) {
            let reference = unsupported_kind(kind)
                .map(|kind| ResourceRef::new(kind, namespace.unwrap_or(DEFAULT_NAMESPACE), name));
            let message = if reference.is_some() {
                format!("kind {kind} is not supported yet")
            } else {
                let known: Vec<&str> =
                    SUPPORTED.iter().filter(|(g, _)| *g == group).map(|(_, k)| *k).collect();
                format!("kind {kind} of {group} is not known; {}", suggestion(kind, &known))
            };
            let mut diagnostic =
                Diagnostic::new(Effect::NotApplied, message).field(&*item.within).origin(origin.clone());
            diagnostic.resource = reference;
            // A kind that nobody knows may hide a resource that was given before.
            self.reading.whole &= diagnostic.resource.is_some();
            self.reading.diagnostics.push(diagnostic);
            return;
        }
        let message = format!("kind {kind} ({}) is none of the mesh's business", api_version(group, version));
        self.reading
            .diagnostics
            .push(Diagnostic::new(Effect::Skipped, message).field(&*item.within).origin(origin));
    }
}

/// The supported kinds of a group.
fn kinds_of(group: &str) -> Vec<&'static str> {
    SUPPORTED.iter().filter(|(g, _)| *g == group).map(|(_, k)| *k).collect()
}

/// A group or kind that is nearly one of ours: read as what was meant, it is an error of that resource, so
/// that a policy whose kind is misspelled is not taken for a stranger, or for deleted.
struct Slip {
    group: &'static str,
    kind: &'static str,
    field: &'static str,
    message: String,
}

impl Slip {
    fn find(group: &str, version: &str, kind: &str) -> Option<Self> {
        /// How many letters of a group may be wrong.
        const WRONG_LETTERS: usize = 4;

        if let Some(&(meant, kind)) = SUPPORTED.iter().find(|(_, k)| *k == kind) {
            let near = group.is_empty()
                || group.contains("istio")
                || strsim::damerau_levenshtein(group, meant) <= WRONG_LETTERS;
            let written = if group.is_empty() { version } else { group };
            let message = format!("{kind} is not a kind of {written:?}; use {meant}/v1");
            return near.then_some(Self { group: meant, kind, field: "apiVersion", message });
        }
        if unsupported_kind(kind).is_some() {
            return None;
        }
        let near = nearest(kind, kinds_of(group))?;
        let &(group, meant) = SUPPORTED.iter().find(|(g, k)| *g == group && *k == near)?;
        let message = format!("kind {kind:?} is not known; did you mean {meant:?}?");
        Some(Self { group, kind: meant, field: "kind", message })
    }
}

struct ReadKind<'r, 'a, 'i> {
    reader: &'r mut Reader<'a>,
    item: &'i Item<'i>,
    origin: Origin,
    version: &'i str,
    slip: Option<Slip>,
}

/// Something wrong with a field, before the resource's name is known.
struct Wrong {
    line: u32,
    field: String,
    message: String,
}

impl KindVisitor for ReadKind<'_, '_, '_> {
    type Output = ();

    fn visit<K: Kind>(self)
    where
        Object: From<Resource<K>>,
    {
        let root = self.item.node;
        let mut wrong = Vec::new();
        if let Some(slip) = &self.slip {
            wrong.push(Wrong {
                line: root.line_of(slip.field),
                field: slip.field.to_owned(),
                message: slip.message.clone(),
            });
        } else if !K::VERSIONS.contains(&self.version) {
            wrong.push(Wrong {
                line: root.line_of("apiVersion"),
                field: "apiVersion".to_owned(),
                message: format!(
                    "version {:?} is not known; use {}",
                    self.version,
                    api_version(K::GROUP, K::VERSIONS.first().copied().unwrap_or_default())
                ),
            });
        }
        if K::STRICT {
            unknown_top_level(root, &mut wrong);
        }
        let (meta, named) = self.meta::<K>(&mut wrong);
        let spec = spec::<K>(root, &mut wrong);
        let reference = ResourceRef::new(K::KIND, &meta.namespace, &meta.name);
        let mut diagnostics = Vec::new();
        let mut object = None;
        if let Some(spec) = spec {
            let problems = metadata_problems(K::NAMESPACED, &meta).into_iter().chain(spec.validate(&meta));
            wrong.extend(problems.filter(|p| named || p.field != "metadata.name").map(|p| Wrong {
                line: root.line_of(&p.field),
                field: p.field,
                message: p.message,
            }));
            if wrong.is_empty() {
                let candidate: Object =
                    Resource { meta: meta.clone(), spec, origin: Some(self.origin.clone()), invalid: None }
                        .into();
                for diagnostic in (self.reader.validate)(&candidate) {
                    diagnostics.push(placed(diagnostic, &reference, root, &self.origin));
                }
                if !diagnostics.iter().any(Diagnostic::is_error) {
                    object = Some(candidate);
                }
            }
        }
        diagnostics.extend(wrong.into_iter().map(|w| {
            Diagnostic::new(Effect::NotApplied, w.message)
                .resource(reference.clone())
                .field(w.field)
                .origin(Origin { line: w.line, ..self.origin.clone() })
        }));
        let closed = diagnostics.iter().find(|d| d.is_error()).and_then(|first| {
            let reason = if first.field.is_empty() {
                format!("{reference}: {}", first.message)
            } else {
                format!("{reference}: {}: {}", first.field, first.message)
            };
            closed_reading(K::KIND, &meta, root, &self.origin, &reason)
        });
        // A document that does not say which resource it is may be one that was given before.
        self.reader.reading.whole &= named;
        self.reader.reading.resources.push(ReadResource {
            reference,
            origin: self.origin,
            named,
            object,
            closed: closed.filter(|_| named || is_security(K::KIND)),
            diagnostics,
        });
    }
}

/// A diagnostic of another crate, with the place of its field.
fn placed(mut diagnostic: Diagnostic, reference: &ResourceRef, root: &Node, origin: &Origin) -> Diagnostic {
    let line = if diagnostic.field.is_empty() { origin.line } else { root.line_of(&diagnostic.field) };
    diagnostic.resource.get_or_insert_with(|| reference.clone());
    // The hook knows the resource's origin at best; the line of the field is the better one.
    diagnostic.origin = Some(Origin { line, ..origin.clone() });
    if diagnostic.is_error() {
        diagnostic.effect = Effect::NotApplied;
    }
    diagnostic
}

fn unknown_top_level(root: &Node, wrong: &mut Vec<Wrong>) {
    const KNOWN: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
    let Value::Map(entries) = &root.value else { return };
    for entry in entries.iter().filter(|e| !KNOWN.contains(&e.key.as_str())) {
        wrong.push(Wrong {
            line: entry.line,
            field: entry.key.clone(),
            message: match nearest(&entry.key, KNOWN.iter().copied()) {
                Some(near) => format!("unknown field; did you mean {near:?}?"),
                None => "unknown field; does it belong under spec?".to_owned(),
            },
        });
    }
}

fn spec<K: Kind>(root: &Node, wrong: &mut Vec<Wrong>) -> Option<K> {
    let (node, prefix) = if K::FLAT { (Some(root), "") } else { (root.get("spec"), "spec") };
    let Some(node) = node else { return Some(K::default()) };
    match K::deserialize(node) {
        Ok(spec) => Some(spec),
        Err(error) => {
            wrong.push(Wrong {
                line: if error.line == 0 { root.line_of(prefix) } else { error.line },
                field: error.field(prefix),
                message: error.message,
            });
            None
        }
    }
}

impl ReadKind<'_, '_, '_> {
    /// The metadata, and whether the name could be read; what cannot be read is made up so that the
    /// resource can be spoken of.
    fn meta<K: Kind>(&self, wrong: &mut Vec<Wrong>) -> (ObjectMeta, bool) {
        let root = self.item.node;
        let mut meta = match root.get("metadata").map(ObjectMeta::deserialize) {
            Some(Ok(meta)) => meta,
            Some(Err(error)) => {
                wrong.push(Wrong {
                    line: error.line,
                    field: error.field("metadata"),
                    message: error.message,
                });
                let text = |field: &str| {
                    let node = root.get("metadata").and_then(|m| m.get(field));
                    node.and_then(Node::as_scalar).unwrap_or_default().to_owned()
                };
                ObjectMeta { name: text("name"), namespace: text("namespace"), ..ObjectMeta::default() }
            }
            None => ObjectMeta::default(),
        };
        let named = !meta.name.is_empty();
        if !named {
            wrong.push(Wrong {
                line: root.line_of("metadata"),
                field: "metadata.name".to_owned(),
                message: "the name is required".to_owned(),
            });
            meta.name = match self.item.within.as_str() {
                "" => format!("unnamed-{}", self.item.document),
                _ => format!("unnamed-{}-line-{}", self.item.document, root.line),
            };
        }
        if !K::NAMESPACED {
            meta.namespace.clear();
        } else if meta.namespace.is_empty() {
            DEFAULT_NAMESPACE.clone_into(&mut meta.namespace);
        }
        (meta, named)
    }
}
