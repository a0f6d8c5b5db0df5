//! A snapshot for `internalStats`.

use super::{Life, ManagedLedger};
use geminga_bookie_client::ledgers::Copies;
use geminga_common::ids::{LedgerId, Position};
use geminga_offload::meters::Figures;

/// What is counted along the way.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) entries_added: u64,
    pub(super) last_created_ms: u64,
    pub(super) last_creation_failure_ms: u64,
    pub(super) rolls_for_repair: u64,
}

/// One ledger of the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerStats {
    /// The ledger.
    pub id: LedgerId,
    /// Entries confirmed.
    pub entries: u64,
    /// Bytes of headers and payloads confirmed.
    pub bytes: u64,
    /// Some of its entries may be below their write quorum.
    pub under_replicated: bool,
    /// It is in the object store, verified.
    pub offloaded: bool,
    /// When it was closed, ms since 1970; `None` while open.
    pub closed_ms: Option<u64>,
}

/// A managed ledger at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Stats {
    /// Entries made durable since it was opened.
    pub entries_added: u64,
    /// Entries that are there.
    pub entries: u64,
    /// Bytes of headers and payloads that are there.
    pub bytes: u64,
    /// Entries of the open ledger.
    pub current_ledger_entries: u64,
    /// Bytes of the open ledger.
    pub current_ledger_bytes: u64,
    /// When a ledger was last created by this handle, ms since 1970; 0 for never.
    pub last_ledger_created_ms: u64,
    /// When a creation last failed, ms since 1970; 0 for never.
    pub last_ledger_creation_failure_ms: u64,
    /// Ledgers closed early because repair was due, since it was opened.
    pub rolls_for_repair: u64,
    /// Appends that are not acknowledged yet.
    pub pending_appends: usize,
    /// Last durable entry.
    pub last_confirmed: Option<Position>,
    /// `LedgerOpened`, `NoLedger`, `Terminated`, `Closing` or `Closed`.
    pub state: &'static str,
    /// What offloading has done and cost here; `None` without an object store.
    pub offload: Option<Figures>,
    /// Ledgers, oldest first.
    pub ledgers: Vec<LedgerStats>,
}

impl ManagedLedger {
    /// A snapshot.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (entries, bytes) = self.state.totals();
        let closed = self.state.segments().iter().map(|s| LedgerStats {
            id: s.id(),
            entries: s.entries(),
            bytes: s.bytes(),
            under_replicated: !s.ledger().repair.is_empty(),
            offloaded: s.offload.object().is_some(),
            closed_ms: Some(s.closed_ms),
        });
        let open = self.state.open().map(|o| LedgerStats {
            id: o.id,
            entries: o.confirmed,
            bytes: o.confirmed_bytes,
            under_replicated: self.writer.as_ref().is_some_and(|w| w.progress().copies != Copies::Full),
            offloaded: false,
            closed_ms: None,
        });
        let state = match (&self.life, self.state.terminated, self.writer.is_some()) {
            (Life::Dead, ..) => "Closed",
            (_, true, _) => "Terminated",
            (Life::Closing, ..) => "Closing",
            (Life::Alive, _, true) => "LedgerOpened",
            (Life::Alive, _, false) => "NoLedger",
        };
        Stats {
            entries_added: self.counters.entries_added,
            entries,
            bytes,
            current_ledger_entries: open.as_ref().map_or(0, |o| o.entries),
            current_ledger_bytes: open.as_ref().map_or(0, |o| o.bytes),
            last_ledger_created_ms: self.counters.last_created_ms,
            last_ledger_creation_failure_ms: self.counters.last_creation_failure_ms,
            rolls_for_repair: self.counters.rolls_for_repair,
            pending_appends: self.pending_entries(),
            last_confirmed: self.state.last,
            state,
            offload: self.deps.tier.as_ref().zip(self.meter.as_ref()).map(|(t, m)| t.meters.figures(m)),
            ledgers: closed.chain(open).collect(),
        }
    }
}
