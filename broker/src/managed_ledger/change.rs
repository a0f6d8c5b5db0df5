//! Changes of the topic record, one at a time: creating a ledger, rolling, closing, trimming, terminating, deleting.
//!
//! A roll is *one* transaction: ledger n closes, joins the segments, and n+1 opens. Before it is known to be committed nothing
//! is sent to n+1 (I11): appends queue meanwhile. The id of n+1 is fetched ahead, while n still takes appends.

use super::commit::{Committed, Outcome, Transaction};
use super::state::{Change, OpenTail};
use super::*;
use geminga_bookie_client::ledgers::{ClosePlan, CreatePlan};
use geminga_bookie_client::record::{ClosedLedger, LedgerAttributes, LedgerKind};
use geminga_common::clock::Mono;
use geminga_common::metadata::{MetaError, Op, Txn};
use geminga_common::tasks::OnFailure;
use geminga_offload::state::chain::unnamed;
use std::collections::VecDeque;
use std::time::Duration;

/// Segments that one transaction trims at most; each may leave two tombstones, and there are other writes.
const TRIM_MAX: usize = 60;
/// How long a drained ledger waits for its last entries to reach their whole write quorum before it is closed.
const LAFR_WAIT: Duration = Duration::from_secs(1);
/// How long a roll that could not be done is left alone, while the old ledger goes on.
const ROLL_RETRY: Duration = Duration::from_secs(5);

/// A change of where a closed ledger is.
pub(crate) type OffloadChange = (LedgerId, geminga_offload::state::Change);

#[derive(Debug)]
enum Job {
    Roll(Option<Token>),
    Trim(Option<Position>, Retention),
    Terminate(Token),
    Properties(Token, BTreeMap<String, String>),
    Epoch(Token, u64),
    Offload(Token, Vec<OffloadChange>),
    Close(Token),
    Delete(Token),
}

