//! What the schema itself forbids, kind by kind.

mod networking;
mod routes;
mod security;

use super::common::{Duration, Labels, Percent, Selector, StringMatch, TargetRef};
use super::kubernetes::{EndpointSlice, Namespace, Pod, Service};
use super::meta::ObjectMeta;
use super::object::Problem;

/// The longest regular expression, in bytes.
pub const MAX_REGEX: usize = 1024;
/// The longest DNS label.
const MAX_LABEL: usize = 63;
/// The longest DNS name.
const MAX_NAME: usize = 253;
/// The least duration of a field that has no meaning for 0.
const LEAST: std::time::Duration = std::time::Duration::from_millis(1);

/// Finds what the schema forbids.
pub(crate) trait Validate {
    /// Everything that is wrong.
    fn problems(&self, meta: &ObjectMeta) -> Vec<Problem>;
}

/// Collects problems.
#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem::new(field, message));
    }

    fn require(&mut self, ok: bool, field: impl Into<String>, message: &str) {
        if !ok {
            self.add(field, message);
        }
    }

    /// A duration that must be a millisecond at least, where it is set.
    fn least(&mut self, field: String, duration: Option<Duration>) {
        if duration.is_some_and(|d| d.get() < LEAST) {
            self.add(field, "the duration is shorter than 1ms");
        }
    }

    fn percent(&mut self, field: String, percent: Option<&Percent>) {
        if let Some(percent) = percent
            && !(percent.value == 0.0 || (0.0001..=100.0).contains(&percent.value))
        {
            self.add(format!("{field}.value"), format!("{} is neither 0 nor in 0.0001..100", percent.value));
        }
    }

    fn regex(&mut self, field: &str, pattern: &str) {
        if pattern.len() > MAX_REGEX {
            self.add(field, format!("the expression is longer than {MAX_REGEX} bytes"));
        } else if let Err(error) = regex::Regex::new(pattern) {
            // The library's message draws the expression over several lines; its last line is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            self.add(field, format!("{pattern:?} is not a regular expression: {reason}"));
        }
    }

    /// `present` says whether `{}` has a meaning here.
    fn string_match(&mut self, field: &str, value: &StringMatch, present: bool, empty_prefix: bool) {
        match value {
            StringMatch::Present if !present => {
                self.add(field, "one of exact, prefix and regex is required");
            }
            StringMatch::Prefix(prefix) if prefix.is_empty() && !empty_prefix => {
                self.add(
                    format!("{field}.prefix"),
                    "the prefix is empty; leave the field out to match anything",
                );
            }
            // Istio reads a lone `*` as "any value" in header matches.
            StringMatch::Regex(pattern) if !(present && pattern == "*") => {
                self.regex(&format!("{field}.regex"), pattern);
            }
            _ => {}
        }
    }

    /// A host to which short names, names and (where allowed) wildcards belong.
    fn host(&mut self, field: &str, host: &str, wildcard: bool) {
        let reason = if host.is_empty() {
            Some("the host is empty".to_owned())
        } else if host == "*" || host.starts_with("*.") {
            let rest = host.strip_prefix("*.").unwrap_or("a");
            if !wildcard {
                Some(format!("{host:?} is a wildcard; name one host"))
            } else {
                dns_name(rest).err().map(|reason| format!("{host:?} is not a host: {reason}"))
            }
        } else if host.contains('*') && wildcard && host.starts_with('*') {
            // Istio also takes a wildcard for a part of the leftmost label.
            dns_name(host.trim_start_matches('*').trim_start_matches('-'))
                .err()
                .map(|reason| format!("{host:?} is not a host: {reason}"))
        } else {
            dns_name(host).err().map(|reason| format!("{host:?} is not a host: {reason}"))
        };
        if let Some(reason) = reason {
            self.add(field, reason);
        }
    }

    fn export_to(&mut self, namespace: &str, list: &[String], nobody: bool) {
        let mut seen: Vec<&str> = Vec::new();
        for (i, to) in list.iter().enumerate() {
            let field = format!("spec.exportTo[{i}]");
            let namespace_of = if to == "." { namespace } else { to.as_str() };
            if seen.contains(&namespace_of) {
                self.add(&field, format!("{to:?} stands here twice (\".\" is the namespace {namespace})"));
            }
            seen.push(namespace_of);
            match to.as_str() {
                "*" if list.len() > 1 => self.add(&field, "\"*\" means everybody; keep it alone"),
                "~" if !nobody => self.add(&field, "\"~\" has a meaning for services only"),
                "~" if list.len() > 1 => self.add(&field, "\"~\" means nobody; keep it alone"),
                "*" | "." | "~" => {}
                name => {
                    if let Err(reason) = dns_label(name) {
                        self.add(&field, format!("{name:?} is not a namespace: {reason}"));
                    }
                }
            }
        }
    }

    /// Labels that select: no wildcards, and keys and values as Kubernetes has them.
    fn labels(&mut self, field: &str, labels: &Labels) {
        for (key, value) in labels {
            if key.is_empty() {
                self.add(field, "a label's key is empty");
            } else if key.contains('*') || value.contains('*') {
                self.add(format!("{field}[{key}]"), "labels are compared exactly; a wildcard has no meaning");
            } else if value.len() > MAX_LABEL {
                self.add(format!("{field}[{key}]"), "a label's value has at most 63 characters");
            }
        }
    }

    fn selector(&mut self, selector: Option<&Selector>) {
        if let Some(selector) = selector {
            self.labels("spec.selector.matchLabels", &selector.match_labels);
        }
    }

    fn target_refs(
        &mut self,
        meta: &ObjectMeta,
        selector: Option<&Selector>,
        one: Option<&TargetRef>,
        many: &[TargetRef],
    ) {
        if selector.is_some() && (one.is_some() || !many.is_empty()) {
            self.add("spec.targetRefs", "targetRefs and selector exclude one another; keep one");
        }
        if one.is_some() && !many.is_empty() {
            self.add("spec.targetRef", "targetRef is the old form of targetRefs; keep targetRefs");
        }
        let many = many.iter().enumerate().map(|(i, r)| (format!("spec.targetRefs[{i}]"), r));
        for (field, target) in one.map(|r| ("spec.targetRef".to_owned(), r)).into_iter().chain(many) {
            self.require(!target.kind.is_empty(), format!("{field}.kind"), "the kind is required");
            self.require(!target.name.is_empty(), format!("{field}.name"), "the name is required");
            if !target.namespace.is_empty() && target.namespace != meta.namespace {
                self.add(
                    format!("{field}.namespace"),
                    "only objects of the policy's own namespace can be named",
                );
            }
        }
    }
}

