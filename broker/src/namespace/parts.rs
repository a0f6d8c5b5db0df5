//! The values policies are made of, with the field names of Pulsar's JSON. Shared by namespace and topic policies.
//!
//! Numbers keep Pulsar's meaning: −1 or 0 often means "no limit", and the accessors of the policies turn that into options
//! where the broker reads them.

use super::lenient;
use serde::{Deserialize, Serialize};

/// Bundle boundaries as hexadecimal text, first `0x00000000`, last `0xffffffff`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BundlesData {
    /// Boundaries, one more than there are bundles.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub boundaries: Vec<String>,
    /// Number of bundles.
    #[serde(rename = "numBundles", default, deserialize_with = "lenient::int")]
    pub num_bundles: i32,
}

impl BundlesData {
    /// `count` equal bundles, as Pulsar divides the 32-bit hash space.
    #[must_use]
    pub fn equal(count: u32) -> Self {
        let count = count.max(1);
        let segment = 0xffff_ffffu64 / u64::from(count);
        let text = |at: u64| format!("0x{at:08x}");
        let mut boundaries = vec![text(0)];
        // Pulsar rounds the step up by one so that four bundles meet at 0x40000000.
        let step = if 0x1_0000_0000u64.is_multiple_of(u64::from(count)) {
            0x1_0000_0000u64 / u64::from(count)
        } else {
            segment
        };
        boundaries.extend((1..u64::from(count)).map(|i| text(i * step)));
        boundaries.push(text(0xffff_ffff));
        Self { boundaries, num_bundles: count as i32 }
    }

    /// The boundaries as numbers.
    #[must_use]
    pub fn bounds(&self) -> Option<Vec<u32>> {
        let number = |text: &String| u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
        let bounds: Option<Vec<u32>> = self.boundaries.iter().map(number).collect();
        bounds.filter(|b| {
            b.len() >= 2 && b[0] == 0 && b[b.len() - 1] == u32::MAX && b.windows(2).all(|w| w[0] < w[1])
        })
    }
}

impl Default for BundlesData {
    fn default() -> Self {
        Self::equal(4)
    }
}

/// Which backlog a quota bounds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogQuotaType {
    /// Bytes of the slowest subscription's backlog.
    DestinationStorage,
    /// Age of the oldest unacknowledged message.
    MessageAge,
}

/// What happens when a quota is exceeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaPolicy {
    /// New producers wait, connected ones are disconnected.
    ProducerRequestHold,
    /// Producers get an error.
    ProducerException,
    /// The oldest backlog is dropped.
    ConsumerBacklogEviction,
}

/// A backlog quota.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "BacklogQuotaIn", into = "BacklogQuotaOut")]
pub struct BacklogQuota {
    /// Bytes; negative means unbounded.
    pub limit_size: i64,
    /// Seconds; not positive means unbounded.
    pub limit_time: i32,
    /// What happens beyond it.
    pub policy: Option<QuotaPolicy>,
}

#[derive(Deserialize)]
struct BacklogQuotaIn {
    // The old name of limitSize, which the Go client's tests still send, quoted.
    #[serde(default, deserialize_with = "lenient::opt_int")]
    limit: Option<i64>,
    #[serde(rename = "limitSize", default, deserialize_with = "lenient::opt_int")]
    limit_size: Option<i64>,
    #[serde(rename = "limitTime", default, deserialize_with = "lenient::opt_int")]
    limit_time: Option<i32>,
    #[serde(default)]
    policy: Option<QuotaPolicy>,
}

#[derive(Serialize)]
struct BacklogQuotaOut {
    limit: i64,
    #[serde(rename = "limitSize")]
    limit_size: i64,
    #[serde(rename = "limitTime")]
    limit_time: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<QuotaPolicy>,
}

impl From<BacklogQuotaIn> for BacklogQuota {
    fn from(q: BacklogQuotaIn) -> Self {
        Self {
            limit_size: q.limit_size.or(q.limit).unwrap_or(-1),
            limit_time: q.limit_time.unwrap_or(-1),
            policy: q.policy,
        }
    }
}

impl From<BacklogQuota> for BacklogQuotaOut {
    fn from(q: BacklogQuota) -> Self {
        Self { limit: q.limit_size, limit_size: q.limit_size, limit_time: q.limit_time, policy: q.policy }
    }
}

/// How long acknowledged messages are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retention {
    /// Minutes; 0 off, −1 without bound.
    #[serde(rename = "retentionTimeInMinutes", default, deserialize_with = "lenient::int")]
    pub time_minutes: i32,
    /// Megabytes; 0 off, −1 without bound.
    #[serde(rename = "retentionSizeInMB", default, deserialize_with = "lenient::int")]
    pub size_mb: i64,
}

/// When closed ledgers go to the object store; `None` leaves the level above. Where they go is the broker's configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OffloadPolicies {
    /// Kind of object store, in Pulsar's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_ledger_offload_driver: Option<String>,
    /// Bytes beyond which the oldest ledgers go; below 0 is off.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_int")]
    pub managed_ledger_offload_threshold_in_bytes: Option<i64>,
    /// Seconds since their close after which ledgers go; below 0 is off.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_int")]
    pub managed_ledger_offload_threshold_in_seconds: Option<i64>,
    /// How long they also stay on bookies, ms.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_int")]
    pub managed_ledger_offload_deletion_lag_in_millis: Option<i64>,
}

