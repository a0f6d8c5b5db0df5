//! The thread that holds the database: batches, commits, and the way back after a failed one. The rules are in the module's doc.

use super::super::lease::Leases;
use super::super::watches::Watches;
use super::super::{LeaseId, MetaError, Revision, Txn, TxnOutcome, WatchEvent};
use super::file::File;
use super::outage::{Due, Outage, Phase, Reason, Say};
use super::tables::{self, Draft, RECORDS, Tables};
use super::{Answer, BATCH, Request};
use crate::clock::Clock;
use crate::error::Code;
use redb::{Database, ReadableDatabase as _, WriteTransaction};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An answer that waits for the commit.
enum Held {
    Txn(Answer<TxnOutcome>, Result<TxnOutcome, MetaError>),
    Revoke(Answer<()>, Result<(), MetaError>),
}

impl Held {
    /// Answers; the asker may be gone, which is fine.
    fn give(self) {
        match self {
            Held::Txn(answer, outcome) => drop(answer.send(outcome)),
            Held::Revoke(answer, outcome) => drop(answer.send(outcome)),
        }
    }

    fn fail(self, error: MetaError) {
        match self {
            Held::Txn(answer, _) => drop(answer.send(Err(error))),
            Held::Revoke(answer, _) => drop(answer.send(Err(error))),
        }
    }
}

/// A commit whose outcome is not known.
struct Attempt {
    /// The database's revision if it did happen.
    revision: Revision,
    /// The book of leases in that case.
    leases: Arc<Leases>,
}

/// The owner of everything.
pub(super) struct Worker {
    file: File,
    /// None while it is shut.
    database: Option<Database>,
    clock: Arc<dyn Clock>,
    /// Revision of the last commit that is known to have happened.
    revision: Revision,
    /// The book as of that commit.
    leases: Arc<Leases>,
    watches: Watches,
    outage: Outage,
    attempt: Option<Attempt>,
}

