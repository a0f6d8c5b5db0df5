//! Stats as Pulsar's admin API prints them. Field names are Pulsar's in camel case; counters are integers (Go and KEDA read
//! them strictly), rates are floats, maps and lists are never null.
//!
//! Whoever fills these keeps the counters anyway; rates come from differences over the last period.

use serde::Serialize;
use std::collections::BTreeMap;

/// A topic's stats. Times are milliseconds since 1970, 0 for never.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the field names are Pulsar's own and documented there
pub struct TopicStats {
    pub msg_rate_in: f64,
    pub msg_throughput_in: f64,
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub bytes_in_counter: u64,
    pub msg_in_counter: u64,
    pub system_topic_bytes_in_counter: u64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub bytes_out_internal_counter: u64,
    pub average_msg_size: f64,
    pub msg_chunk_published: bool,
    pub storage_size: u64,
    pub backlog_size: u64,
    pub backlog_quota_limit_size: i64,
    pub backlog_quota_limit_time: i64,
    pub oldest_backlog_message_age_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_backlog_message_subscription_name: Option<String>,
    pub publish_rate_limited_times: u64,
    pub earliest_msg_publish_time_in_backlogs: u64,
    pub offloaded_storage_size: u64,
    pub last_offload_ledger_id: u64,
    pub last_offload_success_time_stamp: u64,
    pub last_offload_failure_time_stamp: u64,
    pub ongoing_txn_count: u64,
    pub aborted_txn_count: u64,
    pub committed_txn_count: u64,
    pub publishers: Vec<PublisherStats>,
    pub waiting_publishers: u32,
    pub subscriptions: BTreeMap<String, SubscriptionStats>,
    pub replication: BTreeMap<String, ReplicatorStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_epoch: Option<u64>,
    pub non_contiguous_deleted_messages_ranges: u64,
    pub non_contiguous_deleted_messages_ranges_serialized_size: u64,
    pub delayed_message_index_size_in_bytes: u64,
    pub compaction: CompactionStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_broker: Option<String>,
    pub topic_creation_time_stamp: u64,
    pub last_publish_time_stamp: u64,
    /// What offloading has done and cost, for `/metrics`.
    #[serde(skip)]
    pub offload: Option<geminga_offload::meters::Figures>,
    /// Ours: why producers are kept out or slowed down at the moment, `None` while they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_wait_reason: Option<String>,
    /// Ours: why a ledger is not offloaded, or its bookie copies not let go, although it is due; `None` while nothing waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_wait_reason: Option<String>,
    /// Ledgers whose bookie copies wait for that, for `/metrics`.
    #[serde(skip)]
    pub offload_releases_waiting: u64,
}

/// The last compaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct CompactionStats {
    pub last_compaction_removed_event_count: u64,
    pub last_compaction_succeed_timestamp: u64,
    pub last_compaction_failed_timestamp: u64,
    pub last_compaction_duration_time_in_mills: u64,
}

/// A producer.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct PublisherStats {
    /// `Shared`, `Exclusive`, `ExclusiveWithFencing` or `WaitForExclusive`.
    pub access_mode: String,
    pub msg_rate_in: f64,
    pub msg_throughput_in: f64,
    pub average_msg_size: f64,
    pub chunked_message_rate: f64,
    pub producer_id: u64,
    pub supports_partial_producer: bool,
    pub producer_name: String,
    pub address: String,
    /// ISO 8601.
    pub connected_since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// A subscription.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SubscriptionStats {
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub msg_rate_redeliver: f64,
    pub message_ack_rate: f64,
    pub chunked_message_rate: f64,
    /// Entries not acknowledged.
    pub msg_backlog: u64,
    pub backlog_size: u64,
    pub earliest_msg_publish_time_in_backlog: u64,
    pub msg_backlog_no_delayed: u64,
    pub blocked_subscription_on_unacked_msgs: bool,
    pub msg_delayed: u64,
    pub msg_in_replay: u64,
    pub unacked_messages: u64,
    /// `Exclusive`, `Shared`, `Failover`, `Key_Shared`, or `None` while nobody has ever consumed.
    #[serde(rename = "type")]
    pub subscription_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_consumer_name: Option<String>,
    pub msg_rate_expired: f64,
    pub msg_expired: u64,
    pub total_msg_expired: u64,
    pub last_expire_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_acked_timestamp: u64,
    pub last_mark_delete_advanced_timestamp: u64,
    pub consumers: Vec<ConsumerStats>,
    pub is_durable: bool,
    pub is_replicated: bool,
    pub allow_out_of_order_delivery: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_shared_mode: Option<String>,
    pub consumers_after_mark_delete_position: BTreeMap<String, String>,
    pub draining_hashes_count: u64,
    pub draining_hashes_cleared_total: u64,
    pub draining_hashes_unacked_messages: u64,
    pub non_contiguous_deleted_messages_ranges: u64,
    pub non_contiguous_deleted_messages_ranges_serialized_size: u64,
    pub delayed_message_index_size_in_bytes: u64,
    pub subscription_properties: BTreeMap<String, String>,
    pub filter_processed_msg_count: u64,
    pub filter_accepted_msg_count: u64,
    pub filter_rejected_msg_count: u64,
    pub filter_rescheduled_msg_count: u64,
    pub dispatch_throttled_msg_events_by_subscription_limit: u64,
    pub dispatch_throttled_bytes_events_by_subscription_limit: u64,
    pub dispatch_throttled_msg_events_by_topic_limit: u64,
    pub dispatch_throttled_bytes_events_by_topic_limit: u64,
    pub dispatch_throttled_msg_events_by_broker_limit: u64,
    pub dispatch_throttled_bytes_events_by_broker_limit: u64,
    /// The same as `isDurable`; Pulsar prints both.
    pub durable: bool,
    /// The same as `isReplicated`; Pulsar prints both.
    pub replicated: bool,
    /// Ours: why nothing is being delivered at the moment, `None` while something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_reason: Option<String>,
    /// Ours: entries that it passed since the topic was loaded because they are lost for good, `None` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_entries: Option<u64>,
}

