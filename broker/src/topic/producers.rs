//! Who may publish: names, access modes, the exclusive term. Pure: the owner task acts on the answers.
//!
//! Rules (`pulsar-map` 1.9, `pulsar-observed` 2 and 10):
//! - A name is held by one producer. The same producer of the same connection with a higher epoch replaces itself; anyone else
//!   waits for the holder's liveness to be probed.
//! - *Shared* meets an exclusive producer, or one waiting to be: busy. *Exclusive* meets anyone: fenced. *WaitForExclusive* queues.
//!   *ExclusiveWithFencing* throws everyone out, also those who wait.
//! - Each exclusive term raises the topic epoch; whoever believes in an older one is fenced.

use super::ProducerKey;
use super::messages::{AccessMode, AddProducer, Admitted};
use super::meter::Meter;
use super::peer::Peer;
use geminga_common::clock::Mono;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A producer that may publish.
pub(super) struct Producer {
    /// What it came with.
    pub(super) spec: Box<AddProducer>,
    /// Sends not decided yet.
    pub(super) pending: usize,
    /// Closed by its client; gone once nothing is pending.
    pub(super) closing: Vec<super::Reply<()>>,
    /// Figures for stats.
    pub(super) figures: Figures,
}

/// What a producer has sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Messages and bytes.
    pub(super) traffic: Meter<2>,
    /// When it connected, ms since 1970.
    pub(super) connected_ms: u64,
}

/// The time by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// For intervals.
    pub(super) mono: Mono,
    /// For people, ms since 1970.
    pub(super) wall_ms: u64,
}

/// The producers of a topic.
#[derive(Default)]
pub(super) struct Producers {
    members: BTreeMap<ProducerKey, Producer>,
    waiting: VecDeque<(ProducerKey, Box<AddProducer>)>,
    exclusive: Option<ProducerKey>,
    topic_epoch: Option<u64>,
    next_key: u64,
}

/// What admission says.
pub(super) enum Verdict {
    /// In, publishing at once.
    In(ProducerKey),
    /// In, once the topic epoch is stored: then call [`Producers::begin_term`].
    Exclusive(Box<AddProducer>, u64),
    /// In the queue.
    Waits(ProducerKey),
    /// The name is held by this one.
    Held(Arc<Peer>, String),
    /// Someone shares or owns the topic.
    Busy,
    /// Older than the exclusive term, or someone is there already.
    Fenced,
}

impl Producers {
    /// No producers; `topic_epoch` as stored.
    pub(super) fn new(topic_epoch: Option<u64>) -> Self {
        Self { topic_epoch, ..Self::default() }
    }

    /// Producers that publish.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ProducerKey, &Producer)> {
        self.members.iter()
    }

    /// How many there are, waiting ones left out.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The name of a waiting producer.
    pub(super) fn waiting_name(&self, key: ProducerKey) -> String {
        self.waiting.iter().find(|(k, _)| *k == key).map(|(_, spec)| spec.name.clone()).unwrap_or_default()
    }

    /// How many wait for an exclusive term.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// One of them.
    pub(super) fn get_mut(&mut self, key: ProducerKey) -> Option<&mut Producer> {
        self.members.get_mut(&key)
    }

    /// The epoch of the latest exclusive term.
    pub(super) fn topic_epoch(&self) -> Option<u64> {
        self.topic_epoch
    }

    /// Decides on a newcomer.
    pub(super) fn admit(&mut self, spec: Box<AddProducer>, now: Now) -> Verdict {
        if let (Some(believed), Some(current)) = (spec.topic_epoch, self.topic_epoch)
            && believed < current
        {
            return Verdict::Fenced;
        }
        if let Some((key, holder)) = self.members.iter().find(|(_, p)| p.spec.name == spec.name) {
            let same = holder.spec.peer.id == spec.peer.id && holder.spec.id == spec.id;
            if !(same && spec.epoch > holder.spec.epoch) {
                return Verdict::Held(holder.spec.peer.clone(), spec.name.clone());
            }
            let key = *key;
            self.members.remove(&key);
            if self.exclusive == Some(key) {
                self.exclusive = None;
            }
        }
        match spec.mode {
            AccessMode::Shared if self.exclusive.is_some() || !self.waiting.is_empty() => Verdict::Busy,
            AccessMode::Shared => {
                let key = self.key();
                self.insert(key, spec, now);
                Verdict::In(key)
            }
            AccessMode::Exclusive if self.members.is_empty() && self.waiting.is_empty() => self.term(spec),
            AccessMode::Exclusive => Verdict::Fenced,
            AccessMode::WaitForExclusive if self.members.is_empty() && self.waiting.is_empty() => {
                self.term(spec)
            }
            AccessMode::WaitForExclusive => {
                let key = self.key();
                self.waiting.push_back((key, spec));
                Verdict::Waits(key)
            }
            AccessMode::ExclusiveWithFencing => self.term(spec),
        }
    }

    /// Takes everyone out, those who wait too.
    pub(super) fn evict_all(&mut self) -> Vec<(ProducerKey, Box<AddProducer>)> {
        self.exclusive = None;
        let members = std::mem::take(&mut self.members).into_iter().map(|(key, p)| (key, p.spec));
        members.chain(std::mem::take(&mut self.waiting)).collect()
    }

    /// Starts an exclusive term whose epoch is stored.
    pub(super) fn begin_term(
        &mut self,
        waited_as: Option<ProducerKey>,
        spec: Box<AddProducer>,
        epoch: u64,
        now: Now,
    ) -> ProducerKey {
        let key = waited_as.unwrap_or_else(|| self.key());
        self.insert(key, spec, now);
        self.exclusive = Some(key);
        self.topic_epoch = Some(epoch);
        key
    }

    /// Takes a producer out; the answer is the next in the queue, when it is its turn.
    pub(super) fn remove(&mut self, key: ProducerKey) -> Option<(ProducerKey, Box<AddProducer>)> {
        self.waiting.retain(|(waiting, _)| *waiting != key);
        self.members.remove(&key);
        if self.exclusive == Some(key) {
            self.exclusive = None;
        }
        if self.members.is_empty() { self.waiting.pop_front() } else { None }
    }

    /// The epoch of the term that begins next.
    pub(super) fn next_epoch(&self) -> u64 {
        self.topic_epoch.map_or(0, |epoch| epoch + 1)
    }

    /// What a member is told.
    pub(super) fn admitted(&self, key: ProducerKey) -> Option<Admitted> {
        let member = self.members.get(&key)?;
        Some(Admitted {
            key,
            name: member.spec.name.clone(),
            topic_epoch: if self.exclusive == Some(key) { self.topic_epoch } else { None },
            ready: true,
        })
    }

    fn term(&self, spec: Box<AddProducer>) -> Verdict {
        Verdict::Exclusive(spec, self.next_epoch())
    }

    fn insert(&mut self, key: ProducerKey, spec: Box<AddProducer>, now: Now) {
        let figures = Figures { connected_ms: now.wall_ms, traffic: Meter::new(now.mono) };
        self.members.insert(key, Producer { spec, pending: 0, closing: Vec::new(), figures });
    }

    fn key(&mut self) -> ProducerKey {
        self.next_key += 1;
        ProducerKey(self.next_key)
    }
}
