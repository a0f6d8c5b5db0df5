//! `geminga admin storage rebuild`: topics whose metadata are gone are attached again from the bucket alone, after the loss of every
//! bookie and all metadata. What was offloaded comes back; what was on bookies alone, subscriptions, schemas and policies do not.
//!
//! | step | what it does | cut short here |
//! |---|---|---|
//! | 1 whose bucket it is | its identity is read; metadata that name another store, and a bucket without an identity, are refused | nothing was written |
//! | 2 plan ([`plan`]) | objects are listed and read; for each ledger one whole attempt is chosen; ledgers are ordered along their topics; holes are told | nothing was written |
//! | 3 counters | ids of ledgers and topics are leased above all that the bucket names | done again, it raises nothing |
//! | 4 for each topic | tenant, namespace and partition count where they are missing; retention without bound; then, in one transaction that compares that there is no such topic, its record, all ledgers `Released` | a topic is there as a whole or not at all; the next run finds it and goes on |
//! | 5 adoption | the metadata name the bucket's identity | brokers with this bucket do not start before it (`GM-6010`), so that nobody is served half of it |
//!
//! Invariants: no object and no upload is ever written, replaced or removed; a topic that is there is never changed: it is the same
//! already, or it is left alone and told; nothing is written unless a person has named the bucket's identity or the metadata do; a
//! ledger that is made later has an id above all that were found, so that no bookie and no key ever sees one twice.
//!
//! Retention: a topic without a subscription is trimmed as soon as it is loaded, and its objects removed. So each topic that is attached
//! keeps everything until a person sets its policy back. Removals that the old metadata had listed are forgotten with them:
//! ledgers that had been trimmed, and topics that had been deleted, shortly before the loss come back.
//!
//! Brokers must not run: they lease ids in blocks and would give away ids from before step 3.

mod apply;
mod finding;
mod objects;

use super::fsck::{FsckError, bucket};
use crate::managed_ledger::record::{self, RecordError};
use crate::managed_ledger::state::State;
use crate::namespace::NamespaceError;
pub use apply::{Target, apply};
pub use finding::Finding;
use futures::StreamExt as _;
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{LedgerId, Position, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore, Record};
use geminga_common::names::TopicName;
use geminga_offload::blob::{BlobError, Blobs};
use geminga_offload::identity::{InBucket, Recorded, Refusal, Step, StoreId, Tag, decide, look};
use geminga_offload::key::Named;
use objects::{Found, Read};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Objects that are read at a time.
const READS: usize = 8;

/// Why there is no plan, or it was not carried out to its end. What was done is found done by the next run.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Metadata or bucket, as the check has it.
    #[error(transparent)]
    Look(#[from] FsckError),
    /// There is nothing to take over.
    #[error(
        "the object store {0} carries no identity of a cluster called {1}: nothing was ever offloaded there under that name; look at \
         offload.url and the cluster's name"
    )]
    Nobodys(String, String),
    /// A person has to say so.
    #[error(
        "the object store {here} belongs to {owner}, of which these metadata know nothing; if its metadata are lost and no broker uses \
         it any more, pass --adopt {id}"
    )]
    NotAdopted {
        /// The store.
        here: String,
        /// Whom it belongs to.
        owner: String,
        /// What to pass.
        id: StoreId,
    },
    /// Brokers are alive.
    #[error(
        "brokers of this cluster run ({0}); stop them first: they would give away ids that the bucket's ledgers have"
    )]
    Running(String),
    /// Tenants, namespaces, partition counts, policies.
    #[error("{0}: {1}")]
    Namespace(String, NamespaceError),
    /// A counter of ids.
    #[error("the counter {0} cannot be read: {1}; use a build as new as the brokers'")]
    Counter(String, RecordError),
    /// Somebody else writes the same records.
    #[error("others change {0} at the same time; look who, then run it again")]
    Contended(String),
}

impl From<MetaError> for RebuildError {
    fn from(error: MetaError) -> Self {
        RebuildError::Look(error.into())
    }
}

impl From<BlobError> for RebuildError {
    fn from(error: BlobError) -> Self {
        RebuildError::Look(error.into())
    }
}

