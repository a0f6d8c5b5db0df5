//! Settings of offloading. Pure data: the doc comments are the manual, [`Config::validate`] says what breaks.

use crate::disk_cache::Settings;
use crate::format::block::Compression;
use geminga_common::config::ByteSize;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Where closed ledgers go and how. Off unless `url` is set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The object store: `s3://bucket/prefix` or `file:///directory`. Default empty: nothing is offloaded. All brokers of a cluster
    /// must name the same store; another one than the one in use is refused at the start (`GM-6010`, `GM-6011`), by what lies in it
    /// and not by its name. Taken away while topics have offloaded ledgers it costs what bookies do not have. Credentials of S3 come
    /// from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`; or a web identity, or a container's
    /// role), else from the profile `AWS_PROFILE` or `default` of the files that AWS's tools share, else from the machine's role; a
    /// URL that holds credentials or a query is refused.
    pub url: String,
    /// Where S3 is, for other servers than Amazon's: `http://host:port` or `https://…`. Default empty: Amazon's for the region.
    /// With `http://` data and signatures travel unencrypted.
    pub endpoint: String,
    /// Region of the bucket. Default empty: `AWS_REGION`, else `us-east-1`.
    pub region: String,
    /// Address the bucket in the path instead of the host name. Default true; Amazon wants false for new regions.
    pub path_style: bool,
    /// Bytes of a block before compression, the unit of reading back. Default 512 KiB, 4 KiB to 16 MiB. Smaller makes single reads
    /// cheaper and the index larger (40 bytes a block).
    pub block_size: ByteSize,
    /// Bytes of a part of an upload. Default 8 MiB, 5 MiB to 512 MiB. An upload keeps two of them in memory; an object has at most
    /// 10 000. What fits in one part is uploaded by one request.
    pub part_size: ByteSize,
    /// How blocks are compressed: `none` or `zstd`. Default `none`, because producers mostly compress already.
    pub compression: Compression,
    /// Leave the names of topics out of objects. Default false. Keys never hold names, whatever this says; without names in the
    /// objects a topic cannot be attached again by name from the bucket alone.
    pub hide_names: bool,
    /// Bytes of blocks kept for readers of offloaded ledgers. Default 128 MiB, at least 16 MiB. Readers of different topics share it;
    /// half of it may be on its way before they ask, and with less than 128 MiB a single reader gets less than it could.
    pub cache: ByteSize,
    /// Directory of a cache on disk, behind the one in memory: what was fetched for readers once is read there the next time, also by the
    /// next process. Default empty: none, and nothing is written. The directory is the cache's alone, and one process's: where
    /// it cannot be used, the broker says so (`GM-4029`) and does without. Messages lie there as they were sent, those of topics that were
    /// deleted as well until their place is needed. Needs `url` and `disk_cache_size`.
    pub disk_cache_dir: String,
    /// Bytes that the files of that cache may take. Default 0, with a directory 512 MiB to 1 PiB. Memory goes with it: some
    /// 150 bytes for each block that it keeps, 30 MiB for 100 GiB in blocks of 512 KiB, and up to 32 MiB of what is to be written. Less
    /// than what readers of the past go through in turn saves few requests. Needs `disk_cache_dir`.
    pub disk_cache_size: ByteSize,
    /// Percent of its file system that the cache leaves free; when others fill it, the cache gives up its oldest files. Default 25, 1 to
    /// 99. With 15 or less bookies on the same file system may make no new ledgers because of a cache.
    pub disk_cache_free_percent: u64,
    /// Bytes that all readers of offloaded ledgers together may have asked the store for at once. Default 64 MiB, 16 MiB to 1 TiB.
    /// It is memory beside the cache, so much at most. With less, many readers at a time, or a store that is far away, read slower
    /// (`offloadWaitReason` says `GM-4026`); with more, a broker with many readers needs more memory and connections.
    pub read_in_flight_max: ByteSize,
    /// Threads for what goes to the object store and comes back; their priority is lower than that of those who serve publishers.
    /// Default 0: a quarter of the cores, at least 1; up to 64. A thread checks and copies some hundred MB a second. With as many as
    /// cores, reading back may take what consumers of new messages need.
    pub threads: usize,
    /// Ledgers of a topic that are smaller than this many bytes go together, several as one object. Default 0: each ledger is an object
    /// of its own; up to 64 MiB. It saves requests and objects where ledgers are many and small: fewer bytes than `block_size`, say.
    /// Once such an object is in use, brokers of builds that do not know of them refuse to serve its topic (`offload state 5 is not
    /// known`): leave it at 0 until every broker of the cluster runs a build that does, and nobody will go back to one before. Set
    /// back to 0 later, what is there stays as it is.
    pub compound_below: ByteSize,
    /// Bytes of such ledgers that are enough for an object, also if more will follow. Default 64 MiB, 1 MiB to 1 GiB. Larger saves
    /// requests; the whole object stays until the last of its ledgers has left the topic, and an upload that fails is done again
    /// as a whole. Never more than 1000 ledgers are in one.
    pub compound_size: ByteSize,
    /// Seconds behind the close of the oldest of them after which they go however few they are. Default 3 600, 0 to 31 536 000. So
    /// much later than thresholds say may a small ledger be offloaded, and stays on bookies so much longer. With 0 none waits for
    /// others: only what is due at the same time goes together.
    pub compound_age_s: u64,
    /// Uploads at a time. Default 2, 1 to 64.
    pub uploads_max: usize,
    /// Seconds an offloaded ledger also stays on bookies, unless a policy says otherwise. Default 600, 0 to 31 536 000. It covers
    /// reads that began before.
    pub deletion_lag_s: u64,
    /// Seconds an upload may take. Default 3 600, 10 to 86 400. What a broker that crashed had uploaded is removed only after that.
    pub attempt_timeout_s: u64,
    /// Seconds behind an upload's end in which something of it may still reach the store. Default 1 020, 1 to 86 400. It covers two
    /// minutes that a request may be on its way, and clocks that differ by 15 minutes, beyond which S3 refuses everything. What
    /// failed uploads left is removed after that; where clocks or requests are further off it may be left for good.
    pub settle_s: u64,
    /// Seconds between the removal of a ledger from its topic and that of its object. Default 600, 0 to 31 536 000; `settle_s` where
    /// that is longer. It covers reads under way, and a person who notices.
    pub removal_grace_s: u64,
    /// Seconds between two looks at what is to be removed from the store. Default 60, 1 to 86 400.
    pub sweep_interval_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            path_style: true,
            block_size: ByteSize(512 << 10),
            part_size: ByteSize(8 << 20),
            compression: Compression::None,
            hide_names: false,
            cache: ByteSize(128 << 20),
            disk_cache_dir: String::new(),
            disk_cache_size: ByteSize(0),
            disk_cache_free_percent: 25,
            read_in_flight_max: ByteSize(64 << 20),
            threads: 0,
            compound_below: ByteSize(0),
            compound_size: ByteSize(64 << 20),
            compound_age_s: 3_600,
            uploads_max: 2,
            deletion_lag_s: 600,
            attempt_timeout_s: 3_600,
            settle_s: 1_020,
            removal_grace_s: 600,
            sweep_interval_s: 60,
        }
    }
}

