//! Limits of a managed ledger. Pure data; `Default` is what runs in production, tests shrink it.

use std::time::Duration;

/// When ledgers roll, how much may wait, how far reads look ahead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// A ledger takes no more entries once it holds this many bytes of headers and payloads.
    pub roll_bytes: u64,
    /// A ledger takes no more entries than this.
    pub roll_entries: u64,
    /// A ledger this old rolls with the next append or tick.
    pub roll_age: Duration,
    /// A ledger without appends for this long is closed; the next append opens another one.
    pub idle_close: Duration,
    /// Largest payload of one entry in bytes; a larger one is refused before anything is sent.
    pub entry_bytes_max: usize,
    /// Appends are refused as busy while this many bytes are queued or unacknowledged.
    pub pending_bytes_max: usize,
    /// How long a ledger creation or roll may wait for metadata before it is given up.
    pub metadata_deadline: Duration,
    /// First window of a reader in bytes, before it has shown that it reads on.
    pub read_ahead_min: usize,
    /// Largest window in bytes; windows double up to it while a reader reads on.
    pub read_ahead_max: usize,
    /// What one socket read buffer holds: a cached slice that does not follow its predecessor in memory is charged as much,
    /// because it may keep such a buffer alive alone.
    pub chunk_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roll_bytes: 1 << 30,
            roll_entries: 1 << 24,
            roll_age: Duration::from_secs(12 * 3600),
            idle_close: Duration::from_secs(600),
            entry_bytes_max: 5 * 1024 * 1024 + 64 * 1024,
            pending_bytes_max: 64 << 20,
            metadata_deadline: Duration::from_secs(30),
            read_ahead_min: 64 << 10,
            read_ahead_max: 8 << 20,
            chunk_bytes: 64 << 10,
        }
    }
}

/// How long consumed entries are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Consumed ledgers go once they have been closed for longer than this, in ms; `None` keeps them whatever their age.
    pub time_ms: Option<u64>,
    /// Consumed ledgers go while what would stay is at least this many bytes; `None` keeps them whatever the size.
    pub size_bytes: Option<u64>,
}

impl Retention {
    /// Nothing is kept once consumed.
    pub const NONE: Retention = Retention { time_ms: Some(0), size_bytes: Some(0) };
    /// All is kept.
    pub const FOREVER: Retention = Retention { time_ms: None, size_bytes: None };
}
