//! Policies and properties of single topics, `tp/`: one small record per topic that has any. A partitioned topic has one for
//! all its partitions, so every look-up goes by the base name.
//!
//! Pulsar keeps these in a system topic and loses sight of them while it replays; here they are ordinary metadata.

use super::cache::Table;
use super::parts::{
    BacklogQuota, BacklogQuotaType, DelayedDelivery, DispatchRate, InactiveTopicPolicies, OffloadPolicies,
    Persistence, PublishRate, Retention, SchemaCompatibility, SubscribeRate,
};
use super::policies::SubscriptionTypeName;
use super::registry::{Namespaces, Step};
use super::{NamespaceError, decode, encode};
use geminga_common::metadata::{Compare, Op, Txn};
use geminga_common::names::TopicName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A topic's own policies; `None` leaves the namespace's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicPolicies {
    /// Seconds after which unacknowledged messages expire.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub message_ttl_seconds: Option<i32>,
    /// How long acknowledged messages stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Replication of ledgers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistence: Option<Persistence>,
    /// Backlog quotas.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub backlog_quotas: BTreeMap<BacklogQuotaType, BacklogQuota>,
    /// Broker-side deduplication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<bool>,
    /// Delayed delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delayed_delivery: Option<DelayedDelivery>,
    /// Deletion when unused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive: Option<InactiveTopicPolicies>,
    /// Most producers.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_producers: Option<i32>,
    /// Most consumers.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_consumers: Option<i32>,
    /// Largest message in bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_message_size: Option<i32>,
    /// Most consumers of a subscription.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_consumers_per_subscription: Option<i32>,
    /// Most subscriptions.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_subscriptions: Option<i32>,
    /// Most unacknowledged messages of a consumer.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_unacked_on_consumer: Option<i32>,
    /// Most unacknowledged messages of a subscription.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub max_unacked_on_subscription: Option<i32>,
    /// Bound on publishing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_rate: Option<PublishRate>,
    /// Bound on delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatch_rate: Option<DispatchRate>,
    /// Bound on delivery of a subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_dispatch_rate: Option<DispatchRate>,
    /// Bound on subscribing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribe_rate: Option<SubscribeRate>,
    /// Bytes of backlog that start a compaction.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "super::lenient::opt_int")]
    pub compaction_threshold: Option<i64>,
    /// When closed ledgers go to the object store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<OffloadPolicies>,
    /// Subscription types allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_types: Option<BTreeSet<SubscriptionTypeName>>,
    /// Which schema changes are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_compatibility: Option<SchemaCompatibility>,
    /// Whether producers without schema are refused on topics with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_validation_enforced: Option<bool>,
    /// Whether subscriptions come into being on first use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_subscription_creation: Option<bool>,
}

/// What is stored per topic beside its ledgers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicRecord {
    /// Its policies.
    pub policies: TopicPolicies,
    /// Its free properties.
    pub properties: BTreeMap<String, String>,
}

impl TopicRecord {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Namespaces {
    pub(super) fn topic_records(&self) -> &Table<TopicRecord> {
        &self.inner.topics
    }

    /// The record of a topic (of its partitioned parent for a partition), if it has one.
    #[must_use]
    pub fn topic_record(&self, topic: &TopicName) -> Option<Arc<TopicRecord>> {
        self.topic_records().get(&self.keys().topic_settings(topic))
    }

    /// Changes a topic's record by compare-and-set. An empty outcome removes it.
    ///
    /// # Errors
    /// What `change` answers; metadata errors.
    pub async fn update_topic_record(
        &self,
        topic: &TopicName,
        mut change: impl FnMut(&mut TopicRecord) -> Result<(), NamespaceError> + Send,
    ) -> Result<(), NamespaceError> {
        let key = self.keys().topic_settings(topic);
        self.retrying(&key, &mut |found| {
            let mut record: TopicRecord = match &found {
                Some(r) => decode(&r.value)?,
                None => TopicRecord::default(),
            };
            let before = record.clone();
            change(&mut record)?;
            if record == before {
                return Ok(Step::Unchanged);
            }
            let compare = match &found {
                Some(r) => Compare::ModRevision(key.clone(), r.mod_revision),
                None => Compare::Absent(key.clone()),
            };
            if record.is_empty() {
                let txn = Txn { compares: vec![compare], ops: vec![Op::delete(key.clone())] };
                return Ok(Step::Write(txn, None));
            }
            let value = encode(&record);
            let txn = Txn { compares: vec![compare], ops: vec![Op::put(key.clone(), value.clone())] };
            Ok(Step::Write(txn, Some(value)))
        })
        .await
        .map(|applied| {
            self.topic_records().applied(&key, applied);
            self.touched();
        })
    }

    /// Forgets a topic's policies and properties, when the topic is deleted.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn delete_topic_record(&self, topic: &TopicName) -> Result<(), NamespaceError> {
        self.update_topic_record(topic, |record| {
            *record = TopicRecord::default();
            Ok(())
        })
        .await
    }
}
