//! A broker: takes the topic by lease and epoch, opens it (recovering what was left open), appends, rolls, trims, until it is
//! fenced or loses the record. It is deliberately stubborn: losing its lease does not stop it, only fencing and epochs do.

use crate::damage::Planned;
use crate::ledger::{
    Bookies, Recovered, bookies_of, decode, get, get_patiently, no_bookies, place, plan, read_one, recover,
    seal,
};
use crate::meta::{EPOCH, MetaOp, MetaReply, OWNER, TOPIC, Topic, keys, tombstone, watermark_of};
use crate::plan::{MS, SECOND, Us};
use crate::slow::Told;
use crate::world::{Cx, Inbox};
use crate::writer::{Event, Shell};
use bytes::Bytes;
use geminga_bookie_client::ledgers::AppendError;
use geminga_bookie_client::mutant::{Mutant, active};
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{
    ClosedLedger, Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId, RepairRange,
};
use geminga_bookie_client::registry::record::NodeState;
use geminga_bookie_client::rpc::BookieRef;
use geminga_bookie_client::writer::state::{Limits, State, Status};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use geminga_common::metadata::{Compare, MetaError, Op, Revision, Txn, TxnOutcome};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(10);
/// Ids leased at once.
const BLOCK: u64 = 3;

/// What a broker is while it owns the topic.
struct Owner {
    cx: Cx,
    epoch: u64,
    guard: Compare,
    bookies: Bookies,
    inbox: Inbox<Event>,
    topic: Topic,
    revision: Revision,
    quorum: QuorumSpec,
    queue: VecDeque<(u64, Bytes)>,
    next_message: u64,
    shell: Option<Shell>,
    sealed: Option<Us>,
    ids: (u64, u64),
}

/// A broker's life.
pub(crate) async fn run(cx: Cx) {
    let bookies = no_bookies(&cx);
    cx.spawn(watch_bookies(cx.clone(), bookies.clone()));
    loop {
        let alive = Rc::new(Cell::new(true));
        if let Some((epoch, value)) = take_over(&cx, &alive).await {
            cx.check(|c| c.seen.takeovers += 1);
            cx.note("own", epoch, 0, || format!("broker {} owns the topic at epoch {epoch}", cx.proc));
            let guard = Compare::ValueIs(OWNER.into(), value);
            serve(&cx, epoch, guard, bookies.clone()).await;
            alive.set(false);
            cx.note("leave", epoch, 0, || format!("broker {} gives the topic up", cx.proc));
        }
        cx.nap(300 * MS + cx.below(2 * SECOND)).await;
    }
}

/// Keeps the list of live bookies, as late as watches and polls are.
pub(crate) async fn watch_bookies(cx: Cx, bookies: Bookies) {
    let keys = keys();
    loop {
        let all = cx.meta(MetaOp::List(keys.bookies_prefix())).await;
        let live = cx.meta(MetaOp::List(keys.live_bookies_prefix())).await;
        if let (Ok(MetaReply::List(all)), Ok(MetaReply::List(live))) = (all, live) {
            let up =
                |b: &BookieRef| live.iter().any(|r| keys.live_bookie_of_key(&r.key).as_ref() == Some(&b.id));
            let registered = all.iter().filter_map(|r| crate::meta::registration(r, &keys));
            let serving = registered.filter(|(_, state)| *state == NodeState::ReadWrite);
            *bookies.borrow_mut() = serving.map(|(store, _)| store).filter(up).collect();
        }
        cx.nap(500 * MS + cx.below(2 * SECOND)).await;
    }
}

/// Waits until nobody owns the topic, then raises the epoch.
async fn take_over(cx: &Cx, alive: &Rc<Cell<bool>>) -> Option<(u64, Bytes)> {
    let Ok(MetaReply::Lease(lease)) = cx.meta(MetaOp::Lease(LEASE)).await else { return None };
    if get(cx, OWNER).await.ok()?.is_some() {
        return None;
    }
    let before = get(cx, EPOCH).await.ok()?;
    let (epoch, unchanged) = match &before {
        None => (1, Compare::Absent(EPOCH.into())),
        Some(r) => {
            let last = u64::from_be_bytes(r.value.as_ref().try_into().expect("a counter"));
            (last + 1, Compare::ModRevision(EPOCH.into(), r.mod_revision))
        }
    };
    let value: Bytes =
        [epoch, cx.proc as u64, cx.life].iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>().into();
    let counter = Bytes::copy_from_slice(&epoch.to_be_bytes());
    let txn = Txn {
        compares: vec![Compare::Absent(OWNER.into()), unchanged],
        ops: vec![
            Op::Put { key: OWNER.into(), value: value.clone(), lease: Some(lease) },
            Op::put(EPOCH, counter),
        ],
    };
    let revision = match cx.meta(MetaOp::Txn(txn)).await {
        Ok(MetaReply::Txn(TxnOutcome::Committed(revision))) => revision,
        Ok(_) | Err(MetaError::LeaseGone(_)) => return None,
        Err(_) => get_patiently(cx, OWNER).await.filter(|r| r.value == value)?.mod_revision,
    };
    let epoch = if active(Mutant::EpochOfRevision) { revision.0 } else { epoch };
    let (within, alive) = (cx.clone(), alive.clone());
    cx.spawn(async move {
        // Who gives the topic up lets the lease run out.
        loop {
            within.sleep(3 * SECOND).await;
            if !alive.get() {
                return;
            }
            if let Err(MetaError::LeaseGone(_)) = within.meta(MetaOp::KeepAlive(lease)).await {
                return;
            }
        }
    });
    Some((epoch, value))
}

