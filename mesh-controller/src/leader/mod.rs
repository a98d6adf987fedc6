//! Which of several replicas writes what all share: elected by a Lease, as Kubernetes' own controllers are.
//!
//! Whoever holds the Lease renews it. The others look at it, each by its own clock: it is free when it has not changed
//! for as long as it says that it lasts since they first saw it so, whatever the times in it. A leader that cannot renew
//! stops in good time before another may begin. A leader that is killed is followed within [`Timing::lease`] and one
//! look; one that ends gives the Lease back.
//!
//! Deciding is [`Election`], without I/O and with the time handed in; [`run`] asks and writes.

mod election;

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use election::{Claim, Election, MAX_LEASE, Record, Step, Timing};

use crate::watch::follow::with_causes;

/// How long giving the Lease back may take.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Who stands for election, and where.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The namespace of the Lease: the controller's own.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who this replica is. No two that run may have the same, see [`identity`].
    pub identity: String,
    /// How long things take.
    pub timing: Timing,
}

impl Settings {
    /// The Lease `mesh-controller` in the controller's `namespace`, for the replica that runs in `pod`.
    pub fn new(namespace: &str, pod: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: "mesh-controller".to_owned(),
            identity: identity(pod),
            timing: Timing::default(),
        }
    }
}

/// An identity for the replica in `pod` that no other has, also not one that ran in the same pod before.
pub fn identity(pod: &str) -> String {
    format!("{pod}_{:016x}", fastrand::u64(..))
}

/// Stands for election until `stop` is done; says in `leader` whether this replica leads. When it ends it gives the
/// Lease back, after `leader` has turned false.
///
/// The API server's failures are logged; while it is gone, nobody leads.
pub async fn run(
    client: Client,
    settings: Settings,
    leader: watch::Sender<bool>,
    stop: impl Future<Output = ()>,
) {
    let api = Api::<Lease>::namespaced(client, &settings.namespace);
    let mut election = Election::new(&settings.identity, settings.timing);
    tokio::select! {
        () = stop => {}
        () = stand(&api, &settings, &mut election, &leader) => {}
    }
    let led = election.leads(Instant::now());
    leader.send_replace(false);
    if led && !matches!(timeout(GIVE_BACK, give_back(&api, &settings)).await, Ok(Ok(()))) {
        tracing::warn!("the lease could not be given back; another replica leads when it has run out");
    }
}

async fn stand(api: &Api<Lease>, settings: &Settings, election: &mut Election, leader: &watch::Sender<bool>) {
    let retry = settings.timing.retry;
    let mut failing = false;
    loop {
        let begun = Instant::now();
        let limit = election.leads_until().unwrap_or(begun + settings.timing.renew);
        let wait = match timeout_at(limit, attempt(api, settings, election)).await {
            Ok(Ok(wait)) => {
                failing = false;
                wait
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the lease can neither be read nor written; it is tried again");
                }
                retry
            }
            Err(_) => retry,
        };
        tell(leader, election.leads(Instant::now()));
        let next = begun + wait;
        // Leadership ends when it ends, not when somebody looks again.
        match election.leads_until().filter(|until| *until < next) {
            Some(until) => {
                sleep_until(until).await;
                tell(leader, election.leads(Instant::now()));
            }
            None => sleep_until(next).await,
        }
    }
}

fn tell(leader: &watch::Sender<bool>, leads: bool) {
    let changed = leader.send_if_modified(|led| std::mem::replace(led, leads) != leads);
    match (changed, leads) {
        (true, true) => tracing::info!("this replica leads"),
        (true, false) => tracing::info!("this replica leads no more"),
        _ => {}
    }
}

/// Looks at the Lease and takes or renews it where that is due. Gives how long to wait.
async fn attempt(api: &Api<Lease>, settings: &Settings, election: &mut Election) -> Result<Duration, String> {
    let failed = |error: kube::Error| with_causes(&error);
    let lease = api.get_opt(&settings.name).await.map_err(failed)?;
    let record = lease.as_ref().and_then(|lease| lease.spec.as_ref()).map(Record::from);
    let begun = Instant::now();
    let claim = match election.look(record.as_ref(), begun) {
        Step::Wait(wait) => return Ok(wait),
        Step::Write(claim) => claim,
    };
    let now = MicroTime(Timestamp::now());
    let before = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let spec = LeaseSpec {
        holder_identity: Some(settings.identity.clone()),
        lease_duration_seconds: Some(claim.seconds),
        acquire_time: if claim.new { Some(now.clone()) } else { before.acquire_time.clone() },
        renew_time: Some(now),
        lease_transitions: Some(claim.transitions),
        ..before
    };
    let params = PostParams::default();
    let written = match lease {
        // With the version that was read: of two who write at the same time, one fails.
        Some(lease) => {
            let lease = Lease { spec: Some(spec), ..lease };
            api.replace(&settings.name, &params, &lease).await
        }
        None => {
            let metadata = ObjectMeta { name: Some(settings.name.clone()), ..ObjectMeta::default() };
            api.create(&params, &Lease { metadata, spec: Some(spec) }).await
        }
    };
    match written {
        Ok(written) => {
            let record = written.spec.as_ref().map(Record::from).unwrap_or_default();
            election.wrote(record, begun);
            Ok(settings.timing.retry)
        }
        // Another was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(settings.timing.retry),
        Err(error) => Err(failed(error)),
    }
}

async fn give_back(api: &Api<Lease>, settings: &Settings) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(&settings.name).await? else { return Ok(()) };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(settings.identity.as_str()) {
        return Ok(());
    }
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    spec.renew_time = Some(MicroTime(Timestamp::now()));
    api.replace(&settings.name, &PostParams::default(), &lease).await.map(drop)
}

/// Does `work`, from the beginning each time, whenever and as long as `leader` is true; until nobody says any more who
/// leads.
pub async fn while_leading<F: Future<Output = ()>>(mut leader: watch::Receiver<bool>, work: impl Fn() -> F) {
    while until(&mut leader, true).await {
        let work = async {
            work().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            goes_on = until(&mut leader, false) => {
                if !goes_on {
                    return;
                }
            }
            () = work => {}
        }
    }
}

/// Waits until it is true, or is not, that this replica leads. Gives whether anybody says so any more.
async fn until(leader: &mut watch::Receiver<bool>, leads: bool) -> bool {
    leader.wait_for(|now| *now == leads).await.is_ok()
}

#[cfg(test)]
mod tests;
