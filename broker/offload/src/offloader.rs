//! The way of one ledger, or of several small ones that go as one object, into the store: prepare, upload, verify, commit. Whose store
//! it is is looked at before and behind the upload. Each step is safe to die after: what is left is named by the topic record, and
//! whoever owns the topic next gives it up. Of several ledgers each step is taken for all of them in one transaction.
//!
//! Whatever fails, nothing is removed here once a commit was sent: an outcome that is not known may be a commit.

use crate::blob::{self, BlobError, Blobs, Part};
use crate::config::Config;
use crate::format::attributes::Attributes;
use crate::gathering::{Gathering, Placed};
use crate::key::{self, AttemptId};
use crate::meters::Meters;
use crate::mutant::{Mutant, active};
use crate::state::{Attempt, Change, ObjectRef, Part as OfObject, Refused};
use crate::verify::{self, ObjectError};
use crate::writer::{Closed, Sourced, WriteError};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_common::clock::{Clock, Mono};
use geminga_common::ids::{EntryId, LedgerId, TopicId};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Most parts of an upload that stores take, with room to spare.
const PARTS_MAX: u64 = 9_000;

/// Why a change of the topic record was not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// The record does not allow it; nothing was written.
    #[error(transparent)]
    Refused(Refused),
    /// Nothing was written.
    #[error("topic record was not written: {0}")]
    NotWritten(String),
    /// The topic is not ours any more, or the outcome is not known.
    #[error("whether the topic record was written is not known: {0}")]
    Unknown(String),
}

/// The topic record, as an offload changes it. Implemented by the topic's owner, in one transaction with what becomes garbage.
pub trait TopicRecord: Send + Sync {
    /// Changes the offload states of ledgers, all or none; answered when the outcome is durable.
    fn change(&self, changes: Vec<(LedgerId, Change)>) -> BoxFuture<'_, Result<(), ChangeError>>;
}

/// Where the entries of a closed ledger come from, checked against their own checksums.
pub trait Source: Send + Sync {
    /// A run of entries from `first` on, at least one; about so many bytes.
    fn read(&self, first: EntryId, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Sourced>, String>>;
}

impl<S: Source + ?Sized> Source for &S {
    fn read(&self, first: EntryId, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Sourced>, String>> {
        (**self).read(first, bytes_max)
    }
}

/// Why a ledger was not offloaded. It is where it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OffloadError {
    /// The topic record.
    #[error(transparent)]
    Record(#[from] ChangeError),
    /// The ledger cannot be read now.
    #[error("ledger cannot be read: {0}")]
    Source(String),
    /// The ledger is not what its record says.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store, or what it gave back.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It took longer than an attempt may.
    #[error("the attempt took too long")]
    TooLate,
}

impl From<BlobError> for OffloadError {
    fn from(error: BlobError) -> Self {
        OffloadError::Object(error.into())
    }
}

/// What is to be offloaded.
#[derive(Clone, Debug)]
pub struct Job {
    /// What the object tells of the ledger; the attempt is filled in.
    pub attributes: Attributes,
    /// What the ledger holds.
    pub closed: Closed,
}

/// Offloads ledgers, so many at a time.
pub struct Offloader {
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
    rng: Mutex<Rng>,
    config: Config,
    permits: Semaphore,
    meters: Meters,
}

impl Offloader {
    /// An offloader.
    #[must_use]
    pub fn new(
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
        rng: Rng,
        config: Config,
        meters: Meters,
    ) -> Self {
        let permits = Semaphore::new(config.uploads_max);
        Self { blobs, clock, rng: Mutex::new(rng), config, permits, meters }
    }