impl Coded for RebuildError {
    fn code(&self) -> Code {
        match self {
            RebuildError::Look(error) => error.code(),
            RebuildError::Nobodys(..) => Code::OBJECT_STORE_EMPTY,
            RebuildError::NotAdopted { .. } => Code::OBJECT_STORE_FOREIGN,
            RebuildError::Running(_) => Code::CLUSTER_RUNNING,
            RebuildError::Namespace(..) | RebuildError::Counter(..) => Code::RECORD_UNREADABLE,
            RebuildError::Contended(_) => Code::METADATA_UNKNOWN,
        }
    }
}

/// How to look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Read every object whole and check every byte.
    pub whole: bool,
    /// Names of topics whose objects hold none.
    pub names: BTreeMap<TopicId, TopicName>,
}

/// A topic that can be attached.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// Whether it is attached: before, or by now.
    pub attached: bool,
    state: State,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = self.state.segments();
        let first = segments.first().map_or(self.state.next_index, |segment| segment.first_index);
        let entries: u64 = segments.iter().map(|segment| segment.entries()).sum();
        let bytes: u64 = segments.iter().map(|segment| segment.bytes()).sum();
        let (ledgers, end) = (segments.len(), self.state.next_index);
        write!(
            f,
            "{}: {ledgers} ledgers, {entries} entries, {bytes} bytes, messages {first} up to and without {end}",
            self.name
        )
    }
}

/// What is to be done, or was.
#[derive(Debug, Default)]
pub struct Plan {
    /// Topics, by name.
    pub topics: Vec<Topic>,
    /// What is not attached.
    pub findings: Vec<Finding>,
    /// The bucket's identity, where the metadata do not name it yet.
    pub to_adopt: Option<StoreId>,
    /// The highest ids that the bucket names.
    highest: Option<(LedgerId, TopicId)>,
    /// What the metadata say of a store so far, and the bucket's identity.
    identity: Option<(Option<Record>, Tag)>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for topic in &self.topics {
            writeln!(f, "{} {topic}", if topic.attached { "=" } else { "+" })?;
        }
        for finding in &self.findings {
            writeln!(f, "! {} {finding}", finding.code())?;
        }
        let attached = self.topics.iter().filter(|topic| topic.attached).count();
        let (topics, findings) = (self.topics.len(), self.findings.len());
        write!(f, "{topics} topics, {attached} of them attached, {findings} findings")
    }
}

