//! [`LedgerClient`]: [`Ledgers`] over any bookies and any metadata store. Cheap to clone; shared by all owners in a process.

use super::ids::IdBlocks;
use super::{
    CreateError, CreatePlan, LedgerView, Ledgers, ReadError, RecoverError, Recovered, Writer, WriterEvents,
    read,
};
use crate::entry::Entry;
use crate::placement::Placement;
use crate::quorum::QuorumSpec;
use crate::record::{Fragment, LedgerAttributes, LedgerRecord, OpId};
use crate::rpc::{BookieRef, BookieRpc, ControlError, ReadClass};
use crate::writer::state::{ChangeOutcome, Limits, State};
use crate::writer::{LedgerWriter, open_record};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Revision, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// What a ledger client is made of.
pub struct Parts {
    /// The way to bookies.
    pub rpc: Arc<dyn BookieRpc>,
    /// Cluster metadata.
    pub meta: Arc<dyn MetadataStore>,
    /// Key layout of the cluster.
    pub keys: Keys,
    /// Chooses bookies.
    pub placement: Arc<dyn Placement>,
    /// Quorum of new ledgers.
    pub quorum: QuorumSpec,
    /// Limits of writers.
    pub limits: Limits,
    /// Timing of recoveries.
    pub recovery: crate::recovery::Timing,
    /// Randomness for op ids and backoff.
    pub rng: Rng,
    /// Runs ensemble changes, readmissions and seals.
    pub tasks: TaskGroup,
}

/// Shared by writers and recoveries of one client.
pub(crate) struct Inner {
    pub(crate) rpc: Arc<dyn BookieRpc>,
    pub(crate) meta: Arc<dyn MetadataStore>,
    pub(crate) keys: Keys,
    pub(crate) placement: Arc<dyn Placement>,
    pub(crate) quorum: QuorumSpec,
    pub(crate) limits: Limits,
    pub(crate) recovery: crate::recovery::Timing,
    pub(crate) tasks: TaskGroup,
    rng: Mutex<Rng>,
    ids: IdBlocks,
    pub(crate) hedge: super::hedge::Hedge,
}

impl Inner {
    pub(crate) fn op_id(&self) -> OpId {
        OpId(self.rng.lock().next_u64())
    }

    /// A time between half of `base` and one and a half of it, so that rivals do not meet again and again.
    pub(crate) fn jitter(&self, base: Duration) -> Duration {
        base / 2 + Duration::from_micros(self.rng.lock().below(base.as_micros() as u64 + 1))
    }

    /// The record of a ledger.
    pub(crate) async fn record(&self, id: LedgerId) -> Result<Option<(LedgerRecord, Revision)>, MetaError> {
        let Some(stored) = self.meta.get(&self.keys.ledger(id)).await? else { return Ok(None) };
        match LedgerRecord::decode(&stored.value) {
            Ok(record) => Ok(Some((record, stored.mod_revision))),
            Err(error) => {
                tracing::error!(ledger = %id, %error, "ledger record cannot be read");
                Err(MetaError::Invalid("ledger record cannot be read"))
            }
        }
    }

    /// One attempt to put `record` over revision `over`.
    pub(crate) async fn replace_once(
        &self,
        record: &LedgerRecord,
        over: Revision,
    ) -> Result<ChangeOutcome, MetaError> {
        let key = self.keys.ledger(record.id);
        let unknown = match self.meta.txn(record.replacing(key, over)).await {
            Ok(TxnOutcome::Committed(revision)) => return Ok(ChangeOutcome::Committed(revision)),
            Ok(TxnOutcome::CompareFailed) => None,
            Err(error @ MetaError::Unknown(_)) => Some(error),
            Err(error) => return Err(error),
        };
        // An earlier attempt of ours may be what is stored: the op id tells.
        match (self.record(record.id).await?, unknown) {
            (Some((now, revision)), _) if now.op_id == record.op_id => Ok(ChangeOutcome::Committed(revision)),
            (Some((_, revision)), Some(error)) if revision == over => Err(error),
            (now, _) => Ok(ChangeOutcome::Lost(now.map(|(record, revision)| (Box::new(record), revision)))),
        }
    }
}

