//! Compiled rules, and what was found for a request.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use mesh_core::cluster::{Cluster, ClusterKey};
use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{Facts, MatchedRoute};
use mesh_core::failure::{Failure, FailureCode};

use super::split::Weights;
use super::starts::{Beginning, Start, starts};
use crate::headers::HeaderOps;
use crate::matching::{Condition, RequestView};
use crate::policy::RoutePolicy;
use crate::redirect::{DirectResponse, Redirect};
use crate::rewrite::{PathRewrite, set_authority, set_path};

/// The rules for one port of one host, in order; the first that matches wins. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    entries: Arc<[Entry]>,
    /// One for each entry, or none.
    starts: Arc<[Start]>,
}

/// One `match` of one rule: what the list of routes is made of, since a rewrite of a prefix depends on which
/// match it was.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` holds always.
    pub(super) condition: Option<Condition>,
    /// Which `match` of the rule it is.
    pub(super) index: Option<usize>,
    /// The route's name with the match's.
    pub(super) name: Arc<str>,
    pub(super) rule: Arc<Rule>,
}

/// One compiled rule.
#[derive(Debug)]
pub struct Rule {
    /// The VirtualService; `None` for the default route of a service without one.
    pub resource: Option<ResourceRef>,
    /// Which entry of `spec.http` it is.
    pub index: usize,
    /// What it does.
    pub action: Action,
    /// Changes of the response's headers, whoever answers.
    pub response_headers: HeaderOps,
    /// What the layers behind the router do.
    pub policy: Arc<RoutePolicy>,
}

/// What a rule does with a request.
#[derive(Debug)]
pub enum Action {
    /// Sends it on.
    Forward(Forward),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers by itself.
    Respond(DirectResponse),
}

/// How a request is sent on.
#[derive(Debug)]
pub struct Forward {
    /// Where to, by weight.
    pub destinations: Weights<Destination>,
    /// What becomes of the path.
    pub path: Option<PathRewrite>,
    /// The authority in place of the request's, unless a destination has one.
    pub authority: Option<Box<str>>,
    /// Changes of the request's headers, before a destination's own.
    pub request_headers: HeaderOps,
}

/// One destination of a rule.
#[derive(Debug)]
pub struct Destination {
    /// What it is called, also where nothing is there.
    pub key: ClusterKey,
    /// The cluster, or why there is none.
    pub target: Result<Arc<Cluster>, Failure>,
    /// Changes of the request's headers, after the rule's.
    pub request_headers: HeaderOps,
    /// Changes of the response's headers, after the rule's.
    pub response_headers: HeaderOps,
}

/// What was found for a request. Borrowed from the table.
#[derive(Clone, Copy)]
pub struct Match<'t> {
    entry: &'t Entry,
    destination: Option<&'t Destination>,
    port: u16,
}

/// What is left to do once a request was answered: the header operations of its route. Cheap; nothing to do
/// for most routes.
#[derive(Debug, Clone)]
pub struct Applied {
    rule: Arc<Rule>,
    /// Which destination it was.
    destination: Option<usize>,
}

impl Routes {
    pub(super) fn of(entries: Vec<Entry>) -> Self {
        let starts = starts(&entries);
        Self { entries: entries.into(), starts }
    }

    pub(super) fn find(&self, request: &RequestView<'_>, port: u16, draw: u64) -> Option<Match<'_>> {
        let holds = |entry: &&Entry| entry.condition.as_ref().is_none_or(|c| c.matches(request));
        let entry = if self.starts.is_empty() {
            self.entries.iter().find(holds)?
        } else {
            let path = Beginning::of(request.path);
            let admitting = self.starts.iter().zip(&*self.entries).filter(|(start, _)| start.admits(path));
            admitting.map(|(_, entry)| entry).find(holds)?
        };
        let destination = match &entry.rule.action {
            Action::Forward(forward) => forward.destinations.choose(draw),
            Action::Redirect(_) | Action::Respond(_) => None,
        };
        Some(Match { entry, destination, port })
    }

    /// The resource that the rules come from; `None` for a default route.
    pub fn resource(&self) -> Option<&ResourceRef> {
        self.entries.first()?.rule.resource.as_ref()
    }

    /// How many conditions are tried at most.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no rule, so that every request fails with `no_route`.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The rules with the condition of each, in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&Condition>, &Arc<Rule>)> {
        self.entries.iter().map(|entry| (entry.condition.as_ref(), &entry.rule))
    }

    /// Every destination that exists, of every rule.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.entries.iter().flat_map(|entry| match &entry.rule.action {
            Action::Forward(forward) => {
                forward.destinations.iter().filter_map(|(_, to)| to.target.as_ref().ok()).collect()
            }
            Action::Redirect(_) | Action::Respond(_) => Vec::new(),
        })
    }
}