    /// Offloads ledgers of one topic as one object, in the order of their ids; waits for its turn. Answers what each became.
    ///
    /// # Errors
    /// See [`OffloadError`].
    ///
    /// # Panics
    /// Without a ledger.
    pub async fn offload<S: Source>(
        &self,
        ledgers: Vec<(Job, S)>,
        record: &dyn TopicRecord,
    ) -> Result<Vec<ObjectRef>, OffloadError> {
        let (topic, count) = (ledgers[0].0.attributes.topic_id, ledgers.len() as u64);
        let measured = |(job, source)| (job, Measured { source, meters: &self.meters, topic });
        let offloaded = self.attempt(ledgers.into_iter().map(measured).collect(), record).await;
        match &offloaded {
            Ok(objects) => self.meters.uploaded(topic, objects[0].whole(), count),
            Err(error) => {
                let by_store = matches!(error, OffloadError::Object(_) | OffloadError::TooLate);
                self.meters.not_offloaded(topic, by_store, count);
            }
        }
        offloaded
    }

    async fn attempt<S: Source>(
        &self,
        mut ledgers: Vec<(Job, S)>,
        record: &dyn TopicRecord,
    ) -> Result<Vec<ObjectRef>, OffloadError> {
        let _permit = self.permits.acquire().await;
        let id = AttemptId(self.rng.lock().next_u64());
        ledgers.iter_mut().for_each(|(job, _)| job.attributes.attempt = id.0);
        let ids: Vec<_> = ledgers.iter().map(|(job, _)| job.attributes.ledger).collect();
        let told = &ledgers[0].0.attributes;
        let together = (ids.len() > 1).then_some(told.ledger);
        let (begun_ms, timeout_ms) = (self.clock.wall_ms(), self.config.attempt_timeout_s * 1000);
        let key = key::object(&told.cluster, begun_ms, told.topic_id, told.ledger, id);
        let ends = Ends {
            mono: self.clock.mono() + Duration::from_millis(timeout_ms),
            wall_ms: begun_ms + timeout_ms,
        };
        let settle_ms = if active(Mutant::SweepUnsettled) { 0 } else { self.config.settle_s * 1000 };
        let settled_ms = ends.wall_ms + settle_ms;
        let attempt = Attempt { id, begun_ms, settled_ms, owner_epoch: told.owner_epoch, together };
        if active(Mutant::BeginUnnamed) {
            self.blobs.begin(&key, ends.wall_ms).await?;
        }
        // Nothing is recorded about a store that may be another's.
        self.blobs.ready().await?;
        let of_all = |change: Change| ids.iter().map(|ledger| (*ledger, change.clone())).collect::<Vec<_>>();
        // The record names the key before anything is sent there.
        record.change(of_all(Change::Prepare(attempt.clone()))).await?;
        let objects = match self.upload(&ledgers, &key, &attempt, ends).await {
            Ok(objects) => objects,
            Err(error) => {
                // It fails when the topic has gone to another owner, who then gives it up.
                let _either_way = record.change(of_all(Change::Abandon(id))).await;
                // No commit was sent, and nobody but this call could send one.
                self.discard(&key).await;
                return Err(error);
            }
        };
        let at_ms = self.clock.wall_ms();
        let commit = |object: &ObjectRef| Change::Commit(id, object.shape, object.part, at_ms);
        match record.change(ids.iter().copied().zip(objects.iter().map(commit)).collect()).await {
            Ok(()) => Ok(objects),
            Err(error) => {
                // Refused by our own record: nobody but this call could ever commit the attempt. After any other answer the
                // object may be referenced.
                if matches!(error, ChangeError::Refused(_)) || active(Mutant::RemoveAfterDoubt) {
                    self.discard(&key).await;
                }
                Err(error.into())
            }
        }
    }

    /// Bytes of a part of an upload of so many bytes.
    fn part_bytes(&self, bytes: u64) -> usize {
        self.config.part_size.0.max(bytes.div_ceil(PARTS_MAX)) as usize
    }

    async fn discard(&self, key: &str) {
        if let Err(error) = blob::discard(&*self.blobs, key).await {
            tracing::debug!(%error, "an attempt's own removal failed; the sweep does it");
        }
    }

    fn on_time(&self, ends: Ends) -> Result<(), OffloadError> {
        if self.clock.mono() < ends.mono { Ok(()) } else { Err(OffloadError::TooLate) }
    }

