//! What the object store is asked for on behalf of each tenant: requests by kind and bytes both ways, as a store's bill has them.
//! Counted where a request leaves (`blob/metered.rs`), so that repetitions, which the store charges for as well, are counted too.
//!
//! Which tenant a request is for is told by its topic, which is part of every key. A tenant's counters stay for the life of the
//! process, so that they never fall; there are at most [`TENANTS_MAX`] of them beside [`UNKNOWN`].

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tenants with counters of their own; those that come later are counted as [`UNKNOWN`].
pub const TENANTS_MAX: usize = 1000;
/// Whom requests are charged to that are for no topic which is loaded here: topics that were deleted, and the store's identity.
pub const UNKNOWN: &str = "unknown";

/// What stores have prices for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A whole object is stored.
    Put,
    /// An object, or a range of one, is read.
    Get,
    /// The size of an object is asked for.
    Head,
    /// A page of objects, or of uploads in parts, is listed.
    List,
    /// An object is removed, or an upload in parts is ended.
    Delete,
    /// An upload in parts is begun or completed, or a part is stored.
    Multipart,
}

impl Kind {
    /// All of them, in the order of [`Bill::requests`].
    pub const ALL: [Kind; 6] = [Kind::Put, Kind::Get, Kind::Head, Kind::List, Kind::Delete, Kind::Multipart];

    /// As metrics call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Head => "head",
            Kind::List => "list",
            Kind::Delete => "delete",
            Kind::Multipart => "multipart",
        }
    }
}

/// What a tenant has had done since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bill {
    /// Requests that were sent, whatever came of them, by [`Kind::ALL`].
    pub requests: [u64; 6],
    /// Bytes of their bodies.
    pub sent: u64,
    /// Bytes of the bodies that were read of their answers.
    pub received: u64,
}

/// Counters of one tenant.
#[derive(Debug, Default)]
pub struct Account {
    requests: [AtomicU64; 6],
    sent: AtomicU64,
    received: AtomicU64,
}

impl Account {
    /// A request with a body of so many bytes leaves.
    pub(crate) fn request(&self, kind: Kind, sent: u64) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// So many bytes of an answer have come.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bill(&self) -> Bill {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Bill {
            requests: std::array::from_fn(|kind| get(&self.requests[kind])),
            sent: get(&self.sent),
            received: get(&self.received),
        }
    }
}

/// The accounts of all tenants.
#[derive(Debug)]
pub(crate) struct Accounts {
    tenants: Mutex<BTreeMap<String, Arc<Account>>>,
    pub(crate) unknown: Arc<Account>,
}

impl Default for Accounts {
    fn default() -> Self {
        // Under its name as well: there may be a tenant that is called so, and a name has one line.
        let unknown = Arc::<Account>::default();
        let tenants = BTreeMap::from([(UNKNOWN.to_owned(), unknown.clone())]);
        Self { tenants: Mutex::new(tenants), unknown }
    }
}

impl Accounts {
    /// The account of a tenant; a new one if it has none and there is room.
    pub(crate) fn of(&self, tenant: &str) -> Arc<Account> {
        let mut tenants = self.tenants.lock();
        if let Some(account) = tenants.get(tenant) {
            return account.clone();
        }
        if tenants.len() > TENANTS_MAX {
            return self.unknown.clone();
        }
        tenants.entry(tenant.to_owned()).or_default().clone()
    }

    /// What was done for each tenant, by name; those for whom nothing was are left out.
    pub(crate) fn bills(&self) -> Vec<(String, Bill)> {
        let tenants = self.tenants.lock();
        let bills = tenants.iter().map(|(tenant, account)| (tenant.clone(), account.bill()));
        bills.filter(|(_, bill)| *bill != Bill::default()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_limit_share_one_line() {
        let accounts = Accounts::default();
        for n in 0..TENANTS_MAX + 5 {
            accounts.of(&format!("tenant-{n}")).request(Kind::Put, 3);
        }
        accounts.of("tenant-0").received(7);
        accounts.of(UNKNOWN).request(Kind::Head, 0);
        let bills = accounts.bills();
        assert_eq!(bills.len(), TENANTS_MAX + 1);
        let of = |name: &str| bills.iter().find(|(tenant, _)| tenant == name).map(|(_, bill)| *bill);
        assert_eq!(of("tenant-0"), Some(Bill { requests: [1, 0, 0, 0, 0, 0], sent: 3, received: 7 }));
        assert_eq!(of(UNKNOWN), Some(Bill { requests: [5, 0, 1, 0, 0, 0], sent: 15, received: 0 }));
    }

    #[test]
    fn kinds_are_counted_under_their_own_names() {
        for (nth, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, nth, "{}", kind.name());
        }
    }
}
