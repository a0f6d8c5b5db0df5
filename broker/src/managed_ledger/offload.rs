//! Offloading as the topic's owner drives it: which ledgers are due for what, and how one is handed to the uploader. What may
//! happen to a ledger, and what that leaves behind, is decided by the machine in `geminga-offload`.

use super::source::LedgerSource;
use super::state::Segment;
use super::*;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::{EntryId, MessageIndex};
use geminga_offload::config::{TOGETHER_MAX, Together};
use geminga_offload::format::attributes::Attributes;
use geminga_offload::format::block;
use geminga_offload::key::AttemptId;
use geminga_offload::offloader::{Job, Source};
use geminga_offload::release::Held;
use geminga_offload::state::chain::{self, Thrown};
use geminga_offload::state::{Change, Offload, Refused};
use geminga_offload::writer::{Closed, Sourced};

#[cfg(test)]
mod tests;

/// Bytes that are read at a time where only the reading counts.
const PROOF_BYTES: usize = 4 << 20;

/// Grace for objects while no store is configured, ms.
const GRACE_MS: u64 = 600_000;

/// What the owner remembers of the chain.
#[derive(Debug, Default)]
pub(super) struct Offloads {
    /// Raised by every change of the record: what depends on the chain is looked at again then only.
    pub(super) chain_version: u64,
}

/// What a change leaves behind, to be removed once it is committed.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Ledgers to be tombstoned.
    pub(super) ledgers: Vec<ClosedLedger>,
    /// What is to be removed from the object store, unless a ledger that stays names it still.
    pub(super) garbage: Vec<Thrown>,
}

impl Left {
    /// A segment leaves the chain.
    pub(super) fn take(&mut self, segment: &Segment, now_ms: u64, grace_ms: u64) {
        let (garbage, bury) = segment.offload.remove(now_ms, grace_ms);
        let named_by = segment.offload.named_by(segment.id());
        self.garbage.extend(garbage.map(|garbage| (named_by, garbage)));
        self.ledgers.extend(bury.then(|| segment.ledger().clone()));
    }
}

/// What policies and people ask about offloading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rules {
    /// Ledgers are offloaded, oldest first, while the topic has more bytes than this on bookies and behind; `None` is never.
    pub(crate) bytes_max: Option<u64>,
    /// Ledgers closed longer ago than this, in ms, are offloaded; `None` is never.
    pub(crate) age_max_ms: Option<u64>,
    /// How long offloaded ledgers also stay on bookies, ms.
    pub(crate) lag_ms: u64,
    /// Everything before this ledger is to be offloaded, because somebody asked for it.
    pub(crate) before: Option<LedgerId>,
    /// Everything up to this ledger was in the store once, and is to be again.
    pub(crate) again: Option<LedgerId>,
    /// The first and last of the ledgers that are being uploaded here.
    pub(crate) uploading: Option<(LedgerId, LedgerId)>,
    /// Which ledgers go together.
    pub(crate) together: Together,
}

impl Rules {
    fn is_uploading(&self, ledger: LedgerId) -> bool {
        self.uploading.is_some_and(|(first, last)| (first..=last).contains(&ledger))
    }
}

/// What is to be done now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Due {
    /// Changes of the topic record, each of all ledgers that it takes.
    pub(crate) changes: Vec<Vec<(LedgerId, Change)>>,
    /// Ledgers whose bookie copies are to go, once their objects were looked at.
    pub(crate) releases: Vec<LedgerId>,
    /// The next ledgers to upload, as one object.
    pub(crate) upload: Vec<LedgerId>,
    /// When time alone makes something due, ms since 1970.
    pub(crate) wake_ms: Option<u64>,
}

