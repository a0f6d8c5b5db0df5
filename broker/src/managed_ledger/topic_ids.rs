//! Topic ids: 64-bit, never reused, leased in blocks by one compare-and-set, so that a thousand partitions opened at once do not
//! fight over the counter.
//!
//! A process that ends leaves the rest of its block unused; ids are plenty. A lease with unknown outcome is simply made again.

use super::record::{RecordError, decode_counter, encode_counter};
use super::{Deps, OpenError};
use geminga_common::ids::TopicId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Txn, TxnOutcome};

/// Ids leased at once.
const BLOCK: u64 = 1_000;

/// The block this broker has leased. The lock is held over the lease: topics that find the block empty wait for one lease
/// instead of each making their own.
#[derive(Debug, Default)]
pub struct TopicIds {
    block: tokio::sync::Mutex<std::ops::Range<u64>>,
}

impl TopicIds {
    /// An id that no topic has had.
    pub(super) async fn next(&self, deps: &Deps) -> Result<TopicId, OpenError> {
        let mut block = self.block.lock().await;
        loop {
            if let Some(id) = block.next() {
                return Ok(TopicId(id));
            }
            if let Some(leased) = lease(deps).await? {
                *block = leased;
            }
        }
    }
}

/// `None`: another broker was faster.
async fn lease(deps: &Deps) -> Result<Option<std::ops::Range<u64>>, OpenError> {
    let key = deps.keys.topic_ids();
    let (last, unchanged) = counter(&*deps.meta, &key).await?;
    let end = last.checked_add(BLOCK).ok_or(RecordError::Inconsistent("topic ids are exhausted"))?;
    let won = set(&*deps.meta, key, end, unchanged).await?;
    Ok(won.then_some(last + 1..end + 1))
}

/// Why the counter was not raised.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RaiseError {
    /// The counter cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Metadata failed; retry.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl From<RaiseError> for OpenError {
    fn from(error: RaiseError) -> Self {
        match error {
            RaiseError::Record(error) => error.into(),
            RaiseError::Meta(error) => error.into(),
        }
    }
}

/// Makes sure that ids which are leased from now on lie above this one. No broker may be alive, which would have a block.
pub(crate) async fn raise(meta: &dyn MetadataStore, keys: &Keys, above: TopicId) -> Result<(), RaiseError> {
    loop {
        let key = keys.topic_ids();
        let (last, unchanged) = counter(meta, &key).await?;
        if last >= above.0 || set(meta, key, above.0, unchanged).await? {
            return Ok(());
        }
    }
}

/// The last id that was leased, and the condition that it is still the last.
async fn counter(meta: &dyn MetadataStore, key: &str) -> Result<(u64, Compare), RaiseError> {
    Ok(match meta.get(key).await? {
        None => (0, Compare::Absent(key.to_owned())),
        Some(r) => (decode_counter(&r.value)?, Compare::ModRevision(key.to_owned(), r.mod_revision)),
    })
}

async fn set(meta: &dyn MetadataStore, key: String, to: u64, unchanged: Compare) -> Result<bool, MetaError> {
    let txn = Txn { compares: vec![unchanged], ops: vec![Op::put(key, encode_counter(to))] };
    Ok(matches!(meta.txn(txn).await?, TxnOutcome::Committed(_)))
}