/// A consumer.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ConsumerStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub msg_rate_redeliver: f64,
    pub message_ack_rate: f64,
    pub chunked_message_rate: f64,
    pub consumer_name: String,
    pub available_permits: i64,
    pub unacked_messages: u64,
    pub avg_messages_per_entry: u64,
    pub blocked_consumer_on_unacked_msgs: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_position_when_joining: Option<String>,
    pub draining_hashes_count: u64,
    pub draining_hashes_cleared_total: u64,
    pub draining_hashes_unacked_messages: u64,
    pub address: String,
    /// ISO 8601.
    pub connected_since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
    pub last_acked_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub first_messages_sent_timestamp: u64,
    pub first_consumed_flow_timestamp: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_hash_ranges: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_hash_range_arrays: Vec<[u32; 2]>,
    pub metadata: BTreeMap<String, String>,
}

/// A replicator; there is none in this release, the type keeps `replication` an object.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ReplicatorStats {
    pub msg_rate_in: f64,
    pub msg_rate_out: f64,
    pub replication_backlog: u64,
    pub connected: bool,
}

/// Ledgers and cursors of a topic.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct InternalStats {
    pub entries_added_counter: u64,
    pub number_of_entries: u64,
    pub total_size: u64,
    pub current_ledger_entries: u64,
    pub current_ledger_size: u64,
    /// ISO 8601.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ledger_created_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ledger_creation_failure_timestamp: Option<String>,
    pub waiting_cursors_count: u64,
    pub pending_add_entries_count: u64,
    /// `ledger:entry`; `ledger:-1` when the ledger is empty.
    pub last_confirmed_entry: String,
    pub state: String,
    pub ledgers: Vec<LedgerStats>,
    pub cursors: BTreeMap<String, CursorStats>,
    pub properties: BTreeMap<String, String>,
    pub schema_ledgers: Vec<LedgerStats>,
    pub compacted_ledger: CompactedLedger,
}

/// A ledger of a topic.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct LedgerStats {
    pub ledger_id: u64,
    pub entries: u64,
    pub size: u64,
    pub offloaded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    pub under_replicated: bool,
}

/// The compacted ledger; −1 throughout while there is none.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct CompactedLedger {
    pub ledger_id: i64,
    pub entries: i64,
    pub size: i64,
    pub offloaded: bool,
    pub under_replicated: bool,
}

impl Default for CompactedLedger {
    fn default() -> Self {
        Self { ledger_id: -1, entries: -1, size: -1, offloaded: false, under_replicated: false }
    }
}

/// A cursor of a topic. `cursor_ledger` is −1: cursors share a log per bundle here.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct CursorStats {
    pub mark_delete_position: String,
    pub read_position: String,
    pub waiting_read_op: bool,
    pub pending_read_ops: u64,
    pub messages_consumed_counter: u64,
    pub cursor_ledger: i64,
    pub cursor_ledger_last_entry: i64,
    pub individually_deleted_messages: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ledger_switch_timestamp: Option<String>,
    pub state: String,
    pub active: bool,
    pub number_of_entries_since_first_not_acked_message: u64,
    pub total_non_contiguous_deleted_messages_range: u64,
    pub subscription_have_pending_read: bool,
    pub subscription_have_pending_replay_read: bool,
    pub properties: BTreeMap<String, i64>,
}

