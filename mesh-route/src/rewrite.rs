//! Rewrites of path and authority before a request is forwarded.
//!
//! ```
//! use tower_mesh_route::rewrite::PathRewrite;
//!
//! let prefix = PathRewrite::Replace("/v2".into());
//! assert_eq!(prefix.apply("/api/books", Some(4)).unwrap(), "/v2/books");
//! let regex = PathRewrite::regex("^/service/([^/]+)(/.*)$", r"\2/for/\1").unwrap();
//! assert_eq!(regex.apply("/service/foo/v1", None).unwrap(), "/v1/for/foo");
//! ```

use std::fmt;

use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri, header, uri};
use mesh_core::matcher::{InvalidRegex, MAX_REGEX_SIZE, Regex};
use mesh_core::normal::normal_path;

/// The longest path that a rewrite may make, in bytes; longer ones fail the request.
pub const MAX_REWRITTEN: usize = 16 * 1024;

/// What becomes of a path.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// The prefix that matched is replaced by this; where no prefix matched, the whole path is.
    Replace(Box<str>),
    /// What an expression finds is replaced.
    Regex(RegexRewrite),
}

/// A replacement by regular expression: everything that is found in the path is replaced.
#[derive(Clone)]
pub struct RegexRewrite {
    find: regex::Regex,
    template: Box<[TemplatePiece]>,
}

#[derive(Debug, Clone, PartialEq)]
enum TemplatePiece {
    Text(Box<str>),
    Group(usize),
}

/// Why a rewrite cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRewrite {
    /// The expression is none, or too large.
    #[error(transparent)]
    Regex(#[from] InvalidRegex),
    /// The expression compiles to too much.
    #[error("the regex compiles to more than {MAX_REGEX_SIZE} bytes")]
    TooLarge,
    /// The replacement names a group that the expression does not have.
    #[error("the replacement uses \\{0}, and the expression has no such group")]
    Group(usize),
    /// A backslash stands before something that is neither a digit nor a backslash.
    #[error("a backslash in the replacement is followed by neither a digit nor a backslash")]
    Escape,
}

/// Why a path cannot be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotRewritten(&'static str);

impl PathRewrite {
    /// A replacement by regular expression (RE2); `replacement` may use `\0` to `\9` for what was captured
    /// and `\\` for a backslash.
    ///
    /// # Errors
    /// When either cannot be read, or the expression exceeds [`MAX_REGEX`](mesh_core::matcher::MAX_REGEX) or [`MAX_REGEX_SIZE`].
    pub fn regex(find: &str, replacement: &str) -> Result<Self, InvalidRewrite> {
        // Checked as every other expression; this one is searched for and not matched whole.
        Regex::new(find)?;
        let find = regex::RegexBuilder::new(find).size_limit(MAX_REGEX_SIZE).build();
        let find = find.map_err(|_| InvalidRewrite::TooLarge)?;
        let template = template(replacement)?;
        for piece in &template {
            if let TemplatePiece::Group(group) = piece
                && *group >= find.captures_len()
            {
                return Err(InvalidRewrite::Group(*group));
            }
        }
        Ok(Self::Regex(RegexRewrite { find, template }))
    }

    /// The new path, in normal form. `prefix` says how many bytes of `path` a prefix matched.
    ///
    /// # Errors
    /// When what comes out is no path, or longer than [`MAX_REWRITTEN`].
    pub fn apply(&self, path: &str, prefix: Option<usize>) -> Result<String, NotRewritten> {
        let made = match self {
            Self::Replace(text) => {
                let rest = prefix.and_then(|n| path.get(n..)).unwrap_or_default();
                [text, rest].concat()
            }
            Self::Regex(regex) => regex.replace(path)?,
        };
        if made.len() > MAX_REWRITTEN {
            return Err(NotRewritten(TOO_LONG));
        }
        let made = if made.starts_with('/') { made } else { format!("/{made}") };
        // A replacement can put together what was harmless apart: `/x../y` without its `/x`.
        match normal_path(&made) {
            Ok(normal) => Ok(normal.into_owned()),
            Err(_) => Err(NotRewritten("the rewritten path has no normal form")),
        }
    }
}

const TOO_LONG: &str = "the rewritten path is too long";

impl RegexRewrite {
    fn replace(&self, path: &str) -> Result<String, NotRewritten> {
        let (mut out, mut last) = (String::with_capacity(path.len()), 0);
        for captures in self.find.captures_iter(path) {
            let Some(found) = captures.get(0) else { continue };
            out.push_str(path.get(last..found.start()).unwrap_or_default());
            for piece in &self.template {
                match piece {
                    TemplatePiece::Text(text) => out.push_str(text),
                    TemplatePiece::Group(n) => out.push_str(captures.get(*n).map_or("", |c| c.as_str())),
                }
            }
            last = found.end();
            if out.len() > MAX_REWRITTEN {
                return Err(NotRewritten(TOO_LONG));
            }
        }
        out.push_str(path.get(last..).unwrap_or_default());
        Ok(out)
    }
}

fn template(text: &str) -> Result<Box<[TemplatePiece]>, InvalidRewrite> {
    let (mut pieces, mut literal, mut chars) = (Vec::new(), String::new(), text.chars());
    while let Some(c) = chars.next() {
        if c != '\\' {
            literal.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => literal.push('\\'),
            Some(digit) => {
                let group = digit.to_digit(10).ok_or(InvalidRewrite::Escape)?;
                if !literal.is_empty() {
                    pieces.push(TemplatePiece::Text(std::mem::take(&mut literal).into()));
                }
                pieces.push(TemplatePiece::Group(group as usize));
            }
            None => return Err(InvalidRewrite::Escape),
        }
    }
    if !literal.is_empty() {
        pieces.push(TemplatePiece::Text(literal.into()));
    }
    Ok(pieces.into())
}

/// Puts a path in the place of the request's own; the query stays.
///
/// # Errors
/// When the two together are no path that HTTP can carry.
pub fn set_path<B>(request: &mut Request<B>, path: &str) -> Result<(), NotRewritten> {
    let target = match request.uri().query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let target = target.map_err(|_| NotRewritten("the new path is none that HTTP can carry"))?;
    let mut parts = uri::Parts::from(std::mem::take(request.uri_mut()));
    parts.path_and_query = Some(target);
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|_| NotRewritten("the new path is none that HTTP can carry"))?;
    Ok(())
}

/// Puts an authority in the place of the request's own: in the URI, in `Host`, or in both, where they stand.
///
/// # Errors
/// When `authority` is none that HTTP can carry.
pub fn set_authority<B>(request: &mut Request<B>, authority: &str) -> Result<(), NotRewritten> {
    const INVALID: NotRewritten = NotRewritten("the new authority is none that HTTP can carry");
    let in_uri = request.uri().authority().is_some();
    if in_uri {
        let mut parts = uri::Parts::from(std::mem::take(request.uri_mut()));
        parts.authority = Some(uri::Authority::try_from(authority).map_err(|_| INVALID)?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| INVALID)?;
    }
    if !in_uri || request.headers().contains_key(header::HOST) {
        let value = HeaderValue::from_str(authority).map_err(|_| INVALID)?;
        request.headers_mut().insert(header::HOST, value);
    }
    Ok(())
}

impl PartialEq for RegexRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.find.as_str() == other.find.as_str() && self.template == other.template
    }
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Replace(a), Self::Replace(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for RegexRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "regex {:?} -> {:?}", self.find.as_str(), self.template)
    }
}

#[cfg(test)]
mod tests;
