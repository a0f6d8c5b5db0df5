//! Topic ids: 64-bit, never reused, leased in blocks by one compare-and-set, so that a thousand partitions opened at once do not
//! fight over the counter.
//!
//! A process that ends leaves the rest of its block unused; ids are plenty. A lease with unknown outcome is simply made again.

use super::record::{RecordError, decode_counter, encode_counter};
use super::{Deps, OpenError};
use geminga_common::ids::TopicId;
use geminga_common::metadata::{Compare, Op, Txn, TxnOutcome};

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
    let (last, unchanged) = match deps.meta.get(&key).await? {
        None => (0, Compare::Absent(key.clone())),
        Some(r) => (decode_counter(&r.value)?, Compare::ModRevision(key.clone(), r.mod_revision)),
    };
    let end = last.checked_add(BLOCK).ok_or(RecordError::Inconsistent("topic ids are exhausted"))?;
    let ops = vec![Op::put(key, encode_counter(end))];
    let txn = Txn { compares: vec![unchanged], ops };
    let won = matches!(deps.meta.txn(txn).await?, TxnOutcome::Committed(_));
    Ok(won.then_some(last + 1..end + 1))
}