/// Decides over a chain of closed ledgers, oldest first.
pub(crate) fn due(segments: &[Segment], open_bytes: u64, rules: &Rules, now_ms: u64) -> Due {
    let mut due = Due::default();
    let mut wake = |at_ms: u64| due.wake_ms = Some(due.wake_ms.map_or(at_ms, |wake| wake.min(at_ms)));
    let mut behind = open_bytes + segments.iter().map(Segment::bytes).sum::<u64>();
    // Abandoned together, as they were prepared.
    let mut left: BTreeMap<AttemptId, Vec<(LedgerId, Change)>> = BTreeMap::new();
    let (mut next, mut upload) = (Collecting::default(), None);
    for segment in segments {
        // As in Pulsar: all that is newer counts, this ledger included, wherever it is.
        let over = rules.bytes_max.is_some_and(|max| behind > max);
        behind -= segment.bytes();
        let mut goes = None;
        match &segment.offload {
            // An attempt of another owner, or of an earlier life of this one.
            Offload::Prepared(attempt) if !rules.is_uploading(segment.id()) => {
                left.entry(attempt.id).or_default().push((segment.id(), Change::Abandon(attempt.id)));
            }
            Offload::Committed(_, at_ms) if at_ms.saturating_add(rules.lag_ms) <= now_ms => {
                due.releases.push(segment.id());
            }
            Offload::Committed(_, at_ms) => wake(at_ms.saturating_add(rules.lag_ms)),
            Offload::Bookies => {
                let old_at = rules.age_max_ms.map(|age| segment.closed_ms.saturating_add(age));
                let old = old_at.is_some_and(|at| at <= now_ms);
                let asked = rules.before.is_some_and(|before| segment.id() < before)
                    || rules.again.is_some_and(|last| segment.id() <= last);
                if over || old || asked {
                    goes = Some(asked);
                } else {
                    old_at.into_iter().for_each(&mut wake);
                }
            }
            Offload::Prepared(_) | Offload::Released(_) => {}
        }
        if upload.is_none() {
            upload = next.take(segment, goes, &rules.together);
        }
    }
    if rules.uploading.is_none() {
        match upload.map_or_else(|| next.end(&rules.together, now_ms), Ok) {
            Ok(ledgers) => due.upload = ledgers,
            Err(at_ms) => wake(at_ms),
        }
    }
    due.changes = left.into_values().collect();
    due
}

/// Ledgers that are to go, oldest first, until there are enough for an object.
#[derive(Debug, Default)]
struct Collecting {
    ledgers: Vec<LedgerId>,
    bytes: u64,
    oldest_ms: u64,
    is_asked: bool,
}

impl Collecting {
    /// Takes the next ledger of the chain, which goes (and was asked for by somebody) or does not. Answers an upload that nothing
    /// can be added to.
    fn take(&mut self, segment: &Segment, goes: Option<bool>, rule: &Together) -> Option<Vec<LedgerId>> {
        let is_small = segment.bytes() < rule.below;
        let Some(is_asked) = goes else {
            // One that does not go yet may later; one that is in the store, or on its way, ends what is consecutive.
            let may_go_later = is_small && segment.offload == Offload::Bookies;
            return (!self.ledgers.is_empty() && !may_go_later).then(|| std::mem::take(&mut self.ledgers));
        };
        if !is_small {
            let alone = || vec![segment.id()];
            return Some(if self.ledgers.is_empty() { alone() } else { std::mem::take(&mut self.ledgers) });
        }
        if self.ledgers.is_empty() {
            self.oldest_ms = segment.closed_ms;
        }
        self.ledgers.push(segment.id());
        self.bytes += segment.bytes();
        self.is_asked |= is_asked;
        let is_full = self.bytes >= rule.size || self.ledgers.len() >= TOGETHER_MAX;
        is_full.then(|| std::mem::take(&mut self.ledgers))
    }

    /// No ledger is left that could be added now: what goes, or when it does although no other came, ms since 1970.
    fn end(self, rule: &Together, now_ms: u64) -> Result<Vec<LedgerId>, u64> {
        let at_ms = self.oldest_ms.saturating_add(rule.age_ms);
        if self.ledgers.is_empty() || self.is_asked || at_ms <= now_ms {
            Ok(self.ledgers)
        } else {
            Err(at_ms)
        }
    }
}

/// Reads a closed ledger for its upload.
pub(crate) struct LedgerReader {
    source: LedgerSource,
    last: EntryId,
}

impl LedgerReader {
    /// Makes sure that everything of the ledger can be read.
    ///
    /// # Errors
    /// What cannot.
    pub(crate) async fn read_whole(&self) -> Result<(), ReadError> {
        let mut next = EntryId(0);
        while next <= self.last {
            let read = self.source.read(next, self.last, PROOF_BYTES, ReadClass::CatchUp).await?;
            let last = read.last().map_or(next, |read| read.position.entry);
            next = last.next();
        }
        Ok(())
    }
}

