//! The task of a cursor log: owns its writer and its record.
//!
//! One group is on its way at a time; what is queued meanwhile is the next. A roll replaces a group: the snapshot that begins
//! the new ledger holds what the group would have told, so the group is durable when the snapshot is. The old ledgers go only
//! after that (steps in [`super::chain`]). Metadata is called for rolls only.

use super::chain::Chain;
use super::log::{Command, Deps, Failed, Reply, Shared, WriteError};
use super::log_open::{Opened, pause};
use super::log_state::{Cursors, ReplayError};
use super::record::{Cursor, Packer, Record};
use crate::repair_roll::RepairRoll;
use bytes::Bytes;
use geminga_bookie_client::entry::{HEADER_LEN, Header, Kind};
use geminga_bookie_client::ledgers::{Copies, CreatePlan, NewEntry, Progress, Writer};
use geminga_bookie_client::record::{ClosedLedger, LedgerAttributes, LedgerKind};
use geminga_common::clock::Mono;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex};
use geminga_common::metadata::{Revision, Txn};
use geminga_common::names::Bundle;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tries before a ledger that must be had is given up.
pub(super) const ATTEMPTS: u32 = 8;
/// A roll or drop that could not be done is tried again after this.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long slow replicas are waited for before a ledger closes; what they lack is then left to repair.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Bytes of a snapshot on their way at a time, below what a writer lets a replica lag.
const SLICE_BYTES: usize = 2 << 20;

type Answer = Box<dyn FnOnce(Result<(), WriteError>) + Send>;

/// What is on its way together.
struct Group {
    last: EntryId,
    answers: Vec<Answer>,
}

/// Records to be appended, and whom to tell.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    answers: Vec<Answer>,
    close: Option<Reply>,
}

enum Next {
    Wait,
    Again,
    Stop,
}

/// The task's state.
pub(super) struct Worker {
    pub(super) deps: Deps,
    shared: Arc<Shared>,
    stop: CancellationToken,
    pub(super) bundle: String,
    pub(super) key: String,
    pub(super) chain: Chain,
    pub(super) revision: Option<Revision>,
    cursors: Cursors,
    writer: Option<Box<dyn Writer>>,
    group: Option<Group>,
    snapshot_bytes: u64,
    bytes_since: u64,
    /// How many closed ledgers the snapshot made superfluous.
    pub(super) drop_due: usize,
    pub(super) retry_at: Mono,
    repair_roll: RepairRoll,
}

impl Worker {
    pub(super) fn new(deps: Deps, bundle: &Bundle, opened: Opened, shared: Arc<Shared>) -> Self {
        let (stop, key) = (deps.tasks.token(), deps.keys.cursor_log(bundle));
        let Opened { chain, revision, cursors } = opened;
        Self {
            deps,
            shared,
            stop,
            bundle: bundle.to_string(),
            key,
            chain,
            revision,
            cursors,
            writer: None,
            group: None,
            snapshot_bytes: 0,
            bytes_since: 0,
            drop_due: 0,
            retry_at: Mono::ZERO,
            repair_roll: RepairRoll::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let failed = loop {
            match self.turn().await {
                Ok(Next::Again) => continue,
                Ok(Next::Wait) => {}
                Ok(Next::Stop) => break Failed::Closed,
                Err(failed) => {
                    tracing::warn!(bundle = %self.bundle, error = %failed, "cursor log is poisoned");
                    break failed;
                }
            }
            // A group on its way is waited for first: its end wakes.
            let roll_at = self.repair_roll.due().filter(|_| self.group.is_none());
            let roll_at = roll_at.map(|due| due.max(self.retry_at));
            let roll_in = roll_at.map(|at| at.saturating_sub(self.deps.clock.mono()));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break Failed::Closed,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(roll_in.unwrap_or_default()), if roll_in.is_some() => {}
            }
        };
        self.fail(&failed);
    }

