//! Removes from the store what the metadata lists as garbage, and nothing else, ever. What a listing of the bucket shows beyond
//! that is a matter for a report and a person.

use crate::blob::{BlobError, Blobs, discard};
use crate::key;
use crate::meters::Meters;
use crate::mutant::{Mutant, active};
use crate::state::Garbage;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore, Op, Txn, list_all};

/// Records read at a time.
const PAGE: usize = 256;

/// What one sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Objects and uploads removed.
    pub removed: usize,
    /// Garbage whose time has not come.
    pub waiting: usize,
    /// Removals that failed, or records that cannot be read: they are kept.
    pub failed: usize,
}

/// Removes what is due. Any broker may: a record of garbage stands for itself, and removing twice does no harm.
///
/// # Errors
/// The garbage cannot be listed.
pub async fn sweep(
    meta: &dyn MetadataStore,
    keys: &Keys,
    blobs: &dyn Blobs,
    cluster: &str,
    meters: &Meters,
    now_ms: u64,
) -> Result<Swept, MetaError> {
    let prefix = keys.object_garbage_prefix();
    let (mut swept, mut after) = (Swept::default(), None::<String>);
    // Asked once, and only when something is due.
    let mut usable = None;
    if active(Mutant::RemoveUnlisted) {
        remove_unlisted(meta, keys, blobs, cluster).await?;
    }
    loop {
        let page = meta.list(&prefix, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(swept) };
        after = Some(last.key.clone());
        for stored in &page {
            match Garbage::decode(&stored.value) {
                Ok((garbage, ..)) if garbage.not_before_ms > now_ms => swept.waiting += 1,
                Ok(_) if !usable_once(&mut usable, blobs).await => swept.failed += 1,
                Ok((garbage, topic, ledger)) => {
                    let object = key::object(cluster, garbage.begun_ms, topic, ledger, garbage.attempt);
                    let done = remove(meta, blobs, &stored.key, &object).await;
                    meters.removal(topic, done);
                    if done { swept.removed += 1 } else { swept.failed += 1 }
                }
                Err(error) => {
                    tracing::error!(key = %stored.key, %error, "a removal cannot be read and is kept");
                    swept.failed += 1;
                }
            }
        }
    }
}

/// Whether this is the store that the garbage lies in: in another one it would be missed, and its records struck off.
async fn usable_once(known: &mut Option<bool>, blobs: &dyn Blobs) -> bool {
    match known {
        Some(usable) => *usable,
        None => *known.insert(match blobs.ready().await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "nothing is removed from the object store now");
                false
            }
        }),
    }
}

/// First the object, then the record of it: what is interrupted is done again. In between the store is looked at: what is missing in
/// another one was not removed.
async fn remove(meta: &dyn MetadataStore, blobs: &dyn Blobs, record: &str, object: &str) -> bool {
    let discarded = async {
        discard(blobs, object).await?;
        blobs.ready().await
    };
    if let Err(error) = discarded.await {
        match error {
            BlobError::Refused { .. } | BlobError::Wrong(_) => {
                tracing::warn!(%error, "an object cannot be removed; tried again")
            }
            _ => tracing::debug!(%error, "an object is not removed yet; tried again"),
        }
        return false;
    }
    let gone = Txn { compares: Vec::new(), ops: vec![Op::delete(record)] };
    match meta.txn(gone).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%object, %error, "a removal stays for the next sweep");
            false
        }
    }
}

/// What must never be done, for the museum.
async fn remove_unlisted(
    meta: &dyn MetadataStore,
    keys: &Keys,
    blobs: &dyn Blobs,
    cluster: &str,
) -> Result<(), MetaError> {
    let records = list_all(meta, keys.root()).await?;
    for object in blobs.list(&key::below(cluster), None, usize::MAX).await.unwrap_or_default() {
        let attempt = object.key.rsplit('-').next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let bytes = attempt.unwrap_or_default().to_le_bytes();
        let named = records.iter().any(|record| record.value.windows(8).any(|window| window == bytes));
        if !named {
            let _removed = discard(blobs, &object.key).await;
        }
    }
    Ok(())
}