/// Longest that a reader waits for the disk cache: a disk that hangs costs as much, and a request, once a minute.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// Most ledgers of one object: so many are changed by one transaction, and looked at one by one before their bookie copies go.
pub const TOGETHER_MAX: usize = 1000;

/// Which ledgers of a topic go together, several as one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Together {
    /// Those of fewer bytes; 0 is none.
    pub below: u64,
    /// Bytes that are enough for an object.
    pub size: u64,
    /// How long behind its close the oldest waits for others, ms.
    pub age_ms: u64,
}

/// A setting that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Invalid {
    /// It is too small or too large.
    #[error("offload.{key} is {value}, it must lie in {range}")]
    OutOfRange {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// One of two that need each other.
    #[error("offload.{0} is set and offload.{1} is not: {2}")]
    Alone(&'static str, &'static str, &'static str),
    /// The cache of the store's objects is to lie among them.
    #[error(
        "offload.disk_cache_dir {0} and the directory of offload.url lie in each other; the cache needs one of its own"
    )]
    Among(String),
}

/// A URL without what may be secret in it: who asks, and queries. Names of keys end with a slash or not, which is the same store.
pub(crate) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let plain = |c: &char| !c.is_control();
    let Some((scheme, rest)) = url.split_once("://") else { return url.chars().filter(plain).collect() };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = host.rsplit('@').next().unwrap_or_default();
    let path = path.map_or(String::new(), |path| format!("/{path}"));
    format!("{scheme}://{host}{path}").chars().filter(plain).collect()
}

