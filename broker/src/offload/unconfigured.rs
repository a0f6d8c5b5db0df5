//! A broker without an object store in a cluster that has offloaded ledgers to one: topics are served as far as bookies go, and a
//! person is told once, at the start. A cluster that never offloaded costs one read of its metadata.

use crate::broker::Broker;
use crate::managed_ledger::record;
use geminga_common::error::Code;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore};
use geminga_offload::identity::Recorded;
use std::sync::Arc;

/// Topic records read at a time.
const PAGE: usize = 1000;

/// Ledgers that lie in an object store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Referenced {
    /// Topics that have such ledgers.
    pub(crate) topics: usize,
    /// Ledgers in the object store.
    pub(crate) ledgers: usize,
    /// Those of them that bookies do not have any more.
    pub(crate) only_there: usize,
    /// What the store was called when it was used last.
    pub(crate) place: String,
}

/// What topics have in an object store; `None` when this cluster has none.
pub(crate) async fn referenced(
    meta: &dyn MetadataStore,
    keys: &Keys,
) -> Result<Option<Referenced>, MetaError> {
    let Some(identity) = meta.get(&keys.object_store()).await? else { return Ok(None) };
    let place = Recorded::decode(&identity.value).map_or_else(|why| why.to_string(), |known| known.place);
    let mut found = Referenced { place, ..Referenced::default() };
    let (prefix, mut after) = (keys.all_topics_prefix(), None::<String>);
    loop {
        let page = meta.list(&prefix, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(Some(found).filter(|found| found.ledgers > 0)) };
        after = Some(last.key.clone());
        // A record that cannot be read is told of by whoever opens its topic.
        for (state, _) in page.iter().filter_map(|stored| record::decode(&stored.value).ok()) {
            let offloaded = state.segments().iter().filter(|segment| segment.offload.object().is_some());
            let (mut ledgers, mut only_there) = (0, 0);
            for segment in offloaded {
                ledgers += 1;
                only_there += usize::from(!segment.offload.on_bookies());
            }
            found.topics += usize::from(ledgers > 0);
            found.ledgers += ledgers;
            found.only_there += only_there;
        }
    }
}

/// Tells of them, once.
pub(crate) async fn tell(broker: Arc<Broker>) {
    match referenced(&*broker.metadata, &broker.keys).await {
        Ok(None) => {}
        Ok(Some(found)) => tracing::warn!(
            code = %Code::OBJECT_STORE_NOT_CONFIGURED,
            found.topics,
            found.ledgers,
            found.only_there,
            store = found.place,
            "ledgers are in an object store and offload.url is not set here: what bookies do not have cannot be read; set it to that store"
        ),
        Err(error) => tracing::debug!(%error, "whether ledgers are in an object store is not known"),
    }
}
