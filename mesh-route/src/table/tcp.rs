//! Routes of connections that are not HTTP.

use std::sync::Arc;

use mesh_core::cluster::{Cluster, ClusterKey};
use mesh_core::diagnostic::{Diagnostic, ResourceRef};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::resource::virtual_service::{L4MatchAttributes, TcpRoute};
use mesh_core::resource::{Resource, VirtualService, selects};

use super::compile::{
    CompileContext, Complaints, DestinationRef, binds_to_mesh, full_host, resolve_destination, written,
};
use super::split::Weights;

/// Where connections to one port of one host go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TcpRoutes {
    resource: Option<ResourceRef>,
    destinations: Arc<Weights<TcpDestination>>,
}

/// One destination of connections.
#[derive(Debug, Clone)]
pub struct TcpDestination {
    /// What it is called, also where nothing is there.
    pub key: ClusterKey,
    /// The cluster, or why there is none.
    pub target: Result<Arc<Cluster>, Failure>,
}

/// Compiled routes of connections, and what there is to say about them.
#[derive(Debug, Clone)]
pub struct CompiledTcp {
    /// The routes. Where an error stands among the diagnostics these are a service's without VirtualService.
    pub routes: TcpRoutes,
    /// What is not supported, wrong, or without effect.
    pub diagnostics: Vec<Diagnostic>,
}

impl TcpRoutes {
    /// The VirtualService that decides; `None` for the default route.
    pub fn resource(&self) -> Option<&ResourceRef> {
        self.resource.as_ref()
    }

    /// Where a connection goes; `draw` is any random number. Pure.
    ///
    /// # Errors
    /// `unknown_subset` where the destination does not exist.
    pub fn route(&self, draw: u64) -> Result<&Arc<Cluster>, Failure> {
        let failure = match self.destinations.choose(draw).map(|to| &to.target) {
            Some(Ok(cluster)) => return Ok(cluster),
            Some(Err(failure)) => failure.clone(),
            None => Failure::new(FailureCode::UnknownSubset).detail("no destination has a weight"),
        };
        Err(match &self.resource {
            Some(resource) if failure.at_fault().is_none() => failure.resource(resource.clone()),
            _ => failure,
        })
    }

    /// Each destination that has a share, with its weight.
    pub fn destinations(&self) -> impl Iterator<Item = (u64, &TcpDestination)> {
        self.destinations.iter()
    }
}

/// Compiles the TCP rules of `vs` for one port of one host: the first rule that applies to this caller and
/// port; without one, everything goes to the service itself. Pure.
pub fn compile_tcp(vs: Option<&Resource<VirtualService>>, context: &CompileContext<'_>) -> CompiledTcp {
    let own = || {
        let to = DestinationRef {
            host: context.host,
            port: Some(context.port),
            default_port: context.port,
            subset: "",
        };
        let (key, target) = resolve_destination(&to, context);
        let destinations = Arc::new(Weights::new([(1, TcpDestination { key, target })]));
        TcpRoutes { resource: None, destinations }
    };
    let Some(vs) = vs.filter(|vs| binds_to_mesh(&vs.spec)) else {
        return CompiledTcp { routes: own(), diagnostics: Vec::new() };
    };
    let mut complaints = Complaints::new(vs);
    check(vs, &mut complaints);
    let rule = vs.spec.tcp.iter().find(|rule| applies(rule, context));
    let routes = match rule.filter(|_| !complaints.failed()) {
        None => own(),
        Some(rule) => {
            let each = rule.route.iter().filter_map(|to| {
                let named = to.destination.as_ref()?;
                let host = full_host(&named.host, &vs.meta.namespace, context.cluster_domain);
                let (key, target) = resolve_destination(&written(named, &host, context), context);
                Some((to.weight, TcpDestination { key, target }))
            });
            TcpRoutes { resource: Some(vs.reference()), destinations: Arc::new(Weights::new(each)) }
        }
    };
    CompiledTcp { routes, diagnostics: complaints.into_list() }
}

fn applies(rule: &TcpRoute, context: &CompileContext<'_>) -> bool {
    let one = |m: &L4MatchAttributes| {
        let source = if m.gateways.is_empty() {
            selects(&m.source_labels, context.labels)
                && (m.source_namespace.is_empty() || m.source_namespace == context.namespace)
        } else {
            m.gateways.iter().any(|gateway| gateway == "mesh")
        };
        source && (m.port == 0 || m.port == context.port)
    };
    rule.matches.is_empty() || rule.matches.iter().any(one)
}

/// Complains about what is not supported.
pub(super) fn check(vs: &Resource<VirtualService>, complaints: &mut Complaints) {
    for (i, rule) in vs.spec.tcp.iter().enumerate() {
        for (j, m) in rule.matches.iter().enumerate() {
            let field = format!("spec.tcp[{i}].match[{j}]");
            if !m.destination_subnets.is_empty() {
                let message = "matching the address that was called is not supported yet";
                complaints.not_applied(format!("{field}.destinationSubnets"), message);
            }
            if !m.source_subnet.is_empty() {
                complaints.no_effect(format!("{field}.sourceSubnet"), "nobody reads it; use sourceLabels");
            }
        }
    }
}