impl Config {
    /// Whether anything is offloaded.
    #[must_use]
    pub fn enabled(&self) -> bool {
        !self.url.is_empty()
    }

    /// What the store is called, without secrets: a URL, and where S3 is if that is said.
    #[must_use]
    pub fn place(&self) -> String {
        let (url, endpoint) = (shown(&self.url), shown(&self.endpoint));
        if endpoint.is_empty() { url } else { format!("{url} at {endpoint}") }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// The first setting outside of its range, or at odds with another.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.disk_cache_is_whole()?;
        let year = 365 * 24 * 3600;
        let rows = [
            ("block_size", self.block_size.0, 4 << 10, 16 << 20, "4KiB to 16MiB"),
            ("part_size", self.part_size.0, 5 << 20, 512 << 20, "5MiB to 512MiB"),
            ("cache", self.cache.0, 16 << 20, u64::MAX, "16MiB and above"),
            ("disk_cache_size", self.disk_cache_size.0, self.disk_cache_min(), 1 << 50, "512MiB to 1PiB"),
            ("disk_cache_free_percent", self.disk_cache_free_percent, 1, 99, "1 to 99"),
            ("read_in_flight_max", self.read_in_flight_max.0, 16 << 20, 1 << 40, "16MiB to 1TiB"),
            ("threads", self.threads as u64, 0, 64, "0 to 64"),
            ("compound_below", self.compound_below.0, 0, 64 << 20, "0B to 64MiB"),
            ("compound_size", self.compound_size.0, 1 << 20, 1 << 30, "1MiB to 1GiB"),
            ("compound_age_s", self.compound_age_s, 0, year, "0 to 31536000"),
            ("uploads_max", self.uploads_max as u64, 1, 64, "1 to 64"),
            ("deletion_lag_s", self.deletion_lag_s, 0, year, "0 to 31536000"),
            ("attempt_timeout_s", self.attempt_timeout_s, 10, 86_400, "10 to 86400"),
            ("settle_s", self.settle_s, 1, 86_400, "1 to 86400"),
            ("removal_grace_s", self.removal_grace_s, 0, year, "0 to 31536000"),
            ("sweep_interval_s", self.sweep_interval_s, 1, 86_400, "1 to 86400"),
        ];
        match rows.into_iter().find(|(_, value, low, high, _)| !(low..=high).contains(&value)) {
            Some((key, value, _, _, range)) => {
                let is_size = range.contains("iB");
                let value = if is_size { ByteSize(value).to_string() } else { value.to_string() };
                Err(Invalid::OutOfRange { key, value, range })
            }
            None => Ok(()),
        }
    }

    fn disk_cache_min(&self) -> u64 {
        if self.disk_cache_dir.is_empty() { 0 } else { 512 << 20 }
    }

    /// Whether what the disk cache needs is there, and apart.
    fn disk_cache_is_whole(&self) -> Result<(), Invalid> {
        let (dir, size) = (&self.disk_cache_dir, self.disk_cache_size.0);
        match (dir.is_empty(), size) {
            (true, 0) => return Ok(()),
            (true, _) => {
                return Err(Invalid::Alone("disk_cache_size", "disk_cache_dir", "there is no disk cache"));
            }
            (false, 0) => {
                return Err(Invalid::Alone("disk_cache_dir", "disk_cache_size", "say how large it may be"));
            }
            (false, _) if !self.enabled() => {
                return Err(Invalid::Alone("disk_cache_dir", "url", "there is nothing to keep"));
            }
            (false, _) => {}
        }
        let (cache, store) = (Path::new(dir), self.url.strip_prefix("file://").map(Path::new));
        match store.filter(|store| store.starts_with(cache) || cache.starts_with(store)) {
            Some(_) => Err(Invalid::Among(dir.clone())),
            None => Ok(()),
        }
    }

