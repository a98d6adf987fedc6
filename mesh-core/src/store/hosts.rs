//! Host names: short forms, wildcards, and a map that finds the most specific claim.

use std::collections::HashMap;
use std::sync::Arc;

/// A host of a resource in `namespace`, in full and in lower case: a name without dots is a service of the
/// resource's own namespace.
pub(super) fn fqdn(host: &str, namespace: &str, cluster_domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.is_empty() || host.starts_with('*') || host.contains(['.', ':']) {
        return host;
    }
    format!("{host}.{namespace}.svc.{cluster_domain}")
}

/// The full names that a caller in `namespace` may mean by `called`, the most likely first.
pub(super) fn candidates(called: &str, namespace: &str, cluster_domain: &str) -> Vec<String> {
    let mut names = vec![called.to_owned()];
    match called.split('.').collect::<Vec<_>>().as_slice() {
        [name] => names.push(format!("{name}.{namespace}.svc.{cluster_domain}")),
        [_, _] => names.push(format!("{called}.svc.{cluster_domain}")),
        [_, _, "svc"] => names.push(format!("{called}.{cluster_domain}")),
        _ => {}
    }
    names
}

/// The names by which callers in `namespace` know the Kubernetes service `name.service_namespace`.
pub(super) fn short_forms(name: &str, service_namespace: &str, namespace: &str) -> Vec<String> {
    let mut forms = Vec::with_capacity(3);
    if service_namespace == namespace {
        forms.push(name.to_owned());
    }
    forms.push(format!("{name}.{service_namespace}"));
    forms.push(format!("{name}.{service_namespace}.svc"));
    forms
}

/// Whether every host that `host` stands for is covered by `pattern`. Both may be wildcards; a wildcard
/// is a plain suffix, so that `*.com` covers `a.b.com`.
pub(super) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => match host.strip_prefix('*') {
            Some(rest) => rest.ends_with(suffix),
            None => host.len() > suffix.len() && host.ends_with(suffix),
        },
        None => pattern == host,
    }
}

/// The suffixes by which a wildcard may cover `host`, the longest first; the last is the empty one of `*`.
pub(super) fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.').filter_map(|(at, _)| host.get(at..)).chain(std::iter::once(""))
}

/// Values by host, exact or wildcard.
#[derive(Debug)]
pub(super) struct HostMap<T> {
    exact: HashMap<Arc<str>, Vec<T>>,
    /// By what follows the star.
    wild: HashMap<Arc<str>, Vec<T>>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wild: HashMap::new() }
    }
}

impl<T> HostMap<T> {
    /// Adds a value behind those that `host` has.
    pub(super) fn insert(&mut self, host: &str, value: T) {
        let (map, key) = match host.strip_prefix('*') {
            Some(suffix) => (&mut self.wild, suffix),
            None => (&mut self.exact, host),
        };
        match map.get_mut(key) {
            Some(values) => values.push(value),
            None => {
                map.insert(Arc::from(key), vec![value]);
            }
        }
    }

    /// The values of exactly this host (or exactly this wildcard).
    pub(super) fn of(&self, host: &str) -> &[T] {
        let found = match host.strip_prefix('*') {
            Some(suffix) => self.wild.get(suffix),
            None => self.exact.get(host),
        };
        found.map_or(&[], Vec::as_slice)
    }

    /// Every value, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.exact.values().chain(self.wild.values()).flatten()
    }

    /// The values of every claim that covers `host`, the most specific claim first.
    pub(super) fn covering<'s>(&'s self, host: &str) -> impl Iterator<Item = &'s [T]> {
        let exact = if host.starts_with('*') { None } else { self.exact.get(host) };
        let wild = suffixes(host).filter_map(|suffix| self.wild.get(suffix));
        exact.into_iter().chain(wild).map(Vec::as_slice)
    }

    /// The wildcards that cover `host`, the most specific first, each with its values.
    pub(super) fn wildcards<'a>(&'a self, host: &'a str) -> impl Iterator<Item = (&'a str, &'a [T])> {
        suffixes(host).filter_map(|suffix| Some((suffix, self.wild.get(suffix)?.as_slice())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_a_plain_suffix() {
        for (pattern, host, want) in [
            ("a.b", "a.b", true),
            ("a.b", "x.a.b", false),
            ("*.b", "a.b", true),
            ("*.com", "a.b.com", true),
            ("*.b", "b", false),
            ("*.b", ".b", false),
            ("*", "a", true),
            ("*", "*.b", true),
            ("*.b", "*.a.b", true),
            ("*.b", "*.b", true),
            ("*.a.b", "*.b", false),
            ("a.b", "*.b", false),
        ] {
            assert_eq!(covers(pattern, host), want, "{pattern} {host}");
        }
    }

    #[test]
    fn the_most_specific_claim_comes_first() {
        let mut map = HostMap::default();
        for host in ["*", "*.c", "*.b.c", "a.b.c", "x.y"] {
            map.insert(host, host);
        }
        let found = |host| map.covering(host).flatten().copied().collect::<Vec<_>>();
        assert_eq!(found("a.b.c"), ["a.b.c", "*.b.c", "*.c", "*"]);
        assert_eq!(found("*.b.c"), ["*.b.c", "*.c", "*"]);
        assert_eq!(found("b.c"), ["*.c", "*"]);
        assert_eq!(map.of("*.c"), ["*.c"]);
    }

    #[test]
    fn short_names_belong_to_the_namespace_of_who_says_them() {
        assert_eq!(fqdn("Reviews", "a", "cluster.local"), "reviews.a.svc.cluster.local");
        assert_eq!(fqdn("reviews.b", "a", "cluster.local"), "reviews.b");
        assert_eq!(fqdn("*", "a", "cluster.local"), "*");
        assert_eq!(candidates("x", "a", "c.l"), ["x", "x.a.svc.c.l"]);
        assert_eq!(candidates("x.b", "a", "c.l"), ["x.b", "x.b.svc.c.l"]);
        assert_eq!(candidates("x.b.svc", "a", "c.l"), ["x.b.svc", "x.b.svc.c.l"]);
        assert_eq!(short_forms("x", "b", "a"), ["x.b", "x.b.svc"]);
        assert_eq!(short_forms("x", "a", "a"), ["x", "x.a", "x.a.svc"]);
    }
}
