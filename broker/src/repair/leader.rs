//! Which broker repairs: the one that put the key `leader/repair` under its lease. Only work is saved by there being one; two at
//! once would copy the same bytes twice, and the revisions they compare let one of them publish.

use bytes::Bytes;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::session::Session;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Txn, TxnOutcome, WatchEvent};
use std::time::Duration;

/// Pause after metadata failed or the session was in doubt.
const PAUSE: Duration = Duration::from_secs(2);
/// The key is looked at anew this often, in case a watch said nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Waits until this broker leads; answers the generation of the lease it does so under.
pub(super) async fn elected(
    store: &dyn MetadataStore,
    keys: &Keys,
    session: &Session,
    member: &str,
    process: u64,
) -> u64 {
    loop {
        match attempt(store, keys, session, member, process).await {
            Ok(Some(generation)) => return generation,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "no leader of repairs can be elected yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn attempt(
    store: &dyn MetadataStore,
    keys: &Keys,
    session: &Session,
    member: &str,
    process: u64,
) -> Result<Option<u64>, MetaError> {
    let key = keys.repair_leader();
    // Watched before it is looked at, so that nothing falls between.
    let mut watch = store.watch(&key).await?;
    let Some((lease, generation)) = session.held() else {
        tokio::time::sleep(PAUSE).await;
        return Ok(None);
    };
    let mine = Bytes::from(format!("{member} {process:016x}"));
    let put = Op::Put { key: key.clone(), value: mine.clone(), lease: Some(lease) };
    let txn = Txn { compares: vec![Compare::Absent(key.clone())], ops: vec![put] };
    if let TxnOutcome::Committed(_) = store.txn(txn).await? {
        return Ok(Some(generation));
    }
    match store.get(&key).await? {
        None => return Ok(None),
        // Ours under the lease we hold: an answer was lost. Under one that is gone it will vanish.
        Some(stored) if stored.value == mine => {
            return Ok(session.held().filter(|held| held.1 == generation).map(|held| held.1));
        }
        Some(_) => {}
    }
    let gone = async {
        while let Some(event) = watch.recv().await {
            if matches!(event, WatchEvent::Deleted(..) | WatchEvent::Resync) {
                return;
            }
        }
    };
    // Either way the next attempt tells.
    let _late = tokio::time::timeout(LOOK_AGAIN, gone).await;
    Ok(None)
}