async fn serve(cx: &Cx, epoch: u64, guard: Compare, bookies: Bookies) {
    let mut owner = Owner::new(cx, epoch, guard, bookies);
    if owner.open().await.is_none() {
        return;
    }
    owner.turn_later();
    while owner.turn().await.is_some() {}
}

impl Owner {
    fn new(cx: &Cx, epoch: u64, guard: Compare, bookies: Bookies) -> Self {
        let quorum = cx.sim.w.borrow().plan.quorum;
        Self {
            cx: cx.clone(),
            epoch,
            guard,
            bookies,
            inbox: Inbox::default(),
            topic: Topic::default(),
            revision: Revision(0),
            quorum,
            queue: VecDeque::new(),
            next_message: 0,
            shell: None,
            sealed: None,
            ids: (0, 0),
        }
    }

    /// Commits a change of the topic record; `None` when another wrote it.
    async fn commit(&mut self, next: Topic, compares: Vec<Compare>, ops: Vec<Op>) -> Option<()> {
        let mut next = Topic { epoch: self.epoch, op_id: self.cx.random(), ..next };
        loop {
            let unchanged = match self.revision {
                Revision(0) => Compare::Absent(TOPIC.into()),
                revision => Compare::ModRevision(TOPIC.into(), revision),
            };
            let mut txn = Txn { compares: vec![self.guard.clone(), unchanged], ops: ops.clone() };
            txn.compares.extend(compares.iter().cloned());
            txn.ops.push(Op::put(TOPIC, next.encode()));
            let answer = self.cx.meta(MetaOp::Txn(txn)).await;
            if let Ok(MetaReply::Txn(TxnOutcome::Committed(revision))) = answer {
                (self.topic, self.revision) = (next, revision);
                return Some(());
            }
            let stored = get_patiently(&self.cx, TOPIC).await;
            let (now, revision) =
                stored.map_or((Topic::default(), Revision(0)), |r| (Topic::decode(&r.value), r.mod_revision));
            if now.op_id == next.op_id {
                self.cx.check(|c| c.seen.unknown_resolved += 1);
                (self.topic, self.revision) = (now, revision);
                return Some(());
            }
            // Not this owner's epoch: before its first commit the record still bears that of the last one (seed 1002305).
            let mine = now.epoch == self.topic.epoch && now.open == self.topic.open;
            if revision == self.revision && answer.is_err() {
                self.cx.sleep(50 * MS + self.cx.below(300 * MS)).await;
            } else if mine && revision != self.revision {
                // The controller swapped members or finished a repair: its segments stand, ours come after.
                let fresh = |s: &ClosedLedger| !self.topic.segments.iter().any(|old| old.id == s.id);
                let added: Vec<ClosedLedger> = next.segments.iter().filter(|s| fresh(s)).cloned().collect();
                let kept = |s: &ClosedLedger| next.segments.iter().any(|n| n.id == s.id);
                let segments = now.segments.iter().filter(|s| kept(s)).cloned().chain(added).collect();
                next = Topic { segments, ..next };
                (self.topic.segments, self.revision) = (now.segments, revision);
            } else {
                return None;
            }
        }
    }

