//! `geminga admin storage fsck`: the bucket held against the metadata. It reports and never removes: what nobody names may be
//! named by a metadata store that was rolled back, or by another cluster.
//!
//! It may run beside brokers. The bucket is listed first and the metadata read behind it, so that what a listing shows is named by
//! the time it is looked for; what still does not fit is looked at once more before it is told.

use crate::managed_ledger::record::{self, RecordError};
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{LedgerId, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore, list_all};
use geminga_offload::blob::{BlobError, Blobs, Listed, UploadId};
use geminga_offload::format::FormatError;
use geminga_offload::identity::{Recorded, Refusal, Step, TagError, decide, look};
use geminga_offload::key;
use geminga_offload::state::{Garbage, ObjectRef, Offload};
use geminga_offload::verify::{self, ObjectError};
use geminga_offload::writer::Closed;
use std::collections::BTreeMap;
use std::fmt;

/// Objects listed at a time.
const PAGE: usize = 1000;

/// Why the check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The metadata cannot be read.
    #[error(
        "the metadata cannot be read: {0}; is the metadata store running, and may this machine reach it?"
    )]
    Meta(#[from] MetaError),
    /// It is another store.
    #[error(transparent)]
    Wrong(Refusal),
    /// The store does not answer, or refuses.
    #[error("{_0}{}", next_step(.0))]
    Blob(#[from] BlobError),
    /// What the metadata says of the store.
    #[error(
        "the record {0} of the object store's identity cannot be read: {1}; use a build as new as the brokers'"
    )]
    Identity(String, TagError),
}

impl Coded for FsckError {
    fn code(&self) -> Code {
        match self {
            FsckError::Meta(error) => error.code(),
            FsckError::Wrong(refusal) => refusal.code(),
            FsckError::Blob(error) => error.code(),
            FsckError::Identity(..) => Code::RECORD_UNREADABLE,
        }
    }
}

fn next_step(error: &BlobError) -> &'static str {
    match error {
        BlobError::Refused { .. } => {
            "; look at offload.url (the bucket), the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity or a \
             role) and whether they may list and read"
        }
        BlobError::Failed { .. } => {
            "; look at offload.url and offload.endpoint, the network, and whether the store runs"
        }
        // It says so itself.
        BlobError::Wrong(_) | BlobError::Absent(_) => "",
    }
}

/// Something that should not be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Finding {
    /// A topic's ledger has an object that is not there.
    #[error("missing: {key} of {owner}; {}", left(.on_bookies))]
    Missing {
        /// The object.
        key: String,
        /// Topic and ledger.
        owner: Owner,
        /// Whether bookies hold the ledger too.
        on_bookies: bool,
    },
    /// An object is not what the topic record says.
    #[error("damaged: {key} of {owner}: {what}")]
    Damaged {
        /// The object.
        key: String,
        /// Topic and ledger.
        owner: Owner,
        /// What differs.
        what: String,
    },
    /// A topic's object is also listed for removal.
    #[error(
        "condemned: {key} of {owner} is listed for removal although it is referenced; stop the brokers before the sweep comes"
    )]
    Condemned {
        /// The object.
        key: String,
        /// Topic and ledger.
        owner: Owner,
    },
    /// An object was written by a newer build.
    #[error("too new: {key} of {owner}: {what}; check it with a build as new as the brokers'")]
    TooNew {
        /// The object.
        key: String,
        /// Topic and ledger.
        owner: Owner,
        /// Which version.
        what: String,
    },
    /// An object that no metadata names.
    #[error(
        "unknown: {key}, {size} bytes, is named by no metadata of this cluster; it is never removed by itself"
    )]
    Unknown {
        /// The object.
        key: String,
        /// Its bytes.
        size: u64,
    },
    /// An unfinished upload that no metadata names.
    #[error(
        "unknown upload: {id} of {key} is named by no metadata of this cluster; it is never ended by itself"
    )]
    UnknownUpload {
        /// The object that it would become.
        key: String,
        /// The store's name for it.
        id: String,
    },
    /// A record that cannot be read: what it names counts as unknown.
    #[error("unreadable record: {record}: {why}; what it names is told as unknown")]
    Unreadable {
        /// Its key.
        record: String,
        /// What is wrong.
        why: String,
    },
}

impl Coded for Finding {
    fn code(&self) -> Code {
        match self {
            Finding::Missing { .. } => Code::OBJECT_MISSING,
            Finding::Damaged { .. } => Code::OBJECT_DAMAGED,
            Finding::Condemned { .. } => Code::OBJECT_CONDEMNED,
            Finding::TooNew { .. } => Code::FORMAT_TOO_NEW,
            Finding::Unknown { .. } => Code::OBJECT_UNKNOWN,
            Finding::UnknownUpload { .. } => Code::UPLOAD_UNKNOWN,
            Finding::Unreadable { .. } => Code::RECORD_UNREADABLE,
        }
    }
}

