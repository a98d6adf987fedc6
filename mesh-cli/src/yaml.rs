//! Writes a changed object as YAML in the manner of the text that it came from: keys in their order, comments
//! where they stood, what did not change as it was spelt. Libraries that write YAML keep none of these, and a
//! manifest is read by people.

use std::collections::HashSet;

use mesh_core::yaml::{Entry, Node, Number, Value as Yaml, documents};
use serde_json::{Map, Value};

#[cfg(test)]
mod tests;

/// Keys that come first in an object which is written for the first time.
const FIRST: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "name"];

/// The object as JSON, which knows no lines.
pub(crate) fn to_json(node: &Node) -> Value {
    match &node.value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(*value),
        Yaml::Number(Number::Int(value), _) => Value::from(*value),
        Yaml::Number(Number::Large(value), _) => Value::from(*value),
        // JSON has no infinity; Kubernetes has no field that could be one.
        Yaml::Number(Number::Float(value), text) => {
            serde_json::Number::from_f64(*value).map_or_else(|| Value::from(text.as_str()), Value::Number)
        }
        Yaml::Text(text) => Value::from(text.as_str()),
        Yaml::List(items) => items.iter().map(to_json).collect(),
        Yaml::Map(entries) => entries.iter().map(|e| (e.key.clone(), to_json(&e.value))).collect(),
    }
}

/// `new` in the manner of `text`, a document that holds `old`.
pub(crate) fn rewrite(text: &str, old: &Node, new: &Value) -> String {
    let body = text.lines().position(|line| {
        let line = line.trim();
        !(line.is_empty() || line.starts_with(['#', '%']) || line.starts_with("---"))
    });
    let body = body.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    // Nodes count their lines in the file; the first of the body is the root's.
    let first = (old.line as usize).saturating_sub(body);
    let dashes_indented = dashes_indented(&lines);
    let mut writer = Writer { out: String::new(), lines, first, seen: HashSet::new(), dashes_indented };
    // Marker and comments at the head.
    for line in 0..body {
        writer.seen.insert(line);
        writer.push_line(line);
    }
    match new {
        Value::Object(map) if !map.is_empty() => writer.map(0, map, Some(old), false),
        _ => writer.value(0, new, Some(old), None),
    }
    writer.tail();
    writer.out
}

/// Whether the items of the first list stand deeper than its key.
fn dashes_indented(lines: &[&str]) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let written = || lines.iter().filter(|l| !l.trim().is_empty() && !l.trim().starts_with('#'));
    let pair = written().zip(written().skip(1)).find(|(key, item)| {
        split_comment(key).0.trim_end().ends_with(':') && item.trim_start().starts_with("- ")
    });
    pair.is_some_and(|(key, item)| {
        // A key behind a dash stands deeper than its line.
        let key = key.len() - key.trim_start_matches([' ', '-']).len();
        indent(item) > key
    })
}

struct Writer<'a> {
    out: String,
    /// The document's own lines, and the file's number of the first.
    lines: Vec<&'a str>,
    first: usize,
    /// Lines whose comments have been written.
    seen: HashSet<usize>,
    dashes_indented: bool,
}

