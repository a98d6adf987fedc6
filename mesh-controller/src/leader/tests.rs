use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A Lease in memory, and candidates with clocks of their own for what they write.
struct World {
    lease: Option<Record>,
    start: Instant,
}

impl World {
    fn new() -> Self {
        Self { lease: None, start: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// What `candidate` does at `millis`, its clock being `skew` seconds wrong.
    fn turn(&mut self, candidate: &mut Election, who: &str, millis: u64, skew: i64) -> Step {
        let now = self.at(millis);
        let step = candidate.look(self.lease.as_ref(), now);
        if let Step::Write(claim) = step {
            let written = skew * 1000 + i64::try_from(millis).unwrap();
            let record = Record {
                holder: who.to_owned(),
                seconds: claim.seconds,
                renewed: written.to_string(),
                transitions: claim.transitions,
            };
            self.lease = Some(record.clone());
            candidate.wrote(record, now);
        }
        step
    }
}

fn candidate(who: &str) -> Election {
    Election::new(who, Timing::default())
}

#[test]
fn the_first_leads_and_the_other_waits_whatever_their_clocks_say() {
    for skew in [-86_400, 0, 86_400] {
        let (mut world, mut a, mut b) = (World::new(), candidate("a"), candidate("b"));
        for second in 0..60 {
            let millis = second * 2000;
            world.turn(&mut a, "a", millis, skew);
            let step = world.turn(&mut b, "b", millis + 700, 0);
            assert_eq!(step, Step::Wait(Duration::from_secs(2)), "skew {skew}, second {second}");
            assert!(a.leads(world.at(millis + 700)) && !b.leads(world.at(millis + 700)));
        }
        assert_eq!(world.lease.as_ref().unwrap().transitions, 0);
    }
}

#[test]
fn a_killed_leader_is_followed_within_fifteen_seconds() {
    // Whenever it dies between two looks of the other, and whenever it renewed last.
    for dies_after in (0..2000).step_by(50) {
        let (mut world, mut a, mut b) = (World::new(), candidate("a"), candidate("b"));
        world.turn(&mut a, "a", 0, 3600);
        world.turn(&mut b, "b", 300, 0);
        // Its last renewal, at the moment at which it dies.
        let death = 2000 + dies_after;
        let mut alive = true;
        let mut millis = 2300;
        let follows = loop {
            if millis >= death && std::mem::take(&mut alive) {
                world.turn(&mut a, "a", death, 3600);
            }
            match world.turn(&mut b, "b", millis, 0) {
                Step::Wait(wait) => millis += u64::try_from(wait.as_millis()).unwrap(),
                Step::Write(claim) => {
                    assert!(claim.new && claim.transitions == 1);
                    break millis;
                }
            }
        };
        assert!(follows - death <= 15_000, "{} ms after its death", follows - death);
        assert!(!a.leads(world.at(follows)), "two lead");
    }
}

#[test]
fn a_leader_that_cannot_renew_stops_before_another_begins() {
    let (mut world, mut a, mut b) = (World::new(), candidate("a"), candidate("b"));
    world.turn(&mut a, "a", 0, 0);
    world.turn(&mut b, "b", 1, 0);
    assert!(a.leads(world.at(6_999)));
    assert!(!a.leads(world.at(7_000)));
    assert_eq!(a.leads_until(), Some(world.at(7_000)));
    assert_eq!(world.turn(&mut b, "b", 10_000, 0), Step::Wait(Duration::from_millis(1)));
    assert!(matches!(world.turn(&mut b, "b", 10_001, 0), Step::Write(_)));
    // It comes back, and finds another.
    assert!(matches!(world.turn(&mut a, "a", 10_500, 0), Step::Wait(_)));
    assert!(!a.leads(world.at(10_500)) && b.leads(world.at(10_500)));
}

#[test]
fn a_lease_that_is_given_back_is_taken_at_once() {
    let (mut world, mut b) = (World::new(), candidate("b"));
    world.lease = Some(Record { holder: String::new(), seconds: 1, renewed: "x".into(), transitions: 4 });
    let claim = Claim { seconds: 10, transitions: 5, new: true };
    assert_eq!(world.turn(&mut b, "b", 0, 0), Step::Write(claim));
}

#[test]
fn a_record_that_is_nonsense_keeps_nobody_out_for_ever() {
    for (seconds, until) in [(i32::MAX, MAX_LEASE), (-5, Duration::ZERO), (0, Duration::ZERO)] {
        let (mut world, mut b) = (World::new(), candidate("b"));
        world.lease =
            Some(Record { holder: "a".into(), seconds, renewed: String::new(), transitions: i32::MAX });
        let millis = u64::try_from(until.as_millis()).unwrap();
        if millis > 0 {
            world.turn(&mut b, "b", 0, 0);
            assert!(matches!(world.turn(&mut b, "b", millis - 1, 0), Step::Wait(_)));
        }
        assert!(
            matches!(world.turn(&mut b, "b", millis, 0), Step::Write(claim) if claim.transitions == i32::MAX)
        );
    }
}

#[test]
fn identities_differ_also_in_the_same_pod() {
    assert_ne!(identity("pod"), identity("pod"));
    assert!(Settings::new("mesh-system", "pod-1").identity.starts_with("pod-1_"));
    let Timing { lease, renew, retry } = Timing::default();
    assert!(retry * 2 < renew && renew < lease && lease + retry < 15 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn work_is_done_while_leading_and_begun_anew() {
    let leader = watch::Sender::new(false);
    let (begun, mut count) = watch::channel(0);
    let work = while_leading(leader.subscribe(), || async {
        begun.send_modify(|n| *n += 1);
        std::future::pending().await
    });
    let lead = async {
        tokio::time::sleep(SECOND).await;
        assert_eq!(*count.borrow(), 0);
        leader.send_replace(true);
        count.changed().await.unwrap();
        leader.send_replace(false);
        tokio::time::sleep(SECOND).await;
        leader.send_replace(true);
        count.changed().await.unwrap();
        assert_eq!(*count.borrow(), 2);
        drop(leader);
    };
    tokio::join!(work, lead);
}