    /// Poisons the handle and answers everyone.
    fn fail(&mut self, failed: &Failed) {
        let commands = {
            let mut queue = self.shared.queue.lock();
            queue.failed = Some(failed.clone());
            queue.bytes = 0;
            queue.events.clear();
            std::mem::take(&mut queue.commands)
        };
        if let Some(group) = self.group.take() {
            group.answers.into_iter().for_each(|answer| answer(Err(failed.clone().into())));
        }
        for command in commands {
            match command {
                Command::Create { reply, .. } => drop(reply.send(Err(failed.clone().into()))),
                Command::Query(_, reply) => drop(reply.send(Err(failed.clone().into()))),
                Command::Write(_, reply) | Command::Close(reply) => reply.send(Err(failed.clone().into())),
            }
        }
    }

    async fn turn(&mut self) -> Result<Next, Failed> {
        let progress = self.absorb()?;
        if let Some(group) = self.group.take_if(|group| progress.is_some_and(|p| p.lac >= Some(group.last))) {
            group.answers.into_iter().for_each(|answer| answer(Ok(())));
        }
        if self.group.is_some() {
            return Ok(Next::Wait);
        }
        self.roll_for_repair().await?;
        let (commands, abandoned) = {
            let mut queue = self.shared.queue.lock();
            queue.bytes = 0;
            (std::mem::take(&mut queue.commands), queue.abandoned)
        };
        if commands.is_empty() {
            return Ok(if abandoned { Next::Stop } else { Next::Wait });
        }
        let mut batch = Batch::default();
        commands.into_iter().for_each(|command| self.take_in(command, &mut batch));
        self.write(batch.records, batch.answers).await?;
        match batch.close {
            None => Ok(Next::Again),
            Some(reply) => {
                let closed = self.close().await;
                reply.send(closed.clone().map_err(Into::into));
                closed.map(|()| Next::Stop)
            }
        }
    }

    /// Applies a command to the cursors; what must be durable for its answer goes into the batch.
    fn take_in(&mut self, command: Command, batch: &mut Batch) {
        match command {
            Command::Create { topic, subscription, image, reply } => {
                if self.cursors.find(topic, &subscription).is_some() {
                    let _gone = reply.send(Err(WriteError::AlreadyExists));
                    return;
                }
                let id = self.cursors.free_id();
                let record = Record::Create(Box::new(Cursor { id, topic, subscription, image }));
                self.cursors.apply(&record).expect("neither the id nor the name is in use");
                batch.records.push(record);
                batch.answers.push(Box::new(move |result| drop(reply.send(result.map(|()| id)))));
            }
            Command::Query(topic, reply) => {
                let found = self.cursors.of_topic(topic);
                batch.answers.push(Box::new(move |result| drop(reply.send(result.map(|()| found)))));
            }
            Command::Close(reply) => batch.close = Some(reply),
            Command::Write(Record::DeleteTopic(topic), reply) if !self.cursors.has_topic(topic) => {
                batch.answers.push(Box::new(move |result| reply.send(result)));
            }
            Command::Write(record, reply) => match self.cursors.apply(&record) {
                Ok(()) => {
                    batch.records.push(record);
                    batch.answers.push(Box::new(move |result| reply.send(result)));
                }
                Err(ReplayError::UnknownCursor(id)) => reply.send(Err(WriteError::NoSuchCursor(id))),
                Err(error) => unreachable!("handles send no such record: {error}"),
            },
        }
    }

