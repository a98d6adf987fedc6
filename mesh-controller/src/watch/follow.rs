//! One list and one watch, for ever.
//!
//! The list is read page by page and the watch goes on from where the list ended, or where the last watch ended, as
//! long as the API server remembers that. `kube`'s own watcher does the same, but does not say when a watch that broke
//! stands again, which is what a flag "connected" needs.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ListParams, WatchParams};
use kube::core::WatchEvent;
use kube::{Api, Resource};
use tokio::time::{Instant, sleep, timeout};

use super::seen::{Form, Seen};

/// How many objects are asked for at once.
const PAGE: u32 = 500;
/// How long a page, or the beginning of a watch, may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long the API server lets a watch go on, in seconds.
const WATCH: u32 = 290;
/// How long a watch may be silent. The API server sends a bookmark about once a minute; a connection without is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner and had nothing to say counts as one that failed.
const TOO_SHORT: Duration = Duration::from_secs(1);
/// How many changes are taken together at most, when they are there at the same time.
const BATCH: usize = 500;
/// The first wait after something went wrong; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often it is looked whether a kind is there now that was not.
const ABSENT_WAIT: Duration = Duration::from_secs(5);

/// What the API server says.
#[derive(Debug)]
pub(crate) enum Change<F> {
    /// A list begins.
    Begin,
    /// It holds this.
    Put(F),
    /// It is whole.
    End,
    /// An object was deleted.
    Gone(F),
}

/// What takes what the API server says.
pub(crate) trait Sink<F>: Send {
    /// Takes a change. What follows from it may wait for [`flush`](Self::flush).
    fn take(&mut self, change: Change<F>);

    /// All changes that were there at the moment have been taken. Gives whether any more are wanted.
    fn flush(&mut self) -> impl Future<Output = bool> + Send;

    /// The watch stands, or why it does not.
    fn connected(&mut self, state: Result<(), &Trouble>);
}

/// Why there is no watch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The API server knows no such kind.
    #[error("the API server does not have the kind")]
    Absent,
    /// What was to be gone on from is forgotten.
    #[error("the API server has forgotten what was last seen")]
    Expired,
    /// There was no answer.
    #[error("no answer in {} s", ANSWER.as_secs())]
    NoAnswer,
    /// A watch ended at once.
    #[error("the watch ended at once")]
    EndedAtOnce,
    /// The API server refuses.
    #[error("the API server refuses: {0}")]
    Refused(String),
    /// It cannot be reached, or does not make sense.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::from(&*status),
            other => Self::Other(with_causes(&other)),
        }
    }
}

impl From<&kube::core::Status> for Trouble {
    fn from(status: &kube::core::Status) -> Self {
        match status.code {
            404 => Self::Absent,
            410 => Self::Expired,
            401 | 403 => Self::Refused(status.message.clone()),
            code => Self::Other(format!("{code}: {}", status.message)),
        }
    }
}

/// An error with what lies under it.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// How long to wait after something went wrong: doubling, and nobody at the same time as another.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { next: FIRST_WAIT }
    }

    /// The next wait; `draw` is from 0 to 1.
    pub(crate) fn wait(&mut self, draw: f64) -> Duration {
        let wait = jittered(self.next, draw);
        self.next = (self.next * 2).min(LONGEST_WAIT);
        wait
    }
}

/// Half of `time` and up to all of it.
pub(crate) fn jittered(time: Duration, draw: f64) -> Duration {
    time.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)
}

/// Keeps `sink` informed of all objects of `api` that `fields` selects, until it wants no more.
pub(crate) async fn follow<F: Form>(api: &Api<Seen<F>>, fields: Option<&str>, sink: &mut impl Sink<F>) {
    let mut version = None;
    let mut backoff = Backoff::new();
    loop {
        let result = match version.take() {
            None => list(api, fields, sink).await,
            Some(at) => watch(api, fields, at, sink).await,
        };
        let trouble = match result {
            Ok(None) => return,
            Ok(at) => {
                version = at;
                backoff = Backoff::new();
                continue;
            }
            Err((trouble, at)) => {
                // What a kind had before it was absent is not to be gone on from.
                version = at.filter(|_| !matches!(trouble, Trouble::Expired | Trouble::Absent));
                trouble
            }
        };
        sink.connected(Err(&trouble));
        let wait = match trouble {
            Trouble::Absent => jittered(ABSENT_WAIT, fastrand::f64()),
            _ => backoff.wait(fastrand::f64()),
        };
        if !sink.flush().await {
            return;
        }
        sleep(wait).await;
    }
}

