//! The broker as REST sees it: [`BrokerApi`] over topics and their snapshots.
//!
//! | file | thought |
//! |---|---|
//! | [`mod@self`] | the operations |
//! | `figures` | snapshots as Pulsar's stats |

mod figures;

use crate::broker::Broker;
use crate::managed_ledger::ReadEntry;
use crate::namespace::ownership::{self, Member};
use crate::rest::api::{
    Answer, ApiError, BacklogAnalysis, BrokerApi, OffloadState, Place, Served, StatsOptions, StoredEntry,
    Target,
};
use crate::rest::stats::{InternalStats, TopicStats};
use crate::topic::admin::{Request, Snapshot};
use crate::topic::messages::{Message, SeekTarget};
use crate::topic::offload;
use crate::topic::{Reply, TopicError, TopicHandle};
use futures::FutureExt;
use futures::future::BoxFuture;
use geminga_bookie_client::placement::Figures as PlacementFigures;
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, Position};
use geminga_common::names::{BundleRange, NamespaceName, SubscriptionName, TopicName, topic_hash};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Entries that one backlog analysis reads at most.
const ANALYSIS_ENTRIES_MAX: u64 = 10_000;

/// The broker behind the REST routes.
#[derive(Clone)]
pub(crate) struct Admin(pub(crate) Arc<Broker>);

impl Admin {
    async fn topic(&self, name: &TopicName) -> Result<TopicHandle, ApiError> {
        self.0.open(name, false).await.map_err(|error| api_error(name, None, error))
    }

    async fn ask<T: Send + 'static>(
        &self,
        name: &TopicName,
        subscription: Option<&SubscriptionName>,
        question: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ApiError> {
        let topic = self.topic(name).await?;
        let asked = topic.ask(|reply| Message::Admin(question(reply))).await;
        asked.map_err(|error| api_error(name, subscription, error))
    }

    async fn snapshot_of(&self, name: &TopicName) -> Result<Snapshot, ApiError> {
        self.ask(name, None, Request::Snapshot).await
    }

    fn served(&self) -> Served {
        served_by(self.0.member())
    }

    async fn entry(&self, name: &TopicName, at: Position) -> Result<Option<ReadEntry>, ApiError> {
        self.ask(name, None, |reply| Request::Entry(at, reply)).await
    }

    async fn unload(&self, handle: &TopicHandle) {
        // Gone already is as good.
        let _gone = handle.ask(Message::Unload).await;
    }

    async fn nth(&self, name: &TopicName, from_start: bool, nth: u64) -> Result<Option<Position>, ApiError> {
        let ledgers = self.snapshot_of(name).await?.ledger.ledgers;
        let total: u64 = ledgers.iter().map(|ledger| ledger.entries).sum();
        let nth = nth.max(1).min(total.max(1));
        let mut skip = if from_start { nth - 1 } else { total.saturating_sub(nth) };
        for ledger in ledgers {
            if skip < ledger.entries {
                return Ok(Some(Position::new(ledger.id, EntryId(skip))));
            }
            skip -= ledger.entries;
        }
        Ok(None)
    }
}

/// A broker as REST names it: by its HTTP address, as Pulsar does.
fn served_by(member: &Member) -> Served {
    Served {
        broker_id: member.http_url.trim_start_matches("http://").to_owned(),
        broker_url: member.pulsar_url.clone(),
        broker_url_tls: None,
        http_url: member.http_url.clone(),
        http_url_tls: None,
    }
}

