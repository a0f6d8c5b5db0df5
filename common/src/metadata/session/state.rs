//! The pure part of a session: what a process knows about its lease, by its own clock.
//!
//! Invariants: a renewal counts from when it was *asked for*, never from its answer, so that the store's clock always gives the
//! lease at least as long as this one does. A session's generation never repeats: what hung on an earlier lease is gone.

use super::super::LeaseId;
use crate::clock::Mono;
use std::time::Duration;

/// How sure a process may be of its lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It lives.
    Held,
    /// Not renewed for two thirds of its time: nothing may be begun that assumes it.
    Doubtful,
    /// It is gone, with every key that hung on it.
    Lost,
}

/// What is known.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    ttl: Duration,
    lease: Option<LeaseId>,
    renewed: Mono,
    generation: u64,
}

impl State {
    /// Before the first lease.
    #[must_use]
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, lease: None, renewed: Mono::ZERO, generation: 0 }
    }

    /// A lease was granted; it was asked for at `asked`.
    pub fn granted(&mut self, lease: LeaseId, asked: Mono) {
        self.lease = Some(lease);
        self.renewed = asked;
        self.generation += 1;
    }

    /// The lease was renewed; that was asked for at `asked`.
    pub fn renewed(&mut self, lease: LeaseId, asked: Mono) {
        if self.lease == Some(lease) {
            self.renewed = self.renewed.max(asked);
        }
    }

    /// The store says that the lease is gone.
    pub fn gone(&mut self, lease: LeaseId) {
        if self.lease == Some(lease) {
            self.lease = None;
        }
    }

    /// The lease, whatever its standing.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease
    }

    /// Counts leases; a higher one makes all that hung on the one before void.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How sure the process may be at `now`.
    #[must_use]
    pub fn standing(&self, now: Mono) -> Standing {
        match self.lease {
            None => Standing::Lost,
            Some(_) if now.saturating_sub(self.renewed) * 3 >= self.ttl * 2 => Standing::Doubtful,
            Some(_) => Standing::Held,
        }
    }

    /// When to renew next: three attempts fit before the standing falls.
    #[must_use]
    pub fn renew_at(&self) -> Mono {
        self.renewed + self.ttl / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(12);
    const LEASE: LeaseId = LeaseId(7);

    fn at(seconds: u64) -> Mono {
        Duration::from_secs(seconds)
    }

    #[test]
    fn standing_falls_at_two_thirds_counted_from_the_asking() {
        let mut state = State::new(TTL);
        assert_eq!(state.standing(at(0)), Standing::Lost);
        state.granted(LEASE, at(10));
        assert_eq!(state.standing(at(17)), Standing::Held);
        assert_eq!(state.standing(at(18)), Standing::Doubtful);
        state.renewed(LEASE, at(14));
        assert_eq!((state.standing(at(21)), state.standing(at(22))), (Standing::Held, Standing::Doubtful));
        state.renewed(LEASE, at(12));
        assert_eq!(state.standing(at(21)), Standing::Held, "an answer that comes late takes nothing back");
    }

    #[test]
    fn what_is_said_of_an_old_lease_does_not_touch_the_new_one() {
        let mut state = State::new(TTL);
        state.granted(LEASE, at(0));
        state.gone(LEASE);
        assert_eq!(state.standing(at(1)), Standing::Lost);
        state.granted(LeaseId(8), at(2));
        state.gone(LEASE);
        state.renewed(LEASE, at(100));
        assert_eq!((state.standing(at(3)), state.standing(at(50))), (Standing::Held, Standing::Doubtful));
        assert_eq!(state.generation(), 2);
    }
}