/// Checks a DNS label.
fn dns_label(label: &str) -> Result<(), &'static str> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if label.is_empty() {
        return Err("a part is empty");
    }
    if label.len() > MAX_LABEL {
        return Err("a part has more than 63 characters");
    }
    if !label.bytes().all(ok) {
        return Err("only letters, digits, '-' and '.' are allowed");
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err("a part starts or ends with '-'");
    }
    Ok(())
}

/// Checks a DNS name; a dot at its end is fine.
fn dns_name(name: &str) -> Result<(), &'static str> {
    if name.len() > MAX_NAME {
        return Err("it has more than 253 characters");
    }
    name.strip_suffix('.').unwrap_or(name).split('.').try_for_each(dns_label)
}

/// Whether a text is an address or a block of addresses.
fn is_ip_or_cidr(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok() || text.parse::<ipnet::IpNet>().is_ok()
}

/// What is wrong with metadata, whatever the kind.
pub(crate) fn metadata(kind_namespaced: bool, meta: &ObjectMeta) -> Vec<Problem> {
    let mut found = Found::default();
    if meta.name.is_empty() {
        found.add("metadata.name", "the name is required");
    } else if meta.name.len() > MAX_NAME
        || meta.name.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace())
    {
        found.add("metadata.name", "the name is not a DNS name");
    }
    if kind_namespaced && let Err(reason) = dns_label(&meta.namespace) {
        found.add("metadata.namespace", format!("{:?} is not a namespace: {reason}", meta.namespace));
    }
    found.0
}

impl Validate for Service {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        let mut found = Found::default();
        for (i, port) in self.ports.iter().enumerate() {
            found.require(
                port.port != 0,
                format!("spec.ports[{i}].port"),
                "the port is required, 1 to 65535",
            );
            let twin = self.ports.iter().take(i).any(|p| p.name == port.name);
            if twin {
                found
                    .add(format!("spec.ports[{i}].name"), format!("two ports have the name {:?}", port.name));
            }
        }
        found.0
    }
}

impl Validate for EndpointSlice {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        Vec::new()
    }
}

impl Validate for Pod {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        Vec::new()
    }
}

impl Validate for Namespace {
    fn problems(&self, _: &ObjectMeta) -> Vec<Problem> {
        Vec::new()
    }
}