    /// The cache on disk; `None` where there is none.
    #[must_use]
    pub fn disk_cache(&self) -> Option<Settings> {
        let (dir, bytes) = (&self.disk_cache_dir, self.disk_cache_size.0);
        let settings = || Settings {
            dir: dir.into(),
            bytes,
            free_percent: self.disk_cache_free_percent,
            patience: DISK_PATIENCE,
        };
        (!dir.is_empty()).then(settings)
    }

    /// Which ledgers go together.
    #[must_use]
    pub fn together(&self) -> Together {
        let (below, size) = (self.compound_below.0, self.compound_size.0);
        Together { below, size, age_ms: self.compound_age_s * 1000 }
    }

    /// Threads of the lane of this broker.
    #[must_use]
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.threads == 0 { cores().div_ceil(4) } else { self.threads }
    }

    /// How long the object of a ledger that left its topic stays, ms. A request of its upload that was repeated has settled then.
    #[must_use]
    pub fn removal_grace_ms(&self) -> u64 {
        self.removal_grace_s.max(self.settle_s) * 1000
    }

    /// Time between two looks at what is to be removed.
    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_told_with_its_key_and_range_as_it_is_written() {
        let refused = |config: Config| config.validate().unwrap_err().to_string();
        let size = Config { part_size: "1 TiB".parse().unwrap(), ..Config::default() };
        assert_eq!(refused(size), "offload.part_size is 1TiB, it must lie in 5MiB to 512MiB");
        let lag = Config { deletion_lag_s: u64::MAX, ..Config::default() };
        assert_eq!(
            refused(lag),
            "offload.deletion_lag_s is 18446744073709551615, it must lie in 0 to 31536000"
        );
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_disk_cache_is_whole_apart_and_of_some_size_or_there_is_none() {
        let told = |dir: &str, size: &str, url: &str| {
            let (disk_cache_dir, disk_cache_size, url) = (dir.into(), size.parse().unwrap(), url.into());
            let config = Config { disk_cache_dir, disk_cache_size, url, ..Config::default() };
            config.validate().map(|()| config.disk_cache().is_some()).map_err(|error| error.to_string())
        };
        let alone =
            |what, lacks, why| Err(format!("offload.{what} is set and offload.{lacks} is not: {why}"));
        assert_eq!(told("", "0", ""), Ok(false));
        assert_eq!(told("", "0", "s3://b/p"), Ok(false));
        assert_eq!(told("/c", "1 GiB", "s3://b/p"), Ok(true));
        assert_eq!(told("/c", "1 GiB", "file:///cc"), Ok(true));
        assert_eq!(
            told("", "1 GiB", "s3://b/p"),
            alone("disk_cache_size", "disk_cache_dir", "there is no disk cache")
        );
        assert_eq!(
            told("/c", "0", "s3://b/p"),
            alone("disk_cache_dir", "disk_cache_size", "say how large it may be")
        );
        assert_eq!(told("/c", "1 GiB", ""), alone("disk_cache_dir", "url", "there is nothing to keep"));
        let small = "offload.disk_cache_size is 100MiB, it must lie in 512MiB to 1PiB";
        assert_eq!(told("/c", "100 MiB", "s3://b/p"), Err(small.to_owned()));
        for (dir, url) in [("/c", "file:///c"), ("/c/d", "file:///c/"), ("/c", "file:///c/d")] {
            assert!(told(dir, "1 GiB", url).unwrap_err().contains("lie in each other"), "{dir} {url}");
        }
        let share = Config { disk_cache_free_percent: 0, ..Config::default() };
        assert_eq!(
            share.validate().unwrap_err().to_string(),
            "offload.disk_cache_free_percent is 0, it must lie in 1 to 99"
        );
    }

    #[test]
    fn a_store_is_named_without_secrets() {
        let place = |url: &str, endpoint: &str| {
            Config { url: url.into(), endpoint: endpoint.into(), ..Config::default() }.place()
        };
        assert_eq!(place("s3://bucket/a/b/", ""), "s3://bucket/a/b");
        assert_eq!(
            place("s3://id:secret@bucket/a?token=t", "http://u:p@h:1/"),
            "s3://bucket/a at http://h:1"
        );
        assert_eq!(place("file:///var/x", ""), "file:///var/x");
        assert_eq!(place("nonsense", ""), "nonsense");
    }
}
