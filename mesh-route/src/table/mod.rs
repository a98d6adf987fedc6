//! The table of routes: which host, which rule, which destination.
//!
//! [`compile_http`] turns a VirtualService into the rules of one service port; [`HostRoutes`] holds the
//! rules of one host; a [`RouteTable`] finds the host by the names that it may be called by. All of it is
//! immutable: a change builds a new table that shares, by pointer, every host that did not change.
//!
//! [`RouteTable::route`] decides and does nothing else: the random draw of a weighted split is an argument.
//!
//! ```
//! use std::sync::Arc;
//! use http::{HeaderMap, Method, Uri};
//! use mesh_core::cluster::{ClusterKey, ClusterSettings, Registry, ServiceName};
//! use mesh_core::failure::FailureCode;
//! use mesh_core::normal::Authority;
//! use tower_mesh_route::matching::RequestView;
//! use tower_mesh_route::table::{CompileContext, HostRoutes, Resolved, RouteTable, compile_http};
//!
//! const REVIEWS: &str = "reviews.default.svc.cluster.local";
//! let registry = Registry::new();
//! let cluster = registry.cluster(
//!     &ClusterKey::new(REVIEWS, 9080, ""),
//!     &ServiceName::new(REVIEWS, "reviews", "default"),
//!     ClusterSettings::default(),
//!     vec![],
//! );
//! let labels = Default::default();
//! let context = CompileContext {
//!     namespace: "default",
//!     labels: &labels,
//!     cluster_domain: "cluster.local",
//!     host: REVIEWS,
//!     port: 9080,
//!     resolve: &|_| Resolved::Cluster(Arc::clone(&cluster)),
//! };
//! let compiled = compile_http(None, &context);
//! let host = Arc::new(HostRoutes::new(REVIEWS, [(9080, compiled.routes)]));
//! let table = RouteTable::builder().host(["reviews", REVIEWS], &host).build();
//!
//! let (uri, headers) = (Uri::from_static("/"), HeaderMap::new());
//! let find = |authority: &str| {
//!     let authority = Authority::parse(authority).unwrap();
//!     let request = RequestView::new(&Method::GET, &uri, &headers, &authority);
//!     table.route(&request, 0).map(|found| found.name().to_string()).map_err(|failure| failure.code())
//! };
//! assert_eq!(find("reviews:9080"), Ok("default".into()));
//! assert_eq!(find("nobody"), Err(FailureCode::UnknownHost));
//! ```

mod actions;
mod compile;
mod conditions;
mod rule;
mod split;
mod starts;
mod tcp;

pub use actions::MAX_DIRECT_BODY;
pub use compile::{
    CompileContext, Compiled, DestinationRef, Resolved, binds_to_mesh, compile_http, full_host, validate,
};
pub use rule::{Action, Applied, Destination, Forward, Match, Routes, Rule};
pub use split::Weights;
pub use tcp::{CompiledTcp, TcpDestination, TcpRoutes, compile_tcp};

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use mesh_core::failure::{Failure, FailureCode};

use crate::matching::RequestView;

/// The port of a host that is called without one and has several.
pub const DEFAULT_PORT: u16 = 80;

/// All that a process knows about where requests go. Immutable; cheap to build from shared hosts.
#[derive(Clone, Default)]
pub struct RouteTable {
    names: HashMap<Box<str>, Arc<HostRoutes>>,
    /// By what follows the `*`.
    wildcards: HashMap<Box<str>, Arc<HostRoutes>>,
    /// The lengths of the wildcards' suffixes, longest first, so that the most specific is found first.
    lengths: Box<[usize]>,
}

/// Makes a [`RouteTable`].
#[derive(Debug, Clone, Default)]
pub struct RouteTableBuilder {
    table: RouteTable,
    taken: Vec<Taken>,
}

/// A name that two hosts claim; the first one has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The name, such as `reviews`.
    pub domain: String,
    /// The full name of the host that wanted it too.
    pub loser: Arc<str>,
}

/// The rules of one host, for each of its ports. Shared between tables.
#[derive(Debug)]
pub struct HostRoutes {
    host: Arc<str>,
    /// Sorted by port.
    ports: Box<[(u16, Routes)]>,
}

impl RouteTable {
    /// Starts with no hosts.
    pub fn builder() -> RouteTableBuilder {
        RouteTableBuilder::default()
    }

    /// The host that a name (lower case, without port) belongs to: the name itself, else the longest
    /// wildcard that covers it.
    pub fn host(&self, name: &str) -> Option<&Arc<HostRoutes>> {
        self.names.get(name).or_else(|| {
            self.lengths.iter().find_map(|length| {
                let cut = name.len().checked_sub(*length).filter(|cut| *cut > 0)?;
                self.wildcards.get(name.get(cut..)?)
            })
        })
    }

