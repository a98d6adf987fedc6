//! YAML text to a tree that knows its lines.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput, Tag};

/// The longest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 16 << 20;
/// How deep a document may be nested.
pub const MAX_DEPTH: usize = 64;
/// How many values a document may have, with what its aliases stand for.
pub const MAX_NODES: usize = 500_000;
/// How much a document's anchors and aliases may copy, in values and bytes of text together.
pub const MAX_ALIAS_EXPANSION: usize = 1 << 20;
/// How many documents a file may have.
pub const MAX_DOCUMENTS: usize = 10_000;

/// A value and the line that it starts on.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The line in the file, counted from 1.
    pub line: u32,
    /// The value.
    pub value: Value,
}

/// A value as Kubernetes reads YAML: the core schema, where what is quoted is a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, with the text that it was written as.
    Number(Number, String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// An object, in the order in which it was written.
    Map(Vec<Entry>),
}

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A whole number.
    Int(i64),
    /// A whole number beyond [`i64`].
    Large(u64),
    /// Any other.
    Float(f64),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The line of the key.
    pub line: u32,
    /// The value.
    pub value: Node,
}

/// A document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The line that it starts on, counted from 1.
    pub line: u32,
    /// Which of the file's documents it is, counted from 0.
    pub index: u32,
    /// Where it stands in the text, in bytes, with the marker and the comments before it.
    pub span: std::ops::Range<usize>,
    /// What it holds, or why it is not YAML.
    pub root: Result<Node, InvalidYaml>,
}

/// Why a text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct InvalidYaml {
    /// The line in the file, counted from 1.
    pub line: u32,
    /// What is wrong there.
    pub message: String,
}

impl Node {
    /// What the node holds under `key`, when it is an object.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// The text that the node holds.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The text of any scalar, quoted or not.
    pub fn as_scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) | Value::Number(_, text) => Some(text),
            Value::Bool(true) => Some("true"),
            Value::Bool(false) => Some("false"),
            _ => None,
        }
    }

    /// The list that the node holds.
    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Whether the node is nothing.
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// The line of the field that a path such as `spec.http[0].headers[x.y]` leads to, or of the nearest
    /// one above it that is there.
    pub fn line_of(&self, path: &str) -> u32 {
        let mut node = self;
        let mut line = self.line;
        for segment in segments(path) {
            match &node.value {
                Value::Map(entries) => match entries.iter().find(|e| e.key == segment) {
                    Some(entry) => (node, line) = (&entry.value, entry.line),
                    None => break,
                },
                Value::List(items) => match segment.parse::<usize>().ok().and_then(|i| items.get(i)) {
                    Some(item) => (node, line) = (item, item.line),
                    None => break,
                },
                _ => break,
            }
        }
        line
    }

    /// Whether an object somewhere below has the key `key`.
    pub(crate) fn has_key_below(&self, key: &str) -> bool {
        match &self.value {
            Value::Map(entries) => entries.iter().any(|e| e.key == key || e.value.has_key_below(key)),
            Value::List(items) => items.iter().any(|n| n.has_key_below(key)),
            _ => false,
        }
    }

    /// How much copying the node costs: values and bytes of text.
    fn weight(&self) -> usize {
        1 + match &self.value {
            Value::Text(text) | Value::Number(_, text) => text.len(),
            Value::List(items) => items.iter().map(Node::weight).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.key.len() + e.value.weight()).sum(),
            Value::Null | Value::Bool(_) => 0,
        }
    }
}

/// The segments of a field path: `a.b[0].c[x.y]` gives `a`, `b`, `0`, `c`, `x.y`.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        let (segment, after) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap_or((inner, "")),
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        rest = after;
        Some(segment)
    })
}

/// Splits a text into its documents and reads each by itself, so that one that is not YAML says nothing
/// about the others. Documents that hold nothing are left out. Never panics, whatever the text.
///
/// ```
/// let documents = tower_mesh_core::yaml::documents("a: 1\n---\n# nothing\n---\nb: [\n---\nc: 3\n");
/// assert_eq!(documents.len(), 3);
/// assert_eq!(documents[0].root.as_ref().unwrap().line_of("a"), 1);
/// assert!(documents[1].root.is_err());
/// assert_eq!(documents[2].root.as_ref().unwrap().line_of("c"), 7);
/// assert_eq!(documents[0].span, 0..5);
/// ```
pub fn documents(text: &str) -> Vec<Document> {
    let whole = text.len();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let before = whole - text.len();
    let mut documents = Vec::new();
    let mut index = 0;
    for (line, at, chunk) in chunks(text) {
        let span = before + at..before + at + chunk.len();
        if documents.len() >= MAX_DOCUMENTS {
            let message = format!("the file has more than {MAX_DOCUMENTS} documents; split it");
            documents.push(Document { line, index, span, root: Err(InvalidYaml { line, message }) });
            break;
        }
        let root = parse(chunk, line);
        if matches!(&root, Ok(node) if node.is_null()) {
            continue;
        }
        let line = match &root {
            Ok(node) => node.line,
            Err(error) => error.line,
        };
        documents.push(Document { line, index, span, root });
        index += 1;
    }
    documents
}

