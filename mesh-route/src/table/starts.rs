//! Which entries of a host a path can meet at all, by its first bytes.
//!
//! The conditions of a host lie all over the memory, and most of them ask for another path. With many hosts none of that
//! is in the processor's caches: what is asked first is here, side by side, four to a line of them.

use std::sync::Arc;

use mesh_core::matcher::StringMatcher;

use super::rule::Entry;

/// How many bytes of a path are looked at.
const LOOKED_AT: usize = 15;
/// So few entries are as quickly asked themselves.
const ALONE: usize = 2;

/// How the paths begin that an entry is for: [`LOOKED_AT`] bytes at most, the first one lowest, and in the highest byte
/// how many bits they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start(u128);

/// The first bytes of a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning(u128);

impl Beginning {
    pub(super) fn of(path: &str) -> Self {
        Self(first_bytes(path))
    }
}

impl Start {
    /// Of an entry; one that says nothing about how a path begins is for all of them.
    fn of(entry: &Entry) -> Self {
        match entry.condition.as_ref().and_then(|condition| condition.uri.as_ref()) {
            Some(StringMatcher::Exact(text) | StringMatcher::Prefix(text)) => {
                let bits = text.len().min(LOOKED_AT) as u128 * 8;
                Self(first_bytes(text) | bits << (LOOKED_AT * 8))
            }
            _ => Self(0),
        }
    }

    /// Whether a path that begins so may meet the entry. One that meets it always may.
    pub(super) fn admits(self, path: Beginning) -> bool {
        let bits = self.0 >> (LOOKED_AT * 8);
        (path.0 ^ self.0) & ((1 << bits) - 1) == 0
    }
}

/// Those of a host's entries, in their order; none where it is no use.
pub(super) fn starts(entries: &[Entry]) -> Arc<[Start]> {
    let all = entries.iter().map(Start::of);
    if entries.len() <= ALONE || all.clone().all(|start| start == Start(0)) {
        return Arc::default();
    }
    all.collect()
}

fn first_bytes(text: &str) -> u128 {
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(text.bytes().take(LOOKED_AT)) {
        *place = byte;
    }
    u128::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};
    use mesh_core::normal::Authority;
    use proptest::prelude::*;

    use super::*;
    use crate::matching::{Condition, RequestView};
    use crate::table::rule::Routes;
    use crate::table::{Action, Rule};

    fn entry(uri: Option<StringMatcher>) -> Entry {
        let action = Action::Respond(crate::redirect::DirectResponse {
            status: http::StatusCode::OK,
            body: bytes::Bytes::new(),
        });
        let rule = Rule {
            resource: None,
            index: 0,
            action,
            response_headers: Default::default(),
            policy: Arc::default(),
        };
        let condition = uri.map(|uri| Condition { uri: Some(uri), ..Condition::default() });
        Entry { condition, index: None, name: "test".into(), rule: Arc::new(rule) }
    }

    fn matchers() -> impl Strategy<Value = Option<StringMatcher>> {
        // Short and long ones, many of which begin alike.
        let text = "/(a|ab|b|\u{0}|\u{e4}){0,10}";
        prop_oneof![
            text.prop_map(|t| Some(StringMatcher::Exact(t.into()))),
            text.prop_map(|t| Some(StringMatcher::Prefix(t.into()))),
            text.prop_map(|t| Some(StringMatcher::PrefixIgnoreCase(t.into()))),
            text.prop_map(|t| Some(StringMatcher::Suffix(t.into()))),
            Just(Some(StringMatcher::Prefix("".into()))),
            Just(None),
        ]
    }

    proptest! {
        #[test]
        fn what_a_path_meets_is_never_passed_over(
            uris in prop::collection::vec(matchers(), 0..12),
            path in "/(a|ab|b|A){0,12}",
        ) {
            let routes = Routes::of(uris.into_iter().map(entry).collect());
            let (uri, headers) = (path.parse::<Uri>().unwrap(), HeaderMap::new());
            let authority = Authority::parse("reviews").unwrap();
            let request = RequestView::new(&Method::GET, &uri, &headers, &authority);
            let first = routes.iter().position(|(condition, _)| condition.is_none_or(|c| c.matches(&request)));
            let found = routes.find(&request, 80, 0);
            let place = found.and_then(|found| routes.iter().position(|(_, rule)| Arc::ptr_eq(rule, found.rule())));
            prop_assert_eq!(place, first);
        }
    }

    #[test]
    fn a_path_that_begins_otherwise_is_not_admitted() {
        let start = |text: &str| Start::of(&entry(Some(StringMatcher::Prefix(text.into()))));
        for (text, path, admitted) in [
            ("/api/v1/", "/api/v1/item", true),
            ("/api/v1/", "/api/v10/item", false),
            ("/api/v1/", "/api/v1", false),
            ("/", "/", true),
            ("", "/x", true),
            // No more is looked at.
            ("/0123456789abcdef", "/0123456789abcdXX", true),
            ("/0123456789abcdef", "/0123456789abcX", false),
        ] {
            assert_eq!(start(text).admits(Beginning::of(path)), admitted, "{text} {path}");
        }
    }

    #[test]
    fn where_it_says_nothing_there_is_none() {
        let any = || entry(Some(StringMatcher::Suffix(".html".into())));
        let prefix = || entry(Some(StringMatcher::Prefix("/a".into())));
        assert_eq!(starts(&[any(), any(), any()]).len(), 0);
        assert_eq!(starts(&[prefix(), prefix()]).len(), 0);
        assert_eq!(starts(&[prefix(), any(), prefix()]).len(), 3);
    }
}
