//! Everything a broker needs of the object store, in one place.

use crate::blob::store::{self, SetUpError};
use crate::blob::{BlobError, Blobs, Throttled};
use crate::config::Config;
use crate::disk_cache::{DiskCache, Settings};
use crate::identity::Refusal;
use crate::identity::guard::{Guarded, Place};
use crate::meters::Meters;
use crate::offloader::Offloader;
use crate::reader::{Reader, Room};
use crate::release::{self, Held};
use crate::state::{Gone, Seen};
use crate::sweep::{Swept, sweep};
use crate::verify::ObjectError;
use geminga_common::clock::Clock;
use geminga_common::config::ByteSize;
use geminga_common::disk::RealDisk;
use geminga_common::error::{Code, Coded};
use geminga_common::ids::TopicId;
use geminga_common::lane::Lane;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Longest that a start waits for the object store.
pub const CHECK_MAX: Duration = Duration::from_secs(3);

/// Why there is no tier although one is configured.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration.
    #[error(transparent)]
    SetUp(#[from] SetUpError),
    /// It is not the cluster's store.
    #[error(transparent)]
    Wrong(Refusal),
    /// Its threads.
    #[error("the system refuses the threads for the object store: {0}")]
    Threads(#[source] std::io::Error),
}

impl Coded for OpenError {
    fn code(&self) -> Code {
        match self {
            OpenError::SetUp(_) => Code::CONFIG_INVALID,
            OpenError::Wrong(refusal) => refusal.code(),
            OpenError::Threads(_) => Code::INTERNAL,
        }
    }
}

/// Objects that are looked at at a time before bookie copies go.
const LOOKS_MAX: usize = 8;

/// The object store of a cluster, as one broker uses it.
pub struct Tier {
    /// Sends ledgers there.
    pub offloader: Offloader,
    /// Reads them back.
    pub reader: Reader,
    /// What both have done and cost.
    pub meters: Meters,
    /// Settings.
    pub config: Config,
    /// Name of the cluster: part of every key.
    pub cluster: String,
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
    looks: Semaphore,
}

/// The disk cache of a configuration. One that cannot be opened is told of and done without: it is no reason not to serve.
async fn disk_cache(
    config: &Config,
    clock: &Arc<dyn Clock>,
    tasks: &TaskGroup,
    lane: &Lane,
) -> Option<DiskCache> {
    let settings = config.disk_cache()?;
    let Settings { dir, .. } = settings.clone();
    let opened =
        DiskCache::open(settings, RealDisk::shared(), clock.clone(), tasks.clone(), lane.clone()).await;
    let why = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock => "another process uses it".to_owned(),
        _ => error.to_string(),
    };
    opened
        .map_err(|error| {
            tracing::warn!(
                code = %Code::DISK_CACHE_FAILED,
                dir = %dir.display(),
                "the disk cache of the object store cannot be opened: {}; this process does without",
                why(error)
            );
        })
        .ok()
}

impl Tier {
    /// The tier of a configuration; `None` while it is off. The store is held against the metadata, for [`CHECK_MAX`] at most: one
    /// that does not answer, or refuses its credentials, is looked at again before it is used, and is no reason not to start.
    ///
    /// # Errors
    /// The URL or the settings cannot be used, or it is not the cluster's store.
    pub async fn open(
        config: &Config,
        cluster: &str,
        clock: Arc<dyn Clock>,
        meta: Arc<dyn MetadataStore>,
        tasks: &TaskGroup,
    ) -> Result<Option<Arc<Self>>, OpenError> {
        if !config.enabled() {
            return Ok(None);
        }
        let meters = Meters::new(clock.clone());
        let lane = Lane::new(tasks, "object store", config.threads()).map_err(OpenError::Threads)?;
        let store = store::open(config, clock.clone(), &meters, lane.clone())?;
        let place = Place { cluster: cluster.to_owned(), here: config.place() };
        let guarded = Guarded::new(store, meta, clock.clone(), Rng::from_system(), place);
        let late = BlobError::Failed { key: config.place(), reason: "it takes long to answer".to_owned() };
        match tokio::time::timeout(CHECK_MAX, guarded.check()).await.unwrap_or(Err(late)) {
            Ok(_) => {}
            Err(BlobError::Wrong(refusal)) => return Err(OpenError::Wrong(*refusal)),
            Err(error) => tracing::warn!(
                code = %error.code(),
                store = config.place(),
                %error,
                "whether the object store is this cluster's cannot be checked now; it is before it is used{}",
                store::wanting_credentials(config).unwrap_or_default()
            ),
        }
        let disk = disk_cache(config, &clock, tasks, &lane).await;
        let (rng, running) = (Rng::from_system(), (tasks.clone(), lane, disk));
        Ok(Some(Self::counted(Arc::new(guarded), config.clone(), cluster, clock, rng, running, meters)))
    }