impl Finding {
    /// Whether messages are at stake; else it is only space.
    #[must_use]
    pub fn is_grave(&self) -> bool {
        !matches!(self, Finding::Unknown { .. } | Finding::UnknownUpload { .. })
    }
}

fn left(on_bookies: &bool) -> &'static str {
    if *on_bookies { "bookies still have the ledger" } else { "its messages cannot be read" }
}

/// Whose object it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The topic; its record's key where that is no topic's name.
    pub topic: String,
    /// The ledger.
    pub ledger: LedgerId,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ledger {}", self.topic, self.ledger)
    }
}

/// What was looked at and found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Objects that topics reference and that are as they should be.
    pub referenced: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Attempts under way, or left by a broker that is gone: their topic's next owner gives them up.
    pub under_way: usize,
    /// Removals that wait for their time.
    pub to_be_removed: usize,
    /// What should not be.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "! {} {finding}", finding.code())?;
        }
        let Report { referenced, bytes, under_way, to_be_removed, findings } = self;
        write!(
            f,
            "{referenced} objects of topics ({bytes} bytes) are as they should be, {under_way} uploads under way, \
             {to_be_removed} removals wait, {} findings",
            findings.len()
        )
    }
}

/// Why a key may be there.
enum Named {
    /// For these ledgers of a topic; one, unless several went together.
    Object(Vec<Held>),
    UnderWay,
    ToBeRemoved,
}

/// A ledger that an object holds.
struct Held {
    owner: Owner,
    closed: Closed,
    object: ObjectRef,
    on_bookies: bool,
}

type Names = BTreeMap<String, Named>;

/// Holds the bucket (called `place`) against the metadata; `whole` also reads every referenced object back and checks every byte.
///
/// # Errors
/// See [`FsckError`].
pub async fn fsck(
    meta: &dyn MetadataStore,
    cluster: &str,
    place: &str,
    blobs: &dyn Blobs,
    whole: bool,
) -> Result<Report, FsckError> {
    identity(meta, cluster, place, blobs).await?;
    let (objects, uploads) = bucket(blobs, cluster).await?;
    let mut report = Report::default();
    let names = named(meta, cluster, &mut report).await?;
    for (key, named) in &names {
        match named {
            Named::UnderWay => report.under_way += 1,
            Named::ToBeRemoved => report.to_be_removed += 1,
            Named::Object(ledgers) => {
                let (listed, before) = (objects.get(key).copied(), report.findings.len());
                for held in ledgers {
                    let looked = object(blobs, key, held, listed, whole).await?;
                    report.findings.extend(looked.finding(key, held));
                }
                if report.findings.len() == before {
                    report.referenced += 1;
                    report.bytes += ledgers.first().map_or(0, |held| held.object.whole());
                }
            }
        }
    }
    unnamed(blobs, &names, objects, uploads, &mut report).await?;
    Ok(report)
}

/// Refuses to look at another bucket than the cluster's: all of it would be missing. One that is nobody's is looked at.
async fn identity(
    meta: &dyn MetadataStore,
    cluster: &str,
    place: &str,
    blobs: &dyn Blobs,
) -> Result<(), FsckError> {
    let key = Keys::new(cluster).object_store();
    let recorded = meta.get(&key).await?.map(|record| Recorded::decode(&record.value)).transpose();
    let recorded = recorded.map_err(|why| FsckError::Identity(key, why))?;
    match decide(cluster, place, recorded.as_ref(), &look(blobs, cluster).await?) {
        Step::Refuse(refusal) => Err(FsckError::Wrong(refusal)),
        Step::Good | Step::Intend | Step::Write(_) | Step::Confirm => Ok(()),
    }
}

pub(super) type Bucket = (BTreeMap<String, u64>, Vec<(String, UploadId)>);

