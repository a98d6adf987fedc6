//! Gathers what happens at nearly the same time, so that it costs one store instead of many.

use std::collections::HashMap;
use std::time::Duration;

use mesh_core::diagnostic::ResourceRef;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::event::Event;

/// How long events wait for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoalesceLimits {
    /// How long it has to be quiet before what has happened is applied. Default: 50 ms.
    pub quiet: Duration,
    /// How long an event waits at most while it is not quiet. Default: 250 ms.
    pub most: Duration,
    /// How many objects wait at most; with one more all are applied at once. Default: 20,000.
    pub objects: usize,
}

/// Events that wait: of each object the last, since that alone counts. Pure; [`next`](Self::next) stands around it.
///
/// The first event after a quiet time does not wait at all, so that a single change is in force at once.
///
/// ```
/// use std::time::Duration;
/// use mesh_controller::event::Event;
/// use mesh_controller::world::{Coalesce, CoalesceLimits};
/// use mesh_core::resource::{Resource, Service};
/// use tokio::time::Instant;
///
/// let mut waiting = Coalesce::new(CoalesceLimits::default());
/// let event = || Event::Put(Resource::new("default", "reviews", Service::default()).into());
/// let now = Instant::now();
/// waiting.push(event(), now);
/// assert_eq!(waiting.due(), Some(now));
/// assert_eq!(waiting.take(now).len(), 1);
///
/// waiting.push(event(), now);
/// waiting.push(event(), now);
/// assert_eq!(waiting.due(), Some(now + Duration::from_millis(50)));
/// assert_eq!(waiting.take(now).len(), 1);
/// ```
#[derive(Debug)]
pub struct Coalesce {
    limits: CoalesceLimits,
    waiting: HashMap<ResourceRef, Event>,
    /// When the first of them came, and the last.
    came: Option<(Instant, Instant)>,
    taken: Option<Instant>,
}

impl Default for CoalesceLimits {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(50), most: Duration::from_millis(250), objects: 20_000 }
    }
}

impl Coalesce {
    /// Nothing waits yet.
    pub fn new(limits: CoalesceLimits) -> Self {
        Self { limits, waiting: HashMap::new(), came: None, taken: None }
    }

    /// Takes an event.
    pub fn push(&mut self, event: Event, now: Instant) {
        self.waiting.insert(event.reference(), event);
        let first = self.came.map_or(now, |(first, _)| first);
        self.came = Some((first, now));
    }

    /// When what waits is to be applied; `None` where nothing waits.
    pub fn due(&self) -> Option<Instant> {
        let (first, last) = self.came?;
        let restless = self.taken.is_some_and(|taken| first < taken + self.limits.quiet);
        if !restless || self.waiting.len() > self.limits.objects {
            return Some(first);
        }
        Some((last + self.limits.quiet).min(first + self.limits.most))
    }

    /// Everything that waits.
    pub fn take(&mut self, now: Instant) -> Vec<Event> {
        self.came = None;
        self.taken = Some(now);
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// The next events that are to be applied together; `None` when no more will come and none waits.
    pub async fn next(&mut self, events: &mut mpsc::Receiver<Vec<Event>>) -> Option<Vec<Event>> {
        loop {
            let due = self.due();
            let wait = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What is there already goes along.
                biased;
                batch = events.recv() => match batch {
                    Some(batch) => {
                        let now = Instant::now();
                        batch.into_iter().for_each(|event| self.push(event, now));
                        if self.waiting.len() > self.limits.objects {
                            return Some(self.take(now));
                        }
                    }
                    None if self.waiting.is_empty() => return None,
                    None => return Some(self.take(Instant::now())),
                },
                () = wait => return Some(self.take(Instant::now())),
            }
            if self.due().is_some_and(|due| due <= Instant::now()) && events.is_empty() {
                return Some(self.take(Instant::now()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::resource::{Resource, Service};

    use super::*;

    fn event(name: &str) -> Event {
        Event::Put(Resource::new("default", name, Service::default()).into())
    }

    fn names(events: &[Event]) -> Vec<String> {
        let mut names: Vec<_> = events.iter().map(|e| e.reference().name().to_owned()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_first_does_not_wait_and_the_others_wait_for_quiet_but_not_for_ever() {
        let mut waiting = Coalesce::new(CoalesceLimits::default());
        assert_eq!(waiting.due(), None);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        waiting.push(event("a"), at(0));
        assert_eq!(waiting.due(), Some(at(0)));
        assert_eq!(waiting.take(at(0)).len(), 1);
        for ms in (10..200).step_by(20) {
            waiting.push(event("a"), at(ms));
            waiting.push(event(&ms.to_string()), at(ms));
            assert_eq!(waiting.due(), Some(at((ms + 50).min(260))));
        }
        assert_eq!(waiting.take(at(260)).len(), 11);
        // It was quiet long enough: the next does not wait again.
        waiting.push(event("a"), at(400));
        assert_eq!(waiting.due(), Some(at(400)));
    }

    #[test]
    fn of_an_object_the_last_event_counts() {
        let mut waiting = Coalesce::new(CoalesceLimits::default());
        let now = Instant::now();
        waiting.push(event("a"), now);
        let gone = Event::Gone(event("a").reference());
        waiting.push(gone.clone(), now);
        assert_eq!(waiting.take(now), [gone]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_are_applied_at_once() {
        let limits = CoalesceLimits { objects: 3, ..CoalesceLimits::default() };
        let mut waiting = Coalesce::new(limits);
        let (sender, mut receiver) = mpsc::channel(8);
        sender.send(vec![event("first")]).await.unwrap();
        assert_eq!(names(&waiting.next(&mut receiver).await.unwrap()), ["first"]);
        let start = Instant::now();
        for name in ["a", "b", "c", "d"] {
            sender.send(vec![event(name)]).await.unwrap();
        }
        assert_eq!(waiting.next(&mut receiver).await.unwrap().len(), 4);
        assert_eq!(Instant::now(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_together_is_applied_together() {
        let mut waiting = Coalesce::new(CoalesceLimits::default());
        let (sender, mut receiver) = mpsc::channel(8);
        let start = Instant::now();
        sender.send(vec![event("a"), event("b")]).await.unwrap();
        sender.send(vec![event("c")]).await.unwrap();
        assert_eq!(names(&waiting.next(&mut receiver).await.unwrap()), ["a", "b", "c"]);
        assert_eq!(Instant::now(), start);

        sender.send(vec![event("d")]).await.unwrap();
        let later = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            sender.send(vec![event("e")]).await.unwrap();
            // With the last sender gone what waits is given out all the same.
        });
        assert_eq!(names(&waiting.next(&mut receiver).await.unwrap()), ["d", "e"]);
        later.await.unwrap();
        assert!(waiting.next(&mut receiver).await.is_none());
    }
}
