//! [`Log`]: the little that acknowledgement must know of a topic's chain of ledgers, so that "the entry after this one" can
//! cross the end of a ledger. Implemented by the managed ledger, and by plain vectors in tests.
//!
//! A *slot* is a position that holds an entry, or the one that takes the next entry. Entry ids are dense, so a ledger of n
//! entries has the slots 0..n. The position just after the last entry of a ledger is no slot once a later ledger holds
//! entries; [`Log::settle`] maps it to the slot it stands for. Floors may be stored unsettled: both forms bound the same
//! entries, which is why a floor never needs rewriting when a ledger rolls.

use geminga_common::ids::{EntryId, LedgerId, Position};

/// A ledger and how many entries it holds now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its entries: ids 0 up to this, exclusive. At least 1.
    pub entries: u64,
}

/// A topic's entries as cursors see them.
pub trait Log {
    /// The first ledger with an id of at least `from` that holds entries. Empty and trimmed ledgers are left out; of the
    /// ledger being written, the readable (durable) entries count.
    fn span_from(&self, from: LedgerId) -> Option<Span>;

    /// The slot that takes the next entry: above every entry.
    fn end(&self) -> Position;

    /// The first slot at or after `p`. Positions at or above [`Log::end`] come back unchanged.
    fn settle(&self, p: Position) -> Position {
        match self.span_from(p.ledger) {
            Some(span) if span.ledger > p.ledger => start_of(span),
            Some(span) if p.entry.0 < span.entries => p,
            Some(span) => self.span_from(span.ledger.next()).map_or(p, start_of),
            None => p,
        }
    }

    /// The slot after the entry `p`. `p` must hold an entry.
    fn next(&self, p: Position) -> Position {
        self.settle(Position::new(p.ledger, p.entry.next()))
    }

    /// Whether `p` holds an entry. Takes any numbers a client may send.
    fn holds(&self, p: Position) -> bool {
        self.span_from(p.ledger).is_some_and(|span| span.ledger == p.ledger && p.entry.0 < span.entries)
    }

    /// How many entries lie in `from..to`.
    fn entries_between(&self, from: Position, to: Position) -> u64 {
        let mut entries = 0;
        let mut at = from;
        while at < to {
            let Some(span) = self.span_from(at.ledger) else { break };
            if span.ledger > at.ledger {
                at = start_of(span);
                continue;
            }
            let stop = if to.ledger == span.ledger { to.entry.0.min(span.entries) } else { span.entries };
            entries += stop.saturating_sub(at.entry.0);
            at = start_after(span);
        }
        entries
    }

    /// The slot `entries` entries after `from`, at most [`Log::end`].
    fn skip(&self, from: Position, entries: u64) -> Position {
        let mut left = entries;
        let mut at = self.settle(from);
        while left > 0 {
            let Some(span) = self.span_from(at.ledger) else { break };
            if span.ledger > at.ledger {
                at = start_of(span);
                continue;
            }
            let here = span.entries.saturating_sub(at.entry.0);
            if left < here {
                return Position::new(at.ledger, EntryId(at.entry.0 + left));
            }
            left -= here;
            let after = Position::new(at.ledger, EntryId(at.entry.0 + here));
            at = self.settle(after);
            if at == after {
                break; // the last entry there is
            }
        }
        at
    }
}

fn start_of(span: Span) -> Position {
    Position::new(span.ledger, EntryId(0))
}

fn start_after(span: Span) -> Position {
    Position::new(span.ledger.next(), EntryId(0))
}