/// Reads the bucket (called `place`) and says what is to be done; writes nothing. `progress` is told how many objects of how many
/// were read.
///
/// # Errors
/// See [`RebuildError`].
pub async fn plan(
    meta: &dyn MetadataStore,
    cluster: &str,
    place: &str,
    blobs: &dyn Blobs,
    options: &Options,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Plan, RebuildError> {
    let mut plan = Plan::default();
    whose(meta, cluster, place, blobs, &mut plan).await?;
    let (objects, uploads) = bucket(blobs, cluster).await?;
    plan.findings.extend(uploads.into_iter().map(|(key, id)| Finding::Upload { key, id: id.0 }));
    let total = objects.len();
    let reads = objects.into_iter().map(|(key, size)| objects::read(blobs, cluster, key, size, options));
    let mut reads = futures::stream::iter(reads).buffered(READS).enumerate();
    let mut read = Gathered::default();
    while let Some((nth, outcome)) = reads.next().await {
        outcome?.into_iter().for_each(|one| read.take(one, &mut plan));
        progress(nth + 1, total);
    }
    drop(reads);
    read.topics(blobs, options, &mut plan).await?;
    for topic in &mut plan.topics {
        topic.attached = match there(meta, cluster, topic).await? {
            There::Nothing => false,
            There::Same => true,
            There::Other(why) => {
                plan.findings.push(Finding::NotAttached { topic: topic.name.clone(), why });
                continue;
            }
        };
    }
    let left = |topic: &Topic| {
        plan.findings.iter().any(|f| matches!(f, Finding::NotAttached { topic: t, .. } if *t == topic.name))
    };
    let left: BTreeSet<_> =
        plan.topics.iter().filter(|topic| left(topic)).map(|topic| topic.name.clone()).collect();
    plan.topics.retain(|topic| !left.contains(&topic.name));
    Ok(plan)
}

/// Whose bucket it is: the metadata's own, or one that a person may take over.
async fn whose(
    meta: &dyn MetadataStore,
    cluster: &str,
    place: &str,
    blobs: &dyn Blobs,
    plan: &mut Plan,
) -> Result<(), RebuildError> {
    let key = Keys::new(cluster).object_store();
    let stored = meta.get(&key).await?;
    let recorded = stored.as_ref().map(|record| Recorded::decode(&record.value)).transpose();
    let recorded = recorded.map_err(|why| FsckError::Identity(key, why))?;
    let bucket = look(blobs, cluster).await?;
    match (decide(cluster, place, recorded.as_ref(), &bucket), bucket) {
        (Step::Good, _) => {}
        // Nobody has confirmed another store: it may be taken over.
        (Step::Confirm | Step::Refuse(Refusal::Taken { .. }), InBucket::Is(tag)) => {
            plan.to_adopt = Some(tag.id);
            plan.identity = Some((stored, tag));
        }
        (Step::Refuse(refusal), _) => return Err(FsckError::Wrong(refusal).into()),
        _ => return Err(RebuildError::Nobodys(place.to_owned(), cluster.to_owned())),
    }
    Ok(())
}

/// What lies under a topic's name in the metadata.
enum There {
    Nothing,
    /// All of its ledgers, in the same objects.
    Same,
    /// Something else, and why that is not touched.
    Other(String),
}

async fn there(meta: &dyn MetadataStore, cluster: &str, topic: &Topic) -> Result<There, MetaError> {
    let Some(stored) = meta.get(&Keys::new(cluster).topic(&topic.name)).await? else {
        return Ok(There::Nothing);
    };
    let state = match record::decode(&stored.value) {
        Ok((state, _)) => state,
        Err(error) => return Ok(There::Other(format!("its record cannot be read: {error}"))),
    };
    if state.topic_id != topic.state.topic_id {
        let (is, was) = (state.topic_id, topic.state.topic_id);
        return Ok(There::Other(format!(
            "there is another topic of that name (id {is}, the bucket's is {was}); delete it, then run this again"
        )));
    }
    for segment in topic.state.segments() {
        let known = state.segments().binary_search_by_key(&segment.id(), |known| known.id()).ok();
        let known = known.and_then(|at| state.segments()[at].offload.attempt());
        if known != segment.offload.attempt() {
            return Ok(There::Other(format!(
                "there is a topic of that name and id, and it does not have the object of ledger {}: it has gone on since, or is another",
                segment.id()
            )));
        }
    }
    Ok(There::Same)
}

/// What the bucket holds, by topic and ledger.
#[derive(Default)]
struct Gathered {
    ledgers: BTreeMap<TopicId, BTreeMap<LedgerId, Vec<Found>>>,
    bad: Vec<(Named, Finding)>,
}

impl Gathered {
    fn take(&mut self, read: Read, plan: &mut Plan) {
        match read {
            Read::Found(found) => {
                plan.saw(found.ledger(), found.topic);
                let topic = self.ledgers.entry(found.topic).or_default();
                topic.entry(found.ledger()).or_default().push(*found);
            }
            Read::Bad(named, finding) => {
                plan.saw(named.ledger, named.topic);
                self.bad.push((named, finding));
            }
            Read::Strange(finding) => plan.findings.push(finding),
            Read::Gone => {}
        }
    }

    /// Makes topics of it.
    async fn topics(self, blobs: &dyn Blobs, options: &Options, plan: &mut Plan) -> Result<(), BlobError> {
        let mut chosen: BTreeMap<TopicId, Vec<Found>> = BTreeMap::new();
        for (topic, ledgers) in self.ledgers {
            for (_, attempts) in ledgers {
                chosen.entry(topic).or_default().extend(choose(blobs, attempts, options, plan).await?);
            }
        }
        for (named, finding) in self.bad {
            let ledgers = chosen.get(&named.topic);
            let whole = ledgers.is_some_and(|found| found.iter().any(|found| found.ledger() == named.ledger));
            plan.findings.push(match finding {
                Finding::Damaged { key, .. } if whole => Finding::Spare {
                    key,
                    size: 0,
                    why: "it is damaged, and another attempt of its ledger is whole",
                },
                finding => finding,
            });
        }
        let mut by_name: BTreeMap<TopicName, Vec<State>> = BTreeMap::new();
        for (id, found) in chosen {
            match name_of(id, &found, options) {
                Ok(name) => by_name.entry(name.clone()).or_default().extend(chain(id, &name, found, plan)),
                Err(finding) => plan.findings.push(finding),
            }
        }
        for (name, states) in by_name {
            plan.topics.extend(latest(name, states, &mut plan.findings));
        }
        Ok(())
    }
}

impl Plan {
    fn saw(&mut self, ledger: LedgerId, topic: TopicId) {
        let (ledgers, topics) = self.highest.get_or_insert((ledger, topic));
        (*ledgers, *topics) = ((*ledgers).max(ledger), (*topics).max(topic));
    }
}

/// One whole attempt of a ledger. Of several the last owner's, and only after all of its bytes were checked.
async fn choose(
    blobs: &dyn Blobs,
    mut attempts: Vec<Found>,
    options: &Options,
    plan: &mut Plan,
) -> Result<Option<Found>, BlobError> {
    attempts.sort_by_key(|found| (found.epoch, found.segment.offload.attempt()));
    let several = attempts.len() > 1;
    let mut chosen = None;
    for found in attempts.into_iter().rev() {
        let (key, size) = (found.key.clone(), found.object.shape.size);
        if chosen.is_some() {
            plan.findings.push(Finding::Spare { key, size, why: "another attempt of its ledger is whole" });
        } else if several && !options.whole && !found.is_whole(blobs).await? {
            let what = "its blocks are not what they were".to_owned();
            plan.findings.push(Finding::Damaged { key, what });
        } else {
            chosen = Some(found);
        }
    }
    Ok(chosen)
}

/// What a topic is called: by its objects, else by the one who asks.
fn name_of(id: TopicId, found: &[Found], options: &Options) -> Result<TopicName, Finding> {
    let told = found.iter().rev().find_map(|found| TopicName::parse(found.name.as_ref()?).ok());
    told.or_else(|| options.names.get(&id).cloned()).ok_or_else(|| Finding::Nameless {
        topic: id,
        ledgers: found.len(),
        bytes: found.iter().map(|found| found.segment.bytes()).sum(),
    })
}

/// A topic's chain of ledgers, with its holes told; `None` when they do not follow each other.
fn chain(id: TopicId, name: &TopicName, found: Vec<Found>, plan: &mut Plan) -> Option<State> {
    for pair in found.windows(2) {
        let (end, next) = (pair[0].end, pair[1].segment.first_index);
        let (after, before) = (pair[0].ledger(), pair[1].ledger());
        if next < end {
            let why =
                format!("ledger {before} begins at message {next}, before ledger {after} ends at {end}");
            plan.findings.push(Finding::NotAttached { topic: name.clone(), why });
            return None;
        }
        if next > end {
            let messages = next.0 - end.0;
            plan.findings.push(Finding::Hole { topic: name.clone(), after, before, messages });
        }
    }
    let (first, last) = (found.first()?, found.last()?);
    let mut state = State::new(id, BTreeMap::new(), first.segment.closed_ms);
    state.next_index = last.end;
    state.last = Some(Position::new(last.ledger(), last.segment.last()));
    state.next_ordinal = found.len() as u64;
    state.last_stamp_ms = found.iter().map(|found| found.last_stamp_ms).max().unwrap_or_default();
    let rises = state.set_chain(found.into_iter().map(|found| found.segment).collect(), None);
    debug_assert!(rises, "they come in the order of their ids");
    Some(state)
}

/// Of several topics that had one name the one that was written last.
fn latest(name: TopicName, mut states: Vec<State>, findings: &mut Vec<Finding>) -> Option<Topic> {
    states.sort_by_key(|state| (state.last_stamp_ms, state.topic_id));
    let state = states.pop()?;
    findings.extend(states.iter().map(|older| Finding::Older {
        topic: name.clone(),
        id: older.topic_id,
        by: state.topic_id,
        ledgers: older.segments().len(),
        bytes: older.segments().iter().map(|segment| segment.bytes()).sum(),
    }));
    Some(Topic { name, attached: false, state })
}
