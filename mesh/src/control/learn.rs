//! First calls: a host is asked for when it is called, and the call waits until it is known.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::failure::{Failure, FailureCode};
use mesh_core::live::Live;
use mesh_core::normal::Authority;
use mesh_xds::ResourceType;
use mesh_xds::client::{Client, Unavailable};
use tokio::time::timeout;

use super::ControlPlane;
use super::slots::{Each, Standing};
use super::stats::Counters;
use crate::hosts::Hosts;
use crate::learn::{Learn, Learning, LearntAddress};
use crate::world::View;

/// Asks for what is called.
#[derive(Clone)]
pub(crate) struct OnDemand {
    client: Client,
    view: Live<View>,
    counters: Arc<Counters>,
    waiting: Arc<AtomicUsize>,
    most: usize,
    wait: Duration,
}

/// Counts a waiting call until dropped.
struct Waiting(Arc<AtomicUsize>);

impl OnDemand {
    pub(super) fn new(
        control: &ControlPlane,
        client: Client,
        view: Live<View>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            client,
            view,
            counters,
            waiting: Arc::default(),
            most: control.first_calls,
            wait: control.first_call_timeout,
        }
    }

    /// Waits for `asking`, as long as a first call may, if one more may wait.
    async fn bounded<T>(
        &self,
        what: &str,
        asking: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let one_more = |n: usize| (n < self.most).then_some(n + 1);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            self.counters.refused(|c| &c.overflow);
            return Err(Failure::new(FailureCode::Overflow).detail(format!(
                "{} first calls wait for their hosts to be known already, as many as may",
                self.most
            )));
        }
        let _waiting = Waiting(Arc::clone(&self.waiting));
        self.counters.first_call();
        // Who has not answered for long will not answer now: nobody is kept waiting for it.
        let wait = if self.counters.is_away() { Duration::ZERO } else { self.wait };
        let late = || {
            self.counters.refused(|c| &c.late);
            unavailable(format!("the control plane has not told in {wait:?} what applies to {what}"))
        };
        let answer = timeout(wait, asking).await.unwrap_or_else(|_| Err(late()));
        if let Err(failure) = &answer {
            tracing::debug!(%what, %failure, "a host was not learnt");
        }
        answer
    }

    async fn named(&self, called: &str) -> Result<(), Failure> {
        let mut changes = self.view.changes();
        // What a name means depends on who calls.
        let names = loop {
            if let Some(names) = self.names(called) {
                break names;
            }
            changes.changed().await;
        };
        // The fullest first: it is the service's own, and one question is enough for most. That a name is another
        // host's own is told with the service, whose short form it then is not.
        let mut problem = None;
        for name in names.into_iter().rev() {
            match self.whole(&name).await {
                Ok(true) if self.with_each(|each| each.table.host(called).is_some()) == Some(true) => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => problem = problem.or(failure_of(called, &error)),
            }
        }
        Err(problem.unwrap_or_else(|| unknown(called)))
    }

    /// Asks for a host, and waits until it is in force; not, where there is none.
    async fn whole(&self, name: &str) -> Result<bool, Unavailable> {
        let mut changes = self.view.changes();
        let host = self.client.subscribe(ResourceType::Host, name);
        let endpoints = self.client.subscribe(ResourceType::Endpoints, name);
        let (host, endpoints) = tokio::join!(host, endpoints);
        if !host?.exists() {
            return Ok(false);
        }
        endpoints?;
        loop {
            match self.with_each(|each| each.standing(name)).unwrap_or(Standing::Waiting) {
                Standing::Whole => return Ok(true),
                Standing::Absent => return Ok(false),
                Standing::Waiting => changes.changed().await,
            }
        }
    }

    /// The full names that the workload may mean; `None` as long as nothing is known of it.
    fn names(&self, called: &str) -> Option<Vec<String>> {
        let view = self.view.load();
        let workload = view.workload.as_ref()?;
        let Hosts::Each(each) = &view.hosts else { return None };
        Some(each.own.as_ref()?.options().full_names(called, &workload.namespace))
    }

    fn with_each<T>(&self, read: impl FnOnce(&Each) -> T) -> Option<T> {
        match &self.view.load().hosts {
            Hosts::Each(each) => Some(read(each)),
            Hosts::Whole(_) => None,
        }
    }

    /// What is known of an address, where its first host is in force.
    fn known(&self, ip: IpAddr) -> Option<Arc<LearntAddress>> {
        self.with_each(|each| {
            let address = each.addresses.get(&ip)?;
            let first = address.hosts.first()?;
            (each.standing(first) == Standing::Whole).then(|| Arc::clone(address))
        })?
    }

    async fn addressed(&self, ip: IpAddr) -> Result<Option<Arc<LearntAddress>>, Failure> {
        let name = ip.to_string();
        let mut changes = self.view.changes();
        match self.client.subscribe(ResourceType::Address, &name).await {
            Ok(answer) if !answer.exists() => return Ok(None),
            Ok(_) => {}
            Err(error) => return failure_of(&name, &error).map_or(Ok(None), Err),
        }
        let address = loop {
            if let Some(address) = self.with_each(|each| each.addresses.get(&ip).cloned()).flatten() {
                break address;
            }
            changes.changed().await;
        };
        let Some(first) = address.hosts.first() else { return Ok(None) };
        match self.named(first).await {
            Ok(()) => Ok(Some(address)),
            Err(failure) if failure.code() == FailureCode::UnknownHost => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

impl Learn for OnDemand {
    fn host(&self, authority: &Authority) -> Learning<()> {
        let (this, called, ip) = (self.clone(), authority.name().to_owned(), authority.ip());
        Box::pin(async move {
            let asking = async {
                match ip {
                    None => this.named(&called).await,
                    // A virtual address is a name of its service; an endpoint's own is nobody's name.
                    Some(ip) => {
                        this.addressed(ip.to_canonical()).await?.map(drop).ok_or_else(|| unknown(&called))
                    }
                }
            };
            this.bounded(&called, asking).await
        })
    }

    fn address(&self, ip: IpAddr) -> Learning<Option<Arc<LearntAddress>>> {
        if let Some(known) = self.known(ip) {
            self.client.touch(ResourceType::Address, &ip.to_string());
            return Box::pin(std::future::ready(Ok(Some(known))));
        }
        let this = self.clone();
        Box::pin(async move { this.bounded(&ip.to_string(), this.addressed(ip)).await })
    }
}

fn unknown(called: &str) -> Failure {
    Failure::new(FailureCode::UnknownHost).detail(format!("no service is called {called:?}"))
}

fn unavailable(why: String) -> Failure {
    Failure::new(FailureCode::ConfigUnavailable).detail(why)
}

/// What a call fails with; nothing where the name is none, which is as good as unknown.
fn failure_of(called: &str, error: &Unavailable) -> Option<Failure> {
    match error {
        Unavailable::Name(_) => None,
        Unavailable::Full | Unavailable::Busy => {
            Some(Failure::new(FailureCode::Overflow).detail(format!("{called} cannot be asked for: {error}")))
        }
        _ => Some(unavailable(format!("{called}: {error}"))),
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
