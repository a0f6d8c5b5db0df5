//! A topic's ledgers as cursors see them.

use crate::cursor::{Log, Span};
use crate::managed_ledger::ManagedLedger;
use geminga_common::ids::{LedgerId, Position};

impl Log for ManagedLedger {
    fn span_from(&self, from: LedgerId) -> Option<Span> {
        self.entries_from(from).map(|(ledger, entries)| Span { ledger, entries })
    }

    fn end(&self) -> Position {
        self.end_position()
    }
}
