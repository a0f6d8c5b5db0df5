//! Everything a broker needs of the object store, in one place.

use crate::blob::Blobs;
use crate::blob::store::{self, SetUpError};
use crate::config::Config;
use crate::offloader::Offloader;
use crate::reader::Reader;
use crate::sweep::{Swept, sweep};
use geminga_common::clock::Clock;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;

/// The object store of a cluster, as one broker uses it.
pub struct Tier {
    /// Sends ledgers there.
    pub offloader: Offloader,
    /// Reads them back.
    pub reader: Reader,
    /// Settings.
    pub config: Config,
    /// Name of the cluster: part of every key.
    pub cluster: String,
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
}

impl Tier {
    /// The tier of a configuration; `None` while it is off. Whether the store answers is not tried.
    ///
    /// # Errors
    /// The URL or the settings cannot be used.
    pub fn open(
        config: &Config,
        cluster: &str,
        clock: Arc<dyn Clock>,
        tasks: &TaskGroup,
    ) -> Result<Option<Arc<Self>>, SetUpError> {
        if !config.enabled() {
            return Ok(None);
        }
        let store = store::open(config, clock.clone())?;
        Ok(Some(Self::over(store, config.clone(), cluster, clock, Rng::from_system(), tasks)))
    }

    /// A tier over a given store.
    #[must_use]
    pub fn over(
        blobs: Arc<dyn Blobs>,
        config: Config,
        cluster: &str,
        clock: Arc<dyn Clock>,
        rng: Rng,
        tasks: &TaskGroup,
    ) -> Arc<Self> {
        let cache = config.cache.0 as usize;
        Arc::new(Self {
            offloader: Offloader::new(blobs.clone(), clock.clone(), rng, config.clone()),
            reader: Reader::new(blobs.clone(), cluster, cache, tasks.clone()),
            config,
            cluster: cluster.to_owned(),
            blobs,
            clock,
        })
    }

    /// The kind of store, as Pulsar's policies call it.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        if self.config.url.starts_with("file:") { "filesystem" } else { "aws-s3" }
    }

    /// Removes what is due from the store.
    ///
    /// # Errors
    /// What is due cannot be listed.
    pub async fn sweep(&self, meta: &dyn MetadataStore, keys: &Keys) -> Result<Swept, MetaError> {
        sweep(meta, keys, &*self.blobs, &self.cluster, self.clock.wall_ms()).await
    }
}
