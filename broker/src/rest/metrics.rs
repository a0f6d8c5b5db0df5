//! `/metrics`: the Prometheus text with Pulsar's names, at topic level, rendered from the same stats snapshot that REST
//! shows. Nothing is counted for it that is not counted anyway.

use super::Rest;
use super::stats::{SubscriptionStats, TopicStats};
use geminga_bookie_client::placement::{Degraded, Figures as PlacementFigures};
use geminga_common::names::TopicName;
use geminga_offload::cost::{Bill, Kind};
use geminga_offload::disk_cache::Reason;
use geminga_offload::meters::Figures;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Clock ticks per second that Linux reports process times in, on every architecture.
const USER_HZ: f64 = 100.0;

/// One family: its type and its lines. Prometheus wants a family's lines together.
#[derive(Default)]
struct Families(BTreeMap<&'static str, (&'static str, String)>);

impl Families {
    fn add(&mut self, name: &'static str, kind: &'static str, labels: &str, value: f64) {
        self.add_as(name, kind, "", labels, value);
    }

    /// A line whose name is the family's and something behind it.
    fn add_as(&mut self, family: &'static str, kind: &'static str, behind: &str, labels: &str, value: f64) {
        let (_, lines) = self.0.entry(family).or_insert_with(|| (kind, String::new()));
        let _ = writeln!(lines, "{family}{behind}{{{labels}}} {value:?}");
    }

    fn render(self) -> String {
        let mut out = String::new();
        for (name, (kind, lines)) in self.0 {
            let _ = write!(out, "# TYPE {name} {kind}\n{lines}");
        }
        out
    }
}

/// Repairs of ledgers. Ledgers due and stuck are known to the broker that leads repairs alone.
fn repair_lines(families: &mut Families, cluster: &str, figures: &crate::repair::Figures) {
    let mut add = |name, kind, value: u64| families.add(name, kind, cluster, value as f64);
    add("geminga_repair_leader", "gauge", u64::from(figures.leader));
    add("geminga_repair_ledgers_due", "gauge", figures.due);
    add("geminga_repair_ledgers_repaired_total", "counter", figures.repaired);
    add("geminga_repair_ledgers_looked_at_total", "counter", figures.looked_at);
    add("geminga_repair_entries_copied_total", "counter", figures.entries);
    add("geminga_repair_bytes_copied_total", "counter", figures.bytes);
}

/// By how many bookies, and zones, the last ledger that this broker placed fell short, and how often it found a bookie slow.
fn placement_lines(families: &mut Families, cluster: &str, figures: &PlacementFigures) {
    let short = |of: fn(&Degraded) -> (usize, usize)| {
        let (wanted, found) = figures.degraded.as_ref().map_or((0, 0), of);
        wanted.saturating_sub(found) as f64
    };
    families.add("geminga_placement_bookies_missing", "gauge", cluster, short(|d| d.bookies));
    families.add("geminga_placement_zones_missing", "gauge", cluster, short(|d| d.zones));
    families.add("geminga_bookie_slow_verdicts_total", "counter", cluster, figures.slow_verdicts as f64);
}

/// Offloading of one topic, as Pulsar tells it: nothing of topics that nothing was done for, counters with `_total` behind the
/// family's name, latencies in microseconds.
fn offload_lines(families: &mut Families, labels: &str, figures: &Figures) {
    if *figures == Figures::default() {
        return;
    }
    let counters = [
        ("geminga_offload_objects_written", figures.objects),
        ("geminga_offload_ledgers_written", figures.ledgers),
        ("brk_ledgeroffloader_offload_error", figures.offload_errors),
        ("brk_ledgeroffloader_write_storage_error", figures.write_errors),
        ("brk_ledgeroffloader_read_offload_error", figures.read_errors),
    ];
    for (name, value) in counters {
        families.add_as(name, "counter", "_total", labels, value as f64);
    }
    families.add("brk_ledgeroffloader_offload_rate", "gauge", labels, figures.offload_rate);
    families.add("brk_ledgeroffloader_read_offload_rate", "gauge", labels, figures.read_rate);
    let latencies = [
        ("brk_ledgeroffloader_read_offload_index_latency", figures.index),
        ("brk_ledgeroffloader_read_offload_data_latency", figures.data),
        ("brk_ledgeroffloader_read_ledger_latency", figures.ledger),
    ];
    for (name, latency) in latencies {
        families.add_as(name, "summary", "_count", labels, latency.count as f64);
        families.add_as(name, "summary", "_sum", labels, latency.micros as f64);
    }
    for (status, count) in [("succeed", figures.removed), ("failed", figures.removals_failed)] {
        let labels = format!("{labels},status=\"{status}\"");
        families.add_as("brk_ledgeroffloader_delete_offload_ops", "counter", "_total", &labels, count as f64);
    }
}