    /// Reads the topic, recovers what its last owner left open, folds it in.
    async fn open(&mut self) -> Option<()> {
        match get_patiently(&self.cx, TOPIC).await {
            None => self.commit(Topic::default(), Vec::new(), Vec::new()).await?,
            Some(stored) => {
                self.topic = Topic::decode(&stored.value);
                self.revision = stored.mod_revision;
                if self.topic.epoch > self.epoch {
                    return None;
                }
            }
        }
        let Some(id) = self.topic.open else { return Some(()) };
        let (record, revision) = loop {
            match recover(&self.cx, id, &self.bookies).await {
                Recovered::Closed(record, revision) => break (record, revision),
                Recovered::NoRecord => return None,
                Recovered::Undecided => self.cx.sleep(300 * MS + self.cx.below(2 * SECOND)).await,
            }
        };
        let closed = record.closed()?;
        let key = keys().ledger(id);
        let mut ops = Vec::new();
        if closed.repair.is_empty() || closed.last.is_none() {
            ops.push(Op::delete(key.clone()));
        }
        let mut next = Topic { open: None, ..self.topic.clone() };
        if closed.last.is_some() {
            next.segments.push(closed);
        } else {
            ops.push(Op::put(keys().tombstone(id), tombstone(&closed)));
        }
        self.commit(next, vec![Compare::ModRevision(key, revision)], ops).await
    }

    fn turn_later(&self) {
        let turn = self.cx.sim.w.borrow().plan.turn;
        let inbox = self.inbox.clone();
        self.cx.wake(turn / 2 + self.cx.below(turn), move || inbox.push(Event::Turn));
    }

    /// One event, and what follows from it; `None` when the topic is lost.
    async fn turn(&mut self) -> Option<()> {
        let event = self.inbox.next().await;
        match event {
            Event::Turn => {
                self.produce();
                self.turn_later();
                if self.cx.below(12) == 0 {
                    self.read_something();
                }
                if self.cx.below(10) == 0 {
                    self.trim().await?;
                }
            }
            Event::Wait => {}
            event => {
                let of = match &event {
                    Event::Added { writer, .. } => *writer,
                    Event::Changed(ledger, _) | Event::Readmit(ledger) => *ledger,
                    _ => return Some(()),
                };
                if let Some(shell) = self.shell.as_mut().filter(|s| s.state.ledger() == of) {
                    shell.on(event);
                }
            }
        }
        self.drive().await
    }

    fn produce(&mut self) {
        if self.queue.len() > 20 || self.cx.sim.w.borrow().quiet {
            return;
        }
        let producer = (self.cx.proc as u64) << 32 | self.cx.life << 16 | self.epoch;
        for _ in 0..1 + self.cx.below(3) {
            self.next_message += 1;
            let message = producer << 20 | self.next_message;
            let mut payload = Vec::with_capacity(700);
            payload.extend_from_slice(&message.to_be_bytes());
            payload.extend_from_slice(&producer.to_be_bytes());
            let most = self.cx.sim.w.borrow().plan.payload_max;
            let pad = self.cx.below(most + 1) as usize;
            payload.extend((0..pad).map(|at| (message as usize + at * 7) as u8));
            self.queue.push_back((message, payload.into()));
        }
    }

    async fn drive(&mut self) -> Option<()> {
        let roll_entries = self.cx.sim.w.borrow().plan.roll_entries;
        loop {
            let Some(shell) = &mut self.shell else {
                if self.queue.is_empty() {
                    return Some(());
                }
                return self.roll(None).await;
            };
            match shell.state.status().clone() {
                Status::Failed(AppendError::Fenced) => {
                    self.cx.check(|c| c.seen.fenced_writers += 1);
                    return None;
                }
                Status::Failed(_) if !shell.state.changing() => {
                    let shell = self.shell.take()?;
                    self.roll(Some(shell)).await?;
                    continue;
                }
                Status::Failed(_) | Status::Closing => return Some(()),
                Status::Open => {}
            }
            while self.sealed.is_none()
                && shell.state.last_sent().map_or(0, |l| l.0 + 1) < roll_entries
                && let Some((message, payload)) = self.queue.pop_front()
            {
                if !shell.append(message, payload.clone()) {
                    self.queue.push_front((message, payload));
                    break;
                }
            }
            let full = shell.state.last_sent().map_or(0, |l| l.0 + 1) >= roll_entries;
            let idle = self.cx.sim.w.borrow().quiet && self.queue.is_empty();
            if *shell.state.status() != Status::Open {
                continue;
            }
            if !(full || idle || self.sealed.is_some()) {
                return Some(());
            }
            let now = self.cx.now();
            if self.sealed.is_none() {
                self.sealed = Some(now);
                let inbox = self.inbox.clone();
                self.cx.wake(SECOND + 1, move || inbox.push(Event::Wait));
            }
            let waited = now - self.sealed.unwrap_or(now);
            let drained = shell.state.lac() == shell.state.last_sent() && !shell.state.changing();
            if !drained || shell.state.lafr() != shell.state.lac() && waited < SECOND {
                return Some(());
            }
            let shell = self.shell.take()?;
            self.roll(Some(shell)).await?;
            if self.shell.is_none() {
                return Some(());
            }
        }
    }