/// The documents of a text with the lines and places that they start on. A line that starts with `---` or `...` ends a
/// document whatever stands around it: YAML lets no scalar hold one.
fn chunks(text: &str) -> Vec<(u32, usize, &str)> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut start_line = 1;
    let mut at = 0;
    for (line, piece) in (1..).zip(text.split_inclusive('\n')) {
        let marker = |m: &str| {
            piece.strip_prefix(m).is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']))
        };
        // Directives (`%YAML`) stand before a marker and belong to what follows it.
        let directives = || {
            text.get(start..at).is_some_and(|head| {
                head.lines().any(|l| l.starts_with('%'))
                    && head.lines().all(|l| l.starts_with(['%', '#']) || l.trim().is_empty())
            })
        };
        if (marker("---") && !directives()) || marker("...") {
            chunks.push((start_line, start, text.get(start..at).unwrap_or_default()));
            // `...` itself holds nothing; `---` may be followed by content on its line.
            start = if marker("...") { at + piece.len() } else { at };
            start_line = if marker("...") { line + 1 } else { line };
        }
        at += piece.len();
    }
    chunks.push((start_line, start, text.get(start..).unwrap_or_default()));
    // Only what YAML takes for white: other spaces are content, here as behind a `---`.
    chunks.retain(|(.., chunk)| !chunk.trim_matches([' ', '\t', '\r', '\n']).is_empty());
    chunks
}

/// A collection that is being read.
enum Open {
    List { node: Vec<Node>, line: u32, anchor: usize },
    Map { node: Vec<Entry>, key: Option<(String, u32, bool)>, merges: Vec<Node>, line: u32, anchor: usize },
}

struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    copied: usize,
}

/// Reads one document whose first line is the file's `first_line`.
fn parse(text: &str, first_line: u32) -> Result<Node, InvalidYaml> {
    if text.len() > MAX_DOCUMENT_BYTES {
        let message = format!("the document has more than {MAX_DOCUMENT_BYTES} bytes");
        return Err(InvalidYaml { line: first_line, message });
    }
    let mut options = Options::default();
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut parser = Parser::with_options(StrInput::new(text), options);
    let mut builder = Builder { open: Vec::new(), root: None, anchors: HashMap::new(), nodes: 0, copied: 0 };
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| InvalidYaml {
            line: file_line(first_line, error.marker().line()),
            message: format!("not YAML: {}", error.info()),
        })?;
        let line = file_line(first_line, span.start.line());
        builder.event(event, line).map_err(|message| InvalidYaml { line, message })?;
    }
    Ok(builder.root.unwrap_or(Node { line: first_line, value: Value::Null }))
}

fn file_line(first: u32, line: usize) -> u32 {
    first.saturating_add(u32::try_from(line.saturating_sub(1)).unwrap_or(u32::MAX))
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: u32) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = matches!(style, ScalarStyle::Plain);
                let merge = plain && text == "<<";
                let value = match tag.as_deref() {
                    Some(tag) => tagged(&text, plain, tag)?,
                    None if plain => plain_value(&text),
                    None => Value::Text(text.clone().into_owned()),
                };
                // Keys are texts whatever they look like.
                if let Some(Open::Map { key: key @ None, .. }) = self.open.last_mut() {
                    *key = Some((text.into_owned(), line, merge));
                    return Ok(());
                }
                self.add(Node { line, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse_tag(tag.as_deref(), "seq")?;
                self.push(Open::List { node: Vec::new(), line, anchor })
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse_tag(tag.as_deref(), "map")?;
                self.push(Open::Map { node: Vec::new(), key: None, merges: Vec::new(), line, anchor })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { node, line, anchor }) => {
                    self.add(Node { line, value: Value::List(node) }, anchor)
                }
                Some(Open::Map { mut node, merges, line, anchor, .. }) => {
                    no_twins(&node)?;
                    if !merges.is_empty() {
                        let mut keys = node.iter().map(|e| e.key.clone()).collect();
                        merges.into_iter().try_for_each(|from| merge(&mut node, &mut keys, from))?;
                    }
                    self.add(Node { line, value: Value::Map(node) }, anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some((node, weight)) = self.anchors.get(&anchor) else {
                    return Err("an alias stands inside of what it refers to".to_owned());
                };
                let (mut node, weight) = (node.clone(), *weight);
                self.copy(weight)?;
                node.line = line;
                self.add(node, 0)
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, open: Open) -> Result<(), String> {
        if let Some(Open::Map { key: None, .. }) = self.open.last() {
            return Err("a key must be a plain text".to_owned());
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested more than {MAX_DEPTH} deep"));
        }
        self.open.push(open);
        Ok(())
    }

    fn copy(&mut self, weight: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(weight);
        if self.copied > MAX_ALIAS_EXPANSION {
            return Err("anchors and aliases blow the document up too far; write it out".to_owned());
        }
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("the document has more than {MAX_NODES} values; split it"));
        }
        if anchor != 0 {
            let weight = node.weight();
            self.copy(weight)?;
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        match self.open.last_mut() {
            None if self.root.is_some() => {
                return Err(
                    "a second document starts here, after a lone carriage return; end lines with \\n"
                        .to_owned(),
                );
            }
            None => self.root = Some(node),
            Some(Open::List { node: items, .. }) => items.push(node),
            Some(Open::Map { node: entries, key, merges, .. }) => match key.take() {
                Some((_, _, true)) => merges.push(node),
                Some((key, line, false)) => entries.push(Entry { key, line, value: node }),
                None => return Err("a key must be a plain text".to_owned()),
            },
        }
        Ok(())
    }
}