    /// Sends the records on their way, rolling first if it is time.
    async fn write(&mut self, records: Vec<Record>, answers: Vec<Answer>) -> Result<(), Failed> {
        if records.is_empty() {
            answers.into_iter().for_each(|answer| answer(Ok(())));
            return Ok(());
        }
        // From here on the answers are the group's: a failure answers them with its reason.
        self.group = Some(Group { last: EntryId(u64::MAX), answers });
        if self.roll_is_due() && self.roll().await? {
            let group = self.group.take().expect("set above");
            group.answers.into_iter().for_each(|answer| answer(Ok(())));
            return Ok(());
        }
        if self.drop_due > 0 && self.deps.clock.mono() >= self.retry_at {
            self.drop_old().await?;
        }
        let mut packer = Packer::default();
        records.iter().for_each(|record| packer.push(record));
        let entries = packer.finish();
        self.bytes_since += entries.iter().map(|entry| (entry.len() + HEADER_LEN) as u64).sum::<u64>();
        let last = self.append(entries)?;
        self.group.as_mut().expect("set above").last = last;
        Ok(())
    }

    fn roll_is_due(&self) -> bool {
        if self.writer.is_none() {
            return true;
        }
        let full = self.bytes_since > self.deps.config.ledger_bytes_max.max(2 * self.snapshot_bytes);
        full && self.drop_due == 0 && self.deps.clock.mono() >= self.retry_at
    }

    fn append(&mut self, entries: Vec<Bytes>) -> Result<EntryId, Failed> {
        let writer = self.writer.as_mut().expect("a ledger is open when something is appended");
        let header = Header {
            kind: Kind::CursorLog,
            messages: 0,
            first_index: MessageIndex(0),
            timestamp_ms: self.deps.clock.wall_ms(),
            bytes_before: 0,
        };
        let count = entries.len() as u64;
        let entries =
            entries.into_iter().map(|payload| NewEntry { header, payload: payload.into() }).collect();
        let first = writer.append(entries)?;
        Ok(EntryId(first.0 + count - 1))
    }

    /// Feeds the writer's events to it.
    fn absorb(&mut self) -> Result<Option<Progress>, Failed> {
        let (events, suspects) = {
            let mut queue = self.shared.queue.lock();
            (std::mem::take(&mut queue.events), std::mem::take(&mut queue.suspects))
        };
        let Some(writer) = self.writer.as_mut() else { return Ok(None) };
        for suspects in suspects {
            writer.probe(&|member| suspects.iter().any(|suspect| suspect.is(member)));
        }
        for event in events {
            if event.ledger == writer.ledger() {
                writer.on_event(event);
            }
        }
        let progress = writer.progress();
        let wanted = progress.copies == Copies::RepairDue;
        self.repair_roll.observe(wanted, self.deps.clock.mono(), &mut self.deps.rng.lock());
        match progress.failed.clone() {
            Some(failed) => Err(failed.into()),
            None => Ok(Some(progress)),
        }
    }

    /// Waits until the writer has come so far; false at the limit.
    async fn wait(
        &mut self,
        limit: Option<Duration>,
        come: impl Fn(&Progress) -> bool,
    ) -> Result<bool, Failed> {
        let deadline = limit.map(|limit| self.deps.clock.mono() + limit);
        loop {
            if self.absorb()?.is_some_and(|progress| come(&progress)) {
                return Ok(true);
            }
            let left = deadline.map(|deadline| deadline.saturating_sub(self.deps.clock.mono()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Failed::Closed),
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => return Ok(false),
            }
        }
    }

    /// A ledger that lacks copies from before is given up for a snapshot, which has all of its own.
    async fn roll_for_repair(&mut self) -> Result<(), Failed> {
        let now = self.deps.clock.mono();
        if self.writer.is_none() || !self.repair_roll.is_due(now) || now < self.retry_at {
            return Ok(());
        }
        // What cannot be dropped or rolled now sets the time of the next try.
        self.drop_old().await?;
        if self.drop_due == 0 {
            tracing::info!(bundle = %self.bundle, reason = "repair_due", "cursor log rolls early");
            if self.roll().await? {
                self.repair_roll.rolled(self.deps.clock.mono());
            }
        }
        Ok(())
    }