impl Worker {
    pub(super) fn new(file: File, database: Database, revision: Revision, clock: Arc<dyn Clock>) -> Self {
        Self {
            file,
            database: Some(database),
            clock,
            revision,
            leases: Arc::default(),
            watches: Watches::default(),
            outage: Outage::default(),
            attempt: None,
        }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Request>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            // Leases that run out meanwhile end first thing after an outage.
            let next = match self.outage.phase() {
                Phase::Serving => self.leases.next_deadline(),
                Phase::Reading | Phase::Closed => self.outage.next(),
            };
            let next = next.map(|at| at.saturating_sub(self.clock.mono()));
            tokio::select! {
                biased;
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
                taken = queue.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => {}
            }
            self.heal();
            self.end_leases();
            self.serve(&mut batch);
            self.heal();
        }
    }

    /// Shuts the database, because it answers nothing any more after a failure.
    fn fail(&mut self, doing: &str, error: redb::Error) {
        self.database = None;
        let reason = self.file.reason(doing, error);
        let what = reason.to_string();
        let say = self.outage.failed(reason, self.clock.mono());
        if say == Say::Failed {
            let code = Code::METADATA_UNAVAILABLE;
            tracing::warn!(%code, "the metadata store is out of service: {what}");
        }
    }

    /// Why a request is refused that needs as much as `phase`.
    fn check(&self, needs: Phase) -> Result<(), MetaError> {
        let phase = self.outage.phase();
        match self.outage.reason() {
            Some(reason) if phase == Phase::Closed || needs == Phase::Serving => {
                Err(MetaError::Unavailable(reason.to_string()))
            }
            _ => Ok(()),
        }
    }

    fn why(&self) -> String {
        self.outage.reason().map(Reason::to_string).unwrap_or_default()
    }

    /// Does what is due to get back into service.
    fn heal(&mut self) {
        while let Some(due) = self.outage.due(self.clock.mono()) {
            match due {
                Due::Reopen => self.reopen(),
                Due::Trial => self.trial(),
            }
        }
    }

    fn reopen(&mut self) {
        let expected = [self.revision].into_iter().chain(self.attempt.as_ref().map(|a| a.revision));
        match self.file.reopen(expected) {
            Ok((database, revision)) => {
                self.database = Some(database);
                self.outage.reopened();
                self.settle(revision);
            }
            Err(reason) => {
                let what = reason.to_string();
                if self.outage.not_reopened(reason, self.clock.mono()) == Say::CallPerson {
                    let code = Code::DATA_LOSS;
                    tracing::error!(%code, "the metadata store cannot be opened again: {what}");
                }
            }
        }
    }

    /// The database is at `revision`, durably: now it is known whether the last commit happened.
    fn settle(&mut self, revision: Revision) {
        if let Some(attempt) = self.attempt.take().filter(|attempt| attempt.revision == revision) {
            self.revision = attempt.revision;
            self.leases = attempt.leases;
            self.watches.tell(&[WatchEvent::Resync]);
        }
        debug_assert_eq!(self.revision, revision, "only these were let in");
    }

    fn trial(&mut self) {
        let Some(database) = &self.database else { return };
        if !self.file.has_room(self.outage.reason()) {
            return self.outage.no_room(self.clock.mono());
        }
        match tables::try_commit(database, self.revision) {
            Ok(()) => {
                let lasted = self.outage.recovered(self.clock.mono());
                tracing::info!(?lasted, "the metadata store is in service again");
            }
            Err(error) => self.fail("writing", error),
        }
    }

    fn end_leases(&mut self) {
        if self.outage.phase() != Phase::Serving {
            return;
        }
        let expired = self.leases.expired(self.clock.mono());
        if !expired.is_empty() {
            self.commit(expired, Vec::new());
        }
    }

    /// A lease lives in memory, so renewing it needs no disk. Where its end is in doubt it is not renewed.
    fn keep_alive(&mut self, lease: LeaseId) -> Result<(), MetaError> {
        let now = self.clock.mono();
        let kept = Arc::make_mut(&mut self.leases).keep_alive(lease, now);
        let Some(attempt) = &mut self.attempt else { return kept };
        let kept_there = Arc::make_mut(&mut attempt.leases).keep_alive(lease, now);
        if kept == kept_there { kept } else { Err(MetaError::Unavailable(self.why())) }
    }

    fn serve(&mut self, batch: &mut Vec<Request>) {
        let mut writes = Vec::new();
        for request in batch.drain(..) {
            match request {
                Request::Get(key, answer) => {
                    drop(answer.send(self.read(|records| tables::get(records, &key))));
                }
                Request::List { prefix, after, limit, answer } => {
                    let found = self.read(|records| tables::list(records, &prefix, after.as_deref(), limit));
                    drop(answer.send(found));
                }
                Request::Watch(prefix, answer) => drop(answer.send(Ok(self.watches.add(&prefix)))),
                Request::Grant(ttl, answer) => {
                    let granted = self.check(Phase::Serving);
                    let now = self.clock.mono();
                    drop(answer.send(granted.map(|()| Arc::make_mut(&mut self.leases).grant(ttl, now))));
                }
                Request::KeepAlive(lease, answer) => drop(answer.send(self.keep_alive(lease))),
                write @ (Request::Txn(..) | Request::Revoke(..)) => writes.push(write),
            }
        }
        if !writes.is_empty() {
            self.commit(Vec::new(), writes);
        }
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, MetaError> {
        self.check(Phase::Reading)?;
        let database = self.database.as_ref().expect("only a closed store has none");
        let look = || -> Result<T, redb::Error> { read(&database.begin_read()?.open_table(RECORDS)?) };
        look().map_err(|error| {
            self.fail("reading", error);
            MetaError::Unavailable(self.why())
        })
    }

    /// Ends leases and runs transactions in one durable commit, then answers and tells the watches.
    fn commit(&mut self, expired: Vec<LeaseId>, writes: Vec<Request>) {
        if let Err(error) = self.check(Phase::Serving) {
            return refuse(writes, &error);
        }
        let mut held = Vec::with_capacity(writes.len());
        let mut draft = Draft { revision: self.revision, changes: Vec::new(), leases: self.leases.clone() };
        let database = self.database.as_ref().expect("a store that serves has one");
        let drafted = draft_on(database, expired, writes, &mut draft, &mut held);
        let ended = match drafted {
            Ok(txn) if draft.changes.is_empty() => txn.abort().map_err(redb::Error::from),
            Ok(txn) => match txn.commit() {
                Ok(()) => Ok(()),
                Err(error) => {
                    self.attempt = Some(Attempt { revision: draft.revision, leases: draft.leases });
                    self.fail("committing", error.into());
                    let why = self.why();
                    return held.into_iter().for_each(|held| held.fail(MetaError::Unknown(why.clone())));
                }
            },
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            // Without its commit a draft is nothing, whatever of it has reached the disk.
            self.fail("preparing a commit", error);
            let why = self.why();
            return held.into_iter().for_each(|held| held.fail(MetaError::Unavailable(why.clone())));
        }
        (self.revision, self.leases) = (draft.revision, draft.leases);
        for changes in &draft.changes {
            self.watches.tell(changes);
        }
        held.into_iter().for_each(Held::give);
    }
}

/// Writes everything into one transaction, not yet committed. On a failure every request is in `held` all the same.
fn draft_on(
    database: &Database,
    expired: Vec<LeaseId>,
    writes: Vec<Request>,
    draft: &mut Draft,
    held: &mut Vec<Held>,
) -> Result<WriteTransaction, redb::Error> {
    let mut work = Vec::with_capacity(writes.len());
    for request in writes {
        let pending = || MetaError::Unavailable("not run".to_owned());
        match request {
            Request::Txn(txn, answer) => {
                work.push(Work::Txn(txn));
                held.push(Held::Txn(answer, Err(pending())));
            }
            Request::Revoke(lease, answer) => {
                work.push(Work::Revoke(lease));
                held.push(Held::Revoke(answer, Err(pending())));
            }
            _ => unreachable!("only writes are committed"),
        }
    }
    let mut txn = database.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    let mut tables = Tables::open(&txn)?;
    for lease in expired {
        tables.revoke(lease, draft)?.expect("an expired lease is in the book");
    }
    for (work, held) in work.into_iter().zip(held) {
        match (work, held) {
            (Work::Txn(txn), Held::Txn(_, outcome)) => *outcome = tables.run(txn, draft)?,
            (Work::Revoke(lease), Held::Revoke(_, outcome)) => *outcome = tables.revoke(lease, draft)?,
            _ => unreachable!("work and answers were pushed in pairs"),
        }
    }
    drop(tables);
    draft.seal(&txn)?;
    Ok(txn)
}

enum Work {
    Txn(Txn),
    Revoke(LeaseId),
}

fn refuse(writes: Vec<Request>, error: &MetaError) {
    for request in writes {
        match request {
            Request::Txn(_, answer) => drop(answer.send(Err(error.clone()))),
            Request::Revoke(_, answer) => drop(answer.send(Err(error.clone()))),
            _ => {}
        }
    }
}