/// What an object store that asked for fewer requests costs: of the whole process, because it has one rate.
fn throttled_lines(families: &mut Families, labels: &str, told: &geminga_offload::blob::Throttled) {
    families.add_as("geminga_offload_store_refused", "counter", "_total", labels, told.refused as f64);
    families.add_as("geminga_offload_store_rests", "counter", "_total", labels, told.rests as f64);
    families.add_as("geminga_offload_requests_held", "counter", "_total", labels, told.held as f64);
    families.add_as("geminga_offload_held_seconds", "counter", "_total", labels, told.held_us as f64 / 1e6);
    // 0: there is no limit.
    families.add("geminga_offload_rate_limit", "gauge", labels, told.rate.unwrap_or(0.0));
}

/// What all readers of offloaded ledgers together have asked for.
fn reads_lines(families: &mut Families, labels: &str, told: &geminga_offload::reader::Figures) {
    families.add("geminga_offload_read_in_flight_bytes", "gauge", labels, told.in_flight_bytes as f64);
    families.add("geminga_offload_reads_waiting", "gauge", labels, told.waiting as f64);
    families.add_as("geminga_offload_reads_waited", "counter", "_total", labels, told.waited as f64);
}

/// What the disk cache of offloaded ledgers has done; nothing where there is none.
fn disk_cache_lines(families: &mut Families, labels: &str, told: &geminga_offload::disk_cache::Figures) {
    let counters = [
        ("geminga_offload_disk_cache_hits", told.hits),
        ("geminga_offload_disk_cache_misses", told.misses),
        ("geminga_offload_disk_cache_read_bytes", told.read_bytes),
        ("geminga_offload_disk_cache_written_bytes", told.written_bytes),
        ("geminga_offload_disk_cache_left_out", told.left_out),
    ];
    for (name, value) in counters {
        families.add_as(name, "counter", "_total", labels, value as f64);
    }
    families.add("geminga_offload_disk_cache_bytes", "gauge", labels, told.bytes as f64);
    for (reason, count) in Reason::ALL.into_iter().zip(told.errors) {
        let labels = format!("{labels},reason=\"{}\"", reason.name());
        families.add_as("geminga_offload_disk_cache_errors", "counter", "_total", &labels, count as f64);
    }
}

/// What the object store was asked for on behalf of a tenant.
fn bill_lines(families: &mut Families, cluster: &str, tenant: &str, bill: &Bill) {
    let labels = format!("{cluster},tenant=\"{}\"", escape(tenant));
    for (kind, count) in Kind::ALL.into_iter().zip(bill.requests) {
        let labels = format!("{labels},kind=\"{}\"", kind.name());
        families.add("geminga_offload_requests_total", "counter", &labels, count as f64);
    }
    families.add("geminga_offload_sent_bytes_total", "counter", &labels, bill.sent as f64);
    families.add("geminga_offload_received_bytes_total", "counter", &labels, bill.received as f64);
}