impl Job {
    fn token(&self) -> Option<Token> {
        match self {
            Job::Roll(token) => *token,
            Job::Trim(..) => None,
            Job::Terminate(t) | Job::Properties(t, _) | Job::Epoch(t, _) | Job::Close(t) | Job::Delete(t) => {
                Some(*t)
            }
            Job::Offload(t, ..) => Some(*t),
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
enum NextId {
    #[default]
    Unknown,
    Asked,
    Ready(LedgerId),
}

#[derive(Debug)]
struct Committing {
    op_id: u64,
    change: Change,
    close: Option<ClosePlan>,
    create: Option<CreatePlan>,
    job: Option<Job>,
    removes: bool,
    gone: Vec<ClosedLedger>,
}

/// What is to be changed and what is under way.
#[derive(Debug, Default)]
pub(super) struct Changes {
    jobs: VecDeque<Job>,
    next_id: NextId,
    /// Nothing more is sent to the open ledger since this time: it is about to close.
    sealed: Option<Mono>,
    committing: Option<Committing>,
    /// A roll could not be done: the open ledger takes more than its fill until this time.
    hold_off: Option<Mono>,
}

impl ManagedLedger {
    // ---- requests ------------------------------------------------------------------------------------------------------

    /// Drops closed ledgers from the front that no durable cursor needs and retention lets go. `durable_floor` is the
    /// smallest position some cursor still needs *as persisted*, `None` without cursors. Answered by [`Output::Trimmed`]
    /// when something went.
    pub fn trim(&mut self, durable_floor: Option<Position>, retention: Retention) {
        let waiting = self.changes.jobs.iter().any(|j| matches!(j, Job::Trim(..)));
        let under_way =
            self.changes.committing.as_ref().is_some_and(|c| matches!(c.job, Some(Job::Trim(..))));
        if self.life != Life::Dead && !waiting && !under_way && (self.deps.may_change)() {
            self.changes.jobs.push_back(Job::Trim(durable_floor, retention));
            self.drive();
        }
    }

    /// No more appends, ever: what was taken goes out, the ledger closes, the record says so.
    pub fn terminate(&mut self) -> Token {
        self.ask(Job::Terminate, true)
    }

    /// Replaces the topic's properties.
    pub fn set_properties(&mut self, properties: BTreeMap<String, String>) -> Token {
        self.ask(|token| Job::Properties(token, properties), false)
    }

    /// Stores the epoch of exclusive producers.
    pub fn set_topic_epoch(&mut self, epoch: u64) -> Token {
        self.ask(|token| Job::Epoch(token, epoch), false)
    }

    /// Closes the open ledger now; the next append opens another.
    pub fn roll_now(&mut self) -> Token {
        self.ask(|token| Job::Roll(Some(token)), false)
    }

    /// Changes where closed ledgers are, all or none, if their states allow that; what becomes garbage is committed with it.
    pub fn change_offload(&mut self, changes: Vec<OffloadChange>) -> Token {
        self.ask(|token| Job::Offload(token, changes), false)
    }

    /// Planned end: what was taken goes out, the ledger closes, then the handle is dead. The topic stays.
    pub fn close(&mut self) -> Token {
        self.ask(Job::Close, true)
    }

    /// Deletes the topic: what is queued fails, all ledgers become tombstones, the record goes, the handle is dead.
    pub fn delete(&mut self) -> Token {
        if self.life != Life::Dead {
            self.fail_queue(AppendFailure::Deleted);
        }
        self.ask(Job::Delete, true)
    }

    fn ask(&mut self, job: impl FnOnce(Token) -> Job, last: bool) -> Token {
        let token = self.token();
        let job = job(token);
        let refused = match job {
            _ if self.life == Life::Dead => Some(ChangeError::Dead),
            Job::Terminate(_) if self.state.terminated => Some(ChangeError::Terminated),
            // A close is for going away: what it cannot write is recovered.
            Job::Close(_) => None,
            // Begun now it would stop the writer and then not be written.
            _ if !(self.deps.may_change)() => Some(ChangeError::MetadataUnavailable),
            _ => None,
        };
        if let Some(error) = refused {
            self.appends.out.push(Output::RecordChanged { token, result: Err(error) });
        } else {
            if last {
                self.life = Life::Closing;
            }
            self.changes.jobs.push_back(job);
        }
        self.drive();
        token
    }

    pub(super) fn age(&mut self) {
        let now = self.deps.clock.mono();
        let repair = self.repair_is_due(now);
        let due =
            repair || self.state.idle(&self.deps.config, now) || self.state.roll_due(&self.deps.config, now);
        let quiet = self.appends.queue_is_empty() && self.changes.jobs.is_empty();
        if due && quiet && self.life == Life::Alive && !self.roll_is_held_off() {
            self.changes.jobs.push_back(Job::Roll(None));
            if repair {
                self.rolls_for_repair(now);
            }
        }
    }

    pub(super) fn roll_is_held_off(&self) -> bool {
        let held_off = self.changes.hold_off.is_some_and(|until| self.deps.clock.mono() < until);
        held_off || !(self.deps.may_change)()
    }

    pub(super) fn may_send(&self) -> bool {
        let full = self.state.roll_due(&self.deps.config, self.deps.clock.mono()) && !self.roll_is_held_off();
        self.life != Life::Dead && self.writer.is_some() && self.changes.sealed.is_none() && !full
    }

    // ---- what to do next -----------------------------------------------------------------------------------------------

    pub(super) fn advance(&mut self) {
        loop {
            self.send();
            if self.life == Life::Dead || self.changes.committing.is_some() || !self.step() {
                return;
            }
        }
    }

    /// One step; true when another may follow at once.
    fn step(&mut self) -> bool {
        let flushed = self.appends.queue_is_empty();
        match self.changes.jobs.front() {
            None => {}
            Some(Job::Trim(..) | Job::Properties(..) | Job::Epoch(..) | Job::Offload(..)) => {
                return self.change_record();
            }
            Some(Job::Roll(_)) => return self.close_for_job(),
            Some(Job::Terminate(_) | Job::Close(_) | Job::Delete(_)) if flushed => {
                return self.close_for_job();
            }
            Some(_) => {}
        }
        let full = self.writer.is_some() && !self.may_send();
        if !flushed && (self.writer.is_none() || full) {
            return self.next_ledger();
        }
        if self.state.roll_near(&self.deps.config) {
            self.ask_for_id();
        }
        false
    }

    fn change_record(&mut self) -> bool {
        let Some(job) = self.changes.jobs.pop_front() else { return false };
        let mut change = Change::default();
        let mut left = offload::Left::default();
        match &job {
            Job::Trim(floor, retention) => {
                let now = self.deps.clock.wall_ms();
                change.trim = self.state.trim_choice(*floor, *retention, now, TRIM_MAX);
                if change.trim == 0 {
                    return true;
                }
            }
            Job::Properties(_, properties) => change.properties = Some(properties.clone()),
            Job::Epoch(_, epoch) => change.topic_epoch = Some(*epoch),
            Job::Offload(token, asked) => match self.plan_offload(asked) {
                Ok((next, leaves)) => {
                    change.offload = next;
                    left = leaves;
                }
                Err(refused) => {
                    let (token, result) = (*token, Err(refused.into()));
                    self.appends.out.push(Output::RecordChanged { token, result });
                    return true;
                }
            },
            Job::Roll(_) | Job::Terminate(_) | Job::Close(_) | Job::Delete(_) => {}
        }
        self.commit_leaving(change, left, (None, None), Some(job));
        false
    }

    /// Closes the open ledger, then does what the first job asks for.
    fn close_for_job(&mut self) -> bool {
        let close = match self.drained_and_closed() {
            Ok(close) => close,
            Err(again) => return again,
        };
        let Some(job) = self.changes.jobs.pop_front() else { return false };
        let mut change = Change { terminate: matches!(job, Job::Terminate(_)), ..Change::default() };
        let nothing_to_write = close.is_none() && matches!(job, Job::Roll(_) | Job::Close(_));
        if nothing_to_write {
            self.job_done(&job, Ok(()));
            return self.life != Life::Dead;
        }
        if matches!(job, Job::Delete(_)) && self.state.segments().len() > TRIM_MAX {
            change.trim = TRIM_MAX;
            self.changes.jobs.push_front(job);
            self.commit(change, close, None, None);
            return false;
        }
        self.commit(change, close, None, Some(job));
        false
    }

    /// Seals the open ledger and plans its close once it is drained. `Ok(None)`: none is open. `Err`: not yet; whether another
    /// step may follow at once.
    fn drained_and_closed(&mut self) -> Result<Option<ClosePlan>, bool> {
        let Some(writer) = self.writer.as_mut() else { return Ok(None) };
        let now = self.deps.clock.mono();
        let since = *self.changes.sealed.get_or_insert(now);
        let progress = writer.progress();
        let drained = progress.drained() && self.appends.nothing_sent();
        let replicated = progress.lafr == progress.lac || now.saturating_sub(since) >= LAFR_WAIT;
        if !drained || !replicated {
            return Err(false);
        }
        match writer.plan_close() {
            Ok(plan) => Ok(Some(plan)),
            Err(error) => {
                self.poison(PoisonReason::Writer(error));
                Err(false)
            }
        }
    }

    /// Opens the next ledger for what is queued, closing the one before in the same transaction.
    fn next_ledger(&mut self) -> bool {
        let NextId::Ready(id) = self.changes.next_id else {
            self.ask_for_id();
            return false;
        };
        let plan = match self.deps.ledgers.plan_create(id, self.attributes()) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::warn!(topic = %self.topic.as_str(), %error, "no ledger can be created");
                return self.creation_failed(AppendFailure::NoBookies);
            }
        };
        // The plan of the close comes last: it stops the writer for good.
        let close = match self.drained_and_closed() {
            Ok(close) => close,
            Err(again) => return again,
        };
        let now = self.deps.clock.mono();
        let open = OpenTail::new(id, self.state.next_index, self.deps.clock.wall_ms(), now);
        self.commit(Change { open: Some(open), ..Change::default() }, close, Some(plan), None);
        false
    }

    /// Without a ledger what is queued fails; with one it goes on taking entries, and the roll is tried later.
    fn creation_failed(&mut self, error: AppendFailure) -> bool {
        self.counters.last_creation_failure_ms = self.deps.clock.wall_ms();
        if self.writer.is_none() {
            self.fail_queue(error);
            return true;
        }
        self.changes.sealed = None;
        self.changes.hold_off = Some(self.deps.clock.mono() + ROLL_RETRY);
        true
    }

    fn attributes(&self) -> LedgerAttributes {
        LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: self.topic.as_str().to_owned(),
            topic: self.state.topic_id,
            ordinal: self.state.next_ordinal,
            predecessor: self.state.highest_ledger(),
            owner_epoch: self.deps.owner_epoch,
            first_index: self.state.next_index,
        }
    }

