//! One ledger's way into the store: prepare, upload, verify, commit. Whose store it is is looked at before and behind the upload. Each step is safe to die after: what is left is named by the
//! topic record, and whoever owns the topic next gives it up.
//!
//! Whatever fails, nothing is removed here once a commit was sent: an outcome that is not known may be a commit.

use crate::blob::{self, BlobError, Blobs, Part};
use crate::config::Config;
use crate::format::attributes::Attributes;
use crate::key::{self, AttemptId};
use crate::meters::Meters;
use crate::mutant::{Mutant, active};
use crate::parts::Parts;
use crate::state::{Attempt, Change, ObjectRef, Refused};
use crate::verify::{self, ObjectError};
use crate::writer::{Closed, ObjectWriter, Shape, Sourced, WriteError};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_common::clock::{Clock, Mono};
use geminga_common::ids::{EntryId, LedgerId, TopicId};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Bytes read from the ledger at a time.
const SOURCE_BYTES: usize = 4 << 20;
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
    /// Changes the offload state of a ledger; answered when the outcome is durable.
    fn change(&self, ledger: LedgerId, change: Change) -> BoxFuture<'_, Result<(), ChangeError>>;
}

/// Where the entries of a closed ledger come from, checked against their own checksums.
pub trait Source: Send + Sync {
    /// A run of entries from `first` on, at least one; about so many bytes.
    fn read(&self, first: EntryId, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Sourced>, String>>;
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

    /// Offloads one ledger; waits for its turn.
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub async fn offload(
        &self,
        job: Job,
        source: &dyn Source,
        record: &dyn TopicRecord,
    ) -> Result<ObjectRef, OffloadError> {
        let topic = job.attributes.topic_id;
        let source = Measured { source, meters: &self.meters, topic };
        let offloaded = self.attempt(job, &source, record).await;
        match &offloaded {
            Ok(object) => self.meters.uploaded(topic, object.shape.size),
            Err(error) => {
                let by_store = matches!(error, OffloadError::Object(_) | OffloadError::TooLate);
                self.meters.not_offloaded(topic, by_store);
            }
        }
        offloaded
    }

    async fn attempt(
        &self,
        mut job: Job,
        source: &dyn Source,
        record: &dyn TopicRecord,
    ) -> Result<ObjectRef, OffloadError> {
        let _permit = self.permits.acquire().await;
        let ledger = job.attributes.ledger;
        let id = AttemptId(self.rng.lock().next_u64());
        job.attributes.attempt = id.0;
        let (begun_ms, timeout_ms) = (self.clock.wall_ms(), self.config.attempt_timeout_s * 1000);
        let key = key::object(&job.attributes.cluster, begun_ms, job.attributes.topic_id, ledger, id);
        let ends = Ends {
            mono: self.clock.mono() + Duration::from_millis(timeout_ms),
            wall_ms: begun_ms + timeout_ms,
        };
        let settle_ms = if active(Mutant::SweepUnsettled) { 0 } else { self.config.settle_s * 1000 };
        let settled_ms = ends.wall_ms + settle_ms;
        let attempt = Attempt { id, begun_ms, settled_ms, owner_epoch: job.attributes.owner_epoch };
        if active(Mutant::BeginUnnamed) && self.in_parts(&job) {
            self.blobs.begin(&key, ends.wall_ms).await?;
        }
        // Nothing is recorded about a store that may be another's.
        self.blobs.ready().await?;
        // The record names the key before anything is sent there.
        record.change(ledger, Change::Prepare(attempt)).await?;
        let shape = match self.upload(&job, &key, source, ends).await {
            Ok(shape) => shape,
            Err(error) => {
                // It fails when the topic has gone to another owner, who then gives it up.
                let _either_way = record.change(ledger, Change::Abandon(id)).await;
                // No commit was sent, and nobody but this call could send one.
                self.discard(&key).await;
                return Err(error);
            }
        };
        match record.change(ledger, Change::Commit(id, shape, self.clock.wall_ms())).await {
            Ok(()) => Ok(ObjectRef { attempt: id, begun_ms, shape }),
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

    /// Bytes of a part of this ledger's upload.
    fn part_bytes(&self, closed: Closed) -> usize {
        self.config.part_size.0.max(closed.length.div_ceil(PARTS_MAX)) as usize
    }

    fn in_parts(&self, job: &Job) -> bool {
        // Entries and blocks have some bytes of their own.
        let about = job.closed.length + job.closed.entries * 8;
        about + (about >> 8) + 4096 > self.part_bytes(job.closed) as u64
    }

    async fn discard(&self, key: &str) {
        if let Err(error) = blob::discard(&*self.blobs, key).await {
            tracing::debug!(%error, "an attempt's own removal failed; the sweep does it");
        }
    }

    fn on_time(&self, ends: Ends) -> Result<(), OffloadError> {
        if self.clock.mono() < ends.mono { Ok(()) } else { Err(OffloadError::TooLate) }
    }

    /// Uploads and reads back.
    async fn upload(
        &self,
        job: &Job,
        key: &str,
        source: &dyn Source,
        ends: Ends,
    ) -> Result<Shape, OffloadError> {
        let (block_bytes, compression) = (self.config.block_size.0 as usize, self.config.compression);
        let writer = ObjectWriter::new(job.attributes.clone(), job.closed, block_bytes, compression);
        let mut gathering = Gathering::new(writer, self.part_bytes(job.closed), job.closed.entries);
        let sent = if self.in_parts(job) {
            self.send_parts(key, &mut gathering, source, ends).await?
        } else {
            gathering.fill(source, usize::MAX).await?;
            self.on_time(ends)?;
            self.blobs.put(key, gathering.parts.rest(), ends.until_ms()).await
        };
        let shape = gathering.shape.expect("a ledger that was sent whole has a shape");
        self.on_time(ends)?;
        // An answer that was lost is settled by what is there.
        let verified = verify::whole(&*self.blobs, key, job.attributes.ledger, job.closed, &shape).await;
        match (sent, verified) {
            (_, Ok(())) => {
                // A begin that was repeated may have left another upload beside ours.
                if self.in_parts(job) {
                    blob::end_uploads(&*self.blobs, key).await?;
                }
                // What was read back may have come from what has taken the store's place.
                self.blobs.ready().await?;
                Ok(shape)
            }
            (Err(error), Err(_)) => Err(error.into()),
            (Ok(()), Err(error)) => Err(error.into()),
        }
    }

    /// Sends part after part, reading the next while one is on its way. The answer's inner part is that of the last request.
    async fn send_parts(
        &self,
        key: &str,
        gathering: &mut Gathering,
        source: &dyn Source,
        ends: Ends,
    ) -> Result<Result<(), BlobError>, OffloadError> {
        self.on_time(ends)?;
        let upload = self.blobs.begin(key, ends.until_ms()).await?;
        let mut parts: Vec<Part> = Vec::new();
        gathering.fill(source, gathering.part_bytes).await?;
        while let Some(bytes) = gathering.next_part() {
            self.on_time(ends)?;
            let wanted = gathering.part_bytes;
            let sending = self.blobs.part(key, &upload, parts.len(), bytes);
            let (sent, filled) = futures::join!(sending, gathering.fill(source, wanted));
            parts.push(sent?);
            filled?;
        }
        self.on_time(ends)?;
        Ok(self.blobs.complete(key, &upload, parts).await)
    }
}

/// A ledger whose reads are timed.
struct Measured<'a> {
    source: &'a dyn Source,
    meters: &'a Meters,
    topic: TopicId,
}

impl Source for Measured<'_> {
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

/// A ledger on its way into parts.
struct Gathering {
    writer: Option<ObjectWriter>,
    parts: Parts,
    part_bytes: usize,
    next: EntryId,
    entries: u64,
    shape: Option<Shape>,
}

impl Gathering {
    fn new(writer: ObjectWriter, part_bytes: usize, entries: u64) -> Self {
        let mut parts = Parts::default();
        parts.push(writer.begin());
        Self { writer: Some(writer), parts, part_bytes, next: EntryId(0), entries, shape: None }
    }

    /// Reads on until there are so many bytes, or the ledger ends.
    async fn fill(&mut self, source: &dyn Source, bytes: usize) -> Result<(), OffloadError> {
        while self.parts.len() < bytes
            && let Some(writer) = self.writer.as_mut()
        {
            if self.next.0 == self.entries {
                let (last, shape) = self.writer.take().expect("looked at just now").finish()?;
                self.parts.push(last);
                self.shape = Some(shape);
                return Ok(());
            }
            let run = source.read(self.next, SOURCE_BYTES).await.map_err(OffloadError::Source)?;
            if run.is_empty() {
                return Err(OffloadError::Source("nothing came".to_owned()));
            }
            for sourced in &run {
                if let Some(block) = writer.push(sourced)? {
                    self.parts.push(block);
                }
                self.next = sourced.entry.id.next();
            }
        }
        Ok(())
    }

    /// A whole part; at the ledger's end what is left.
    fn next_part(&mut self) -> Option<Vec<bytes::Bytes>> {
        if self.parts.len() >= self.part_bytes {
            return Some(self.parts.take(self.part_bytes));
        }
        Some(self.parts.rest()).filter(|rest| self.writer.is_none() && !rest.is_empty())
    }
}