/// The text for a snapshot.
pub(super) fn render(rest: &Rest, topics: &[(TopicName, TopicStats)]) -> String {
    let cluster = format!("cluster=\"{}\"", escape(&rest.namespaces.defaults().cluster));
    let mut families = Families::default();
    let mut per_namespace: BTreeMap<String, u64> = BTreeMap::new();
    for (topic, stats) in topics {
        *per_namespace.entry(topic.namespace().to_string()).or_default() += 1;
        let labels =
            format!("{cluster},namespace=\"{}\",topic=\"{}\"", topic.namespace(), escape(topic.as_str()));
        topic_lines(&mut families, &labels, stats);
        for (name, subscription) in &stats.subscriptions {
            let labels = format!("{labels},subscription=\"{}\"", escape(name));
            subscription_lines(&mut families, &labels, subscription);
        }
        if let Some(figures) = &stats.offload {
            offload_lines(&mut families, &labels, figures);
            if *figures != Figures::default() || stats.offload_releases_waiting > 0 {
                let waiting = stats.offload_releases_waiting as f64;
                families.add("geminga_offload_releases_waiting", "gauge", &labels, waiting);
            }
        }
    }
    for (namespace, count) in per_namespace {
        families.add(
            "pulsar_topics_count",
            "gauge",
            &format!("{cluster},namespace=\"{namespace}\""),
            count as f64,
        );
    }
    let version = format!("{cluster},version=\"{}\"", escape(&rest.version));
    families.add("pulsar_version_info", "gauge", &version, 1.0);
    process_lines(&mut families, &cluster);
    connection_lines(&mut families, &cluster, &rest.doors);
    if let Some(figures) = rest.broker.offload_of_others() {
        let labels = format!("{cluster},namespace=\"unknown\",topic=\"unknown\"");
        offload_lines(&mut families, &labels, &figures);
    }
    if let Some(told) = rest.broker.offload_throttled() {
        throttled_lines(&mut families, &cluster, &told);
    }
    if let Some(told) = rest.broker.offload_reads() {
        reads_lines(&mut families, &cluster, &told);
        if let Some(told) = told.disk {
            disk_cache_lines(&mut families, &cluster, &told);
        }
    }
    for (tenant, bill) in rest.broker.offload_bills() {
        bill_lines(&mut families, &cluster, &tenant, &bill);
    }
    if let Some(figures) = rest.broker.repairs() {
        repair_lines(&mut families, &cluster, &figures);
    }
    if let Some(figures) = rest.broker.placement() {
        placement_lines(&mut families, &cluster, &figures);
    }
    families.render()
}

fn topic_lines(families: &mut Families, labels: &str, stats: &TopicStats) {
    let consumers: usize = stats.subscriptions.values().map(|s| s.consumers.len()).sum();
    let backlog: u64 = stats.subscriptions.values().map(|s| s.msg_backlog).sum();
    let gauges = [
        ("pulsar_subscriptions_count", stats.subscriptions.len() as f64),
        ("pulsar_producers_count", stats.publishers.len() as f64),
        ("pulsar_consumers_count", consumers as f64),
        ("pulsar_rate_in", stats.msg_rate_in),
        ("pulsar_rate_out", stats.msg_rate_out),
        ("pulsar_throughput_in", stats.msg_throughput_in),
        ("pulsar_throughput_out", stats.msg_throughput_out),
        ("pulsar_average_msg_size", stats.average_msg_size),
        ("pulsar_storage_size", stats.storage_size as f64),
        ("pulsar_storage_logical_size", stats.storage_size as f64),
        ("pulsar_storage_backlog_size", stats.backlog_size as f64),
        ("pulsar_storage_backlog_quota_limit", stats.backlog_quota_limit_size as f64),
        ("pulsar_storage_backlog_age_seconds", stats.oldest_backlog_message_age_seconds as f64),
        ("pulsar_storage_offloaded_size", stats.offloaded_storage_size as f64),
        ("pulsar_msg_backlog", backlog as f64),
    ];
    for (name, value) in gauges {
        families.add(name, "gauge", labels, value);
    }
    let counters = [
        ("pulsar_in_bytes_total", stats.bytes_in_counter),
        ("pulsar_in_messages_total", stats.msg_in_counter),
        ("pulsar_out_bytes_total", stats.bytes_out_counter),
        ("pulsar_out_messages_total", stats.msg_out_counter),
        ("pulsar_publish_rate_limit_times", stats.publish_rate_limited_times),
    ];
    for (name, value) in counters {
        families.add(name, "counter", labels, value as f64);
    }
}

