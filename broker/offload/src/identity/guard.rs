//! A store that nobody gets at before it was found to be the cluster's: the one way from a broker to its bucket. A store may go away
//! under a running broker, and something else may answer in its place (a file system that is unmounted leaves an empty directory).
//! So [`Blobs::ready`] reads the bucket's identity each time: uploads, releases and removals ask it before and behind what they do.
//! Other calls take what was found last. Once another answer was seen nothing is used: every use asks again, all who wait share
//! one asking, and each gets the reason; the right store is used as soon as it is back.

use super::{InBucket, Recorded, Refusal, Step, StoreId, Tag, TagError, decide, look};
use crate::blob::{Answer, BlobError, Blobs, Listed, Part, Throttled, UploadId};
use crate::key;
use crate::mutant::{Mutant, active};
use bytes::Bytes;
use futures::FutureExt as _;
use geminga_common::clock::Clock;
use geminga_common::error::Coded as _;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Record, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Steps of one asking: claiming takes four, each of which somebody else may undo once or twice.
const STEPS_MAX: usize = 16;

/// What an asking has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is the cluster's store.
    Confirmed,
    /// It is nobody's, and the cluster has none: its first use makes it the cluster's.
    Unclaimed,
}

/// Where a cluster's store is and what says so.
pub struct Place {
    /// Name of the cluster.
    pub cluster: String,
    /// What the store is called, without secrets.
    pub here: String,
}

/// The guarded store.
pub struct Guarded {
    blobs: Arc<dyn Blobs>,
    meta: Arc<dyn MetadataStore>,
    clock: Arc<dyn Clock>,
    rng: Mutex<Rng>,
    place: Place,
    /// The store's id, from when it was found to be the cluster's until something else is seen.
    confirmed: Mutex<Option<StoreId>>,
    /// Askings that have ended; whoever waited for one takes its outcome.
    askings: AtomicU64,
    last: tokio::sync::Mutex<Option<BlobError>>,
}

impl Guarded {
    /// Guards a store.
    #[must_use]
    pub fn new(
        blobs: Arc<dyn Blobs>,
        meta: Arc<dyn MetadataStore>,
        clock: Arc<dyn Clock>,
        rng: Rng,
        place: Place,
    ) -> Self {
        let (confirmed, askings, last) = Default::default();
        Self { blobs, meta, clock, rng: Mutex::new(rng), place, confirmed, askings, last }
    }

    /// Looks at it without writing anything.
    ///
    /// # Errors
    /// It is another one, or that is not known yet.
    pub async fn check(&self) -> Result<Standing, BlobError> {
        self.ask(false).await
    }