/// Refuses an object that has a key twice.
fn no_twins(entries: &[Entry]) -> Result<(), String> {
    let mut seen = HashMap::with_capacity(entries.len());
    entries.iter().try_for_each(|entry| match seen.insert(entry.key.as_str(), entry.line) {
        None => Ok(()),
        Some(first) => Err(format!(
            "the key {:?} stands on line {} although line {first} has it already; keep one",
            entry.key, entry.line
        )),
    })
}

/// `<<: *anchor`: what the object does not say itself is taken from there.
fn merge(into: &mut Vec<Entry>, keys: &mut HashSet<String>, from: Node) -> Result<(), String> {
    match from.value {
        Value::Map(entries) => {
            into.extend(entries.into_iter().filter(|entry| keys.insert(entry.key.clone())));
            Ok(())
        }
        Value::List(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
            items.into_iter().try_for_each(|item| merge(into, keys, item))
        }
        _ => Err("\"<<\" merges objects only".to_owned()),
    }
}

fn refuse_tag(tag: Option<&Tag>, allowed: &str) -> Result<(), String> {
    match tag {
        Some(tag) if tag.core_suffix() != Some(allowed) => {
            Err(format!("the tag {} has no meaning here", tag.original()))
        }
        _ => Ok(()),
    }
}

fn tagged(text: &str, plain: bool, tag: &Tag) -> Result<Value, String> {
    let value = plain_value(text);
    match (tag.core_suffix(), &value) {
        (Some("str"), _) => Ok(Value::Text(text.to_owned())),
        (Some("int"), Value::Number(Number::Int(_) | Number::Large(_), _))
        | (Some("float"), Value::Number(..))
        | (Some("bool"), Value::Bool(_))
        | (Some("null"), Value::Null) => Ok(value),
        // A lone `!` says "do not resolve".
        _ if tag.original() == "!" => Ok(if plain { value } else { Value::Text(text.to_owned()) }),
        _ => Err(format!("the tag {} has no meaning here", tag.original())),
    }
}

/// What a plain scalar stands for in YAML's core schema.
fn plain_value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    match number(text) {
        Some(number) => Value::Number(number, text.to_owned()),
        None => Value::Text(text.to_owned()),
    }
}

fn number(text: &str) -> Option<Number> {
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !body.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = |prefix: &str, radix: u32| {
        let digits = text.strip_prefix(prefix).filter(|d| d.starts_with(|c: char| c.is_ascii_hexdigit()))?;
        i64::from_str_radix(digits, radix).ok().map(Number::Int)
    };
    if let Some(number) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Some(number);
    }
    match body {
        ".inf" | ".Inf" | ".INF" => {
            return Some(Number::Float(if text.starts_with('-') {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            }));
        }
        ".nan" | ".NaN" | ".NAN" => return Some(Number::Float(f64::NAN)),
        _ => {}
    }
    if body.bytes().all(|b| b.is_ascii_digit()) {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        return unsigned
            .parse()
            .map(Number::Int)
            .or_else(|_| unsigned.parse().map(Number::Large))
            .or_else(|_| unsigned.parse().map(Number::Float))
            .ok();
    }
    let float = body.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if float { text.parse().ok().map(Number::Float) } else { None }
}
