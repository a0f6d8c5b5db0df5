//! Snapshots as Pulsar's stats. Rates are means over the life of what they describe, until the stats window arrives.

use crate::broker::Broker;
use crate::rest::stats::{
    ConsumerStats, CursorStats, InternalStats, LedgerStats, PublisherStats, SubscriptionStats, TopicStats,
};
use crate::rest::time::iso_utc;
use crate::topic::admin::{ConsumerSnapshot, PublisherSnapshot, Snapshot, SubscriptionSnapshot};
use crate::topic::messages::AccessMode;

/// Events a second since `since_ms`.
fn rate(count: u64, since_ms: u64, now_ms: u64) -> f64 {
    count as f64 * 1000.0 / now_ms.saturating_sub(since_ms).max(1000) as f64
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Stats of a topic.
pub(super) fn topic_stats(broker: &Broker, topic: &Snapshot) -> TopicStats {
    let now = broker.clock.wall_ms();
    let loaded = topic.loaded_ms;
    let subscriptions: Vec<_> = topic.subscriptions.iter().collect();
    let messages_out = subscriptions.iter().map(|sub| sub.messages_out).sum();
    let bytes_out = subscriptions.iter().map(|sub| sub.bytes_out).sum();
    let msg_rate_in = rate(topic.messages_in, loaded, now);
    let msg_throughput_in = rate(topic.bytes_in, loaded, now);
    let backlog = subscriptions.iter().map(|sub| sub.backlog).max().unwrap_or(0);
    let mean = topic.ledger.bytes.checked_div(topic.ledger.entries).unwrap_or(0);
    TopicStats {
        msg_rate_in,
        msg_throughput_in,
        msg_rate_out: rate(messages_out, loaded, now),
        msg_throughput_out: rate(bytes_out, loaded, now),
        bytes_in_counter: topic.bytes_in,
        msg_in_counter: topic.messages_in,
        bytes_out_counter: bytes_out,
        msg_out_counter: messages_out,
        average_msg_size: ratio(msg_throughput_in, msg_rate_in),
        msg_chunk_published: topic.chunked,
        storage_size: topic.ledger.bytes,
        backlog_size: backlog * mean,
        publishers: topic.publishers.iter().map(|p| publisher(p, now)).collect(),
        waiting_publishers: topic.waiting_producers as u32,
        subscriptions: subscriptions
            .into_iter()
            .map(|sub| (sub.name.to_string(), subscription(sub, loaded, now, mean)))
            .collect(),
        deduplication_status: Some("Disabled".to_owned()),
        topic_epoch: topic.topic_epoch,
        non_contiguous_deleted_messages_ranges: 0,
        owner_broker: Some(broker.http_url().trim_start_matches("http://").to_owned()),
        topic_creation_time_stamp: topic.created_ms,
        last_publish_time_stamp: topic.last_publish_ms,
        ..TopicStats::unused()
    }
}

fn publisher(p: &PublisherSnapshot, now: u64) -> PublisherStats {
    let msg_rate_in = rate(p.messages, p.connected_ms, now);
    let msg_throughput_in = rate(p.bytes, p.connected_ms, now);
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

fn subscription(sub: &SubscriptionSnapshot, loaded: u64, now: u64, mean: u64) -> SubscriptionStats {
    let d = &sub.dispatcher;
    SubscriptionStats {
        msg_rate_out: rate(sub.messages_out, loaded, now),
        msg_throughput_out: rate(sub.bytes_out, loaded, now),
        bytes_out_counter: sub.bytes_out,
        msg_out_counter: sub.messages_out,
        msg_rate_redeliver: rate(sub.redelivered, loaded, now),
        message_ack_rate: rate(sub.acked, loaded, now),
        msg_backlog: sub.backlog,
        backlog_size: sub.backlog * mean,
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
        last_consumed_flow_timestamp: sub.last_flow_ms,
        last_consumed_timestamp: sub.last_consumed_ms,
        last_acked_timestamp: sub.last_acked_ms,
        last_mark_delete_advanced_timestamp: sub.last_floor_ms,
        consumers: sub.consumers.iter().map(|c| consumer(c, sub, now)).collect(),
        is_durable: sub.durable,
        durable: sub.durable,
        draining_hashes_count: d.draining.len() as u64,
        draining_hashes_cleared_total: d.draining_cleared_total,
        draining_hashes_unacked_messages: d.draining.iter().map(|h| u64::from(h.unacked_entries)).sum(),
        non_contiguous_deleted_messages_ranges_serialized_size: sub.hole_bytes,
        subscription_properties: sub.properties.clone(),
        wait_reason: sub.wait.clone(),
        ..SubscriptionStats::default()
    }
}

fn consumer(c: &ConsumerSnapshot, sub: &SubscriptionSnapshot, now: u64) -> ConsumerStats {
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
    let Some(d) = sub.dispatcher.consumers.iter().find(|d| d.key == c.key) else { return stats };
    ConsumerStats {
        msg_rate_out: rate(d.sent_messages, c.connected_ms, now),
        msg_throughput_out: rate(d.sent_bytes, c.connected_ms, now),
        bytes_out_counter: d.sent_bytes,
        msg_out_counter: d.sent_messages,
        msg_rate_redeliver: rate(d.redelivered_messages, c.connected_ms, now),
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