    /// Opens a new ledger with a snapshot in it, and drops the others. False: not possible now, go on with the old one.
    async fn roll(&mut self) -> Result<bool, Failed> {
        let Some(plan) = self.prepare().await? else {
            self.retry_at = self.deps.clock.mono() + RETRY_AFTER;
            return Ok(false);
        };
        let mut txn = Txn { compares: plan.compares.clone(), ops: plan.ops.clone() };
        let old = self.plan_close(&mut txn).await?;
        let revision = self.commit(self.chain.rolled(old, plan.id), txn).await?;
        let shared = self.shared.clone();
        let events = move |event| {
            shared.queue.lock().events.push(event);
            shared.wake.notify_one();
        };
        self.writer = Some(self.deps.ledgers.writer(plan, revision, Arc::new(events)));
        self.write_snapshot().await?;
        self.drop_due = self.chain.closed.len();
        self.drop_old().await?;
        Ok(true)
    }

    /// Chooses a ledger. Without an open one it must be had; else it can wait.
    async fn prepare(&mut self) -> Result<Option<CreatePlan>, Failed> {
        for nth in 0..ATTEMPTS {
            match self.deps.ledgers.allocate_id(self.chain.last()).await {
                Ok(id) => match self.deps.ledgers.plan_create(id, self.attributes(id)) {
                    Ok(plan) => return Ok(Some(plan)),
                    Err(error) => tracing::debug!(bundle = %self.bundle, %error, "no ledger for cursors yet"),
                },
                Err(error) => tracing::debug!(bundle = %self.bundle, %error, "no ledger id for cursors yet"),
            }
            if self.writer.is_some() {
                return Ok(None);
            }
            self.rest(nth).await?;
        }
        Err(Failed::Unavailable)
    }

    fn attributes(&self, id: LedgerId) -> LedgerAttributes {
        let mut chain = self.chain.clone();
        chain.open = None;
        LedgerAttributes {
            kind: LedgerKind::CursorLog,
            owner: self.bundle.clone(),
            topic: chain.rolled(None, id).log_id,
            ordinal: self.chain.next_ordinal,
            predecessor: self.chain.last(),
            owner_epoch: self.deps.owner_epoch,
            first_index: MessageIndex(0),
        }
    }

    /// Adds the closing of the open ledger, if there is one, to a transaction.
    async fn plan_close(&mut self, txn: &mut Txn) -> Result<Option<ClosedLedger>, Failed> {
        if self.writer.is_none() {
            return Ok(None);
        }
        self.wait(Some(SETTLE_MAX), |p| p.drained() && p.lafr == p.lac).await?;
        self.wait(None, Progress::drained).await?;
        let mut writer = self.writer.take().expect("looked at above");
        let plan = writer.plan_close()?;
        txn.compares.extend(plan.compares);
        txn.ops.extend(plan.ops);
        Ok(Some(plan.closed))
    }

    async fn write_snapshot(&mut self) -> Result<(), Failed> {
        let entries = self.cursors.snapshot();
        self.snapshot_bytes = entries.iter().map(|entry| (entry.len() + HEADER_LEN) as u64).sum();
        self.bytes_since = 0;
        let mut slice = Vec::new();
        let mut size = 0;
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            size += entry.len();
            slice.push(entry);
            if size >= SLICE_BYTES || entries.peek().is_none() {
                let last = self.append(std::mem::take(&mut slice))?;
                self.wait(None, |progress| progress.lac >= Some(last)).await?;
                size = 0;
            }
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Failed> {
        if let Some(group) = &self.group {
            let last = group.last;
            self.wait(None, |progress| progress.lac >= Some(last)).await?;
        }
        if let Some(group) = self.group.take() {
            group.answers.into_iter().for_each(|answer| answer(Ok(())));
        }
        let mut txn = Txn::default();
        if let Some(old) = self.plan_close(&mut txn).await? {
            self.commit(self.chain.closed(old), txn).await?;
        }
        Ok(())
    }

    pub(super) async fn rest(&mut self, nth: u32) -> Result<(), Failed> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Failed::Closed),
            () = tokio::time::sleep(pause(nth)) => Ok(()),
        }
    }
}
