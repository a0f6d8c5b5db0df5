//! The broker as an owner of bundles: where a topic is served, what its transactions compare, and what happens when a bundle
//! is lost or found without owner.

use crate::broker::Broker;
use crate::namespace::NamespaceError;
use crate::namespace::ownership::{Grant, Member, Place, Undecided, orphans};
use crate::topic::TopicError;
use crate::topic::messages::Message;
use geminga_common::error::Code;
use geminga_common::metadata::list_all;
use geminga_common::metadata::session::Standing;
use geminga_common::names::{Bundle, Bundles, TopicName};
use geminga_common::tasks::OnFailure;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often bundles without owner are looked for. A broker's death is noticed after its lease (10 s) and one of these.
const ORPHANS_EVERY: Duration = Duration::from_secs(60);
/// Topics of lost owners that are recovered at the same time.
const ORPHANS_AT_ONCE: usize = 8;
/// Pause after a recovery that could not be decided.
const ORPHAN_PAUSE: Duration = Duration::from_secs(1);

impl Broker {
    /// The bundle of a topic.
    pub(crate) fn bundle_of(&self, name: &TopicName) -> Result<Bundle, TopicError> {
        let bounds = self.policies(name)?.bundles.bounds();
        let bundles = bounds.and_then(|bounds| Bundles::from_bounds(bounds).ok());
        let bundles = bundles.ok_or_else(|| {
            TopicError::Metadata(
                Code::RECORD_UNREADABLE,
                format!("the bundles of {} are damaged", name.namespace()),
            )
        })?;
        Ok(bundles.bundle_of(name))
    }

    /// Where a topic is served; a bundle that nobody serves is taken.
    pub(crate) async fn place(&self, name: &TopicName) -> Result<Place, TopicError> {
        let bundle = self.bundle_of(name)?;
        self.ownership.resolve(&bundle).await.map_err(|error| match error {
            Undecided::NoSession => TopicError::NotReady,
            Undecided::Metadata(why) => TopicError::Metadata(Code::METADATA_UNAVAILABLE, why),
        })
    }

    /// The right to serve a topic.
    pub(crate) async fn grant(&self, name: &TopicName) -> Result<Grant, TopicError> {
        match self.place(name).await? {
            Place::Mine(grant) => Ok(grant),
            Place::Other(member) => Err(TopicError::NotOwner(Box::new(member))),
        }
    }

    /// A transaction of this topic found its guard broken: learns whether the bundle is still ours.
    pub(crate) fn doubt(self: &Arc<Self>, name: &TopicName) {
        let Ok(bundle) = self.bundle_of(name) else { return };
        let broker = self.clone();
        self.tasks.spawn("verify ownership", OnFailure::Log, async move {
            broker.ownership.verify(&bundle).await;
        });
    }

    /// Brokers that are alive, this one among them.
    pub(crate) async fn live_members(&self) -> Result<Vec<Member>, NamespaceError> {
        let live = list_all(&*self.metadata, &self.keys.live_brokers_prefix()).await?;
        let mut members: Vec<Member> =
            live.iter().filter_map(|record| Member::decode(&record.value).ok()).collect();
        if !members.contains(self.member()) {
            members.push(self.member().clone());
        }
        Ok(members)
    }

    /// This broker in the cluster.
    pub(crate) fn member(&self) -> &Member {
        self.ownership.member()
    }

    /// Unloads what a lost bundle served, for ever.
    pub(crate) async fn unload_lost(self: Arc<Self>, mut lost: mpsc::Receiver<Bundle>) {
        while let Some(bundle) = lost.recv().await {
            self.cursor_logs.lock().await.remove(&bundle);
            // Loading ones look at the ownership again before they are served.
            for handle in self.loaded() {
                if bundle.contains(handle.name()) {
                    let broker = self.clone();
                    self.tasks.spawn("unload lost topic", OnFailure::Log, async move {
                        // Gone already is as good. Its ledger is its new owner's: nothing is closed.
                        let _gone = handle.ask(Message::Leave).await;
                        broker.forget(&handle);
                    });
                }
            }
        }
    }

    /// Recovers what dead owners left open: at start, and then now and then where there are other brokers to die.
    pub(crate) async fn adopt_orphans(self: Arc<Self>, again: bool) {
        let mut sweep = orphans::Sweep::default();
        loop {
            if self.ownership.standing() == Standing::Held {
                let found = sweep.look(&*self.metadata, &self.keys, &self.member().id).await;
                match found {
                    Ok(found) => {
                        for orphan in found {
                            self.adopt(orphan).await;
                        }
                    }
                    Err(error) => tracing::warn!(%error, "bundles without owner cannot be looked for"),
                }
            }
            if !again {
                return;
            }
            tokio::time::sleep(ORPHANS_EVERY).await;
        }
    }

    async fn adopt(self: &Arc<Self>, orphan: orphans::Orphan) {
        use futures::StreamExt as _;
        tracing::info!(bundle = %orphan.bundle, topics = orphan.topics.len(), "recovering what its owner left open");
        let grant = match self.ownership.resolve(&orphan.bundle).await {
            Ok(Place::Mine(grant)) => grant,
            Ok(Place::Other(_)) => return,
            Err(error) => return tracing::warn!(bundle = %orphan.bundle, %error, "not taken yet"),
        };
        if let Err(error) = self.cursor_log_under(&grant).await {
            tracing::warn!(bundle = %orphan.bundle, %error, "cursor log of a bundle without owner");
        }
        let topics = futures::stream::iter(orphan.topics);
        topics
            .for_each_concurrent(ORPHANS_AT_ONCE, |topic| async move {
                // Opening closes what was open. A tail that cannot be decided now is tried until the bundle is another's.
                while let Err(error) = self.open(&topic, false).await {
                    match error {
                        TopicError::Persistence(..) | TopicError::Metadata(..) => {
                            tracing::warn!(%topic, %error, "not recovered yet");
                            tokio::time::sleep(ORPHAN_PAUSE).await;
                        }
                        _ => return,
                    }
                }
            })
            .await;
    }
}