impl Writer<'_> {
    fn push_line(&mut self, index: usize) {
        self.out.push_str(self.lines.get(index).copied().unwrap_or_default());
        self.out.push('\n');
    }

    fn index(&self, line: u32) -> Option<usize> {
        (line as usize).checked_sub(self.first).filter(|i| *i < self.lines.len())
    }

    /// The comments that stand above a line, at most as deep as it. What is deeper may be a part of a text.
    fn comments_above(&mut self, line: u32, indent: usize) {
        let Some(at) = self.index(line) else { return };
        let depth = |l: &str| l.len() - l.trim_start().len();
        let own = self.lines.get(at).map_or(0, |l| depth(l));
        let mut found = Vec::new();
        for above in (0..at).rev() {
            let Some(text) = self.lines.get(above) else { break };
            match text.trim_start() {
                "" => continue,
                comment if comment.starts_with('#') && depth(text) <= own => found.push((above, comment)),
                _ => break,
            }
        }
        for (above, comment) in found.into_iter().rev() {
            if self.seen.insert(above) {
                self.out.push_str(&" ".repeat(indent));
                self.out.push_str(comment.trim_end());
                self.out.push('\n');
            }
        }
    }

    /// The comment at the end of a line, once.
    fn comment_beside(&mut self, line: Option<u32>) {
        let Some(at) = line.and_then(|line| self.index(line)) else { return };
        let comment = self.lines.get(at).and_then(|l| split_comment(l).1).map(|c| c.trim_end().to_owned());
        if let Some(comment) = comment
            && self.seen.insert(at)
        {
            self.out.push(' ');
            self.out.push_str(&comment);
        }
    }

    /// The comments at the end of the document.
    fn tail(&mut self) {
        let mut from = self.lines.len();
        while let Some(line) = from.checked_sub(1).and_then(|i| self.lines.get(i)) {
            if !(line.trim().is_empty() || line.starts_with('#')) {
                break;
            }
            from -= 1;
        }
        for index in from..self.lines.len() {
            if self.seen.insert(index) {
                self.push_line(index);
            }
        }
    }

    /// An object. With `inline`, its first key goes on the line that is being written.
    fn map(&mut self, indent: usize, map: &Map<String, Value>, old: Option<&Node>, mut inline: bool) {
        let entries: &[Entry] = match old.map(|o| &o.value) {
            Some(Yaml::Map(entries)) => entries,
            _ => &[],
        };
        let kept = entries.iter().filter_map(|e| Some((e.key.as_str(), map.get(&e.key)?, Some(e))));
        let mut fresh: Vec<_> =
            map.iter().filter(|(key, _)| !entries.iter().any(|e| e.key == **key)).collect();
        fresh.sort_by_key(|(key, _)| FIRST.iter().position(|f| f == key).unwrap_or(FIRST.len()));
        let fresh = fresh.into_iter().map(|(key, value)| (key.as_str(), value, None));
        for (key, value, entry) in kept.chain(fresh) {
            if !inline {
                if let Some(entry) = entry {
                    self.comments_above(entry.line, indent);
                }
                self.out.push_str(&" ".repeat(indent));
            }
            inline = false;
            self.out.push_str(&scalar(key));
            self.out.push(':');
            let line = entry.map(|e| e.line);
            let raw = entry.and_then(|e| self.raw_of_key(e, value));
            match raw {
                Some(raw) => {
                    self.out.push(' ');
                    self.out.push_str(&raw);
                    self.comment_beside(line);
                    self.out.push('\n');
                }
                None => self.value(indent, value, entry.map(|e| &e.value), line),
            }
        }
    }

    /// What stands behind a key or dash at `indent`, up to the end of its last line.
    fn value(&mut self, indent: usize, value: &Value, old: Option<&Node>, line: Option<u32>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                self.comment_beside(line);
                self.out.push('\n');
                self.map(indent + 2, map, old, false);
            }
            Value::Array(items) if !items.is_empty() => {
                self.comment_beside(line);
                self.out.push('\n');
                let indent = if self.dashes_indented { indent + 2 } else { indent };
                self.list(indent, items, old);
            }
            Value::String(text) if is_block(text) => {
                self.out.push_str(if text.ends_with('\n') { " |" } else { " |-" });
                self.comment_beside(line);
                self.out.push('\n');
                for piece in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                    if !piece.is_empty() {
                        self.out.push_str(&" ".repeat(indent + 2));
                        self.out.push_str(piece);
                    }
                    self.out.push('\n');
                }
            }
            other => {
                self.out.push(' ');
                self.out.push_str(&short(other));
                self.comment_beside(line);
                self.out.push('\n');
            }
        }
    }

    fn list(&mut self, indent: usize, items: &[Value], old: Option<&Node>) {
        let before = old.and_then(Node::as_list).unwrap_or_default();
        for (i, item) in items.iter().enumerate() {
            let old = counterpart(item, i, items.len(), before);
            let line = old.map(|o| o.line);
            if let Some(line) = line {
                self.comments_above(line, indent);
            }
            self.out.push_str(&" ".repeat(indent));
            self.out.push('-');
            let raw = old.and_then(|o| self.raw_of_item(o, item));
            match (raw, item) {
                (Some(raw), _) => {
                    self.out.push(' ');
                    self.out.push_str(&raw);
                    self.comment_beside(line);
                    self.out.push('\n');
                }
                (None, Value::Object(map)) if !map.is_empty() => {
                    self.out.push(' ');
                    self.map(indent + 2, map, old, true);
                }
                (None, Value::Array(inner)) if !inner.is_empty() => {
                    self.out.push('\n');
                    self.list(indent + 2, inner, old);
                }
                (None, other) => self.value(indent, other, old, line),
            }
        }
    }

    /// How an entry that did not change is spelt, when it stands on one line.
    fn raw_of_key(&self, entry: &Entry, value: &Value) -> Option<String> {
        let line = split_comment(self.lines.get(self.index(entry.line)?)?).0.trim();
        let mut line = line;
        while let Some(rest) = line.strip_prefix("- ") {
            line = rest.trim_start();
        }
        let quoted = [entry.key.clone(), format!("\"{}\"", entry.key), format!("'{}'", entry.key)];
        let rest =
            quoted.iter().find_map(|key| line.strip_prefix(key.as_str())?.trim_start().strip_prefix(':'))?;
        same(rest, &entry.value, value)
    }

    fn raw_of_item(&self, old: &Node, value: &Value) -> Option<String> {
        let line = split_comment(self.lines.get(self.index(old.line)?)?).0.trim();
        same(line.strip_prefix("- ")?, old, value)
    }
}