impl Default for CursorStats {
    fn default() -> Self {
        Self {
            mark_delete_position: String::new(),
            read_position: String::new(),
            waiting_read_op: false,
            pending_read_ops: 0,
            messages_consumed_counter: 0,
            cursor_ledger: -1,
            cursor_ledger_last_entry: -1,
            individually_deleted_messages: "[]".to_owned(),
            last_ledger_switch_timestamp: None,
            state: "Open".to_owned(),
            active: false,
            number_of_entries_since_first_not_acked_message: 0,
            total_non_contiguous_deleted_messages_range: 0,
            subscription_have_pending_read: false,
            subscription_have_pending_replay_read: false,
            properties: BTreeMap::new(),
        }
    }
}

impl TopicStats {
    /// Stats of a topic without traffic: limits unset.
    #[must_use]
    pub fn unused() -> Self {
        Self {
            backlog_quota_limit_size: -1,
            backlog_quota_limit_time: -1,
            oldest_backlog_message_age_seconds: -1,
            ..Self::default()
        }
    }

    /// Adds a partition's stats to those of the whole topic.
    pub fn add(&mut self, part: &TopicStats) {
        self.msg_rate_in += part.msg_rate_in;
        self.msg_throughput_in += part.msg_throughput_in;
        self.msg_rate_out += part.msg_rate_out;
        self.msg_throughput_out += part.msg_throughput_out;
        self.bytes_in_counter += part.bytes_in_counter;
        self.msg_in_counter += part.msg_in_counter;
        self.system_topic_bytes_in_counter += part.system_topic_bytes_in_counter;
        self.bytes_out_counter += part.bytes_out_counter;
        self.msg_out_counter += part.msg_out_counter;
        self.bytes_out_internal_counter += part.bytes_out_internal_counter;
        self.average_msg_size =
            if self.msg_rate_in > 0.0 { self.msg_throughput_in / self.msg_rate_in } else { 0.0 };
        self.msg_chunk_published |= part.msg_chunk_published;
        self.storage_size += part.storage_size;
        self.backlog_size += part.backlog_size;
        self.backlog_quota_limit_size = self.backlog_quota_limit_size.max(part.backlog_quota_limit_size);
        self.backlog_quota_limit_time = self.backlog_quota_limit_time.max(part.backlog_quota_limit_time);
        if part.oldest_backlog_message_age_seconds > self.oldest_backlog_message_age_seconds {
            self.oldest_backlog_message_age_seconds = part.oldest_backlog_message_age_seconds;
            self.oldest_backlog_message_subscription_name =
                part.oldest_backlog_message_subscription_name.clone();
        }
        if self.publish_wait_reason.is_none() {
            self.publish_wait_reason.clone_from(&part.publish_wait_reason);
        }
        if self.offload_wait_reason.is_none() {
            self.offload_wait_reason.clone_from(&part.offload_wait_reason);
        }
        self.offload_releases_waiting += part.offload_releases_waiting;
        self.publish_rate_limited_times += part.publish_rate_limited_times;
        self.earliest_msg_publish_time_in_backlogs =
            earliest(self.earliest_msg_publish_time_in_backlogs, part.earliest_msg_publish_time_in_backlogs);
        self.offloaded_storage_size += part.offloaded_storage_size;
        self.ongoing_txn_count += part.ongoing_txn_count;
        self.aborted_txn_count += part.aborted_txn_count;
        self.committed_txn_count += part.committed_txn_count;
        self.waiting_publishers += part.waiting_publishers;
        self.non_contiguous_deleted_messages_ranges += part.non_contiguous_deleted_messages_ranges;
        self.non_contiguous_deleted_messages_ranges_serialized_size +=
            part.non_contiguous_deleted_messages_ranges_serialized_size;
        self.delayed_message_index_size_in_bytes += part.delayed_message_index_size_in_bytes;
        self.topic_creation_time_stamp =
            earliest(self.topic_creation_time_stamp, part.topic_creation_time_stamp);
        self.last_publish_time_stamp = self.last_publish_time_stamp.max(part.last_publish_time_stamp);
        for publisher in &part.publishers {
            // A client's partitioned producer has one name over all partitions.
            match self.publishers.iter_mut().find(|p| p.producer_name == publisher.producer_name) {
                Some(there) => there.add(publisher),
                None => self.publishers.push(publisher.clone()),
            }
        }
        for (name, subscription) in &part.subscriptions {
            match self.subscriptions.get_mut(name) {
                Some(there) => there.add(subscription),
                None => {
                    self.subscriptions.insert(name.clone(), subscription.clone());
                }
            }
        }
    }
}