fn api_error(topic: &TopicName, subscription: Option<&SubscriptionName>, error: TopicError) -> ApiError {
    let text = error.to_string();
    match (error, subscription) {
        (TopicError::NotFound(_) | TopicError::NamespaceNotFound(_), _) => {
            ApiError::TopicNotFound(topic.clone())
        }
        (TopicError::SubscriptionNotFound(_), Some(subscription)) => {
            ApiError::SubscriptionNotFound { topic: topic.clone(), subscription: subscription.clone() }
        }
        (TopicError::NotReady, _) => ApiError::Unavailable(format!("{}: {text}", Code::TOPIC_FENCED)),
        (
            TopicError::Persistence(Code::TOO_LARGE_TO_STORE, _)
            | TopicError::Metadata(Code::TOO_LARGE_TO_STORE, _),
            _,
        ) => ApiError::TooLarge(text),
        (TopicError::NotOwner(member), _) => ApiError::Elsewhere(member.http_url),
        (TopicError::Conflict(_), _) => ApiError::Exists(text),
        (TopicError::Precondition(_), _) => ApiError::Busy(text),
        (TopicError::NotAllowed(_), _) => ApiError::NotAllowed(text),
        (
            TopicError::Terminated
            | TopicError::Limit(_)
            | TopicError::QuotaExceeded(_)
            | TopicError::InvalidName(_)
            | TopicError::ConsumerBusy(_)
            | TopicError::ConsumerAssign(_)
            | TopicError::ProducerBusy(_)
            | TopicError::ProducerExclusive
            | TopicError::ProducerFenced
            | TopicError::IncompatibleSchema(_),
            _,
        ) => ApiError::Precondition(text),
        (
            TopicError::SubscriptionNotFound(_)
            | TopicError::Persistence(..)
            | TopicError::Lost(_)
            | TopicError::DiskFull(_)
            | TopicError::Metadata(..),
            _,
        ) => ApiError::Internal(text),
    }
}

fn stored(entry: ReadEntry) -> StoredEntry {
    StoredEntry { position: entry.position, bytes: entry.entry.payload }
}

fn target(to: Target) -> SeekTarget {
    match to {
        Target::Earliest => SeekTarget::Earliest,
        Target::Latest => SeekTarget::Latest,
        Target::Time(since) => SeekTarget::Time(since),
        Target::At { position, batch_index, exclusive } => {
            let skipped = batch_index.map_or(0, |index| index + u32::from(exclusive));
            if exclusive && batch_index.is_none() {
                let next = Position::new(position.ledger, position.entry.next());
                return SeekTarget::Entry(next, Vec::new());
            }
            SeekTarget::Entry(position, ack_set(skipped))
        }
    }
}

/// Bits of a batch whose first `skipped` messages are acknowledged; empty for none. As many further words as any batch has
/// would be set: one more word is enough, because missing words of a seek count as not acknowledged there.
fn ack_set(skipped: u32) -> Vec<u64> {
    if skipped == 0 {
        return Vec::new();
    }
    let words = (skipped as usize).div_ceil(64).max(1) + 16;
    let mut set = vec![u64::MAX; words];
    for bit in 0..skipped as usize {
        set[bit / 64] &= !(1 << (bit % 64));
    }
    set
}

impl BrokerApi for Admin {
    fn this_broker(&self) -> Served {
        self.served()
    }

