//! What an owner does for the copies of its open ledger: it has the writer ask members that are said to be gone, and closes a
//! ledger whose earlier entries lack copies, because only closed ledgers are repaired.

use super::*;
use geminga_bookie_client::ledgers::Copies;
use geminga_bookie_client::registry::absence::Suspect;
use geminga_common::clock::Mono;

impl ManagedLedger {
    /// These bookies are said to be gone: a member of the open ledger among them is asked, and replaced if it does not answer as
    /// who it was.
    pub fn probe(&mut self, suspects: &[Suspect]) {
        if self.life != Life::Dead
            && let Some(writer) = &mut self.writer
        {
            writer.probe(&|member| suspects.iter().any(|suspect| suspect.is(member)));
        }
    }

    pub(super) fn repair_is_due(&mut self, now: Mono) -> bool {
        let copies = self.writer.as_ref().map(|writer| writer.progress().copies);
        self.repair_roll.observe(copies == Some(Copies::RepairDue), now, &mut self.rng);
        self.repair_roll.is_due(now)
    }

    pub(super) fn rolls_for_repair(&mut self, now: Mono) {
        let ledger = self.state.open().map(|open| open.id);
        tracing::info!(topic = %self.topic.as_str(), ?ledger, reason = "repair_due", "ledger is closed early");
        self.repair_roll.rolled(now);
        self.counters.rolls_for_repair += 1;
    }
}
