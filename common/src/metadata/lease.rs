//! The book of leases: which are alive, until when, and which keys die with them.
//!
//! Owner: the store that holds it, under its lock or on its thread. Pure: time comes in as an argument. Invariants: a key is
//! tied to at most one lease, and only to one that is in the book.

use super::{LeaseId, MetaError};
use crate::clock::Mono;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    deadline: Mono,
    keys: BTreeSet<String>,
}

/// All leases of one store.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    last: u64,
    by_id: BTreeMap<LeaseId, Lease>,
    of_key: HashMap<String, LeaseId>,
}

impl Leases {
    pub(super) fn grant(&mut self, ttl: Duration, now: Mono) -> LeaseId {
        self.last += 1;
        let id = LeaseId(self.last);
        self.by_id.insert(id, Lease { ttl, deadline: now.saturating_add(ttl), keys: BTreeSet::new() });
        id
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Mono) -> Result<(), MetaError> {
        let lease = self.by_id.get_mut(&id).ok_or(MetaError::LeaseGone(id))?;
        lease.deadline = now.saturating_add(lease.ttl);
        Ok(())
    }

    pub(super) fn check(&self, id: LeaseId) -> Result<(), MetaError> {
        if self.by_id.contains_key(&id) { Ok(()) } else { Err(MetaError::LeaseGone(id)) }
    }

    /// Whether a key hangs on a lease.
    pub(super) fn is_tied(&self, key: &str) -> bool {
        self.of_key.contains_key(key)
    }

    /// Records that a key was written: it now hangs on `lease` alone, or on none.
    pub(super) fn tie(&mut self, key: &str, lease: Option<LeaseId>) {
        if let Some(before) = self.of_key.remove(key)
            && let Some(lease) = self.by_id.get_mut(&before)
        {
            lease.keys.remove(key);
        }
        if let Some(id) = lease {
            let lease = self.by_id.get_mut(&id).expect("the caller has checked the lease");
            lease.keys.insert(key.to_owned());
            self.of_key.insert(key.to_owned(), id);
        }
    }

    /// Ends a lease; answers the keys that die with it.
    pub(super) fn revoke(&mut self, id: LeaseId) -> Result<Vec<String>, MetaError> {
        let lease = self.by_id.remove(&id).ok_or(MetaError::LeaseGone(id))?;
        for key in &lease.keys {
            self.of_key.remove(key);
        }
        Ok(lease.keys.into_iter().collect())
    }

    /// Leases whose time is over.
    pub(super) fn expired(&self, now: Mono) -> Vec<LeaseId> {
        self.by_id.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect()
    }

    /// When the next lease runs out.
    pub(super) fn next_deadline(&self) -> Option<Mono> {
        self.by_id.values().map(|lease| lease.deadline).min()
    }
}