fn subscription_lines(families: &mut Families, labels: &str, stats: &SubscriptionStats) {
    let gauges = [
        ("pulsar_subscription_back_log", stats.msg_backlog as f64),
        ("pulsar_subscription_back_log_no_delayed", stats.msg_backlog_no_delayed as f64),
        ("pulsar_subscription_delayed", stats.msg_delayed as f64),
        ("pulsar_subscription_in_replay", stats.msg_in_replay as f64),
        ("pulsar_subscription_msg_rate_out", stats.msg_rate_out),
        ("pulsar_subscription_msg_throughput_out", stats.msg_throughput_out),
        ("pulsar_subscription_msg_rate_redeliver", stats.msg_rate_redeliver),
        ("pulsar_subscription_msg_ack_rate", stats.message_ack_rate),
        ("pulsar_subscription_unacked_messages", stats.unacked_messages as f64),
        (
            "pulsar_subscription_blocked_on_unacked_messages",
            f64::from(u8::from(stats.blocked_subscription_on_unacked_msgs)),
        ),
        ("pulsar_subscription_consumers_count", stats.consumers.len() as f64),
        ("pulsar_subscription_last_consumed_timestamp", stats.last_consumed_timestamp as f64),
        ("pulsar_subscription_last_acked_timestamp", stats.last_acked_timestamp as f64),
        ("pulsar_subscription_last_consumed_flow_timestamp", stats.last_consumed_flow_timestamp as f64),
        (
            "pulsar_subscription_last_mark_delete_advanced_timestamp",
            stats.last_mark_delete_advanced_timestamp as f64,
        ),
        ("pulsar_subscription_last_expire_timestamp", stats.last_expire_timestamp as f64),
    ];
    for (name, value) in gauges {
        families.add(name, "gauge", labels, value);
    }
    if let Some(lost) = stats.lost_entries {
        families.add("geminga_subscription_lost_entries_total", "counter", labels, lost as f64);
    }
    families.add("pulsar_subscription_total_msg_expired", "counter", labels, stats.total_msg_expired as f64);
}

/// Clients connected, clients that may be, and clients closed for want of a place, by port.
fn connection_lines(families: &mut Families, cluster: &str, doors: &crate::doors::Doors) {
    for door in [&doors.pulsar, &doors.http] {
        let (port, taken, max, refused) = door.figures();
        let labels = format!("{cluster},port=\"{port}\"");
        families.add("geminga_connections", "gauge", &labels, taken as f64);
        families.add("geminga_connections_max", "gauge", &labels, max as f64);
        families.add("geminga_connections_refused_total", "counter", &labels, refused as f64);
    }
}

/// CPU seconds and resident bytes. Read from procfs, which is memory: no disk is waited for.
fn process_lines(families: &mut Families, cluster: &str) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(ticks) = cpu_ticks(&stat) {
        families.add("process_cpu_seconds_total", "counter", cluster, ticks as f64 / USER_HZ);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| -> Option<f64> {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    if let Some(kib) = line("VmRSS:") {
        families.add("process_resident_memory_bytes", "gauge", cluster, kib * 1024.0);
    }
    if let Some(kib) = line("VmSize:") {
        families.add("process_virtual_memory_bytes", "gauge", cluster, kib * 1024.0);
    }
}

/// User and system time of `/proc/self/stat`; the process name in it may hold anything, so it is skipped by its last bracket.
pub(super) fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    Some(user + system)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placing_tells_what_is_missing_and_how_often_a_bookie_was_slow() {
        let mut families = Families::default();
        let degraded = Some(Degraded { bookies: (3, 2), zones: (3, 1) });
        placement_lines(&mut families, "cluster=\"c\"", &PlacementFigures { degraded, slow_verdicts: 4 });
        let text = families.render();
        for line in [
            "geminga_placement_bookies_missing{cluster=\"c\"} 1.0",
            "geminga_placement_zones_missing{cluster=\"c\"} 2.0",
            "# TYPE geminga_bookie_slow_verdicts_total counter\ngeminga_bookie_slow_verdicts_total{cluster=\"c\"} 4.0",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