    /// Uploads and reads back; answers where each ledger lies.
    async fn upload<S: Source>(
        &self,
        ledgers: &[(Job, S)],
        key: &str,
        attempt: &Attempt,
        ends: Ends,
    ) -> Result<Vec<ObjectRef>, OffloadError> {
        let part_bytes = self.part_bytes(ledgers.iter().map(|(job, _)| job.closed.length).sum());
        let mut gathering = Gathering::new(ledgers, &self.config, part_bytes);
        gathering.fill(part_bytes).await?;
        let in_parts = !gathering.fits_one_part();
        let sent = if in_parts {
            self.send_parts(key, &mut gathering, part_bytes, ends).await?
        } else {
            self.on_time(ends)?;
            self.blobs.put(key, gathering.rest(), ends.until_ms()).await
        };
        self.on_time(ends)?;
        let (placed, whole) = gathering.placed();
        let object = |placed: &Placed| ObjectRef {
            attempt: attempt.id,
            begun_ms: attempt.begun_ms,
            shape: placed.shape,
            part: attempt.together.map(|first| OfObject { first, offset: placed.offset, whole }),
        };
        let objects: Vec<_> = placed.iter().map(object).collect();
        // An answer that was lost is settled by what is there.
        let verified = self.verified(ledgers, key, &objects).await;
        match (sent, verified) {
            (_, Ok(())) => {
                // A begin that was repeated may have left another upload beside ours.
                if in_parts {
                    blob::end_uploads(&*self.blobs, key).await?;
                }
                // What was read back may have come from what has taken the store's place.
                self.blobs.ready().await?;
                Ok(objects)
            }
            (Err(error), Err(_)) => Err(error.into()),
            (Ok(()), Err(error)) => Err(error.into()),
        }
    }

    async fn verified<S>(
        &self,
        ledgers: &[(Job, S)],
        key: &str,
        objects: &[ObjectRef],
    ) -> Result<(), ObjectError> {
        let written =
            |((job, _), object): (&(Job, S), &ObjectRef)| (job.attributes.ledger, job.closed, *object);
        let written: Vec<_> = ledgers.iter().zip(objects).map(written).collect();
        match written[..] {
            [(ledger, closed, object)] => verify::whole(&*self.blobs, key, ledger, closed, &object).await,
            _ => verify::together(&*self.blobs, key, &written).await,
        }
    }

    /// Sends part after part, reading the next while one is on its way. The answer's inner part is that of the last request.
    async fn send_parts<S: Source>(
        &self,
        key: &str,
        gathering: &mut Gathering<'_, S>,
        part_bytes: usize,
        ends: Ends,
    ) -> Result<Result<(), BlobError>, OffloadError> {
        self.on_time(ends)?;
        let upload = self.blobs.begin(key, ends.until_ms()).await?;
        let mut parts: Vec<Part> = Vec::new();
        while let Some(bytes) = gathering.next_part() {
            self.on_time(ends)?;
            let sending = self.blobs.part(key, &upload, parts.len(), bytes);
            let (sent, filled) = futures::join!(sending, gathering.fill(part_bytes));
            parts.push(sent?);
            filled?;
        }
        self.on_time(ends)?;
        Ok(self.blobs.complete(key, &upload, parts).await)
    }
}

/// A ledger whose reads are timed.
struct Measured<'a, S> {
    source: S,
    meters: &'a Meters,
    topic: TopicId,
}

impl<S: Source> Source for Measured<'_, S> {
    fn read(&self, first: EntryId, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Sourced>, String>> {
        async move {
            let begun = self.meters.now();
            let read = self.source.read(first, bytes_max).await;
            self.meters.ledger_read(self.topic, begun);
            read
        }
        .boxed()
    }
}

/// When an attempt ends, by both clocks: its author stops by the one, the store refuses by the other.
#[derive(Clone, Copy, Debug)]
struct Ends {
    mono: Mono,
    wall_ms: u64,
}

impl Ends {
    /// Until when the store is to take what makes something new, ms since 1970.
    fn until_ms(self) -> u64 {
        if active(Mutant::WriteForever) { u64::MAX } else { self.wall_ms }
    }
}