/// Replication of ledgers and the pace of cursor persistence.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Persistence {
    /// Ensemble size.
    #[serde(rename = "bookkeeperEnsemble", default, deserialize_with = "lenient::int")]
    pub ensemble: i32,
    /// Write quorum.
    #[serde(rename = "bookkeeperWriteQuorum", default, deserialize_with = "lenient::int")]
    pub write_quorum: i32,
    /// Ack quorum.
    #[serde(rename = "bookkeeperAckQuorum", default, deserialize_with = "lenient::int")]
    pub ack_quorum: i32,
    /// Cursor updates per second.
    #[serde(rename = "managedLedgerMaxMarkDeleteRate", default)]
    pub mark_delete_rate_max: f64,
    /// Storage class, if named.
    #[serde(rename = "managedLedgerStorageClassName", default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
}

/// Whether topics are partitioned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopicType {
    /// Several partitions.
    Partitioned,
    /// One plain topic.
    NonPartitioned,
}

/// A namespace's own rule for creating topics on first use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoTopicCreation {
    /// Whether topics come into being on first use.
    #[serde(default)]
    pub allow_auto_topic_creation: bool,
    /// Which type they have; needed when allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_type: Option<TopicType>,
    /// How many partitions, when partitioned.
    #[serde(default, deserialize_with = "lenient::opt_int", skip_serializing_if = "Option::is_none")]
    pub default_num_partitions: Option<i32>,
}

/// A namespace's own rule for creating subscriptions on first use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoSubscriptionCreation {
    /// Whether subscriptions come into being on first use.
    #[serde(default)]
    pub allow_auto_subscription_creation: bool,
}

fn unlimited32() -> i32 {
    -1
}
fn unlimited64() -> i64 {
    -1
}
fn one() -> i32 {
    1
}
fn thirty() -> i32 {
    30
}

/// A bound on publishing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishRate {
    /// Messages per second; not positive means unbounded.
    #[serde(
        rename = "publishThrottlingRateInMsg",
        default = "unlimited32",
        deserialize_with = "lenient::int"
    )]
    pub messages: i32,
    /// Bytes per second; not positive means unbounded.
    #[serde(
        rename = "publishThrottlingRateInByte",
        default = "unlimited64",
        deserialize_with = "lenient::int"
    )]
    pub bytes: i64,
}

/// A bound on delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DispatchRate {
    /// Messages per period; not positive means unbounded.
    #[serde(
        rename = "dispatchThrottlingRateInMsg",
        default = "unlimited32",
        deserialize_with = "lenient::int"
    )]
    pub messages: i32,
    /// Bytes per period; not positive means unbounded.
    #[serde(
        rename = "dispatchThrottlingRateInByte",
        default = "unlimited64",
        deserialize_with = "lenient::int"
    )]
    pub bytes: i64,
    /// Whether the bound is added to the publish rate.
    #[serde(rename = "relativeToPublishRate", default)]
    pub relative_to_publish_rate: bool,
    /// The period in seconds.
    #[serde(rename = "ratePeriodInSecond", default = "one", deserialize_with = "lenient::int")]
    pub period_seconds: i32,
}

/// A bound on subscribing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SubscribeRate {
    /// Subscribes per consumer and period; not positive means unbounded.
    #[serde(
        rename = "subscribeThrottlingRatePerConsumer",
        default = "unlimited32",
        deserialize_with = "lenient::int"
    )]
    pub per_consumer: i32,
    /// The period in seconds.
    #[serde(rename = "ratePeriodInSecond", default = "thirty", deserialize_with = "lenient::int")]
    pub period_seconds: i32,
}

/// Delayed delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DelayedDelivery {
    /// Granularity in milliseconds.
    #[serde(rename = "tickTime", default, deserialize_with = "lenient::int")]
    pub tick_time_ms: i64,
    /// Whether delays are kept.
    #[serde(default)]
    pub active: bool,
    /// Longest delay in milliseconds; 0 means unbounded.
    #[serde(rename = "maxDeliveryDelayInMillis", default, deserialize_with = "lenient::int")]
    pub delay_max_ms: i64,
}

/// When an unused topic is deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InactiveTopicPolicies {
    /// `delete_when_no_subscriptions` or `delete_when_subscriptions_caught_up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_topic_delete_mode: Option<InactiveDeleteMode>,
    /// Seconds without use.
    #[serde(default, deserialize_with = "lenient::int")]
    pub max_inactive_duration_seconds: i32,
    /// Whether deletion happens at all.
    #[serde(default)]
    pub delete_while_inactive: bool,
}

/// What makes a topic unused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InactiveDeleteMode {
    /// No subscription is left.
    DeleteWhenNoSubscriptions,
    /// All subscriptions have read everything.
    DeleteWhenSubscriptionsCaughtUp,
}

/// Which schema changes a topic accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SchemaCompatibility {
    /// The level above decides.
    #[default]
    Undefined,
    /// No change is accepted.
    AlwaysIncompatible,
    /// Every change is accepted.
    AlwaysCompatible,
    /// New readers read the last schema's data.
    Backward,
    /// Readers of the last schema read new data.
    Forward,
    /// Both.
    Full,
    /// Backward against every version.
    BackwardTransitive,
    /// Forward against every version.
    ForwardTransitive,
    /// Both against every version.
    FullTransitive,
}