/// All that lies below the cluster's prefix.
pub(super) async fn bucket(blobs: &dyn Blobs, cluster: &str) -> Result<Bucket, BlobError> {
    let below = key::below(cluster);
    let uploads = blobs.uploads(&format!("{below}/")).await?;
    let (mut objects, mut after) = (BTreeMap::new(), None::<String>);
    loop {
        let page = blobs.list(&below, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else {
            objects.remove(&key::identity(cluster));
            return Ok((objects, uploads));
        };
        after = Some(last.key.clone());
        objects.extend(page.into_iter().map(|Listed { key, size }| (key, size)));
    }
}

/// All that metadata names. Topics before removals: what moves from the one to the other meanwhile is seen in one at least.
async fn named(meta: &dyn MetadataStore, cluster: &str, report: &mut Report) -> Result<Names, MetaError> {
    let (keys, mut names) = (Keys::new(cluster), Names::new());
    for stored in list_all(meta, &keys.all_topics_prefix()).await? {
        let topic = keys.topic_of_key(&stored.key).map_or(stored.key.clone(), |name| name.to_string());
        if let Err(error) = of_topic(cluster, &topic, &stored.value, &mut names) {
            let why = error.to_string();
            report.findings.push(Finding::Unreadable { record: stored.key, why });
        }
    }
    for stored in list_all(meta, &keys.object_garbage_prefix()).await? {
        match Garbage::decode(&stored.value) {
            Ok((garbage, topic, ledger)) => {
                let key = key::object(cluster, garbage.begun_ms, topic, ledger, garbage.attempt);
                match names.get(&key) {
                    Some(Named::Object(ledgers)) => {
                        let condemned =
                            |held: &Held| Finding::Condemned { owner: held.owner.clone(), key: key.clone() };
                        report.findings.extend(ledgers.iter().map(condemned));
                    }
                    _ => drop(names.insert(key, Named::ToBeRemoved)),
                }
            }
            Err(error) => {
                let why = error.to_string();
                report.findings.push(Finding::Unreadable { record: stored.key, why });
            }
        }
    }
    Ok(names)
}

fn of_topic(cluster: &str, topic: &str, bytes: &[u8], names: &mut Names) -> Result<(), RecordError> {
    let (state, _) = record::decode(bytes)?;
    let id: TopicId = state.topic_id;
    for segment in state.segments() {
        let ledger = segment.id();
        match &segment.offload {
            Offload::Bookies => {}
            Offload::Prepared(attempt) => {
                let named_by = segment.offload.named_by(ledger);
                let key = key::object(cluster, attempt.begun_ms, id, named_by, attempt.id);
                names.insert(key, Named::UnderWay);
            }
            Offload::Committed(object, _) | Offload::Released(object) => {
                let owner = Owner { topic: topic.to_owned(), ledger };
                let closed = Closed { entries: segment.entries(), length: segment.bytes() };
                let held = Held { owner, closed, object: *object, on_bookies: segment.offload.on_bookies() };
                match names
                    .entry(object.key(cluster, id, ledger))
                    .or_insert_with(|| Named::Object(Vec::new()))
                {
                    Named::Object(ledgers) => ledgers.push(held),
                    other => *other = Named::Object(vec![held]),
                }
            }
        }
    }
    Ok(())
}

enum Looked {
    Good,
    Absent,
    TooNew(String),
    Damaged(String),
}

impl Looked {
    fn finding(self, key: &str, held: &Held) -> Option<Finding> {
        let (key, owner) = (key.to_owned(), held.owner.clone());
        match self {
            Looked::Good => None,
            Looked::Absent => Some(Finding::Missing { key, owner, on_bookies: held.on_bookies }),
            Looked::TooNew(what) => Some(Finding::TooNew { key, owner, what }),
            Looked::Damaged(what) => Some(Finding::Damaged { key, owner, what }),
        }
    }
}

/// Looks at what a referenced object holds of one ledger; `listed` is its size in the listing.
async fn object(
    blobs: &dyn Blobs,
    key: &str,
    held: &Held,
    listed: Option<u64>,
    whole: bool,
) -> Result<Looked, BlobError> {
    // Uploaded behind the listing, or not there.
    let size = match listed {
        Some(size) => size,
        None => match blobs.size(key).await {
            Ok(size) => size,
            Err(BlobError::Absent(_)) => return Ok(Looked::Absent),
            Err(error) => return Err(error),
        },
    };
    if size != held.object.whole() {
        let wanted = held.object.whole();
        return Ok(Looked::Damaged(format!("{size} bytes, the topic record says {wanted}")));
    }
    if !whole {
        return Ok(Looked::Good);
    }
    match verify::whole(blobs, key, held.owner.ledger, held.closed, &held.object).await {
        Ok(()) => Ok(Looked::Good),
        Err(ObjectError::Blob(BlobError::Absent(_))) => Ok(Looked::Absent),
        Err(ObjectError::Blob(error)) => Err(error),
        Err(ObjectError::Format { error: error @ FormatError::Version(_), .. }) => {
            Ok(Looked::TooNew(error.to_string()))
        }
        Err(error) => Ok(Looked::Damaged(error.to_string())),
    }
}

/// What the bucket holds and no metadata names, if it is still there.
async fn unnamed(
    blobs: &dyn Blobs,
    names: &Names,
    objects: BTreeMap<String, u64>,
    uploads: Vec<(String, UploadId)>,
    report: &mut Report,
) -> Result<(), BlobError> {
    for (key, size) in objects.into_iter().filter(|(key, _)| !names.contains_key(key)) {
        match blobs.size(&key).await {
            Ok(_) => report.findings.push(Finding::Unknown { key, size }),
            Err(BlobError::Absent(_)) => {}
            Err(error) => return Err(error),
        }
    }
    for (key, id) in uploads.into_iter().filter(|(key, _)| !names.contains_key(key)) {
        if blobs.uploads(&key).await?.contains(&(key.clone(), id.clone())) {
            report.findings.push(Finding::UnknownUpload { key, id: id.0 });
        }
    }
    Ok(())
}
