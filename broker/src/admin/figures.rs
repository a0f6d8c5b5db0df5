//! Snapshots as Pulsar's stats. Rates are means over the last half to whole minute.

use crate::broker::Broker;
use crate::rest::stats::{
    ConsumerStats, CursorStats, InternalStats, LedgerStats, PublisherStats, SubscriptionStats, TopicStats,
};
use crate::rest::time::iso_utc;
use crate::topic::admin::{ConsumerSnapshot, PublisherSnapshot, Snapshot, SubscriptionSnapshot};
use crate::topic::messages::AccessMode;

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Stats of a topic.
pub(super) fn topic_stats(broker: &Broker, topic: &Snapshot) -> TopicStats {
    let now = broker.clock.wall_ms();
    let subscriptions: Vec<_> = topic.subscriptions.iter().collect();
    let messages_out = subscriptions.iter().map(|sub| sub.messages_out).sum();
    let bytes_out = subscriptions.iter().map(|sub| sub.bytes_out).sum();
    let [msg_rate_in, msg_throughput_in] = topic.rates;
    let backlog_size = subscriptions.iter().map(|sub| sub.backlog_bytes).max().unwrap_or(0);
    let age = |ms: u64| now.saturating_sub(ms) / 1000;
    let limit = |limit: Option<u64>| limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    let life = &topic.lifecycle;
    TopicStats {
        msg_rate_in,
        msg_throughput_in,
        msg_rate_out: subscriptions.iter().map(|sub| sub.rates[0]).sum(),
        msg_throughput_out: subscriptions.iter().map(|sub| sub.rates[1]).sum(),
        bytes_in_counter: topic.bytes_in,
        msg_in_counter: topic.messages_in,
        bytes_out_counter: bytes_out,
        msg_out_counter: messages_out,
        average_msg_size: ratio(msg_throughput_in, msg_rate_in),
        msg_chunk_published: topic.chunked,
        storage_size: topic.ledger.bytes,
        offloaded_storage_size: topic.ledger.ledgers.iter().filter(|l| l.offloaded).map(|l| l.bytes).sum(),
        last_offload_ledger_id: topic.offload.last_ledger.map_or(0, |ledger| ledger.0),
        last_offload_success_time_stamp: topic.offload.last_success_ms,
        last_offload_failure_time_stamp: topic.offload.last_failure_ms,
        offload: topic.ledger.offload,
        backlog_size,
        backlog_quota_limit_size: limit(life.size_limit),
        backlog_quota_limit_time: limit(life.age_limit_ms.map(|ms| ms / 1000)),
        oldest_backlog_message_age_seconds: limit(life.oldest_ms.map(age)),
        publish_wait_reason: life.publish_wait().map(str::to_owned),
        offload_wait_reason: topic.offload.wait.clone(),
        offload_releases_waiting: topic.offload.releases_waiting,
        publish_rate_limited_times: life.throttled_times,
        publishers: topic.publishers.iter().map(publisher).collect(),
        waiting_publishers: topic.waiting_producers as u32,
        subscriptions: subscriptions
            .into_iter()
            .map(|sub| (sub.name.to_string(), subscription(sub)))
            .collect(),
        deduplication_status: Some("Disabled".to_owned()),
        topic_epoch: topic.topic_epoch,
        non_contiguous_deleted_messages_ranges: topic.subscriptions.iter().map(|sub| sub.hole_ranges).sum(),
        non_contiguous_deleted_messages_ranges_serialized_size: topic
            .subscriptions
            .iter()
            .map(|sub| sub.hole_bytes)
            .sum(),
        owner_broker: Some(broker.http_url().trim_start_matches("http://").to_owned()),
        topic_creation_time_stamp: topic.created_ms,
        last_publish_time_stamp: topic.last_publish_ms,
        ..TopicStats::unused()
    }
}

fn publisher(p: &PublisherSnapshot) -> PublisherStats {
    let [msg_rate_in, msg_throughput_in] = p.rates;
    PublisherStats {
        access_mode: match p.mode {
            AccessMode::Shared => "Shared",
            AccessMode::Exclusive => "Exclusive",
            AccessMode::WaitForExclusive => "WaitForExclusive",
            AccessMode::ExclusiveWithFencing => "ExclusiveWithFencing",
        }
        .to_owned(),
        msg_rate_in,
        msg_throughput_in,
        average_msg_size: ratio(msg_throughput_in, msg_rate_in),
        chunked_message_rate: 0.0,
        producer_id: p.id,
        supports_partial_producer: false,
        producer_name: p.name.clone(),
        address: p.address.clone(),
        connected_since: iso_utc(p.connected_ms),
        client_version: Some(p.client_version.clone()),
        metadata: p.metadata.clone(),
    }
}