    /// Closes the open ledger and opens the next in one transaction. What was sent and not acknowledged goes out again only when
    /// the close is known (I11).
    async fn roll(&mut self, old: Option<Shell>) -> Option<()> {
        let keys = keys();
        let mut next = Topic { open: None, ..self.topic.clone() };
        let (mut compares, mut ops, mut again, mut sealing) = (Vec::new(), Vec::new(), Vec::new(), None);
        if let Some(mut old) = old {
            let record = LedgerRecord { op_id: OpId(self.cx.random()), ..old.state.close().ok()? };
            let closed = record.closed()?;
            let key = keys.ledger(record.id);
            compares.push(Compare::ModRevision(key.clone(), old.state.revision()));
            let done = closed.repair.is_empty() || closed.last.is_none();
            ops.push(if done { Op::delete(key) } else { Op::put(key, record.encode()) });
            if closed.last.is_some() {
                next.segments.push(closed.clone());
            } else {
                ops.push(Op::put(keys.tombstone(record.id), tombstone(&closed)));
            }
            again = old.sent.drain(..).map(|(_, message, payload)| (message, payload)).collect();
            sealing = Some(closed);
        }
        let wanted = !self.queue.is_empty() || !again.is_empty();
        let (created, planned) = if wanted { self.create(&next).await } else { None }.unzip();
        if let Some(record) = &created {
            compares.push(Compare::ValueBelow(keys.wm_create(), id_value(record.id)));
            compares.push(Compare::Absent(keys.ledger(record.id)));
            ops.push(Op::put(keys.ledger(record.id), record.encode()));
            next.open = Some(record.id);
            next.next_ordinal += 1;
        }
        if sealing.is_none() && created.is_none() {
            return Some(());
        }
        let committed = self.commit(next, compares, ops).await;
        planned.into_iter().for_each(Planned::settled);
        committed?;
        self.sealed = None;
        again.into_iter().rev().for_each(|item| self.queue.push_front(item));
        if let Some(closed) = sealing {
            self.cx.check(|c| c.seen.closed_by_writer += 1);
            self.cx.note("close", closed.id.0, 0, || {
                format!("broker {} closed {}: {closed:?}", self.cx.proc, closed.id)
            });
            seal(&self.cx, &bookies_of(&closed.fragments), closed.id, closed.last);
        }
        if let Some(record) = created {
            self.begin(record);
        }
        Some(())
    }

    fn begin(&mut self, record: LedgerRecord) {
        self.cx.note("open", record.id.0, 0, || {
            format!("broker {} opens {}: {:?}", self.cx.proc, record.id, record.fragments)
        });
        let w = self.cx.sim.w.borrow();
        let limits = Limits {
            entry_bytes_max: 3000,
            lag_bytes_max: w.plan.lag_bytes_max,
            fragments_max: w.plan.fragments_max,
        };
        drop(w);
        let mut shell = Shell {
            cx: self.cx.clone(),
            state: State::new(record, self.revision, limits),
            bookies: self.bookies.clone(),
            inbox: self.inbox.clone(),
            effects: Vec::new(),
            readmit_due: false,
            readmit_after: SECOND,
            planned: None,
            slow_told: Told::default(),
            leaving_slow: false,
            sent: VecDeque::new(),
        };
        shell.arm_readmission();
        self.shell = Some(shell);
        let inbox = self.inbox.clone();
        self.cx.wake(0, move || inbox.push(Event::Wait));
    }

    /// The record of the next ledger, if there are bookies and an id for it.
    async fn create(&mut self, chain: &Topic) -> Option<(LedgerRecord, Planned)> {
        let id = self.allocate(chain.highest().max(self.topic.highest())).await?;
        let slots = self.quorum.all();
        let found = place(&self.cx, &self.bookies, slots, &[]);
        let planned = plan(&self.cx, &found);
        let mut ensemble = vec![None; self.quorum.ensemble() as usize];
        found.into_iter().for_each(|(slot, bookie)| ensemble[slot as usize] = Some(bookie));
        let fragment = Fragment { first: EntryId(0), ensemble };
        if !self.quorum.writable_without(fragment.vacant()) {
            return None;
        }
        let growing = |slot| RepairRange { first: EntryId(0), last: None, slot };
        let record = LedgerRecord {
            id,
            term: Term(1),
            state: LedgerState::Open,
            quorum: self.quorum,
            repair: fragment.vacant().iter().map(growing).collect(),
            fragments: vec![fragment],
            attributes: Arc::new(LedgerAttributes {
                kind: LedgerKind::TopicData,
                owner: "topic".into(),
                topic: TopicId(1),
                ordinal: chain.next_ordinal,
                predecessor: chain.segments.last().map(|s| s.id),
                owner_epoch: OwnerEpoch(self.epoch),
                first_index: MessageIndex(0),
            }),
            op_id: OpId(self.cx.random()),
        };
        Some((record, planned))
    }

