//! An owner of the topic. Two contend: each takes over now and then while the other still writes, and fencing decides.

use crate::client::Client;
use crate::sim::Sim;
use crate::topic::{KEY, Topic, attributes};
use geminga_bookie_client::entry::{Header, Kind};
use geminga_bookie_client::ledgers::{
    CreatePlan, Ledgers, NewEntry, RecoverError, Writer, WriterEvent, WriterEvents,
};
use geminga_common::ids::{LedgerId, MessageIndex};
use geminga_common::metadata::{Compare, MetaError, Op, Revision, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::{Instant, sleep};

struct Owner {
    sim: Arc<Sim>,
    number: usize,
    client: Client,
    rng: Rng,
    /// Appends of this process so far: no two payloads are the same.
    appended: u64,
    /// Bookies its client found slow so far.
    verdicts: u64,
}

/// An open ledger of one's own, as far as one knows.
struct Session {
    topic: Topic,
    writer: Box<dyn Writer>,
    events: mpsc::Receiver<WriterEvent>,
}

pub(crate) async fn owner(sim: Arc<Sim>, number: usize) -> turmoil::Result {
    let tasks = TaskGroup::new();
    let client = Client::new(&sim, &format!("o{number}"), &tasks).await;
    let rng = sim.rng();
    let mut owner = Owner { sim, number, client, rng, appended: 0, verdicts: 0 };
    let mut patience = if number == 0 { 0 } else { 1000 + owner.rng.below(4000) };
    loop {
        sleep(Duration::from_millis(patience)).await;
        if owner.sim.ending.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        patience = 100 + owner.rng.below(400);
        if let Some(mut session) = owner.take_over().await {
            owner.write(&mut session).await;
            // The other one's turn, mostly.
            patience = 500 + owner.rng.below(6000);
        }
    }
}

impl Owner {
    fn entry(&mut self, ledger: LedgerId) -> NewEntry {
        self.appended += 1;
        let size = self.rng.below(self.sim.plan.payload_max) + 16;
        let mut word = self.rng.next_u64() ^ self.appended << 32 ^ ledger.0;
        let mut payload = Vec::with_capacity(size as usize + 8);
        while payload.len() < size as usize {
            word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) ^ self.number as u64;
            payload.extend_from_slice(&word.to_be_bytes());
        }
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(self.appended),
            timestamp_ms: 1,
            bytes_before: 0,
        };
        NewEntry { header, payload: payload.into() }
    }

    /// Recovers what is open and opens a ledger of its own. `None`: not now.
    async fn take_over(&mut self) -> Option<Session> {
        let (mut topic, over) = self.client.topic().await;
        let mut txn = Txn::default();
        if let Some(current) = topic.current() {
            let begun = Instant::now();
            let recovered = match self.client.ledgers.recover(current).await {
                Ok(recovered) => recovered,
                Err(error) => {
                    let (number, sim) = (self.number, &self.sim);
                    sim.note(|| format!("o{number} does not recover {current}: {error}"));
                    if matches!(error, RecoverError::Undecided(_)) {
                        sim.check.lock().seen.undecided += 1;
                    }
                    return None;
                }
            };
            let (number, last, took) = (self.number, recovered.closed.last, begun.elapsed());
            self.sim.note(|| format!("o{number} recovered {current} up to {last:?} in {took:?}"));
            let mut check = self.sim.check.lock();
            check.seen.recovered += 1;
            check.closed(current, last);
            drop(check);
            txn.compares.extend(recovered.compares);
            txn.ops.extend(recovered.ops);
            topic.closed.push(recovered.closed);
        }
        self.open(topic, over, txn).await
    }

    /// Commits a new ledger together with what else `txn` holds, and opens its writer.
    async fn open(&mut self, mut topic: Topic, over: Option<Revision>, mut txn: Txn) -> Option<Session> {
        let above = topic.closed.last().map(|closed| closed.id);
        let id = self.client.ledgers.allocate_id(above).await.ok()?;
        let (epoch, ordinal) = (topic.epoch + 1, topic.closed.len() as u64);
        let plan = self.client.ledgers.plan_create(id, attributes(epoch, ordinal)).ok()?;
        (topic.epoch, topic.current) = (epoch, id.0);
        txn.compares.push(match over {
            Some(over) => Compare::ModRevision(KEY.into(), over),
            None => Compare::Absent(KEY.into()),
        });
        txn.compares.extend(plan.compares.clone());
        txn.ops.extend(plan.ops.clone());
        txn.ops.push(Op::put(KEY, topic.encode()));
        let revision = match self.client.meta.txn(txn).await {
            Ok(TxnOutcome::Committed(revision)) => revision,
            Ok(TxnOutcome::CompareFailed) => return None,
            Err(MetaError::Unknown(_)) => {
                // It may have happened: what is there tells.
                self.sim.check.lock().seen.unknown += 1;
                let (now, _) = self.client.topic().await;
                if (now.epoch, now.current) != (topic.epoch, topic.current) {
                    return None;
                }
                self.client.record(id).await?
            }
            Err(_) => return None,
        };
        Some(self.session(topic, revision, plan))
    }

    fn session(&self, topic: Topic, revision: Revision, plan: CreatePlan) -> Session {
        let (number, id, fragment) = (self.number, plan.id, plan.fragment.clone());
        self.sim.note(|| format!("o{number} opens {id} over {:?}", fragment.ensemble));
        let (tell, events) = mpsc::channel(10_000);
        let tell: WriterEvents = Arc::new(move |event| {
            let full = matches!(tell.try_send(event), Err(TrySendError::Full(_)));
            assert!(!full, "events are taken in time");
        });
        let writer = self.client.ledgers.writer(plan, revision, tell);
        Session { topic, writer, events }
    }

    /// Writes until somebody else has it, or it cannot go on.
    async fn write(&mut self, session: &mut Session) {
        let mut sent = 0;
        loop {
            let progress = self.look(session);
            if let Some(failed) = progress.failed {
                let (number, id) = (self.number, session.writer.ledger());
                self.sim.note(|| format!("o{number} loses {id}: {failed}"));
                return self.sim.check.lock().seen.lost += 1;
            }
            if self.sim.ending.load(Ordering::Relaxed) {
                return;
            }
            if sent >= self.sim.plan.roll_entries {
                if !self.roll(session).await {
                    return;
                }
                sent = 0;
                continue;
            }
            let burst = 1 + self.rng.below(6);
            for _ in 0..burst {
                let (ledger, entry) = (session.writer.ledger(), self.entry(session.writer.ledger()));
                let payload = (*entry.payload).clone();
                let Ok(id) = session.writer.append(vec![entry]) else { break };
                self.sim.check.lock().appended(ledger, id, payload);
                sent += 1;
            }
            let mean = self.sim.plan.turn.as_micros() as u64;
            let until = Instant::now() + Duration::from_micros(mean / 2 + self.rng.below(mean));
            while let Ok(Some(event)) = tokio::time::timeout_at(until, session.events.recv()).await {
                self.happened(session, event);
            }
        }
    }

    /// An event of the writer's; tells the observer when it has the ledger leave a bookie that is under a verdict.
    fn happened(&self, session: &mut Session, event: WriterEvent) {
        let slow = self.client.rpc.health().slow(Instant::now());
        let members = |session: &Session| {
            let fragments = session.writer.view().fragments;
            let last = fragments.last().map(|fragment| fragment.ensemble.clone()).unwrap_or_default();
            last.into_iter().flatten().filter(|bookie| slow.contains(&bookie.id)).count()
        };
        let before = if slow.is_empty() { 0 } else { members(session) };
        session.writer.on_event(event);
        if before > 0 && members(session) < before {
            let (number, id) = (self.number, session.writer.ledger());
            self.sim.note(|| format!("{id} of o{number} leaves a bookie that is slow: {slow:?}"));
            self.sim.check.lock().seen.slow_left += 1;
        }
    }

    /// Tells the observer what is acknowledged.
    fn look(&mut self, session: &mut Session) -> geminga_bookie_client::ledgers::Progress {
        let progress = session.writer.progress();
        let verdicts = self.client.rpc.health().verdicts();
        self.sim.check.lock().seen.slow_verdicts +=
            verdicts - std::mem::replace(&mut self.verdicts, verdicts);
        let ledger = session.writer.ledger();
        if let Some(lac) = progress.lac {
            let news = self.sim.check.lock().acknowledged(ledger, lac);
            if news > 0 {
                self.sim.note(|| format!("{ledger}: {lac} is acknowledged"));
                *self.sim.open.lock() = Some(session.writer.view());
            }
        }
        progress
    }

    async fn events_until(
        &self,
        session: &mut Session,
        by: Duration,
        met: impl Fn(&Session) -> bool,
    ) -> bool {
        let until = Instant::now() + by;
        loop {
            if met(session) {
                return true;
            }
            match tokio::time::timeout_at(until, session.events.recv()).await {
                Ok(Some(event)) => self.happened(session, event),
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Closes the ledger and goes on in the next. False: it is lost.
    async fn roll(&mut self, session: &mut Session) -> bool {
        let over = |s: &Session| s.writer.progress().failed.is_some() || s.writer.progress().drained();
        self.events_until(session, Duration::from_secs(20), over).await;
        let whole = |s: &Session| {
            let progress = s.writer.progress();
            progress.failed.is_some() || progress.lafr == progress.lac
        };
        self.events_until(session, Duration::from_secs(1), whole).await;
        let progress = self.look(session);
        if progress.failed.is_some() || !progress.drained() {
            return false;
        }
        let Ok(close) = session.writer.plan_close() else { return false };
        let (ledger, last) = (close.closed.id, close.closed.last);
        if last != progress.lac {
            self.sim
                .check
                .lock()
                .broken(format!("{ledger} is to close at {last:?}, acknowledged {progress:?}"));
        }
        let mut topic = session.topic.clone();
        topic.closed.push(close.closed);
        let txn = Txn { compares: close.compares, ops: close.ops };
        // Repair may have changed the record of the topic meanwhile: it is looked at again as long as it is ours.
        let (now, revision) = self.client.topic().await;
        if (now.epoch, now.current) != (session.topic.epoch, session.topic.current) {
            return false;
        }
        topic.closed.splice(..now.closed.len(), now.closed);
        let Some(next) = self.open(topic, revision, txn).await else { return false };
        let number = self.number;
        self.sim.note(|| format!("o{number} closed {ledger} at {last:?}"));
        let mut check = self.sim.check.lock();
        check.seen.rolled += 1;
        check.closed(ledger, last);
        drop(check);
        *session = next;
        true
    }
}