impl Source for LedgerReader {
    fn read(&self, first: EntryId, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Sourced>, String>> {
        let read = self.source.read(first, self.last, bytes_max, ReadClass::CatchUp);
        let ledger = self.source.ledger();
        read.map(move |read| {
            let entries = read.map_err(|error| error.to_string())?;
            Ok(entries.into_iter().map(|read| sourced(ledger, read)).collect())
        })
        .boxed()
    }
}

fn sourced(ledger: LedgerId, read: ReadEntry) -> Sourced {
    let (id, Entry { header, payload }) = (read.position.entry, read.entry);
    let bytes = header.encode();
    let crc = geminga_bookie_client::entry::checksum(ledger, id, &header, &payload);
    Sourced {
        entry: block::Entry { id, crc, header: bytes, payload },
        publish_ms: header.timestamp_ms,
        first_index: MessageIndex(header.first_index.0),
    }
}

impl ManagedLedger {
    /// Changes whenever the chain does.
    #[must_use]
    pub(crate) fn chain_version(&self) -> u64 {
        self.offloads.chain_version
    }

    /// What is to be offloaded, released or given up.
    #[must_use]
    pub(crate) fn offload_due(&self, rules: &Rules) -> Due {
        let open_bytes = self.state.open().map_or(0, |open| open.confirmed_bytes);
        due(self.state.segments(), open_bytes, rules, self.deps.clock.wall_ms())
    }

    /// The first ledger that is not in the object store, if one is there.
    #[must_use]
    pub(crate) fn first_not_offloaded(&self) -> Option<LedgerId> {
        let closed = self.state.segments().iter().find(|s| s.offload.object().is_none()).map(Segment::id);
        closed.or(self.state.open().map(|open| open.id))
    }

    /// What the uploader needs of a closed ledger.
    #[must_use]
    pub(crate) fn offload_job(&self, ledger: LedgerId) -> Option<(Job, LedgerReader)> {
        let (tier, segment) = (self.deps.tier.as_ref()?, self.state.segment(ledger)?);
        let attributes = Attributes {
            cluster: tier.cluster.clone(),
            topic: (!tier.config.hide_names).then(|| self.topic.as_str().to_owned()),
            topic_id: self.state.topic_id,
            ledger,
            first_index: segment.first_index,
            closed_ms: segment.closed_ms,
            owner_epoch: self.deps.owner_epoch,
            attempt: 0,
            record: segment.ledger().encode(),
        };
        let closed = Closed { entries: segment.entries(), length: segment.bytes() };
        let reader = LedgerReader { source: self.source(ledger), last: segment.last() };
        Some((Job { attributes, closed }, reader))
    }

    /// Reads a closed ledger from bookies, whether or not there is an object as well.
    #[must_use]
    pub(crate) fn bookie_reader(&self, ledger: LedgerId) -> Option<LedgerReader> {
        let segment = self.state.segment(ledger).filter(|segment| segment.offload.on_bookies())?;
        Some(LedgerReader { source: self.source(ledger).of_bookies(), last: segment.last() })
    }

    /// What is to be looked at before the bookie copies of a ledger go.
    #[must_use]
    pub(crate) fn held(&self, ledger: LedgerId) -> Option<Held> {
        let segment = self.state.segment(ledger)?;
        let closed = Closed { entries: segment.entries(), length: segment.bytes() };
        let object = *segment.offload.object()?;
        Some(Held { topic: self.state.topic_id, ledger, closed, object })
    }

    /// The states after changes, and what they leave.
    pub(super) fn plan_offload(
        &self,
        changes: &[(LedgerId, Change)],
    ) -> Result<(Vec<(LedgerId, Offload)>, Left), Refused> {
        let segments = self.state.segments().iter().map(|segment| (segment.id(), &segment.offload));
        let plan = chain::plan(segments, changes)?;
        let buried = plan.bury.iter().filter_map(|ledger| self.state.segment(*ledger));
        let ledgers = buried.map(|segment| segment.ledger().clone()).collect();
        Ok((plan.next, Left { ledgers, garbage: plan.garbage }))
    }

    /// How long the object of a ledger that left the chain stays, ms.
    pub(crate) fn removal_grace_ms(&self) -> u64 {
        self.deps.tier.as_ref().map_or(GRACE_MS, |tier| tier.config.removal_grace_ms())
    }
}