    async fn allocate(&mut self, above: Option<LedgerId>) -> Option<LedgerId> {
        let dead = get(&self.cx, &keys().wm_create()).await.ok()?.as_ref().map_or(0, watermark_of);
        let floor = above.map_or(1, |id| id.0 + 1).max(dead + 1);
        loop {
            let id = self.ids.0.max(floor);
            if id < self.ids.1 {
                self.ids.0 = id + 1;
                return Some(LedgerId(id));
            }
            let key = keys().ids();
            let stored = get(&self.cx, &key).await.ok()?;
            let (next, unchanged) = match stored {
                None => (1, Compare::Absent(key.clone())),
                Some(r) => {
                    let counter = u64::from_be_bytes(r.value.as_ref().try_into().ok()?);
                    (counter, Compare::ModRevision(key.clone(), r.mod_revision))
                }
            };
            let next = next.max(floor);
            let end = Bytes::copy_from_slice(&(next + BLOCK).to_be_bytes());
            let txn = Txn { compares: vec![unchanged], ops: vec![Op::put(key, end)] };
            match self.cx.meta(MetaOp::Txn(txn)).await {
                Ok(MetaReply::Txn(TxnOutcome::Committed(_))) => self.ids = (next, next + BLOCK),
                Ok(_) => {}
                // At worst a block stays unused.
                Err(_) => return None,
            }
        }
    }

    /// Drops the oldest closed ledgers: out of the chain and into the tombstones in one transaction.
    async fn trim(&mut self) -> Option<()> {
        let keep = self.cx.sim.w.borrow().plan.keep;
        if self.topic.segments.len() <= keep {
            return Some(());
        }
        let oldest = self.topic.segments[0].clone();
        let next = Topic { segments: self.topic.segments[1..].to_vec(), ..self.topic.clone() };
        let ops = vec![
            Op::put(keys().tombstone(oldest.id), tombstone(&oldest)),
            Op::delete(keys().ledger(oldest.id)),
        ];
        self.commit(next, Vec::new(), ops).await
    }

    /// Reads an acknowledged entry back. A negative quorum for it is an incident.
    fn read_something(&self) {
        let closed = self.topic.segments.len() as u64;
        let pick = self.cx.below(closed + 1);
        let (record, last) = match (&self.shell, self.topic.segments.get(pick as usize)) {
            (_, Some(segment)) => (view(segment), segment.last),
            (Some(shell), None) => (shell.state.record().clone(), shell.state.lac()),
            (None, None) => return,
        };
        let Some(last) = last else { return };
        let id = EntryId(self.cx.below(last.0 + 1));
        let cx = self.cx.clone();
        self.cx.spawn(async move {
            if let Ok(None) = read_one(&cx, &record, id).await {
                cx.check(|c| {
                    if c.ledgers.get(&record.id).is_none_or(|l| !l.tombstoned) {
                        c.broken(format!(
                            "S1: a quorum says that {}:{id} does not exist; it was acknowledged",
                            record.id
                        ));
                    }
                });
            }
        });
    }
}

fn id_value(id: LedgerId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

/// A closed ledger as a record, for readers.
pub(crate) fn view(closed: &ClosedLedger) -> LedgerRecord {
    LedgerRecord {
        id: closed.id,
        term: closed.term,
        state: LedgerState::Closed { last: closed.last, length: closed.length },
        quorum: closed.quorum,
        fragments: closed.fragments.clone(),
        repair: closed.repair.clone(),
        attributes: Arc::new(LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: String::new(),
            topic: TopicId(1),
            ordinal: 0,
            predecessor: None,
            owner_epoch: OwnerEpoch(0),
            first_index: MessageIndex(0),
        }),
        op_id: OpId(0),
    }
}

/// The record of a ledger, if it has one.
pub(crate) async fn record_of(cx: &Cx, id: LedgerId) -> Option<(LedgerRecord, Revision)> {
    get_patiently(cx, &keys().ledger(id)).await.map(|stored| decode(&stored))
}

#[cfg(test)]
mod tests;
