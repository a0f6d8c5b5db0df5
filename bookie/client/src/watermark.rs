//! Raising the dead-id watermark: the controller tells creators first, makes sure that nobody lives below, and only then tells bookies.
//!
//! Two keys, both only ever raised. `wm_create` is compared by every transaction that creates a ledger; `wm` is what bookies obey. The order
//! is the whole point: 1. raise `wm_create`; 2. list the ledgers, beginning after that; 3. raise `wm` to what lies below the lowest ledger
//! that is open or recovering, at most to `wm_create`. A creation that beat step 1 is in the listing; one that comes later is refused.
//! With the listing first, a ledger could be made between it and the raise, and its adds be refused for ever.
//!
//! A record that cannot be read counts as a living ledger.

use crate::ledgers::client::watermark_value;
use crate::record::{LedgerRecord, LedgerState};
use bytes::Bytes;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Record, Txn, TxnOutcome, list_all};

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Read a key.
    Get(String),
    /// Run a transaction.
    Txn(Txn),
    /// List all ledger records, beginning now.
    List,
    /// Bookies may be told this watermark; it is committed.
    Done(Option<LedgerId>),
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The value of the key.
    Got(Option<Bytes>),
    /// How the transaction ended; one whose outcome is unknown counts as lost, and is looked at again.
    Txn(bool),
    /// The lowest ledger that is not closed.
    Listed(Option<LedgerId>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    ReadCreate,
    RaiseCreate,
    List,
    ReadWatermark,
    Raise,
    Done,
}

/// The machine that raises both keys. Any number may run at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raise {
    keys: Keys,
    /// `wm_create` is raised up to here; then what is found to be dead.
    target: LedgerId,
    step: Step,
}

impl Raise {
    /// Raises up to `target`, which may be above ids that were never used: whoever holds a block of such ids takes a fresh one.
    #[must_use]
    pub fn new(keys: Keys, target: LedgerId) -> (Self, Effect) {
        let first = Effect::Get(keys.wm_create());
        (Self { keys, target, step: Step::ReadCreate }, first)
    }

    /// Takes an event.
    pub fn on(&mut self, event: Event) -> Effect {
        match (self.step, event) {
            (Step::ReadCreate, Event::Got(known)) if decode(known.as_ref()) >= Some(self.target) => {
                self.list()
            }
            (Step::ReadCreate, Event::Got(known)) => {
                self.step = Step::RaiseCreate;
                Effect::Txn(raise(self.keys.wm_create(), known, self.target))
            }
            (Step::RaiseCreate, Event::Txn(true)) => self.list(),
            (Step::List, Event::Listed(lowest)) => {
                let below = match lowest {
                    Some(LedgerId(0)) => return self.done(None),
                    Some(id) => LedgerId(id.0 - 1),
                    None => self.target,
                };
                self.target = self.target.min(below);
                self.step = Step::ReadWatermark;
                Effect::Get(self.keys.wm())
            }
            (Step::ReadWatermark, Event::Got(known)) => match decode(known.as_ref()) {
                Some(now) if now >= self.target => self.done(Some(now)),
                _ => {
                    self.step = Step::Raise;
                    Effect::Txn(raise(self.keys.wm(), known, self.target))
                }
            },
            (Step::Raise, Event::Txn(true)) => self.done(Some(self.target)),
            (Step::Raise, Event::Txn(false)) => {
                self.step = Step::ReadWatermark;
                Effect::Get(self.keys.wm())
            }
            // A race lost, or an event that nobody asked for: from the beginning.
            _ if self.step != Step::Done => {
                self.step = Step::ReadCreate;
                Effect::Get(self.keys.wm_create())
            }
            _ => Effect::Done(None),
        }
    }

    fn list(&mut self) -> Effect {
        self.step = Step::List;
        Effect::List
    }

    fn done(&mut self, to: Option<LedgerId>) -> Effect {
        self.step = Step::Done;
        Effect::Done(to)
    }
}

fn raise(key: String, known: Option<Bytes>, to: LedgerId) -> Txn {
    let unchanged = match known {
        Some(value) => Compare::ValueIs(key.clone(), value),
        None => Compare::Absent(key.clone()),
    };
    Txn { compares: vec![unchanged], ops: vec![Op::put(key, watermark_value(to))] }
}

fn decode(value: Option<&Bytes>) -> Option<LedgerId> {
    let (version, word) = value?.split_first()?;
    (*version == 1).then_some(LedgerId(u64::from_be_bytes(word.try_into().ok()?)))
}

fn lowest_living(keys: &Keys, records: &[Record]) -> Option<LedgerId> {
    let closed = |record: &Record| {
        LedgerRecord::decode(&record.value)
            .is_ok_and(|found| matches!(found.state, LedgerState::Closed { .. }))
    };
    let living = records.iter().filter(|record| !closed(record));
    living.filter_map(|record| keys.ledger_of_key(&record.key)).min()
}

/// Raises the watermarks, `wm_create` up to `target` and `wm` as far as that allows; the `wm` that bookies may be told.
///
/// # Errors
/// The metadata store cannot be asked. What was raised stays raised, which is safe.
pub async fn run(
    meta: &dyn MetadataStore,
    keys: &Keys,
    target: LedgerId,
) -> Result<Option<LedgerId>, MetaError> {
    let (mut machine, mut effect) = Raise::new(keys.clone(), target);
    loop {
        let event = match effect {
            Effect::Done(to) => return Ok(to),
            Effect::Get(key) => Event::Got(meta.get(&key).await?.map(|record| record.value)),
            Effect::List => {
                Event::Listed(lowest_living(keys, &list_all(meta, &keys.ledgers_prefix()).await?))
            }
            Effect::Txn(txn) => match meta.txn(txn).await {
                Ok(outcome) => Event::Txn(matches!(outcome, TxnOutcome::Committed(_))),
                Err(MetaError::Unknown(_)) => Event::Txn(false),
                Err(error) => return Err(error),
            },
        };
        effect = machine.on(event);
    }
}

#[cfg(test)]
mod tests;
