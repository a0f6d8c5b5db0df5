//! What a repair controller tells people: figures for `/metrics` and REST.

use geminga_common::ids::LedgerId;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Reasons kept at most; what is above is counted.
const REASONS_MAX: usize = 1000;

/// Ledgers whose trouble is logged one by one; of more the number is told.
const NAMED_MAX: usize = 20;

/// How repairs stand in this broker.
#[derive(Debug, Default)]
pub struct Status {
    figures: Mutex<Figures>,
    /// How many ledgers were last said to be due.
    told: Mutex<u64>,
}

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
        self.figures.lock().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.figures.lock());
    }

    /// Notes why a ledger is stuck; true when that is news worth a line of its own.
    pub(super) fn stuck(&self, ledger: LedgerId, why: &str) -> bool {
        let mut figures = self.figures.lock();
        let news = figures.stuck.get(&ledger).map(String::as_str) != Some(why);
        let kept = figures.stuck.len() < REASONS_MAX || figures.stuck.contains_key(&ledger);
        if news && kept {
            figures.stuck.insert(ledger, why.to_owned());
        }
        news && kept && figures.stuck.len() <= NAMED_MAX
    }

    /// The end of a round: how many ledgers are due, when that is worth a line: many, and twice or half as many as last said.
    pub(super) fn round(&self, due: u64) -> Option<u64> {
        let mut figures = self.figures.lock();
        figures.due = due;
        if due == 0 {
            figures.stuck.clear();
        }
        let mut told = self.told.lock();
        let news = if due > NAMED_MAX as u64 { due >= *told * 2 || due * 2 <= *told } else { *told > 0 };
        if news {
            *told = if due > NAMED_MAX as u64 { due } else { 0 };
        }
        news.then_some(due)
    }

    pub(super) fn free(&self, ledger: LedgerId) {
        self.figures.lock().stuck.remove(&ledger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many ledgers wait, and however often they are looked at.
    #[test]
    fn a_thousand_stuck_ledgers_are_not_a_thousand_lines_a_round() {
        let (status, mut lines) = (Status::default(), 0);
        for round in 0..100_u64 {
            let due = 50 * (round + 1);
            for ledger in 0..due {
                lines += usize::from(status.stuck(LedgerId(ledger), "no other bookie can take the copies"));
            }
            lines += usize::from(status.round(due).is_some());
        }
        assert!((NAMED_MAX..NAMED_MAX + 10).contains(&lines), "{lines}");
        assert_eq!(status.figures().stuck.len(), REASONS_MAX);
        for ledger in 3..5000 {
            status.free(LedgerId(ledger));
        }
        assert_eq!(status.round(3), Some(3), "that most are repaired is news");
        assert_eq!(status.round(3), None);
        assert!(status.stuck(LedgerId(9000), "another"), "few are named again");
        assert_eq!((status.round(0), status.round(0)), (None, None));
        assert!(status.figures().stuck.is_empty());
    }
}