/// From where to go on, or nothing when no more is wanted.
type Outcome = Result<Option<String>, (Trouble, Option<String>)>;

async fn list<F: Form>(api: &Api<Seen<F>>, fields: Option<&str>, sink: &mut impl Sink<F>) -> Outcome {
    let mut params =
        ListParams { limit: Some(PAGE), field_selector: fields.map(str::to_owned), ..ListParams::default() };
    let mut begun = false;
    loop {
        let page = match timeout(ANSWER, api.list(&params)).await {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return Err((error.into(), None)),
            Err(_) => return Err((Trouble::NoAnswer, None)),
        };
        if !std::mem::replace(&mut begun, true) {
            sink.take(Change::Begin);
        }
        for seen in page.items {
            sink.take(Change::Put(seen.form));
        }
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_some() {
            if !sink.flush().await {
                return Ok(None);
            }
            continue;
        }
        let version = page.metadata.resource_version.filter(|version| !version.is_empty());
        let Some(version) = version else {
            return Err((Trouble::Other("the list has no version".to_owned()), None));
        };
        sink.take(Change::End);
        return Ok(sink.flush().await.then_some(version));
    }
}

async fn watch<F: Form>(
    api: &Api<Seen<F>>,
    fields: Option<&str>,
    mut version: String,
    sink: &mut impl Sink<F>,
) -> Outcome {
    let params = WatchParams {
        field_selector: fields.map(str::to_owned),
        timeout: Some(WATCH),
        bookmarks: true,
        ..WatchParams::default()
    };
    let since = Instant::now();
    let mut quiet = true;
    let stream = match timeout(ANSWER, api.watch(&params, &version)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err((error.into(), Some(version))),
        Err(_) => return Err((Trouble::NoAnswer, Some(version))),
    };
    sink.connected(Ok(()));
    let mut stream = pin!(stream.ready_chunks(BATCH));
    loop {
        let Ok(events) = timeout(SILENCE, stream.next()).await else {
            return Ok(Some(version));
        };
        let Some(events) = events else {
            let at_once = quiet && since.elapsed() < TOO_SHORT;
            return if at_once { Err((Trouble::EndedAtOnce, Some(version))) } else { Ok(Some(version)) };
        };
        quiet = false;
        let mut trouble = None;
        for event in events {
            match event {
                Ok(WatchEvent::Added(seen) | WatchEvent::Modified(seen)) => {
                    version_of(&seen, &mut version);
                    sink.take(Change::Put(seen.form));
                }
                Ok(WatchEvent::Deleted(seen)) => {
                    version_of(&seen, &mut version);
                    sink.take(Change::Gone(seen.form));
                }
                Ok(WatchEvent::Bookmark(bookmark)) => version = bookmark.metadata.resource_version,
                Ok(WatchEvent::Error(status)) => trouble = Some(Trouble::from(&*status)),
                Err(error) => trouble = Some(error.into()),
            }
            if trouble.is_some() {
                break;
            }
        }
        if !sink.flush().await {
            return Ok(None);
        }
        if let Some(trouble) = trouble {
            return Err((trouble, Some(version)));
        }
    }
}

fn version_of<F: Form>(seen: &Seen<F>, version: &mut String) {
    if let Some(newer) = &seen.meta().resource_version {
        version.clone_from(newer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_differ() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.wait(1.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(Backoff::new().wait(0.0).as_millis(), 100);
        assert_eq!(jittered(ABSENT_WAIT, 7.0), ABSENT_WAIT);
    }
}
