//! The observer: what was appended, acknowledged, closed and read, and whether that fits together.
//!
//! | it holds that | of `reliability.md` |
//! |---|---|
//! | what is acknowledged is in its ledger when that is closed, whoever closes it | S1, I1 |
//! | a ledger is closed at one place only | I2 |
//! | what is read is what was appended under that id, byte for byte | S2 |
//! | an id that is acknowledged or closed is never said not to exist | S1 |
//! | acknowledgements go forward without gaps | I3 |
//! | at the end every id is on all of its write quorum | I10, S8 |

use bytes::Bytes;
use geminga_bookie_client::entry::Entry;
use geminga_common::ids::{EntryId, LedgerId};
use std::collections::BTreeMap;

/// How often what happened: a rare path that no seed takes is one that nobody tests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Seen {
    pub(crate) acked: u64,
    pub(crate) reads: u64,
    pub(crate) unavailable: u64,
    pub(crate) rolled: u64,
    pub(crate) recovered: u64,
    pub(crate) undecided: u64,
    pub(crate) lost: u64,
    pub(crate) unknown: u64,
    pub(crate) repaired: u64,
    pub(crate) copied: u64,
    pub(crate) faults: u64,
    pub(crate) slow_verdicts: u64,
    pub(crate) slow_left: u64,
}

impl Seen {
    /// Names and numbers, in one order.
    pub(crate) fn fields(&mut self) -> [(&'static str, &mut u64); 13] {
        [
            ("acknowledged", &mut self.acked),
            ("reads", &mut self.reads),
            ("reads-unavailable", &mut self.unavailable),
            ("rolls", &mut self.rolled),
            ("recoveries", &mut self.recovered),
            ("undecided", &mut self.undecided),
            ("ledgers-lost-to-others", &mut self.lost),
            ("outcomes-unknown", &mut self.unknown),
            ("repairs", &mut self.repaired),
            ("copied", &mut self.copied),
            ("faults", &mut self.faults),
            ("slow-verdicts", &mut self.slow_verdicts),
            ("slow-members-left", &mut self.slow_left),
        ]
    }
}

#[derive(Default)]
struct Ledger {
    appended: BTreeMap<EntryId, Bytes>,
    lac: Option<EntryId>,
    /// Where it was closed, once it was.
    closed: Option<Option<EntryId>>,
}

#[derive(Default)]
pub(crate) struct Check {
    ledgers: BTreeMap<LedgerId, Ledger>,
    pub(crate) seen: Seen,
    broken: Option<String>,
}

impl Check {
    pub(crate) fn broken(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(crate) fn is_broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    pub(crate) fn appended(&mut self, ledger: LedgerId, id: EntryId, payload: Bytes) {
        let before = self.ledgers.entry(ledger).or_default().appended.insert(id, payload);
        if before.is_some() {
            self.broken(format!("{id} of {ledger} was given out twice"));
        }
    }

    /// Takes a last acknowledged entry in; answers how many are new.
    pub(crate) fn acknowledged(&mut self, id: LedgerId, lac: EntryId) -> u64 {
        let ledger = self.ledgers.entry(id).or_default();
        let before = ledger.lac.map_or(0, |lac| lac.0 + 1);
        let closed = ledger.closed;
        if lac.0 + 1 < before {
            self.broken(format!("acknowledgements of {id} went back to {lac}"));
            return 0;
        }
        let news = lac.0 + 1 - before;
        ledger.lac = Some(lac);
        if let Some(last) = closed.filter(|last| news > 0 && last.is_none_or(|last| last < lac)) {
            self.broken(format!("S1: {lac} of {id} is acknowledged, which was closed at {last:?}"));
        }
        self.seen.acked += news;
        news
    }

    pub(crate) fn lac(&self, id: LedgerId) -> Option<EntryId> {
        self.ledgers.get(&id)?.lac
    }

    /// A ledger was closed, by its writer or by a recoverer.
    pub(crate) fn closed(&mut self, id: LedgerId, last: Option<EntryId>) {
        let ledger = self.ledgers.entry(id).or_default();
        let (lac, before) = (ledger.lac, ledger.closed.replace(last));
        if before.is_some_and(|before| before != last) {
            self.broken(format!("I2: {id} is closed at {last:?}, and was closed at {before:?}"));
        }
        if lac > last {
            self.broken(format!("S1: {id} is closed at {last:?}, acknowledged was {lac:?}"));
        }
    }

    /// What a read gave, from `from` on.
    pub(crate) fn read(&mut self, id: LedgerId, from: EntryId, entries: &[Entry]) {
        for (next, entry) in (from.0..).zip(entries) {
            let appended = self.ledgers.get(&id).and_then(|ledger| ledger.appended.get(&entry.id));
            if entry.id.0 != next {
                return self.broken(format!("S2: {next} of {id} was asked for, {} came", entry.id));
            }
            if appended != Some(&entry.payload) {
                return self.broken(format!("S2: {next} of {id} is not what was appended"));
            }
        }
    }

    /// Whether all that was acknowledged lies in these closed ledgers; ids of them rise.
    pub(crate) fn listed(&mut self, closed: &[(LedgerId, Option<EntryId>)]) {
        if closed.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            self.broken(format!("I14: ids of ledgers do not rise: {closed:?}"));
        }
        let missing = self.ledgers.iter().find_map(|(id, ledger)| {
            let lac = ledger.lac?;
            let last = closed.iter().find(|(other, _)| other == id).map(|(_, last)| *last);
            match last {
                Some(Some(last)) if last >= lac => None,
                other => Some(format!("S1: {lac} of {id} was acknowledged, the topic has {other:?}")),
            }
        });
        if let Some(missing) = missing {
            self.broken(missing);
        }
    }
}