impl PublisherStats {
    fn add(&mut self, part: &PublisherStats) {
        self.msg_rate_in += part.msg_rate_in;
        self.msg_throughput_in += part.msg_throughput_in;
        self.chunked_message_rate += part.chunked_message_rate;
        self.average_msg_size =
            if self.msg_rate_in > 0.0 { self.msg_throughput_in / self.msg_rate_in } else { 0.0 };
    }
}

impl SubscriptionStats {
    fn add(&mut self, part: &SubscriptionStats) {
        self.msg_rate_out += part.msg_rate_out;
        self.msg_throughput_out += part.msg_throughput_out;
        self.bytes_out_counter += part.bytes_out_counter;
        self.msg_out_counter += part.msg_out_counter;
        self.msg_rate_redeliver += part.msg_rate_redeliver;
        self.message_ack_rate += part.message_ack_rate;
        self.chunked_message_rate += part.chunked_message_rate;
        self.msg_backlog += part.msg_backlog;
        self.backlog_size += part.backlog_size;
        self.earliest_msg_publish_time_in_backlog =
            earliest(self.earliest_msg_publish_time_in_backlog, part.earliest_msg_publish_time_in_backlog);
        self.msg_backlog_no_delayed += part.msg_backlog_no_delayed;
        self.blocked_subscription_on_unacked_msgs |= part.blocked_subscription_on_unacked_msgs;
        self.msg_delayed += part.msg_delayed;
        self.msg_in_replay += part.msg_in_replay;
        self.unacked_messages += part.unacked_messages;
        if self.subscription_type == "None" || self.subscription_type.is_empty() {
            self.subscription_type = part.subscription_type.clone();
        }
        self.msg_rate_expired += part.msg_rate_expired;
        self.msg_expired += part.msg_expired;
        self.total_msg_expired += part.total_msg_expired;
        let lost = self.lost_entries.unwrap_or(0) + part.lost_entries.unwrap_or(0);
        self.lost_entries = (lost > 0).then_some(lost);
        self.last_expire_timestamp = self.last_expire_timestamp.max(part.last_expire_timestamp);
        self.last_consumed_flow_timestamp =
            self.last_consumed_flow_timestamp.max(part.last_consumed_flow_timestamp);
        self.last_consumed_timestamp = self.last_consumed_timestamp.max(part.last_consumed_timestamp);
        self.last_acked_timestamp = self.last_acked_timestamp.max(part.last_acked_timestamp);
        self.last_mark_delete_advanced_timestamp =
            self.last_mark_delete_advanced_timestamp.max(part.last_mark_delete_advanced_timestamp);
        self.draining_hashes_count += part.draining_hashes_count;
        self.draining_hashes_cleared_total += part.draining_hashes_cleared_total;
        self.draining_hashes_unacked_messages += part.draining_hashes_unacked_messages;
        self.non_contiguous_deleted_messages_ranges += part.non_contiguous_deleted_messages_ranges;
        self.non_contiguous_deleted_messages_ranges_serialized_size +=
            part.non_contiguous_deleted_messages_ranges_serialized_size;
        self.delayed_message_index_size_in_bytes += part.delayed_message_index_size_in_bytes;
        for consumer in &part.consumers {
            match self.consumers.iter_mut().find(|c| c.consumer_name == consumer.consumer_name) {
                Some(there) => there.add(consumer),
                None => self.consumers.push(consumer.clone()),
            }
        }
    }
}

impl ConsumerStats {
    fn add(&mut self, part: &ConsumerStats) {
        self.msg_rate_out += part.msg_rate_out;
        self.msg_throughput_out += part.msg_throughput_out;
        self.bytes_out_counter += part.bytes_out_counter;
        self.msg_out_counter += part.msg_out_counter;
        self.msg_rate_redeliver += part.msg_rate_redeliver;
        self.message_ack_rate += part.message_ack_rate;
        self.chunked_message_rate += part.chunked_message_rate;
        self.available_permits += part.available_permits;
        self.unacked_messages += part.unacked_messages;
        self.blocked_consumer_on_unacked_msgs |= part.blocked_consumer_on_unacked_msgs;
    }
}

/// The earlier of two times of which 0 means none.
fn earliest(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    }
}