    /// Has it made the cluster's where it is nobody's.
    async fn settled(&self) -> Result<(), BlobError> {
        if self.confirmed.lock().is_some() {
            return Ok(());
        }
        let before = self.askings.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if self.confirmed.lock().is_some() {
            return Ok(());
        }
        if let (true, Some(error)) = (self.askings.load(Ordering::Acquire) > before, &*last) {
            return Err(error.clone());
        }
        let asked = self.ask(true).await;
        self.askings.fetch_add(1, Ordering::AcqRel);
        match asked {
            Ok(_) => {
                if last.take().is_some() {
                    tracing::info!(store = self.place.here, "the object store is this cluster's and is used");
                }
                Ok(())
            }
            Err(error) => {
                if last.as_ref() != Some(&error) {
                    tracing::warn!(code = %error.code(), %error, "the object store is not used before that is settled");
                }
                *last = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Has the bucket's identity read now, whatever was found before.
    async fn looked_at(&self) -> Result<(), BlobError> {
        let known = *self.confirmed.lock();
        if let Some(id) = known
            && !active(Mutant::TrustFirstLook)
        {
            match look(&*self.blobs, &self.place.cluster).await? {
                InBucket::Is(tag) if tag.id == id => return Ok(()),
                // Whoever finds out why drops or renews it.
                _ => *self.confirmed.lock() = None,
            }
        }
        self.settled().await
    }

    /// An object that is not there may be in the right store, while this is another one by now.
    async fn or_another_store<T>(&self, found: Result<T, BlobError>) -> Result<T, BlobError> {
        if matches!(found, Err(BlobError::Absent(_))) {
            self.looked_at().await?;
        }
        found
    }

    /// Goes on from whatever metadata and bucket say until the store is confirmed or refused.
    async fn ask(&self, claim: bool) -> Result<Standing, BlobError> {
        let Place { cluster, here } = &self.place;
        let record = Keys::new(cluster).object_store();
        for _ in 0..STEPS_MAX {
            let stored = self.meta.get(&record).await.map_err(|error| self.unknown(&error))?;
            let recorded = stored.as_ref().map(|stored| Recorded::decode(&stored.value)).transpose();
            let recorded = recorded.map_err(|why| self.unreadable(&record, why))?;
            let bucket = look(&*self.blobs, cluster).await?;
            let step = decide(cluster, here, recorded.as_ref(), &bucket);
            match (step, recorded) {
                (Step::Refuse(refusal), _) => {
                    // Somebody may have claimed it between the two looks: what is refused holds of one moment.
                    let again = self.meta.get(&record).await.map_err(|error| self.unknown(&error))?;
                    if again == stored {
                        return Err(BlobError::Wrong(Box::new(refusal)));
                    }
                }
                (Step::Good, Some(recorded)) => {
                    let id = recorded.id;
                    self.remember(&record, stored, recorded).await;
                    *self.confirmed.lock() = Some(id);
                    return Ok(Standing::Confirmed);
                }
                _ if !claim => return Ok(Standing::Unclaimed),
                (Step::Write(id), Some(recorded)) => {
                    let made_ms = recorded.made_ms;
                    let tag = Tag { id, cluster: cluster.clone(), made_ms };
                    // Whoever was first is seen at the next look.
                    self.blobs.create(&key::identity(cluster), tag.encode()).await?;
                }
                (Step::Confirm, Some(recorded)) => {
                    let place = here.clone();
                    self.record(&record, stored, Recorded { confirmed: true, place, ..recorded }).await?;
                }
                (_, _) => {
                    let id = StoreId(u128::from(self.random()) << 64 | u128::from(self.random()));
                    let (place, made_ms) = (here.clone(), self.clock.wall_ms());
                    let intended = Recorded { id, confirmed: false, place, made_ms };
                    self.record(&record, stored, intended).await?;
                }
            }
        }
        Err(self.unknown(&"others claim it at the same time"))
    }

    fn random(&self) -> u64 {
        self.rng.lock().next_u64()
    }

    /// Writes the record if it is what was read. One that was written by somebody else meanwhile is read again.
    async fn record(&self, key: &str, was: Option<Record>, now: Recorded) -> Result<(), BlobError> {
        match self.replace(key, was, now).await {
            // An outcome that is not known is seen at the next look.
            Ok(_) | Err(MetaError::Unknown(_)) => Ok(()),
            Err(error) => Err(self.unknown(&error)),
        }
    }

    async fn replace(&self, key: &str, was: Option<Record>, now: Recorded) -> Result<TxnOutcome, MetaError> {
        let unchanged = match was {
            None => Compare::Absent(key.to_owned()),
            Some(was) => Compare::ValueIs(key.to_owned(), was.value),
        };
        self.meta.txn(Txn { compares: vec![unchanged], ops: vec![Op::put(key, now.encode())] }).await
    }

    /// The store may be called otherwise than it was: what refusals call it is kept up to date.
    async fn remember(&self, key: &str, stored: Option<Record>, recorded: Recorded) {
        if recorded.place == self.place.here {
            return;
        }
        tracing::info!(
            was = recorded.place,
            now = self.place.here,
            "the object store is called otherwise now"
        );
        let now = Recorded { place: self.place.here.clone(), ..recorded };
        if let Err(error) = self.replace(key, stored, now).await {
            tracing::debug!(%error, "what the object store is called is not recorded");
        }
    }

    fn unknown(&self, why: &dyn std::fmt::Display) -> BlobError {
        let reason = format!("whether it is this cluster's is not known: {why}");
        BlobError::Failed { key: key::identity(&self.place.cluster), reason }
    }

    fn unreadable(&self, record: &str, why: TagError) -> BlobError {
        let here = self.place.here.clone();
        BlobError::Wrong(Box::new(Refusal::Unreadable { here, key: record.to_owned(), why }))
    }
}

/// Each call waits until the store is known to be the cluster's.
macro_rules! guarded {
    ($self:ident, $call:expr) => {
        async move {
            $self.settled().await?;
            $call.await
        }
        .boxed()
    };
}

impl Blobs for Guarded {
    fn ready(&self) -> Answer<'_, ()> {
        self.looked_at().boxed()
    }
    fn throttled(&self) -> Throttled {
        self.blobs.throttled()
    }
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool> {
        guarded!(self, self.blobs.create(key, bytes))
    }
    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes> {
        guarded!(self, self.blobs.small(key))
    }
    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()> {
        guarded!(self, self.blobs.put(key, bytes, until_ms))
    }
    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId> {
        guarded!(self, self.blobs.begin(key, until_ms))
    }
    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part> {
        guarded!(self, self.blobs.part(key, upload, number, bytes))
    }
    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()> {
        guarded!(self, self.blobs.complete(key, upload, parts))
    }
    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        guarded!(self, async { self.or_another_store(self.blobs.size(key).await).await })
    }
    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        guarded!(self, async { self.or_another_store(self.blobs.range(key, range).await).await })
    }
    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>> {
        guarded!(self, self.blobs.uploads(prefix))
    }
    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()> {
        guarded!(self, self.blobs.abort(key, upload))
    }
    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        guarded!(self, self.blobs.remove(key))
    }
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        guarded!(self, self.blobs.list(prefix, after, limit))
    }
}
