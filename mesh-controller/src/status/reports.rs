//! What is to be said of resources, until somebody writes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::core::ApiResource;
use mesh_core::diagnostic::{Diagnostic, ResourceRef};
use mesh_core::resource::{Kind, ObjectMeta};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::decide::{decide, is_ours};
use crate::queue::Queue;
use crate::watch::seen::resource_of;

/// Of how many resources something may be said at a time; of more it is not, and that is logged.
pub const MAX_REPORTS: usize = 10_000;

/// What is known of a resource that its status is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What is wrong with it, and what is to be said of it besides. Empty when it is fine.
    pub diagnostics: Vec<Diagnostic>,
    /// Which edit that is about.
    pub generation: i64,
    /// The version of the object that was read.
    pub version: String,
    /// The status that it has; `null` for none.
    pub status: Value,
    pub(crate) resource: Arc<ApiResource>,
}

impl Report {
    /// A resource of which nothing is wrong: `meta` as the API has it, and its status.
    pub fn of<K: Kind>(meta: &ObjectMeta, status: Value) -> Self {
        Self {
            diagnostics: Vec::new(),
            generation: meta.generation,
            version: meta.resource_version.clone(),
            status,
            resource: Arc::new(resource_of::<K>()),
        }
    }
}

/// What is to be said of resources. Cheap to clone; all clones are the same.
///
/// Holds only those of which something is to be said or was, [`MAX_REPORTS`] at most.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<ResourceRef, Report>,
    /// Those of which the status is to be written.
    due: Queue<ResourceRef>,
    full: bool,
}

impl Reports {
    /// What is known of a resource from now on. Gives whether what is wrong with it is something new.
    pub fn put(&self, reference: ResourceRef, report: Report) -> bool {
        let mut table = self.table();
        if report.diagnostics.is_empty() && !is_ours(&report.status) {
            table.forget(&reference);
            return false;
        }
        let before = table.known.get(&reference);
        let news =
            !report.diagnostics.is_empty() && before.is_none_or(|b| b.diagnostics != report.diagnostics);
        if before.is_none() && table.known.len() >= MAX_REPORTS {
            if !std::mem::replace(&mut table.full, true) {
                tracing::warn!(
                    limit = MAX_REPORTS,
                    "something is wrong with more resources than are kept in mind; the others' statuses do not say so"
                );
            }
            return news;
        }
        // When it is written does not matter for whether it is.
        if decide(&report, "").is_some() {
            table.due.add(reference.clone(), Instant::now());
            self.inner.changed.notify_one();
        } else {
            table.due.remove(&reference);
        }
        table.known.insert(reference, report);
        news
    }

    /// A resource was deleted.
    pub fn gone(&self, reference: &ResourceRef) {
        self.table().forget(reference);
    }

    /// What is wrong, in the order of the resources' names.
    pub fn wrong(&self) -> Vec<Diagnostic> {
        let table = self.table();
        let mut wrong: Vec<_> = table.known.values().flat_map(|r| r.diagnostics.iter().cloned()).collect();
        drop(table);
        wrong.sort_by_cached_key(|d| (d.resource.clone(), d.field.clone()));
        wrong
    }

    /// Takes the resource of which the status is to be written next, and how often that has failed.
    pub(super) async fn next(&self) -> (ResourceRef, Report, u32) {
        loop {
            let changed = self.inner.changed.notified();
            let (next, wait) = self.table().take(Instant::now());
            if let Some(next) = next {
                return next;
            }
            match wait {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// It could not be written, for the `failures`th time: it is tried again later, unless it is known anew meanwhile.
    pub(super) fn again(&self, reference: ResourceRef, failures: u32) {
        let mut table = self.table();
        if table.known.contains_key(&reference) {
            table.due.again(reference, failures, Instant::now());
        }
    }

    /// Looks at all of them anew.
    pub(super) fn all_again(&self) {
        let mut table = self.table();
        let Table { known, due, .. } = &mut *table;
        let now = Instant::now();
        for (reference, _) in known.iter().filter(|(_, report)| decide(report, "").is_some()) {
            due.add(reference.clone(), now);
        }
        self.inner.changed.notify_one();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn forget(&mut self, reference: &ResourceRef) {
        self.known.remove(reference);
        self.due.remove(reference);
        self.full &= self.known.len() >= MAX_REPORTS;
    }

    /// One that is due at `now`, or when the next one is.
    fn take(&mut self, now: Instant) -> (Option<(ResourceRef, Report, u32)>, Option<Instant>) {
        let (reference, failures) = match self.due.take(now) {
            Ok(next) => next,
            Err(when) => return (None, when),
        };
        let Some(report) = self.known.get(&reference) else { return (None, Some(now)) };
        (Some((reference, report.clone(), failures)), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::diagnostic::Effect;
    use mesh_core::resource::VirtualService;
    use std::time::Duration;

    fn reference(name: &str) -> ResourceRef {
        ResourceRef::new("VirtualService", "shop", name)
    }

    fn wrong(text: &str) -> Report {
        let report = Report::of::<VirtualService>(&ObjectMeta::new("shop", "x"), Value::Null);
        Report { diagnostics: vec![Diagnostic::new(Effect::NotApplied, text)], ..report }
    }

    fn fine(status: Value) -> Report {
        Report::of::<VirtualService>(&ObjectMeta::new("shop", "x"), status)
    }

    async fn due(reports: &Reports) -> Option<String> {
        tokio::time::timeout(Duration::ZERO, reports.next()).await.ok().map(|(r, ..)| r.name().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_wrong_is_due_and_only_once() {
        let reports = Reports::default();
        assert!(!reports.put(reference("fine"), fine(Value::Null)));
        assert!(reports.put(reference("a"), wrong("no")));
        assert!(!reports.put(reference("a"), wrong("no")), "it is known");
        assert!(reports.put(reference("a"), wrong("still no")));
        assert_eq!(reports.wrong().len(), 1);
        assert_eq!(due(&reports).await.as_deref(), Some("a"));
        assert_eq!(due(&reports).await, None);
        reports.all_again();
        assert_eq!(due(&reports).await.as_deref(), Some("a"), "who leads anew begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_else_wrote_already_is_not_due() {
        let reports = Reports::default();
        reports.put(reference("a"), wrong("no"));
        let status = decide(&wrong("no"), "2024-05-01T00:00:00Z").unwrap();
        reports.put(reference("a"), Report { status: status.clone(), ..wrong("no") });
        assert_eq!(due(&reports).await, None);
        // Mended, it is due once more.
        reports.put(reference("a"), fine(status));
        assert_eq!(due(&reports).await.as_deref(), Some("a"));
        assert!(reports.wrong().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_waits_longer_each_time() {
        let reports = Reports::default();
        reports.put(reference("a"), wrong("no"));
        let mut waits = Vec::new();
        let (mut next, _, mut failures) = reports.next().await;
        for _ in 0..9 {
            let since = Instant::now();
            reports.again(next, failures + 1);
            (next, _, failures) = reports.next().await;
            waits.push(since.elapsed().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        reports.gone(&next);
        reports.again(next, 1);
        assert_eq!(due(&reports).await, None, "what is gone is not tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_limit() {
        let reports = Reports::default();
        for i in 0..=MAX_REPORTS {
            assert!(reports.put(reference(&i.to_string()), wrong("no")));
        }
        assert_eq!(reports.wrong().len(), MAX_REPORTS);
        reports.gone(&reference("0"));
        reports.put(reference("last"), wrong("no"));
        assert_eq!(reports.wrong().len(), MAX_REPORTS);
    }
}
