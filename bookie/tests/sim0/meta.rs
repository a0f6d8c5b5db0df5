//! Cluster metadata: the store of `geminga_common`, called through simulated time. Lost requests and answers, outages and late
//! answers are the caller's side (`world.rs`); here is what is stored, and the observer sees every commit.

use crate::check::Checker;
use bytes::Bytes;
use futures::FutureExt as _;
use geminga_bookie::node::registration::{Mine, Start, decide};
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::registry::record::{BookieRecord, Labels, LiveRecord, NodeState};
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::clock::ManualClock;
use geminga_common::ids::{BookieId, LedgerId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{LeaseId, MetaError, MetadataStore, Op, Record, Txn, TxnOutcome};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The topic's record.
pub(crate) const TOPIC: &str = "topic";
/// Who owns the topic: leased.
pub(crate) const OWNER: &str = "owner";
/// The epoch counter: not leased.
pub(crate) const EPOCH: &str = "epoch";

pub(crate) fn keys() -> Keys {
    Keys::new("sim0")
}

#[derive(Clone, Debug)]
pub(crate) enum MetaOp {
    Get(String),
    List(String),
    Txn(Txn),
    Lease(Duration),
    KeepAlive(LeaseId),
}

impl fmt::Display for MetaOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaOp::Get(key) => write!(f, "get {key}"),
            MetaOp::List(prefix) => write!(f, "list {prefix}"),
            MetaOp::Lease(_) => f.write_str("grant a lease"),
            MetaOp::KeepAlive(lease) => write!(f, "keep lease {} alive", lease.0),
            MetaOp::Txn(txn) => {
                write!(f, "txn if {:?} then", txn.compares)?;
                for op in &txn.ops {
                    match op {
                        Op::Put { key, .. } => write!(f, " put {key}")?,
                        Op::Delete { key } => write!(f, " delete {key}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum MetaReply {
    Record(Option<Record>),
    List(Vec<Record>),
    Txn(TxnOutcome),
    Lease(LeaseId),
    Done,
}

pub(crate) struct Meta {
    store: MemoryStore,
    clock: Arc<ManualClock>,
    keys: Keys,
}

impl Meta {
    pub(crate) fn new(clock: Arc<ManualClock>) -> Self {
        Self { store: MemoryStore::new(clock.clone()), clock, keys: keys() }
    }

    /// Runs a call now. The store in memory answers at once.
    pub(crate) fn run(&self, op: MetaOp, check: &mut Checker) -> Result<MetaReply, MetaError> {
        let now =
            |answer: Option<Result<MetaReply, MetaError>>| answer.expect("the store in memory never waits");
        let store = &self.store;
        now(match op {
            MetaOp::Get(key) => store.get(&key).map(|r| r.map(MetaReply::Record)).now_or_never(),
            MetaOp::List(prefix) => {
                store.list(&prefix, None, 10_000).map(|r| r.map(MetaReply::List)).now_or_never()
            }
            MetaOp::Lease(ttl) => store.lease_grant(ttl).map(|r| r.map(MetaReply::Lease)).now_or_never(),
            MetaOp::KeepAlive(lease) => {
                store.lease_keep_alive(lease).map(|r| r.map(|()| MetaReply::Done)).now_or_never()
            }
            MetaOp::Txn(txn) => {
                let ops = txn.ops.clone();
                let answer = store.txn(txn).now_or_never();
                if let Some(Ok(TxnOutcome::Committed(_))) = answer {
                    check.committed(&ops, &self.keys);
                }
                answer.map(|r| r.map(MetaReply::Txn))
            }
        })
    }

    /// The same content in a fresh store: revisions begin anew, leases are gone and what hung on them.
    pub(crate) fn restore(&mut self) {
        let all = self.peek_all("");
        self.store = MemoryStore::new(self.clock.clone());
        all.into_iter().filter(|r| r.key != OWNER).for_each(|r| self.put(r.key, Some(r.value)));
    }

    /// The watermark that bookies obey.
    pub(crate) fn watermark(&self) -> u64 {
        self.peek_all(&self.keys.wm())
            .iter()
            .filter(|r| r.key == self.keys.wm())
            .map(watermark_of)
            .max()
            .unwrap_or(0)
    }

    fn put(&self, key: String, value: Option<Bytes>) {
        let op = match value {
            Some(value) => Op::put(key, value),
            None => Op::delete(key),
        };
        let done = self.store.txn(Txn { compares: Vec::new(), ops: vec![op] }).now_or_never();
        debug_assert!(matches!(done, Some(Ok(_))), "an unconditional write");
    }

    fn record_of(&self, id: &BookieId) -> Option<BookieRecord> {
        let key = self.keys.bookie(id);
        let stored = self.peek_all(&key).into_iter().find(|stored| stored.key == key)?;
        Some(BookieRecord::decode(&stored.value).expect("only records are stored there"))
    }

    /// A bookie that starts compares itself with its record and writes it, as a node does.
    pub(crate) fn register(&self, me: &BookieRef, boot: u64, data_loss: bool) -> Start {
        let record = BookieRecord {
            incarnation: me.incarnation,
            boot,
            address: String::new(),
            labels: Labels::default(),
            state: NodeState::ReadWrite,
            capacity_bytes: 0,
            damage: 0,
            room: Default::default(),
        };
        let start = decide(self.record_of(&me.id).as_ref(), &Mine { record, data_loss });
        if let Start::Write(record) = &start {
            self.put(self.keys.bookie(&me.id), Some(record.encode()));
        }
        start
    }

    pub(crate) fn live(&self, me: &BookieRef, live: bool) {
        let record = LiveRecord { incarnation: me.incarnation, address: String::new(), process: 1 };
        self.put(self.keys.live_bookie(&me.id), live.then(|| record.encode()));
    }

    /// Whether nothing counts on a store any more.
    pub(crate) fn is_let_go(&self, me: &BookieRef) -> bool {
        self.state_of(me) == Some(NodeState::Lost)
    }

    /// What metadata says of a store, if it is the one under its name.
    pub(crate) fn state_of(&self, me: &BookieRef) -> Option<NodeState> {
        self.record_of(&me.id)
            .filter(|record| record.incarnation == me.incarnation)
            .map(|record| record.state)
    }

    /// What is stored under a prefix, for observers.
    pub(crate) fn peek_all(&self, prefix: &str) -> Vec<Record> {
        self.store.list(prefix, None, 10_000).now_or_never().and_then(Result::ok).unwrap_or_default()
    }
}

/// A watermark as stored.
pub(crate) fn watermark_of(record: &Record) -> u64 {
    u64::from_be_bytes(record.value.as_ref().try_into().expect("a counter"))
}

/// A bookie's registration as stored.
pub(crate) fn registration(stored: &Record, keys: &Keys) -> Option<(BookieRef, NodeState)> {
    let id = keys.bookie_of_key(&stored.key)?;
    let record = BookieRecord::decode(&stored.value).ok()?;
    Some((BookieRef { id, incarnation: record.incarnation }, record.state))
}

/// The topic record: a chain of closed ledgers and the open one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Topic {
    pub(crate) epoch: u64,
    pub(crate) op_id: u64,
    pub(crate) open: Option<LedgerId>,
    pub(crate) next_ordinal: u64,
    pub(crate) segments: Vec<ClosedLedger>,
}

impl Topic {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        for word in [self.epoch, self.op_id, self.open.map_or(0, |l| l.0), self.next_ordinal] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        for segment in &self.segments {
            let bytes = segment.encode();
            out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            out.extend_from_slice(&bytes);
        }
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let word = |n: usize| u64::from_be_bytes(bytes[8 * n..8 * n + 8].try_into().expect("eight bytes"));
        let mut topic = Self {
            epoch: word(0),
            op_id: word(1),
            open: Some(LedgerId(word(2))).filter(|l| l.0 > 0),
            next_ordinal: word(3),
            segments: Vec::new(),
        };
        let mut rest = &bytes[32..];
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let (segment, tail) = tail.split_at(u32::from_be_bytes(*len) as usize);
            topic.segments.push(ClosedLedger::decode(segment).expect("what was encoded"));
            rest = tail;
        }
        topic
    }

    /// The highest ledger id of the chain.
    pub(crate) fn highest(&self) -> Option<LedgerId> {
        self.open.or(self.segments.last().map(|s| s.id))
    }
}

/// A tombstone's value: the ledger's content, so that the deleter knows whom to ask.
pub(crate) fn tombstone(ledger: &ClosedLedger) -> Bytes {
    ledger.encode()
}