    /// A tier over a given store, all of it on the caller's runtime: what a simulator has is in one order.
    #[must_use]
    pub fn over(
        blobs: Arc<dyn Blobs>,
        config: Config,
        cluster: &str,
        clock: Arc<dyn Clock>,
        rng: Rng,
        tasks: &TaskGroup,
    ) -> Arc<Self> {
        let meters = Meters::new(clock.clone());
        Self::counted(blobs, config, cluster, clock, rng, (tasks.clone(), Lane::here(), None), meters)
    }

    fn counted(
        blobs: Arc<dyn Blobs>,
        config: Config,
        cluster: &str,
        clock: Arc<dyn Clock>,
        rng: Rng,
        (tasks, lane, disk): (TaskGroup, Lane, Option<DiskCache>),
        meters: Meters,
    ) -> Arc<Self> {
        let room =
            Room { cache_bytes: config.cache.0 as usize, in_flight_bytes: config.read_in_flight_max.0 };
        Arc::new(Self {
            offloader: Offloader::new(blobs.clone(), clock.clone(), rng, config.clone(), meters.clone()),
            reader: Reader::new(blobs.clone(), cluster, room, tasks, lane, meters.clone(), disk),
            meters,
            config,
            cluster: cluster.to_owned(),
            blobs,
            clock,
            looks: Semaphore::new(LOOKS_MAX),
        })
    }

    /// The kind of store, as Pulsar's policies call it.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        if self.config.url.starts_with("file:") { "filesystem" } else { "aws-s3" }
    }

    /// Whether and how the store is asked less because it said that it was too much.
    #[must_use]
    pub fn throttled(&self) -> Throttled {
        self.blobs.throttled()
    }

    /// What holds back everything that goes to the store, in words with its code; `None` while nothing does.
    #[must_use]
    pub fn throttled_reason(&self) -> Option<String> {
        let rate = self.throttled().rate?;
        let code = Code::OBJECT_STORE_SLOW_DOWN;
        Some(format!("{code}: the object store asks for fewer requests; {rate:.0} a second are sent at most"))
    }

    /// Why readers of a topic wait for the object store, in words with its code; `None` while it is the store itself that takes its
    /// time.
    #[must_use]
    pub fn waiting_reason(&self, topic: TopicId) -> Option<String> {
        let limit = ByteSize(self.reader.waits_for(topic)?);
        let code = Code::OBJECT_READS_WAIT;
        Some(format!(
            "{code}: all readers together have asked the object store for {limit}; this topic's wait for their turn \
             (offload.read_in_flight_max)"
        ))
    }

    /// Looks at an object whose ledger's bookie copies are to go; waits for its turn.
    ///
    /// # Errors
    /// The copies are still needed: see [`release::look`].
    pub async fn look(&self, held: &Held) -> Result<Seen, ObjectError> {
        let _permit = self.looks.acquire().await;
        release::look(&*self.blobs, &self.cluster, held).await
    }

    /// Makes sure that an object is gone; waits for its turn.
    ///
    /// # Errors
    /// See [`release::gone`].
    pub async fn gone(&self, held: &Held) -> Result<Gone, ObjectError> {
        let _permit = self.looks.acquire().await;
        release::gone(&*self.blobs, &self.cluster, held).await
    }

    /// Removes what is due from the store.
    ///
    /// # Errors
    /// What is due cannot be listed.
    pub async fn sweep(&self, meta: &dyn MetadataStore, keys: &Keys) -> Result<Swept, MetaError> {
        sweep(meta, keys, &*self.blobs, &self.cluster, &self.meters, self.clock.wall_ms()).await
    }
}