impl<'t> Match<'t> {
    /// The rule.
    pub fn rule(&self) -> &'t Arc<Rule> {
        &self.entry.rule
    }

    /// The VirtualService that decided; `None` for a default route.
    pub fn resource(&self) -> Option<&'t ResourceRef> {
        self.entry.rule.resource.as_ref()
    }

    /// The route's name as in access logs: `rule`, `rule.match`, else `default`.
    pub fn name(&self) -> &'t Arc<str> {
        &self.entry.name
    }

    /// The rule's field, such as `spec.http[0].match[1]`; empty for a default route.
    pub fn field(&self) -> String {
        match (&self.entry.rule.resource, self.entry.index) {
            (None, _) => String::new(),
            (Some(_), None) => format!("spec.http[{}]", self.entry.rule.index),
            (Some(_), Some(index)) => format!("spec.http[{}].match[{index}]", self.entry.rule.index),
        }
    }

    /// The condition that held; `None` for a rule that holds always.
    pub fn condition(&self) -> Option<&'t Condition> {
        self.entry.condition.as_ref()
    }

    /// The port of the host that was called.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The destination that was drawn; `None` for a rule that answers by itself.
    pub fn destination(&self) -> Option<&'t Destination> {
        self.destination
    }

    /// Where the request goes; `None` for a rule that answers by itself.
    ///
    /// # Errors
    /// `unknown_subset` where the destination does not exist.
    pub fn cluster(&self) -> Result<Option<&'t Arc<Cluster>>, Failure> {
        match (&self.entry.rule.action, self.destination) {
            (Action::Redirect(_) | Action::Respond(_), _) => Ok(None),
            (Action::Forward(_), Some(to)) => match &to.target {
                Ok(cluster) => Ok(Some(cluster)),
                Err(failure) => Err(self.at_fault(failure.clone())),
            },
            (Action::Forward(_), None) => {
                Err(self
                    .at_fault(Failure::new(FailureCode::UnknownSubset).detail("no destination has a weight")))
            }
        }
    }

    fn at_fault(&self, failure: Failure) -> Failure {
        match (failure.at_fault(), self.resource()) {
            (None, Some(resource)) => failure.resource(resource.clone()),
            _ => failure,
        }
    }

    /// What [`Facts`] remember of it.
    pub fn matched_route(&self) -> MatchedRoute {
        let policy: Arc<dyn Any + Send + Sync> = Arc::clone(&self.entry.rule.policy) as _;
        MatchedRoute {
            resource: self.resource().cloned(),
            name: Arc::clone(&self.entry.name),
            cluster: self.destination.and_then(|to| to.target.as_ref().ok()).cloned(),
            policy,
        }
    }

    /// How many bytes of `path` the prefix of the condition covers. A rule that asks nothing of the path
    /// covers the `/`, as Istio's do.
    pub fn prefix(&self, path: &str) -> Option<usize> {
        match self.entry.condition.as_ref().and_then(|c| c.uri.as_ref()) {
            Some(uri) => uri.matched_prefix(path),
            None => path.starts_with('/').then_some(1),
        }
    }

    /// The answer of a rule that answers by itself.
    pub fn answer<R: Default + From<Bytes>>(&self, request: &RequestView<'_>) -> Option<Response<R>> {
        match &self.entry.rule.action {
            Action::Forward(_) => None,
            Action::Redirect(redirect) => Some(redirect.response(request, self.prefix(request.path))),
            Action::Respond(direct) => Some(direct.response()),
        }
    }

    /// Changes a request as the rule says before it is sent on: headers (the rule's, then the
    /// destination's), then authority, then path.
    ///
    /// # Errors
    /// `bad_request` where this path cannot be rewritten so.
    pub fn apply<B>(&self, request: &mut Request<B>, facts: Option<&Facts>) -> Result<(), Failure> {
        let Action::Forward(forward) = &self.entry.rule.action else {
            return Ok(());
        };
        let failed = |reason: crate::rewrite::NotRewritten| {
            self.at_fault(
                Failure::new(FailureCode::BadRequest).detail(format!("{}.rewrite: {reason}", self.field())),
            )
        };
        forward.request_headers.apply_to_request(request, facts);
        if let Some(to) = self.destination {
            to.request_headers.apply_to_request(request, facts);
        }
        let authority = forward
            .authority
            .as_deref()
            .or_else(|| self.destination.and_then(|to| to.request_headers.authority()));
        if let Some(authority) = authority {
            set_authority(request, authority).map_err(failed)?;
        }
        if let Some(rewrite) = &forward.path {
            let path = rewrite.apply(request.uri().path(), self.prefix(request.uri().path()));
            set_path(request, &path.map_err(failed)?).map_err(failed)?;
        }
        Ok(())
    }

    /// What to do to the response; `None` where there is nothing.
    pub fn on_response(&self) -> Option<Applied> {
        let rule = &self.entry.rule;
        let destination = match (&rule.action, self.destination) {
            (Action::Forward(forward), Some(chosen)) if !chosen.response_headers.is_empty() => {
                forward.destinations.iter().position(|(_, to)| std::ptr::eq(to, chosen))
            }
            _ => None,
        };
        let nothing = rule.response_headers.is_empty() && destination.is_none();
        (!nothing).then(|| Applied { rule: Arc::clone(rule), destination })
    }
}

impl Applied {
    /// Changes the headers of a response: as the rule says, then as the destination says.
    pub fn apply(&self, headers: &mut HeaderMap, version: Version, facts: Option<&Facts>) {
        self.rule.response_headers.apply_to_response(headers, version, facts);
        if let (Action::Forward(forward), Some(index)) = (&self.rule.action, self.destination)
            && let Some((_, to)) = forward.destinations.iter().nth(index)
        {
            to.response_headers.apply_to_response(headers, version, facts);
        }
    }
}

/// Tells what was decided as `meshctl explain` does.
impl fmt::Display for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resource() {
            Some(resource) => write!(f, "{resource}: {}", self.field())?,
            None => f.write_str("no VirtualService: default route")?,
        }
        if let Some(condition) = self.condition() {
            write!(f, " ({condition})")?;
        }
        match (&self.entry.rule.action, self.destination) {
            (Action::Forward(_), Some(to)) => write!(f, " -> {}", to.key),
            (Action::Forward(_), None) => f.write_str(" -> nowhere"),
            (Action::Redirect(Redirect { status, .. }), _) => write!(f, " -> redirect {}", code(*status)),
            (Action::Respond(DirectResponse { status, .. }), _) => write!(f, " -> answer {}", code(*status)),
        }
    }
}

fn code(status: StatusCode) -> u16 {
    status.as_u16()
}

impl fmt::Debug for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Match({self})")
    }
}
