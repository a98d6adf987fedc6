//! What was told, name by name, and which of it can be put in force: pure, no I/O.
//!
//! A [`Slot`] is a host as it was told: its resources and its endpoints. It is served once both are there, and
//! so are those of every host that its routes lead to: a route never comes into force without its subset. A
//! name may stand for another host (an instance of a headless service, a name below a wildcard): then that one
//! is needed and served.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::resource::Object;
use mesh_core::store::{Backend, Outbound, Store, StoreOptions, Workload};
use mesh_route::table::RouteTable;
use mesh_xds::ResourceType;

use crate::learn::LearntAddress;

/// What was told of something.
#[derive(Debug, Clone, Default)]
pub(super) enum Told<T> {
    /// Nothing yet.
    #[default]
    Waiting,
    /// That it does not exist.
    Absent,
    /// This.
    Content(T),
}

/// A host as it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) resources: Told<Vec<Object>>,
    pub(super) endpoints: Told<Arc<[Backend]>>,
    pub(super) known: Option<Known>,
    /// The hosts without which it cannot be served.
    pub(super) needs: Vec<Arc<str>>,
    /// The host that it is another name of.
    pub(super) stands_for: Option<Arc<str>>,
}

/// A host of which all is known but for the hosts that it needs.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) store: Store,
    pub(super) outbound: Arc<Outbound>,
}

/// Every host that was told of and every address, as whoever asks rarely sees them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Each {
    /// What is known of the workload itself.
    pub(super) own: Option<Store>,
    pub(super) slots: HashMap<Arc<str>, Arc<Slot>>,
    pub(super) addresses: HashMap<IpAddr, Arc<LearntAddress>>,
    /// The routes in force, for their names.
    pub(super) table: Arc<RouteTable>,
}

/// How it stands with a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Something is missing still.
    Waiting,
    /// It does not exist.
    Absent,
    /// It can be served.
    Whole,
}

impl<T> Told<T> {
    pub(super) fn content(&self) -> Option<&T> {
        match self {
            Self::Content(content) => Some(content),
            _ => None,
        }
    }
}

impl Slot {
    /// Whether it is known what is behind it, the hosts that it needs aside.
    pub(super) fn is_told(&self) -> bool {
        match (&self.resources, &self.endpoints) {
            (Told::Absent, _) => true,
            (Told::Content(_), endpoints) => !matches!(endpoints, Told::Waiting),
            (Told::Waiting, _) => false,
        }
    }

    /// The slot with what follows from what was told.
    pub(super) fn settled(mut self, name: &str, options: &StoreOptions, workload: &Workload) -> Self {
        (self.known, self.needs, self.stands_for) = (None, Vec::new(), None);
        let Told::Content(resources) = &self.resources else { return self };
        if !self.is_told() {
            return self;
        }
        let endpoints = self.endpoints.content().map_or(&[][..], |endpoints| endpoints);
        let store = Store::of_host(options.clone(), resources.clone(), endpoints);
        let Some(outbound) = store.outbound(workload, name) else {
            tracing::warn!(host = name, "what the control plane sent of a host says nothing of it");
            // Whoever sent it sees it otherwise; a host that is not understood is none.
            self.resources = Told::Absent;
            return self;
        };
        let full = outbound.host();
        if full != name && ResourceType::Host.check_name(full).is_ok() {
            let full: Arc<str> = full.into();
            self.needs = vec![Arc::clone(&full)];
            self.stands_for = Some(full);
        } else {
            let led_to = outbound.destinations(options);
            let names = led_to.iter().flat_map(|host| options.full_names(host, &workload.namespace));
            let real = |needed: &String| {
                needed != name && needed != full && ResourceType::Host.check_name(needed).is_ok()
            };
            self.needs = names.filter(real).map(Arc::from).collect();
        }
        self.known = Some(Known { store, outbound: Arc::new(outbound) });
        self
    }
}

impl Each {
    /// Every workload that was told of: the own ones, and endpoints.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Workload> {
        let own = self.own.iter().flat_map(Store::workloads).map(|workload| &**workload);
        let backends = self.slots.values().filter_map(|slot| slot.endpoints.content());
        own.chain(backends.flat_map(|backends| backends.iter().map(|backend| &*backend.workload)))
    }

    /// What applies to calls to the host that is called so; for hosts in force.
    pub(crate) fn outbound(&self, workload: &Workload, called: &str) -> Option<Outbound> {
        let host = self.table.host(called)?.host();
        self.slots.get(host)?.known.as_ref()?.store.outbound(workload, called)
    }

    /// What applies to calls to the host that a route calls so.
    pub(super) fn destination(
        &self,
        options: &StoreOptions,
        workload: &Workload,
        called: &str,
    ) -> Option<Outbound> {
        let names = options.full_names(called, &workload.namespace);
        names.iter().find_map(|name| {
            let slot = self.slots.get(name.as_str())?;
            match &slot.stands_for {
                Some(other) => Some((*self.slots.get(other)?.known.as_ref()?.outbound).clone()),
                None => Some((*slot.known.as_ref()?.outbound).clone()),
            }
        })
    }

    /// How it stands with a host, those that it needs included.
    pub(super) fn standing(&self, name: &str) -> Standing {
        match self.slots.get(name) {
            None => Standing::Waiting,
            Some(slot) if !slot.is_told() => Standing::Waiting,
            Some(slot) if slot.known.is_none() && matches!(slot.resources, Told::Absent) => Standing::Absent,
            Some(slot) => {
                if let Some(other) = &slot.stands_for
                    && matches!(self.slots.get(other).map(|s| &s.resources), Some(Told::Absent))
                {
                    return Standing::Absent;
                }
                if self.is_whole(name) { Standing::Whole } else { Standing::Waiting }
            }
        }
    }

    /// Whether everything is told that a host needs, and what that needs.
    pub(super) fn is_whole(&self, name: &str) -> bool {
        if let Some(slot) = self.slots.get(name)
            && slot.needs.is_empty()
        {
            return slot.is_told();
        }
        let mut seen = HashSet::new();
        let mut next = vec![name];
        while let Some(name) = next.pop() {
            if !seen.insert(name) {
                continue;
            }
            let Some(slot) = self.slots.get(name).filter(|slot| slot.is_told()) else { return false };
            if slot.known.is_none() && slot.resources.content().is_some() {
                return false;
            }
            next.extend(slot.needs.iter().map(|needed| &**needed));
        }
        true
    }

    /// A host and the hosts that it needs, and those that these need.
    pub(super) fn closure<'a>(&'a self, name: &'a str) -> HashSet<&'a str> {
        let mut seen = HashSet::new();
        let mut next = vec![name];
        while let Some(name) = next.pop() {
            if seen.insert(name)
                && let Some(slot) = self.slots.get(name)
            {
                next.extend(slot.needs.iter().map(|needed| &**needed));
            }
        }
        seen
    }
}