fn subscription(sub: &SubscriptionSnapshot) -> SubscriptionStats {
    let d = &sub.dispatcher;
    let [msg_rate_out, msg_throughput_out, msg_rate_redeliver, message_ack_rate, msg_rate_expired] =
        sub.rates;
    SubscriptionStats {
        msg_rate_out,
        msg_throughput_out,
        bytes_out_counter: sub.bytes_out,
        msg_out_counter: sub.messages_out,
        msg_rate_redeliver,
        message_ack_rate,
        msg_rate_expired,
        msg_backlog: sub.backlog,
        backlog_size: sub.backlog_bytes,
        msg_backlog_no_delayed: sub.backlog.saturating_sub(d.delayed_entries),
        blocked_subscription_on_unacked_msgs: d.blocked_on_unacked,
        msg_delayed: d.delayed_entries,
        msg_in_replay: d.replay_entries,
        unacked_messages: d.unacked_messages,
        // Nobody connected: no type, as Pulsar prints it.
        subscription_type: if sub.consumers.is_empty() { "None".to_owned() } else { sub.kind.clone() },
        active_consumer_name: sub.active_consumer.clone(),
        msg_expired: sub.expired,
        total_msg_expired: sub.expired,
        lost_entries: (sub.lost > 0).then_some(sub.lost),
        last_expire_timestamp: sub.last_expired_ms,
        last_consumed_flow_timestamp: sub.last_flow_ms,
        last_consumed_timestamp: sub.last_consumed_ms,
        last_acked_timestamp: sub.last_acked_ms,
        last_mark_delete_advanced_timestamp: sub.last_floor_ms,
        consumers: sub.consumers.iter().map(|c| consumer(c, sub)).collect(),
        is_durable: sub.durable,
        durable: sub.durable,
        is_replicated: sub.replicated,
        replicated: sub.replicated,
        draining_hashes_count: d.draining.len() as u64,
        draining_hashes_cleared_total: d.draining_cleared_total,
        draining_hashes_unacked_messages: d.draining.iter().map(|h| u64::from(h.unacked_entries)).sum(),
        non_contiguous_deleted_messages_ranges: sub.hole_ranges,
        non_contiguous_deleted_messages_ranges_serialized_size: sub.hole_bytes,
        subscription_properties: sub.properties.clone(),
        wait_reason: sub.wait.clone(),
        ..SubscriptionStats::default()
    }
}

fn consumer(c: &ConsumerSnapshot, sub: &SubscriptionSnapshot) -> ConsumerStats {
    let stats = ConsumerStats {
        consumer_name: c.name.clone(),
        address: c.address.clone(),
        connected_since: iso_utc(c.connected_ms),
        client_version: Some(c.client_version.clone()),
        last_acked_timestamp: c.last_acked_ms,
        last_consumed_timestamp: c.last_consumed_ms,
        last_consumed_flow_timestamp: c.last_flow_ms,
        metadata: c.metadata.clone(),
        ..ConsumerStats::default()
    };
    let [msg_rate_out, msg_throughput_out, msg_rate_redeliver, message_ack_rate, _] = c.rates;
    let Some(d) = sub.dispatcher.consumers.iter().find(|d| d.key == c.key) else { return stats };
    ConsumerStats {
        msg_rate_out,
        msg_throughput_out,
        bytes_out_counter: d.sent_bytes,
        msg_out_counter: d.sent_messages,
        msg_rate_redeliver,
        message_ack_rate,
        available_permits: d.permits,
        unacked_messages: d.unacked_messages,
        avg_messages_per_entry: d.sent_messages.checked_div(d.sent_entries).unwrap_or(0),
        blocked_consumer_on_unacked_msgs: d.blocked_on_unacked,
        key_hash_ranges: d.hash_ranges.iter().map(|r| format!("[{}, {}]", r.start, r.end)).collect(),
        key_hash_range_arrays: d.hash_ranges.iter().map(|r| [u32::from(r.start), u32::from(r.end)]).collect(),
        ..stats
    }
}

/// Ledgers and cursors of a topic.
pub(super) fn internal_stats(topic: &Snapshot) -> InternalStats {
    let ledger = &topic.ledger;
    InternalStats {
        entries_added_counter: topic.entries_in,
        number_of_entries: ledger.entries,
        total_size: ledger.bytes,
        current_ledger_entries: ledger.current_ledger_entries,
        current_ledger_size: ledger.current_ledger_bytes,
        last_ledger_created_timestamp: (ledger.last_ledger_created_ms > 0)
            .then(|| iso_utc(ledger.last_ledger_created_ms)),
        pending_add_entries_count: ledger.pending_appends as u64,
        last_confirmed_entry: ledger.last_confirmed.map_or_else(|| "-1:-1".to_owned(), |p| p.to_string()),
        state: ledger.state.to_owned(),
        ledgers: ledger
            .ledgers
            .iter()
            .map(|l| LedgerStats {
                ledger_id: l.id.0,
                entries: l.entries,
                size: l.bytes,
                under_replicated: l.under_replicated,
                offloaded: l.offloaded,
                ..LedgerStats::default()
            })
            .collect(),
        cursors: topic
            .subscriptions
            .iter()
            .filter(|sub| sub.durable)
            .map(|sub| {
                let (ledger, entry) = sub.mark_delete;
                let cursor = CursorStats {
                    mark_delete_position: format!("{ledger}:{entry}"),
                    read_position: sub.dispatcher.read_position.to_string(),
                    messages_consumed_counter: sub.acked,
                    individually_deleted_messages: sub.holes.clone(),
                    active: !sub.consumers.is_empty(),
                    total_non_contiguous_deleted_messages_range: sub.hole_ranges,
                    number_of_entries_since_first_not_acked_message: sub.backlog,
                    ..CursorStats::default()
                };
                (sub.name.to_string(), cursor)
            })
            .collect(),
        properties: topic.properties.clone(),
        ..InternalStats::default()
    }
}
