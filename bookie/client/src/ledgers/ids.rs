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
        let stored = meta.get(key).await?;
        let (counter, unchanged) = match &stored {
            None => (1, Compare::Absent(key.to_owned())),
            Some(record) => {
                let value: Option<[u8; 9]> = record.value.as_ref().try_into().ok();
                let Some([1, digits @ ..]) = value else {
                    return Err(MetaError::Invalid("counter of ledger ids cannot be read"));
                };
                (u64::from_be_bytes(digits), Compare::ModRevision(key.to_owned(), record.mod_revision))
            }
        };
        // A floor above the counter means the counter was restored from an old snapshot: leave the gap behind.
        let next = counter.max(floor);
        let end = next.saturating_add(BLOCK);
        if end > END {
            return Err(MetaError::Invalid("ledger ids are exhausted"));
        }
        let ops = vec![Op::put(key, watermark_value(LedgerId(end)))];
        if let TxnOutcome::Committed(_) = meta.txn(Txn { compares: vec![unchanged], ops }).await? {
            return Ok(Block { next, end });
        }
    }
}