/// Puts `record` over revision `over`, for as long as it takes to learn the outcome.
pub(crate) async fn replace_record(inner: &Inner, record: &LedgerRecord, over: Revision) -> ChangeOutcome {
    let mut pause = Duration::from_millis(20);
    loop {
        match inner.replace_once(record, over).await {
            Ok(outcome) => return outcome,
            Err(MetaError::Invalid(_) | MetaError::TooLarge(_) | MetaError::LeaseGone(_)) => {
                return ChangeOutcome::Lost(None);
            }
            Err(error) => {
                tracing::warn!(ledger = %record.id, %error, "ledger record not written yet, trying again");
                tokio::time::sleep(inner.jitter(pause)).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}

/// The ledger protocol over bookies and metadata.
#[derive(Clone)]
pub struct LedgerClient {
    inner: Arc<Inner>,
}

impl LedgerClient {
    /// A client.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { rpc, meta, keys, placement, quorum, limits, recovery, rng, tasks } = parts;
        let ids = IdBlocks::default();
        let (rng, hedge) = (Mutex::new(rng), Default::default());
        let inner = Inner { rpc, meta, keys, placement, quorum, limits, recovery, tasks, rng, ids, hedge };
        Self { inner: Arc::new(inner) }
    }

    /// Tells every bookie of a closed ledger where it ends, so that they refuse and drop what lies beyond. Best effort.
    pub async fn seal(&self, view: &LedgerView, last: Option<EntryId>) {
        seal(&self.inner, bookies_of(&view.fragments), view.id, last).await;
    }
}

impl Inner {
    /// Where the only copy of a ledger is damaged.
    pub(crate) fn only_copy_damaged(&self, members: &BTreeSet<BookieRef>, id: LedgerId) -> Option<String> {
        members.iter().find_map(|bookie| self.rpc.only_copy_damaged(bookie, id))
    }
}

/// Every bookie of these fragments, once.
pub(crate) fn bookies_of(fragments: &[Fragment]) -> BTreeSet<BookieRef> {
    fragments.iter().flat_map(|f| f.ensemble.iter().flatten()).cloned().collect()
}

/// Seals at every bookie, best effort.
pub(crate) async fn seal(inner: &Inner, bookies: BTreeSet<BookieRef>, id: LedgerId, last: Option<EntryId>) {
    let sealed = join_all(bookies.iter().map(|bookie| inner.rpc.seal(bookie, id, last))).await;
    for (bookie, error) in bookies.iter().zip(sealed).filter_map(|(b, r)| r.err().map(|e| (b, e))) {
        tracing::debug!(ledger = %id, %bookie, %error, "bookie not told where the ledger ends");
    }
}

/// The fixed-width value that watermarks and the id counter are kept in: version 1, then the id, big endian, so that byte order
/// is id order.
pub(crate) fn watermark_value(id: LedgerId) -> bytes::Bytes {
    let mut value = Vec::with_capacity(9);
    value.push(1);
    value.extend_from_slice(&id.0.to_be_bytes());
    value.into()
}

impl Ledgers for LedgerClient {
    fn allocate_id(&self, above: Option<LedgerId>) -> BoxFuture<'static, Result<LedgerId, MetaError>> {
        let inner = self.inner.clone();
        async move { inner.ids.allocate(&*inner.meta, &inner.keys.ids(), above).await }.boxed()
    }

    fn plan_create(&self, id: LedgerId, attributes: LedgerAttributes) -> Result<CreatePlan, CreateError> {
        let quorum = self.inner.quorum;
        let found = self.inner.placement.choose(quorum.ensemble() as usize, &[]);
        let available = found.len();
        let mut ensemble: Vec<Option<BookieRef>> = found.into_iter().map(Some).collect();
        ensemble.resize(quorum.ensemble() as usize, None);
        let fragment = Fragment { first: EntryId(0), ensemble };
        if !quorum.writable_without(fragment.vacant()) {
            return Err(CreateError::NotEnoughBookies { available, needed: quorum.ack() as usize });
        }
        let key = self.inner.keys.ledger(id);
        let mut plan = CreatePlan {
            id,
            quorum,
            fragment,
            attributes: Arc::new(attributes),
            compares: vec![
                Compare::Absent(key.clone()),
                Compare::ValueBelow(self.inner.keys.wm_create(), watermark_value(id)),
            ],
            ops: Vec::new(),
        };
        let record = open_record(&plan, self.inner.op_id());
        plan.ops.push(Op::put(key, record.encode()));
        Ok(plan)
    }

    fn writer(&self, plan: CreatePlan, revision: Revision, events: WriterEvents) -> Box<dyn Writer> {
        // The op id only matters to whoever commits a record; the plan's was its owner's.
        let record = open_record(&plan, OpId(0));
        let state = State::new(record, revision, self.inner.limits.clone());
        Box::new(LedgerWriter::new(state, self.inner.clone(), events))
    }

    fn recover(&self, id: LedgerId) -> BoxFuture<'static, Result<Recovered, RecoverError>> {
        crate::recovery::recover(self.inner.clone(), id).boxed()
    }

    fn read(
        &self,
        view: &LedgerView,
        first: EntryId,
        last: EntryId,
        bytes_max: usize,
        class: ReadClass,
    ) -> BoxFuture<'static, Result<Vec<Entry>, ReadError>> {
        let plan = read::plan(view, first, last, bytes_max, class);
        let (inner, id) = (self.inner.clone(), view.id);
        let only = plan.as_ref().and_then(read::Plan::only_holder).cloned();
        async move {
            let read = read::run(&*inner.rpc, &inner.hedge, plan.ok_or(ReadError::Unavailable(first))?).await;
            read.map_err(|error| match error {
                ReadError::Unavailable(entry) => only
                    .and_then(|bookie| inner.rpc.only_copy_damaged(&bookie, id))
                    .map_or(error, |place| ReadError::Damaged(entry, place)),
                other => other,
            })
        }
        .boxed()
    }

    fn may_lack(&self, view: &LedgerView) -> bool {
        bookies_of(&view.fragments).iter().any(|bookie| self.inner.rpc.may_lack(bookie, view.id))
    }

    fn delete(&self, view: &LedgerView) -> BoxFuture<'static, bool> {
        let (inner, id, bookies) = (self.inner.clone(), view.id, bookies_of(&view.fragments));
        async move {
            let deletions = bookies.iter().map(async |bookie| match inner.rpc.delete(bookie, id).await {
                Ok(()) => true,
                // Another incarnation at that name means that the store which held the entries is gone.
                Err(ControlError::WrongIncarnation) => true,
                Err(_) => inner.placement.given_up(bookie),
            });
            join_all(deletions).await.into_iter().all(|gone| gone)
        }
        .boxed()
    }
}