    fn brokers(&self) -> Answer<'_, Vec<String>> {
        async {
            let live =
                self.0.live_members().await.map_err(|error| ApiError::Unavailable(error.to_string()))?;
            Ok(live.iter().map(|member| served_by(member).broker_id).collect())
        }
        .boxed()
    }

    fn leader(&self) -> Answer<'_, Served> {
        async { Ok(self.served()) }.boxed()
    }

    fn bookies(&self) -> Answer<'_, Vec<String>> {
        async { Ok(self.0.bookies().await) }.boxed()
    }

    fn health(&self) -> Answer<'_, ()> {
        async move {
            // A topic of its own: opening it reads metadata, and its stats come from its task.
            let name = self.0.health_topic();
            match self.0.open(&name, true).await {
                Ok(_) => self.snapshot_of(&name).await.map(drop),
                // Another broker serves it: that was read from metadata just now, which is what this broker can show.
                Err(TopicError::NotOwner(_)) => Ok(()),
                Err(error) => Err(api_error(&name, None, error)),
            }
        }
        .boxed()
    }

    fn lookup<'a>(&'a self, topic: &'a TopicName, listener: Option<&'a str>) -> Answer<'a, Served> {
        async move {
            if let Some(name) = listener.filter(|name| !name.is_empty()) {
                return Err(ApiError::Unavailable(format!("the broker do not have {name} listener")));
            }
            self.0.check_namespace(topic).await.map_err(|error| api_error(topic, None, error))?;
            match self.0.place(topic).await.map_err(|error| api_error(topic, None, error))? {
                ownership::Place::Mine(_) => Ok(self.served()),
                ownership::Place::Other(member) => Ok(served_by(&member)),
            }
        }
        .boxed()
    }

    fn unload_bundles<'a>(
        &'a self,
        namespace: &'a NamespaceName,
        range: Option<BundleRange>,
    ) -> Answer<'a, ()> {
        async move {
            for handle in self.0.loaded() {
                let inside = range.is_none_or(|range| range.contains(topic_hash(handle.name())));
                if handle.name().namespace() == namespace && inside {
                    self.unload(&handle).await;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn loaded_topics(&self, namespace: &NamespaceName) -> Vec<TopicName> {
        let loaded = self.0.loaded();
        loaded.iter().filter(|h| h.name().namespace() == namespace).map(|h| (**h.name()).clone()).collect()
    }

    fn repairs(&self) -> Option<crate::repair::Figures> {
        self.0.repairs()
    }

    fn placement(&self) -> Option<PlacementFigures> {
        self.0.placement()
    }

    fn snapshot(&self) -> BoxFuture<'_, Vec<(TopicName, TopicStats)>> {
        async move {
            let mut all = Vec::new();
            for handle in self.0.loaded() {
                if let Ok(snapshot) = handle.ask(|reply| Message::Admin(Request::Snapshot(reply))).await {
                    all.push(((**handle.name()).clone(), figures::topic_stats(&self.0, &snapshot)));
                }
            }
            all
        }
        .boxed()
    }

    fn create_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        async move {
            // Of two that create at once one is told that it is there already.
            let _turn = self.0.namespaces.turn_of(topic).await;
            let there = self.0.namespaces.topic_stored(topic).await;
            if there.map_err(|error| ApiError::Internal(error.to_string()))? {
                return Err(ApiError::Exists("This topic already exists".to_owned()));
            }
            self.0.open(topic, true).await.map(drop).map_err(|error| api_error(topic, None, error))
        }
        .boxed()
    }

    fn delete_topic<'a>(&'a self, topic: &'a TopicName, force: bool) -> Answer<'a, ()> {
        async move { self.ask(topic, None, |reply| Request::Delete(force, reply)).await }.boxed()
    }

    fn unload_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        async move {
            match self.0.topic_if_loaded(topic) {
                Some(handle) => self.unload(&handle).await,
                None => drop(self.topic(topic).await?),
            }
            Ok(())
        }
        .boxed()
    }

    fn terminate_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Place> {
        async move { Ok(self.ask(topic, None, Request::Terminate).await?.map(Place::from).unwrap_or_default()) }
            .boxed()
    }

    fn truncate_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        async move { self.ask(topic, None, Request::Truncate).await }.boxed()
    }

    fn trim_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        async move { self.ask(topic, None, Request::Trim).await }.boxed()
    }

    fn offload_throttled(&self) -> Option<geminga_offload::blob::Throttled> {
        self.0.tier.as_ref().map(|tier| tier.throttled())
    }

    fn offload_reads(&self) -> Option<geminga_offload::reader::Figures> {
        self.0.tier.as_ref().map(|tier| tier.reader.figures())
    }

    fn offload_of_others(&self) -> Option<geminga_offload::meters::Figures> {
        self.0.tier.as_ref().map(|tier| tier.meters.of_others())
    }

    fn offload_bills(&self) -> Vec<(String, geminga_offload::cost::Bill)> {
        self.0.tier.as_ref().map(|tier| tier.meters.bills()).unwrap_or_default()
    }

    fn offload_driver(&self) -> Option<&'static str> {
        self.0.tier.as_ref().map(|tier| tier.driver())
    }

    fn offload_topic<'a>(&'a self, topic: &'a TopicName, before: Position) -> Answer<'a, ()> {
        async move { self.ask(topic, None, |reply| Request::Offload(before, reply)).await }.boxed()
    }

    fn offload_status<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, OffloadState> {
        async move {
            Ok(match self.ask(topic, None, Request::OffloadStatus).await? {
                offload::Status::NotRun => OffloadState::NotRun,
                offload::Status::Running => OffloadState::Running,
                offload::Status::Success(first) => OffloadState::Success(first),
                offload::Status::Error(error) => OffloadState::Error(error),
            })
        }
        .boxed()
    }

    fn topic_stats<'a>(&'a self, topic: &'a TopicName, options: StatsOptions) -> Answer<'a, TopicStats> {
        async move {
            let snapshot = self.snapshot_of(topic).await?;
            let mut stats = figures::topic_stats(&self.0, &snapshot);
            if options.earliest_time_in_backlog {
                for sub in &snapshot.subscriptions {
                    let first = if sub.backlog > 0 { self.entry(topic, sub.floor).await? } else { None };
                    let time = first.map_or(0, |entry| entry.entry.header.timestamp_ms);
                    if let Some(stats) = stats.subscriptions.get_mut(sub.name.as_str()) {
                        stats.earliest_msg_publish_time_in_backlog = time;
                    }
                }
            }
            Ok(stats)
        }
        .boxed()
    }

    fn internal_stats<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, InternalStats> {
        async move { Ok(figures::internal_stats(&self.snapshot_of(topic).await?)) }.boxed()
    }

    fn last_message_id<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Place> {
        async move {
            let handle = self.topic(topic).await?;
            let last = handle.ask(|reply| Message::LastMessageId(None, reply)).await;
            let last = last.map_err(|error| api_error(topic, None, error))?;
            Ok(last.position.map(Place::from).unwrap_or_default())
        }
        .boxed()
    }

    fn find_by_time<'a>(&'a self, topic: &'a TopicName, since_ms: u64) -> Answer<'a, Place> {
        async move { Ok(self.ask(topic, None, |reply| Request::FindTime(since_ms, reply)).await?.into()) }
            .boxed()
    }

    fn read_entry<'a>(&'a self, topic: &'a TopicName, at: Position) -> Answer<'a, StoredEntry> {
        async move {
            let entry = self.entry(topic, at).await?;
            entry.map(stored).ok_or_else(|| ApiError::MessageNotFound(format!("Message {at} not found")))
        }
        .boxed()
    }

    fn examine<'a>(
        &'a self,
        topic: &'a TopicName,
        from_start: bool,
        nth: u64,
    ) -> Answer<'a, Option<StoredEntry>> {
        async move {
            match self.nth(topic, from_start, nth).await? {
                Some(at) => Ok(self.entry(topic, at).await?.map(stored)),
                None => Ok(None),
            }
        }
        .boxed()
    }

    fn backlog_bytes_from<'a>(&'a self, topic: &'a TopicName, from: Place) -> Answer<'a, u64> {
        async move {
            let ledgers = self.snapshot_of(topic).await?.ledger.ledgers;
            let first = from.ledger.unwrap_or_default();
            let size = |ledger: &crate::managed_ledger::LedgerStats| {
                let skipped = if ledger.id == first { from.entry.map_or(0, |entry| entry.0) } else { 0 };
                let left = ledger.entries.saturating_sub(skipped);
                // Within a ledger by the mean entry.
                ledger.bytes.checked_div(ledger.entries).unwrap_or(0) * left
            };
            Ok(ledgers.iter().filter(|ledger| ledger.id >= first).map(size).sum())
        }
        .boxed()
    }

    fn subscriptions<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Vec<String>> {
        async move {
            let snapshot = self.snapshot_of(topic).await?;
            let durable = snapshot.subscriptions.iter().filter(|sub| sub.durable);
            Ok(durable.map(|sub| sub.name.to_string()).collect())
        }
        .boxed()
    }

    fn create_subscription<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        at: Target,
        properties: BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        async move {
            // As on Pulsar, a topic that is not there is made where that is allowed.
            let handle = self.0.topic(topic, true).await.map_err(|error| api_error(topic, None, error))?;
            let (name, at) = (subscription.clone(), target(at));
            let question = |reply| Message::Admin(Request::CreateSubscription(name, at, properties, reply));
            handle.ask(question).await.map_err(|error| api_error(topic, Some(subscription), error))
        }
        .boxed()
    }

    fn delete_subscription<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        force: bool,
    ) -> Answer<'a, ()> {
        async move {
            let name = subscription.clone();
            self.ask(topic, Some(subscription), |reply| Request::DeleteSubscription(name, force, reply)).await
        }
        .boxed()
    }

    fn skip_all<'a>(&'a self, topic: &'a TopicName, subscription: &'a SubscriptionName) -> Answer<'a, ()> {
        async move {
            let name = subscription.clone();
            self.ask(topic, Some(subscription), |reply| Request::Skip(name, None, reply)).await
        }
        .boxed()
    }

    fn skip<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        count: u64,
    ) -> Answer<'a, ()> {
        async move {
            let name = subscription.clone();
            self.ask(topic, Some(subscription), |reply| Request::Skip(name, Some(count), reply)).await
        }
        .boxed()
    }

    fn expire_by_age<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        seconds: u64,
    ) -> Answer<'a, ()> {
        async move {
            let name = subscription.clone();
            let expired =
                self.ask(topic, Some(subscription), |reply| Request::Expire(name, seconds, reply)).await?;
            if expired == 0 && seconds > 0 {
                return Err(ApiError::NothingToDo("no message is old enough to expire".to_owned()));
            }
            Ok(())
        }
        .boxed()
    }

    fn expire_to<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        at: Position,
        exclusive: bool,
    ) -> Answer<'a, ()> {
        async move {
            let name = subscription.clone();
            let to = if exclusive { at } else { Position::new(at.ledger, at.entry.next()) };
            self.ask(topic, Some(subscription), |reply| Request::ExpireTo(name, to, reply)).await
        }
        .boxed()
    }

    fn reset_cursor<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        to: Target,
    ) -> Answer<'a, ()> {
        async move {
            let handle = self.topic(topic).await?;
            let (name, to) = (subscription.clone(), target(to));
            let sought =
                handle.ask(|reply| Message::Seek { subscription: name, asks: None, to, reply }).await;
            sought.map_err(|error| api_error(topic, Some(subscription), error))
        }
        .boxed()
    }

    fn peek<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        nth: u64,
    ) -> Answer<'a, StoredEntry> {
        async move {
            let name = subscription.clone();
            let entry = self.ask(topic, Some(subscription), |reply| Request::Peek(name, nth, reply)).await?;
            entry.map(stored).ok_or_else(|| ApiError::MessageNotFound("Message not found".to_owned()))
        }
        .boxed()
    }

    fn analyze_backlog<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
    ) -> Answer<'a, BacklogAnalysis> {
        async move {
            let mut found = BacklogAnalysis::default();
            for nth in 1..=ANALYSIS_ENTRIES_MAX {
                let name = subscription.clone();
                let entry =
                    self.ask(topic, Some(subscription), |reply| Request::Peek(name, nth, reply)).await?;
                let Some(entry) = entry else { return Ok(found) };
                found.entries += 1;
                found.messages += u64::from(entry.entry.header.messages);
                let first = found.span.map_or(entry.position, |(first, _)| first);
                found.span = Some((first, entry.position));
            }
            found.aborted = true;
            Ok(found)
        }
        .boxed()
    }

    fn subscription_properties<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
    ) -> Answer<'a, BTreeMap<String, String>> {
        async move {
            let snapshot = self.snapshot_of(topic).await?;
            let sub = snapshot.subscriptions.into_iter().find(|sub| sub.name == *subscription);
            sub.map(|sub| sub.properties).ok_or_else(|| ApiError::SubscriptionNotFound {
                topic: topic.clone(),
                subscription: subscription.clone(),
            })
        }
        .boxed()
    }

    fn set_subscription_properties<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        properties: BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        async move {
            let name = subscription.clone();
            self.ask(topic, Some(subscription), |reply| {
                Request::SetSubscriptionProperties(name, properties, reply)
            })
            .await
        }
        .boxed()
    }
}
