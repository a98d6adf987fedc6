//! What a proxy knows of a name, in 16 bytes.

use crate::Version;

/// What a proxy was sent of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Nothing,
    Absent,
    Content(Version),
}

/// What a proxy was sent of a name, and whether the name waits to be looked at: kept once for each subscription of
/// each proxy, so that the second must not take a word of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Nothing { waits: bool },
    Absent { waits: bool },
    Current(Version),
    Waiting(Version),
}

impl Known {
    /// A name that does not wait yet.
    pub(super) const fn new(sent: Sent) -> Self {
        Self::of(sent, false)
    }

    const fn of(sent: Sent, waits: bool) -> Self {
        match sent {
            Sent::Nothing => Self::Nothing { waits },
            Sent::Absent => Self::Absent { waits },
            Sent::Content(version) if waits => Self::Waiting(version),
            Sent::Content(version) => Self::Current(version),
        }
    }

    pub(super) const fn sent(self) -> Sent {
        match self {
            Self::Nothing { .. } => Sent::Nothing,
            Self::Absent { .. } => Sent::Absent,
            Self::Current(version) | Self::Waiting(version) => Sent::Content(version),
        }
    }

    pub(super) const fn waits(self) -> bool {
        match self {
            Self::Nothing { waits } | Self::Absent { waits } => waits,
            Self::Current(_) => false,
            Self::Waiting(_) => true,
        }
    }

    /// It was sent this; whether it waits stays.
    pub(super) const fn set(&mut self, sent: Sent) {
        *self = Self::of(sent, self.waits());
    }

    /// It waits from now on. Says whether it did not before.
    pub(super) const fn wait(&mut self) -> bool {
        let new = !self.waits();
        *self = Self::of(self.sent(), true);
        new
    }

    /// It waits no more.
    pub(super) const fn looked_at(&mut self) {
        *self = Self::of(self.sent(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResourceType;

    #[test]
    fn it_takes_16_bytes() {
        assert_eq!(size_of::<Known>(), 16);
    }

    #[test]
    fn what_was_sent_and_whether_it_waits_do_not_touch_each_other() {
        let version = Version::of(ResourceType::Host, b"x");
        for sent in [Sent::Nothing, Sent::Absent, Sent::Content(version)] {
            let mut known = Known::new(sent);
            assert!(!known.waits());
            assert!(known.wait() && !known.wait());
            assert_eq!((known.sent(), known.waits()), (sent, true));
            known.set(Sent::Absent);
            known.set(sent);
            assert_eq!((known.sent(), known.waits()), (sent, true));
            known.looked_at();
            assert_eq!(known, Known::new(sent));
        }
    }
}
