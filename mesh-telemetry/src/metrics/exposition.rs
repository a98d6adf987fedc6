//! How a scraper reads metrics: OpenMetrics text, or the classic Prometheus text.
//!
//! ```
//! use http::HeaderValue;
//! use tower_mesh_telemetry::metrics::{Exposition, negotiate, to_classic};
//!
//! let prometheus = HeaderValue::from_static("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
//! assert_eq!(negotiate(Some(&prometheus)), Exposition::OpenMetrics);
//! assert_eq!(negotiate(None), Exposition::Classic);
//!
//! let classic = to_classic("# HELP hits How many.\n# TYPE hits counter\nhits_total 1\n# EOF\n");
//! assert_eq!(classic, "# HELP hits_total How many.\n# TYPE hits_total counter\nhits_total 1\n");
//! ```

use http::HeaderValue;

/// A text format for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Exposition {
    /// Prometheus text format 0.0.4, in which `# TYPE` names the samples that follow.
    #[default]
    Classic,
    /// OpenMetrics text format 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// The content type of an answer in this format.
    pub const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }
}

/// Chooses a format by an `Accept` header (RFC 9110, section 12.5.1).
///
/// OpenMetrics is chosen where it is asked for by name, in a version that we write, and no less wanted
/// than text; wildcards and anything unreadable get the classic format.
pub fn negotiate(accept: Option<&HeaderValue>) -> Exposition {
    let Some(accept) = accept.and_then(|a| a.to_str().ok()) else {
        return Exposition::Classic;
    };
    // In thousandths; 0 is "not wanted".
    let (mut open, mut text) = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let (mut q, mut version) = (1000, None);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let (key, value) = (key.trim(), value.trim().trim_matches('"'));
            if key.eq_ignore_ascii_case("q") {
                q = quality(value);
            } else if key.eq_ignore_ascii_case("version") {
                version = Some(value);
            }
        }
        if name.eq_ignore_ascii_case("application/openmetrics-text") {
            if matches!(version, None | Some("1.0.0" | "0.0.1")) {
                open = open.max(q);
            }
        } else if name.eq_ignore_ascii_case("text/plain") && matches!(version, None | Some("0.0.4")) {
            text = text.max(q);
        }
    }
    if open > 0 && open >= text { Exposition::OpenMetrics } else { Exposition::Classic }
}

/// A weight in thousandths; what cannot be read weighs nothing.
fn quality(value: &str) -> u16 {
    match value.parse::<f32>() {
        Ok(q) if (0.0..=1.0).contains(&q) => (q * 1000.0).round() as u16,
        _ => 0,
    }
}

/// Turns OpenMetrics text into the classic text format.
///
/// Families of counters and infos get the name of their samples (`hits` becomes `hits_total`), which is
/// what the classic format's `# TYPE` and `# HELP` name; `# UNIT`, `# EOF`, `_created` samples and
/// exemplars are dropped, timestamps become milliseconds, types that the classic format lacks are named
/// by their nearest one. Text that is no OpenMetrics comes through as it is.
pub fn to_classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    // `# HELP` may stand before the `# TYPE` that says how the family is called.
    let mut help: Option<(&str, &str)> = None;
    let mut family = ("", "unknown");
    for line in openmetrics.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let (keyword, rest) = comment.split_once(' ').unwrap_or((comment, ""));
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            match keyword {
                "HELP" if family.0 == name => help_line(&mut out, name, family.1, text),
                "HELP" => help = Some((name, text)),
                "TYPE" => {
                    if let Some((of, text)) = help.take() {
                        let kind = if of == name { text_type(comment) } else { "unknown" };
                        help_line(&mut out, of, kind, text);
                    }
                    family = (name, text_type(comment));
                    push(&mut out, &["# TYPE ", name, suffix(family.1), " ", classic_type(family.1), "\n"]);
                }
                _ => {}
            }
        } else if !line.starts_with('#') {
            sample_line(&mut out, line, family);
        }
    }
    if let Some((of, text)) = help {
        help_line(&mut out, of, "unknown", text);
    }
    out
}

/// The last word of `TYPE name type`.
fn text_type(comment: &str) -> &str {
    comment.rsplit(' ').next().unwrap_or_default()
}

fn suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

fn classic_type(kind: &str) -> &str {
    match kind {
        "counter" | "gauge" | "histogram" | "summary" => kind,
        "info" | "stateset" => "gauge",
        _ => "untyped",
    }
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

fn help_line(out: &mut String, name: &str, kind: &str, text: &str) {
    push(out, &["# HELP ", name, suffix(kind), " "]);
    // OpenMetrics escapes quotation marks in help, the classic format does not.
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.strip_prefix('"') {
            Some(unquoted) => {
                out.push('"');
                rest = unquoted;
            }
            None => {
                out.push('\\');
                let escaped = after.chars().next();
                out.extend(escaped);
                rest = after.get(escaped.map_or(0, char::len_utf8)..).unwrap_or_default();
            }
        }
    }
    push(out, &[rest, "\n"]);
}

fn sample_line(out: &mut String, line: &str, (name, kind): (&str, &str)) {
    let series_end = series_end(line);
    let (series, values) = line.split_at_checked(series_end).unwrap_or((line, ""));
    let metric = series.split('{').next().unwrap_or_default();
    let created = metric.strip_suffix("_created").is_some_and(|m| m == name);
    if created && matches!(kind, "counter" | "histogram" | "summary") {
        return;
    }
    // What follows the value and its timestamp after a `#` is an exemplar.
    let values = values.split(" # ").next().unwrap_or_default();
    let mut words = values.split_ascii_whitespace();
    out.push_str(series);
    if let Some(value) = words.next() {
        push(out, &[" ", value]);
    }
    if let Some(seconds) = words.next().and_then(|w| w.parse::<f64>().ok()) {
        let ms = (seconds * 1e3).round() as i64;
        push(out, &[" ", itoa::Buffer::new().format(ms)]);
    }
    out.push('\n');
}

/// Where the name and labels of a sample end: after the brace that closes the labels, which may hold
/// braces and spaces between quotation marks.
fn series_end(line: &str) -> usize {
    let (mut quoted, mut escaped, mut braces) = (false, false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => braces = true,
            b'}' if !quoted && braces => return at + 1,
            b' ' if !quoted && !braces => return at,
            _ => {}
        }
    }
    line.len()
}
