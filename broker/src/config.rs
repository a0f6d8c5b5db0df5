//! Settings of a broker. Pure data: the doc comments are the manual, [`Config::validate`] says what breaks.

use crate::dispatch::DispatchConfig;
use geminga_common::config::ByteSize;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// More than any size can sensibly be: a slip of the pen.
const SIZE_MAX: u64 = 1 << 40;

/// What a broker can be told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the cluster. Default `standalone`. Part of every metadata key: it must not change later.
    #[serde(deserialize_with = "geminga_common::names::deserialize_cluster")]
    pub cluster: String,
    /// Largest message in bytes. Default 5 MiB, 1 KiB to 64 MiB. Clients split and batch by it; the store must take entries this
    /// large.
    pub max_message_size: ByteSize,
    /// Bytes of messages that may wait for storage over all connections. Default 64 MiB, the largest message to 1 TiB. Above it
    /// connections are not read until messages are stored.
    pub publish_budget: ByteSize,
    /// Bytes of recent messages kept for consumers at the tail. Default 32 MiB, 0 to 1 TiB; 0 turns the cache off.
    pub cache: ByteSize,
    /// Milliseconds between signs of life. Default 30 000, 100 to 300 000. A peer silent for two of them is dropped.
    pub keep_alive_ms: u64,
    /// Milliseconds a connection may take to answer when another wants its place. Default 5 000, 10 to 60 000.
    pub liveness_timeout_ms: u64,
    /// Longest an acknowledgement without receipt stays unwritten, in milliseconds. Default 1 000, 1 to 60 000. A crash brings at
    /// most this much back.
    pub cursor_write_ms: u64,
    /// A ledger is closed when it holds this many bytes. Default 1 GiB, 4 KiB to 1 TiB.
    pub ledger_size: ByteSize,
    /// A ledger is closed when it holds this many entries. Default 1 000 000, at least 1.
    pub ledger_entries: u64,
    /// A cursor log's ledger is replaced by one that begins with a snapshot when it holds this many bytes. Default 64 MiB, 4 KiB
    /// to 1 TiB.
    pub cursor_ledger_size: ByteSize,
    /// Bytes that the record of what one subscription acknowledged out of order may take. Default 4 MiB, 256 bytes to 64 MiB. Above
    /// it no new messages are delivered until the oldest are acknowledged; nothing acknowledged is lost.
    pub ack_state_max: ByteSize,
    /// Milliseconds a connection may take until its CONNECT is there. Default 30 000, 100 to 300 000. It is closed then.
    pub handshake_timeout_ms: u64,
    /// Milliseconds before a new active Failover consumer is served. Default 1 000, 0 to 60 000. What the old one had in
    /// flight settles meanwhile.
    pub failover_delay_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "standalone".to_owned(),
            max_message_size: ByteSize(5 << 20),
            publish_budget: ByteSize(64 << 20),
            cache: ByteSize(32 << 20),
            keep_alive_ms: 30_000,
            liveness_timeout_ms: 5_000,
            cursor_write_ms: 1_000,
            ledger_size: ByteSize(1 << 30),
            ledger_entries: 1_000_000,
            cursor_ledger_size: ByteSize(64 << 20),
            ack_state_max: ByteSize(4 << 20),
            handshake_timeout_ms: 30_000,
            failover_delay_ms: 1_000,
        }
    }
}

/// A setting that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key} is {value}, it must lie in {range}")]
pub struct OutOfRange {
    key: &'static str,
    value: u64,
    range: &'static str,
}

impl Config {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting outside of its range.
    pub fn validate(&self) -> Result<(), OutOfRange> {
        let check = |key, value: u64, low: u64, high: u64, range| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(OutOfRange { key, value, range }) }
        };
        check("max_message_size", self.max_message_size.0, 1 << 10, 64 << 20, "1 KiB to 64 MiB")?;
        let budget_min = self.max_message_size.0;
        check("publish_budget", self.publish_budget.0, budget_min, SIZE_MAX, "max_message_size to 1 TiB")?;
        check("cache", self.cache.0, 0, SIZE_MAX, "0 to 1 TiB")?;
        check("keep_alive_ms", self.keep_alive_ms, 100, 300_000, "100 to 300000")?;
        check("liveness_timeout_ms", self.liveness_timeout_ms, 10, 60_000, "10 to 60000")?;
        check("cursor_write_ms", self.cursor_write_ms, 1, 60_000, "1 to 60000")?;
        check("ledger_size", self.ledger_size.0, 4 << 10, SIZE_MAX, "4 KiB to 1 TiB")?;
        check("ledger_entries", self.ledger_entries, 1, u64::MAX, "1 and above")?;
        check("cursor_ledger_size", self.cursor_ledger_size.0, 4 << 10, SIZE_MAX, "4 KiB to 1 TiB")?;
        check("ack_state_max", self.ack_state_max.0, 256, 64 << 20, "256 bytes to 64 MiB")?;
        check("handshake_timeout_ms", self.handshake_timeout_ms, 100, 300_000, "100 to 300000")?;
        check("failover_delay_ms", self.failover_delay_ms, 0, 60_000, "0 to 60000")
    }

    /// Largest message in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.max_message_size.0 as usize
    }

    /// Time between signs of life.
    pub(crate) fn keep_alive_interval(&self) -> Duration {
        Duration::from_millis(self.keep_alive_ms)
    }

    /// Patience with a connection whose place is wanted.
    pub(crate) fn liveness_timeout(&self) -> Duration {
        Duration::from_millis(self.liveness_timeout_ms)
    }

    /// Patience with a connection before its CONNECT.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    /// Longest an unreceipted ack stays unwritten.
    pub(crate) fn cursor_write_interval(&self) -> Duration {
        Duration::from_millis(self.cursor_write_ms)
    }

    /// The dispatchers' settings.
    pub(crate) fn dispatch(&self) -> DispatchConfig {
        DispatchConfig { failover_delay_ms: self.failover_delay_ms, ..DispatchConfig::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_a_name_that_keys_can_hold() {
        for bad in ["", "a/b", "../../esc", "..", "two words", &"x".repeat(256)] {
            let told = serde_json::from_value::<Config>(serde_json::json!({ "cluster": bad })).unwrap_err();
            assert!(told.to_string().contains("is no name of a cluster"), "{told}");
        }
        let good = serde_json::json!({ "cluster": "eu-1.prod" });
        assert_eq!(serde_json::from_value::<Config>(good).unwrap().cluster, "eu-1.prod");
    }

    #[test]
    fn sizes_that_no_machine_has_are_refused() {
        let told = Config { cache: ByteSize(2 << 40), ..Config::default() }.validate().unwrap_err();
        assert_eq!(told.to_string(), "cache is 2199023255552, it must lie in 0 to 1 TiB");
    }
}
