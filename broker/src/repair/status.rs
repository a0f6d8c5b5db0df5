//! What a repair controller tells people: figures for `/metrics` and REST.

use geminga_common::ids::LedgerId;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Reasons kept at most; what is above is counted.
const REASONS_MAX: usize = 1000;

/// How repairs stand in this broker.
#[derive(Debug, Default)]
pub struct Status(Mutex<Figures>);

/// The figures at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Whether this broker is the one that repairs.
    pub leader: bool,
    /// Ledgers that are below their write quorum, as of the last round.
    pub due: u64,
    /// Ledgers brought back to their write quorum.
    pub repaired: u64,
    /// Entries copied.
    pub entries: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Ledgers looked at, in all rounds.
    pub looked_at: u64,
    /// Ledgers that cannot be repaired now, and why; the first thousand.
    pub stuck: BTreeMap<LedgerId, String>,
}

impl Status {
    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.0.lock().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.0.lock());
    }

    /// Notes why a ledger is stuck; true when that is news.
    pub(super) fn stuck(&self, ledger: LedgerId, why: &str) -> bool {
        let mut figures = self.0.lock();
        let news = figures.stuck.get(&ledger).map(String::as_str) != Some(why);
        if news && (figures.stuck.len() < REASONS_MAX || figures.stuck.contains_key(&ledger)) {
            figures.stuck.insert(ledger, why.to_owned());
        }
        news
    }

    pub(super) fn free(&self, ledger: LedgerId) {
        self.0.lock().stuck.remove(&ledger);
    }
}