    /// Every name and wildcard with its host, in no order.
    pub fn domains(&self) -> impl Iterator<Item = (String, &Arc<HostRoutes>)> {
        let names = self.names.iter().map(|(name, host)| (name.to_string(), host));
        names.chain(self.wildcards.iter().map(|(suffix, host)| (format!("*{suffix}"), host)))
    }

    /// Decides where `request` goes. `draw` is any random number; a weighted split uses it, nothing else
    /// does. Pure.
    ///
    /// # Errors
    /// `unknown_host` where no host has the name or the host does not have the port; `no_route` where no
    /// rule matches. A rule whose destination does not exist is a [`Match`]; asked for its
    /// [cluster](Match::cluster), it gives the failure.
    pub fn route(&self, request: &RequestView<'_>, draw: u64) -> Result<Match<'_>, Failure> {
        let host = self.host(request.authority.name()).ok_or_else(|| {
            Failure::new(FailureCode::UnknownHost)
                .detail(format!("no service is called {:?}", request.authority.name()))
        })?;
        host.route(request, draw)
    }
}

impl RouteTableBuilder {
    /// Adds a host under the names that it may be called by: exact ones (`reviews`,
    /// `reviews.default.svc.cluster.local`, an address) and wildcards (`*.example.com`, `*`). Case and a
    /// trailing dot do not matter. A name that is there already stays as it is.
    #[must_use]
    pub fn host<I>(mut self, domains: I, routes: &Arc<HostRoutes>) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        for domain in domains {
            let domain = domain.as_ref().to_ascii_lowercase();
            let domain = domain.strip_suffix('.').unwrap_or(&domain);
            let (map, key) = match domain.strip_prefix('*') {
                Some(suffix) => (&mut self.table.wildcards, suffix),
                None => (&mut self.table.names, domain),
            };
            if let Some(there) = map.get(key) {
                if !Arc::ptr_eq(there, routes) {
                    self.taken.push(Taken { domain: domain.to_owned(), loser: Arc::clone(&routes.host) });
                }
                continue;
            }
            map.insert(key.into(), Arc::clone(routes));
        }
        self
    }

    /// The names that were claimed twice so far.
    pub fn taken(&self) -> &[Taken] {
        &self.taken
    }

    /// The table.
    pub fn build(mut self) -> RouteTable {
        let mut lengths: Vec<usize> = self.table.wildcards.keys().map(|suffix| suffix.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        self.table.lengths = lengths.into();
        self.table
    }
}

impl HostRoutes {
    /// The rules of the host with this full name, for each of its ports.
    pub fn new(host: &str, ports: impl IntoIterator<Item = (u16, Routes)>) -> Self {
        let mut ports: Vec<_> = ports.into_iter().collect();
        ports.sort_by_key(|(port, _)| *port);
        ports.dedup_by_key(|(port, _)| *port);
        Self { host: host.into(), ports: ports.into() }
    }

    /// The host's full name.
    pub fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// The rules of each port, by port.
    pub fn ports(&self) -> &[(u16, Routes)] {
        &self.ports
    }

    /// The port that a call means: the one it names, else the only one, else [`DEFAULT_PORT`]; with its rules.
    pub fn port(&self, asked: Option<u16>) -> Option<(u16, &Routes)> {
        let (port, routes) = match (asked, &*self.ports) {
            (None, [only]) => only,
            (asked, ports) => {
                let asked = asked.unwrap_or(DEFAULT_PORT);
                ports.get(ports.binary_search_by_key(&asked, |(port, _)| *port).ok()?)?
            }
        };
        Some((*port, routes))
    }

    /// As [`RouteTable::route`], when the host is known already.
    ///
    /// # Errors
    /// As [`RouteTable::route`].
    pub fn route(&self, request: &RequestView<'_>, draw: u64) -> Result<Match<'_>, Failure> {
        let (port, routes) = self.port(request.port).ok_or_else(|| {
            let port = request.port.unwrap_or(DEFAULT_PORT);
            Failure::new(FailureCode::UnknownHost).detail(format!("{} has no port {port}", self.host))
        })?;
        routes.find(request, port, draw).ok_or_else(|| {
            let failure = Failure::new(FailureCode::NoRoute)
                .detail(format!("no rule of {} for port {port} matches", self.host));
            match routes.resource() {
                Some(resource) => failure.resource(resource.clone()),
                None => failure,
            }
        })
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.domains().map(|(domain, host)| (domain, &host.host))).finish()
    }
}

#[cfg(test)]
mod tests;
