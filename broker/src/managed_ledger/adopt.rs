//! What others may change in a topic record: a repairer moves members of closed ledgers and removes their repair ranges, and
//! leaves everything else, the op id too, as it was. Its write is taken over in two places: where a change of ours finds the record
//! moved, and where a read finds none of the holders it knows of.
//!
//! For a read any version of the record will do, whoever wrote it: what a closed ledger holds never changes, and every entry is
//! checked. Only what *we* are to write over must be our own write, moved by a repairer.

use super::*;
use geminga_bookie_client::entry;
use geminga_bookie_client::ledgers::{LedgerView, ReadError as LedgerReadError};
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::clock::Mono;
use geminga_common::ids::EntryId;
use std::time::Duration;

/// Reads that fail look at the record again this often at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The record as a read has seen it.
#[derive(Debug)]
pub(super) struct Seen {
    state: State,
    op_id: u64,
    revision: Revision,
}

/// Looks at the record: one at a time, one a second.
#[derive(Debug, Default)]
pub(super) struct Looks(tokio::sync::Mutex<Option<(Mono, Option<Arc<Seen>>)>>);

/// Reads ledgers of the topic from bookies.
#[derive(Clone)]
pub(super) struct Holders {
    deps: Deps,
    key: String,
    looks: Arc<Looks>,
    events: Events,
    /// Its writer knows where its entries are.
    open: Option<LedgerId>,
}

impl ManagedLedger {
    pub(super) fn holders(&self) -> Holders {
        Holders {
            deps: self.deps.clone(),
            key: self.deps.keys.topic(&self.topic),
            looks: self.looks.clone(),
            events: self.events.clone(),
            open: self.state.open().map(|open| open.id),
        }
    }

    /// Takes over a version of the record that carries our last op id; false when it is not ours all the same.
    pub(super) fn adopt(&mut self, stored: &State, revision: Revision) -> bool {
        let ours = self.state.adopt(stored);
        if ours {
            self.revision = revision;
        }
        ours
    }

    /// A read has found the record moved.
    pub(super) fn seen(&mut self, seen: &Seen) {
        if seen.revision > self.revision && seen.op_id == self.written && self.life != Life::Dead {
            self.adopt(&seen.state, seen.revision);
        }
    }
}

impl Holders {
    /// As [`Ledgers::read`]; when no holder has it, the record is asked whether the ledger is elsewhere by now.
    pub(super) async fn read(
        &self,
        view: &LedgerView,
        first: EntryId,
        last: EntryId,
        bytes_max: usize,
        class: ReadClass,
    ) -> Result<Vec<entry::Entry>, LedgerReadError> {
        let read = self.deps.ledgers.read(view, first, last, bytes_max, class).await;
        if read.is_ok() || self.open == Some(view.id) {
            return read;
        }
        match self.moved(view).await {
            Some(now) => self.deps.ledgers.read(&now, first, last, bytes_max, class).await,
            None => read,
        }
    }

    /// Where a closed ledger is by now, if that is not `known`.
    async fn moved(&self, known: &LedgerView) -> Option<LedgerView> {
        let (seen, fresh) = self.look().await;
        let seen = seen?;
        let now = seen.state.segment(known.id)?.ledger().view();
        if fresh {
            (self.events)(Event(EventKind::Seen(seen)));
        }
        (now != *known).then_some(now)
    }

    /// The record, at most a second old; and whether this call has read it.
    async fn look(&self) -> (Option<Arc<Seen>>, bool) {
        let mut looked = self.looks.0.lock().await;
        let now = self.deps.clock.mono();
        if let Some((_, seen)) = looked.as_ref().filter(|(at, _)| now < *at + LOOK_EVERY) {
            return (seen.clone(), false);
        }
        let seen = match self.deps.meta.get(&self.key).await {
            Ok(stored) => stored.and_then(|stored| {
                let (state, op_id) = record::decode(&stored.value).ok()?;
                Some(Arc::new(Seen { state, op_id, revision: stored.mod_revision }))
            }),
            Err(error) => {
                tracing::debug!(key = %self.key, %error, "the record cannot be looked at after a failed read");
                None
            }
        };
        *looked = Some((now, seen.clone()));
        (seen, true)
    }
}
