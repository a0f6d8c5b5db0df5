//! Ledger ids: 64-bit, cluster-wide monotone, never reused, leased in blocks of 10 000 by one compare-and-set.
//!
//! A block that holds no id above what the caller has is dropped: ids are plenty, and clients compare ledger ids as numbers. A
//! lease with unknown outcome is simply made again; at worst a block stays unused.

use super::client::watermark_value;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Txn, TxnOutcome};

/// Ids leased at once.
const BLOCK: u64 = 10_000;
/// Ids stay below this: clients read them as signed.
const END: u64 = 1 << 63;

/// The block this process has leased. One lock, held over the lease: callers that find the block empty wait for one lease
/// instead of each making their own.
#[derive(Default)]
pub(super) struct IdBlocks {
    block: tokio::sync::Mutex<Block>,
}

/// Ids from `next` up to `end`, exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Block {
    next: u64,
    end: u64,
}

impl Block {
    fn take(&mut self, floor: u64) -> Option<LedgerId> {
        let id = self.next.max(floor);
        if id >= self.end {
            return None;
        }
        self.next = id + 1;
        Some(LedgerId(id))
    }
}

impl IdBlocks {
    pub(super) async fn allocate(
        &self,
        meta: &dyn MetadataStore,
        key: &str,
        above: Option<LedgerId>,
    ) -> Result<LedgerId, MetaError> {
        let floor = above.map_or(0, |id| id.0.saturating_add(1));
        let mut block = self.block.lock().await;
        loop {
            if let Some(id) = block.take(floor) {
                return Ok(id);
            }
            *block = lease(meta, key, floor).await?;
        }
    }
}

async fn lease(meta: &dyn MetadataStore, key: &str, floor: u64) -> Result<Block, MetaError> {
    loop {
        let (counter, unchanged) = counter(meta, key).await?;
        // A floor above the counter means the counter was restored from an old snapshot: leave the gap behind.
        let next = counter.max(floor);
        let end = next.saturating_add(BLOCK);
        if end > END {
            return Err(MetaError::Invalid("ledger ids are exhausted"));
        }
        if set(meta, key, end, unchanged).await? {
            return Ok(Block { next, end });
        }
    }
}

/// Makes sure that ids which are leased from now on lie above this one. Blocks that live processes hold are not taken from them: none
/// may live.
///
/// # Errors
/// Metadata errors; an unknown outcome as well, then it is to be asked again.
pub async fn raise(meta: &dyn MetadataStore, key: &str, above: LedgerId) -> Result<(), MetaError> {
    let wanted = above.0.saturating_add(1);
    if wanted >= END {
        return Err(MetaError::Invalid("ledger ids are exhausted"));
    }
    loop {
        let (counter, unchanged) = counter(meta, key).await?;
        if counter >= wanted || set(meta, key, wanted, unchanged).await? {
            return Ok(());
        }
    }
}

/// The first id that nobody has leased, and the condition that it is still the first.
async fn counter(meta: &dyn MetadataStore, key: &str) -> Result<(u64, Compare), MetaError> {
    let Some(record) = meta.get(key).await? else { return Ok((1, Compare::Absent(key.to_owned()))) };
    let value: Option<[u8; 9]> = record.value.as_ref().try_into().ok();
    let Some([1, digits @ ..]) = value else {
        return Err(MetaError::Invalid("counter of ledger ids cannot be read"));
    };
    Ok((u64::from_be_bytes(digits), Compare::ModRevision(key.to_owned(), record.mod_revision)))
}

async fn set(meta: &dyn MetadataStore, key: &str, to: u64, unchanged: Compare) -> Result<bool, MetaError> {
    let ops = vec![Op::put(key, watermark_value(LedgerId(to)))];
    let outcome = meta.txn(Txn { compares: vec![unchanged], ops }).await?;
    Ok(matches!(outcome, TxnOutcome::Committed(_)))
}