    fn ask_for_id(&mut self) {
        if self.changes.next_id != NextId::Unknown {
            return;
        }
        self.changes.next_id = NextId::Asked;
        let (ledgers, clock) = (self.deps.ledgers.clone(), self.deps.clock.clone());
        let (above, events) = (self.state.highest_ledger(), self.events.clone());
        let until = clock.mono() + self.deps.config.metadata_deadline;
        let stop = self.deps.tasks.token();
        self.deps.tasks.spawn("ledger id", OnFailure::StopProcess, async move {
            let mut pause = Duration::from_millis(20);
            let result = loop {
                let result = ledgers.allocate_id(above).await;
                if result.is_ok() || clock.mono() >= until || stop.is_cancelled() {
                    break result;
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(Duration::from_secs(1));
            };
            events(Event(EventKind::Allocated(result)));
        });
    }

    pub(super) fn on_allocated(&mut self, result: Result<LedgerId, MetaError>) {
        self.changes.next_id = match result {
            Ok(id) => NextId::Ready(id),
            Err(error) => {
                tracing::warn!(topic = %self.topic.as_str(), %error, "no ledger id");
                NextId::Unknown
            }
        };
        let failed = self.changes.next_id == NextId::Unknown;
        if failed && self.life != Life::Dead && !self.appends.queue_is_empty() {
            self.creation_failed(AppendFailure::MetadataUnavailable);
        }
    }

    // ---- committing ----------------------------------------------------------------------------------------------------

    fn commit(
        &mut self,
        change: Change,
        close: Option<ClosePlan>,
        create: Option<CreatePlan>,
        job: Option<Job>,
    ) {
        self.commit_leaving(change, offload::Left::default(), (close, create), job);
    }

    /// Commits a change, and with it the removal of what it leaves behind.
    fn commit_leaving(
        &mut self,
        mut change: Change,
        mut left: offload::Left,
        (close, create): (Option<ClosePlan>, Option<CreatePlan>),
        job: Option<Job>,
    ) {
        let now = self.deps.clock.wall_ms();
        let key = self.deps.keys.topic(&self.topic);
        let removes = matches!(job, Some(Job::Delete(_)));
        let going = if removes { self.state.segments().len() } else { change.trim };
        for segment in &self.state.segments()[..going] {
            left.take(segment, now, self.removal_grace_ms());
        }
        let mut gone = left.ledgers;
        let mut txn = Txn { compares: self.deps.guard.clone(), ops: Vec::new() };
        txn.compares.push(Compare::ModRevision(key.clone(), self.revision));
        let writer_gone = close.is_some();
        if let Some(close) = &close {
            txn.compares.extend(close.compares.iter().cloned());
            txn.ops.extend(close.ops.iter().cloned());
            if removes || close.closed.last.is_none() {
                gone.push(close.closed.clone());
            }
            change.close = Some((close.closed.clone(), now));
        }
        if let Some(plan) = &create {
            txn.compares.extend(plan.compares.iter().cloned());
            txn.ops.extend(plan.ops.iter().cloned());
        }
        for ledger in &gone {
            let tombstone = record::encode_tombstone(ledger, self.state.topic_id, now);
            txn.ops.push(Op::put(self.deps.keys.tombstone(ledger.id), tombstone));
        }
        let mut next = self.state.clone();
        next.apply(&change);
        let stay = if removes { &[] } else { next.segments() };
        for (ledger, garbage) in unnamed(left.garbage, stay.iter().map(|segment| &segment.offload)) {
            let key = self.deps.keys.object_garbage(garbage.attempt.0);
            txn.ops.push(Op::put(key, garbage.encode(self.state.topic_id, ledger)));
        }
        let op_id = self.rng.next_u64();
        if removes {
            txn.ops.push(Op::delete(key.clone()));
        } else {
            next.writer_epoch = self.deps.owner_epoch;
            txn.ops.push(Op::put(key.clone(), record::encode(&next, op_id)));
        }
        let creates = create.as_ref().map(|plan| self.deps.keys.ledger(plan.id));
        self.changes.committing = Some(Committing { op_id, change, close, create, job, removes, gone });
        // While the writer goes on, a doubtful transaction can wait; appends that wait for it cannot.
        let over = Some((self.revision, self.written));
        let patient = !writer_gone && !removes;
        let transaction = Transaction { key, op_id, over, creates, removes, patient, txn };
        let (deps, events) = (self.deps.clone(), self.events.clone());
        self.deps.tasks.spawn("topic transaction", OnFailure::StopProcess, async move {
            let outcome = commit::run(&deps, transaction).await;
            events(Event(EventKind::Committed(outcome)));
        });
    }

    pub(super) fn on_committed(&mut self, outcome: Outcome, out: &mut Vec<Output>) {
        if self.life == Life::Dead {
            return;
        }
        let Some(done) = self.changes.committing.take() else { return };
        match outcome {
            Outcome::Committed(committed) => self.committed(done, committed, out),
            Outcome::Moved(stored, revision) if self.adopt(&stored, revision) => {
                // Planned anew, with what it leaves: bookie copies are buried where they are now.
                if let Some(job @ Job::Offload(..)) = done.job {
                    return self.changes.jobs.push_front(job);
                }
                // Made anew: what is trimmed or deleted is so wherever it is now.
                let change = Change { close: None, ..done.change };
                self.commit(change, done.close, done.create, done.job);
            }
            Outcome::NotWritten(_) if done.change.close.is_none() => {
                if done.create.is_some() {
                    self.creation_failed(AppendFailure::MetadataUnavailable);
                }
                if matches!(done.job, Some(Job::Terminate(_) | Job::Close(_) | Job::Delete(_))) {
                    self.life = Life::Alive;
                }
                if let Some(token) = done.job.and_then(|j| j.token()) {
                    out.push(Output::RecordChanged { token, result: Err(ChangeError::MetadataUnavailable) });
                }
            }
            // The writer has been stopped, or the record is not ours: only opening again can tell what holds.
            lost_or_unknown => {
                self.changes.committing = Some(done);
                self.poison(match lost_or_unknown {
                    Outcome::Lost | Outcome::Moved(..) => PoisonReason::RecordLost,
                    _ => PoisonReason::OutcomeUnknown,
                });
            }
        }
    }

    fn committed(&mut self, done: Committing, committed: Committed, out: &mut Vec<Output>) {
        (self.revision, self.written) = (committed.record, done.op_id);
        self.state.apply(&done.change);
        self.offloads.chain_version += 1;
        self.state.writer_epoch = self.deps.owner_epoch;
        if let Some(stored) = committed.stored.filter(|_| !done.removes)
            && !self.adopt(&stored, committed.record)
        {
            self.changes.committing = Some(done);
            return self.poison(PoisonReason::RecordLost);
        }
        if done.change.close.is_some() {
            self.writer = None;
            self.changes.sealed = None;
            self.changes.hold_off = None;
        }
        if let Some(plan) = done.create {
            let events = self.events.clone();
            let queue = Arc::new(move |event| events(Event(EventKind::Writer(event))));
            self.writer = Some(self.deps.ledgers.writer(plan, committed.ledger, queue));
            self.changes.next_id = NextId::Unknown;
            self.counters.last_created_ms = self.deps.clock.wall_ms();
        }
        if done.change.trim > 0 {
            let first = self.state.first();
            self.cache.trim(first);
            out.push(Output::Trimmed { first, ledgers: done.change.trim });
        }
        if !done.gone.is_empty() {
            tombstones::bury(&self.deps, done.gone);
        }
        if let Some(job) = done.job {
            debug_assert_eq!(done.removes, matches!(job, Job::Delete(_)));
            // More may be left than one transaction takes.
            if let Job::Trim(floor, retention) = job {
                self.changes.jobs.push_back(Job::Trim(floor, retention));
            } else {
                self.job_done(&job, Ok(()));
            }
        }
    }

    fn job_done(&mut self, job: &Job, result: Result<(), ChangeError>) {
        match job {
            Job::Close(_) | Job::Delete(_) => {
                self.life = Life::Dead;
                self.writer = None;
            }
            // The topic is still served; appends are refused by the flag.
            Job::Terminate(_) => self.life = Life::Alive,
            Job::Roll(_) | Job::Trim(..) | Job::Properties(..) | Job::Epoch(..) | Job::Offload(..) => {}
        }
        if let Some(token) = job.token() {
            self.appends.out.push(Output::RecordChanged { token, result });
        }
        if self.life == Life::Dead {
            self.fail_jobs();
        }
    }

    /// The handle is dead: nobody will do these any more.
    pub(super) fn fail_jobs(&mut self) {
        let under_way = self.changes.committing.take().and_then(|c| c.job);
        let jobs = under_way.into_iter().chain(self.changes.jobs.drain(..));
        for token in jobs.filter_map(|j| j.token()) {
            self.appends.out.push(Output::RecordChanged { token, result: Err(ChangeError::Dead) });
        }
    }
}