/// `raw`, when it stands for what was and still is. That it does is found out by reading it.
fn same(raw: &str, old: &Node, value: &Value) -> Option<String> {
    let raw = raw.trim();
    // A key is a text that needs its line; an anchor would lose those who refer to it.
    if raw.is_empty() || raw.starts_with(['|', '>', '&', '*']) || to_json(old) != *value {
        return None;
    }
    let read = documents(raw);
    let [document] = read.as_slice() else { return None };
    (to_json(document.root.as_ref().ok()?) == *value).then(|| raw.to_owned())
}

/// The item of the old list that `item` comes from.
fn counterpart<'a>(item: &Value, i: usize, count: usize, before: &'a [Node]) -> Option<&'a Node> {
    if let Some(name) = item.get("name").and_then(Value::as_str) {
        return before.iter().find(|old| old.get("name").and_then(Node::as_text) == Some(name));
    }
    match before.get(i) {
        Some(old) if before.len() == count => Some(old),
        _ => before.iter().find(|old| to_json(old) == *item),
    }
}

/// A line before its comment, and the comment.
fn split_comment(line: &str) -> (&str, Option<&str>) {
    let mut quote = None;
    let mut before = ' ';
    let mut skip = false;
    for (at, c) in line.char_indices() {
        match quote {
            Some(_) if skip => skip = false,
            Some('"') if c == '\\' => skip = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') && matches!(before, ' ' | '[' | '{' | ',' | ':') => {
                quote = Some(c)
            }
            None if c == '#' && matches!(before, ' ' | '\t') => {
                return (line.get(..at).unwrap_or(line), line.get(at..));
            }
            None => {}
        }
        before = c;
    }
    (line, None)
}

/// Whether a text is best written as a block. One that ends in empty lines is not: they are easily lost.
fn is_block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\t', '\n'])
        && !text.chars().any(|c| (c.is_control() && c != '\n' && c != '\t') || is_special(c))
        && !text.ends_with("\n\n")
        && text.lines().all(|l| !l.ends_with([' ', '\t']))
}

/// What YAML takes for an end of line, or for nothing at all.
fn is_special(c: char) -> bool {
    matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A text on one line: plain where nobody could take it for anything else, else in quotes.
fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    // What holds quotes of its own, such as JSON, is easier read between single ones.
    let printable = |c: char| !c.is_control() && !is_special(c);
    if text.contains('"') && !text.contains('\'') && text.chars().all(printable) {
        return format!("'{text}'");
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || is_special(c) => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// YAML 1.1, which Kubernetes' tools still read, takes more words and numbers for something else than 1.2.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"];
    let lower = text.to_ascii_lowercase();
    let flag =
        text.strip_prefix("--").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()));
    let starts =
        flag || text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '$'));
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    // 1e3, 0x1f, 0b1, 0o7, 1_000, 12:30 and 2001-01-01 are numbers and times to somebody.
    let number = digit && lower.bytes().all(|b| b.is_ascii_hexdigit() || b"xo_.+-:tz ".contains(&b));
    starts
        && !number
        && !WORDS.contains(&lower.as_str())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/_$-.()=,+%:@ ".contains(c))
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
}
