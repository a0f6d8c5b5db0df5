//! Offloading of a topic: decides with every change of the chain (and when time makes something due) what is to be uploaded,
//! released or given up, has it done beside the owner, and takes the outcome in. One object of a topic is uploaded at a time.
//!
//! A topic without an object store costs one comparison a turn; one with an unchanged chain two.

use super::TopicHandle;
use super::error::{Reply, TopicError};
use super::messages::Message;
use super::release::Releasing;
use super::worker::Worker;
use crate::managed_ledger::{self as ml, offload::Rules};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_common::ids::{LedgerId, Position};
use geminga_common::tasks::OnFailure;
use geminga_offload::offloader::{ChangeError, OffloadError, TopicRecord};
use geminga_offload::release::reason;
use geminga_offload::state::{Change, ObjectRef};
use std::collections::{BTreeSet, HashMap};
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

/// First and longest pause after an upload that failed, ms; doubled from one to the next.
const RETRY_MS: (u64, u64) = (5_000, 300_000);

/// Outcome of the last run that somebody asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Status {
    /// None was asked for since the topic was loaded.
    #[default]
    NotRun,
    /// It is under way.
    Running,
    /// All of it is in the store; the first ledger that is not.
    Success(Option<LedgerId>),
    /// It has ended early.
    Error(String),
}

/// What stats tell of offloading.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OffloadFigures {
    /// Last ledger that was offloaded.
    pub(crate) last_ledger: Option<LedgerId>,
    /// When, ms since 1970.
    pub(crate) last_success_ms: u64,
    /// When an upload failed last, ms since 1970.
    pub(crate) last_failure_ms: u64,
    /// Why a ledger is not offloaded, or its bookie copies not let go, although it is due; with a code where there is one.
    pub(crate) wait: Option<String>,
    /// Ledgers whose bookie copies wait for that.
    pub(crate) releases_waiting: u64,
}

type Answer = oneshot::Sender<Result<(), ChangeError>>;

/// What the owner remembers.
#[derive(Default)]
pub(super) struct Offloading {
    /// The chain as it was decided upon last.
    seen: Option<u64>,
    /// When to decide although it has not changed, ms since 1970.
    wake_ms: Option<u64>,
    /// The first and last of the ledgers that are being uploaded.
    uploading: Option<((LedgerId, LedgerId), DropGuard)>,
    /// Ledgers whose record is being changed by the owner itself.
    changing: BTreeSet<LedgerId>,
    /// Changes under way, and who waits for them.
    changes: HashMap<ml::Token, (Vec<LedgerId>, Option<Answer>)>,
    before: Option<LedgerId>,
    /// The last ledger that goes anew because its object was gone.
    pub(super) again: Option<LedgerId>,
    status: Status,
    failures: u32,
    not_before_ms: u64,
    /// Why the last upload failed, until one works.
    failed: Option<String>,
    figures: OffloadFigures,
    pub(super) releasing: Releasing,
}

impl Offloading {
    /// When to look again, ms since 1970.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.wake_ms
    }

    /// What stats tell.
    pub(super) fn figures(&self) -> OffloadFigures {
        let (releases_waiting, why) = self.releasing.waits();
        let wait = why.or(self.failed.as_ref()).cloned();
        OffloadFigures { wait, releases_waiting, ..self.figures.clone() }
    }

    /// Policies have changed: look again.
    pub(super) fn rules_changed(&mut self) {
        self.seen = None;
    }

    pub(super) fn wake_at(&mut self, at_ms: u64) {
        self.wake_ms = Some(self.wake_ms.map_or(at_ms, |wake| wake.min(at_ms)));
    }
}

impl Worker {
    /// What stats tell; where nothing failed, what makes the object store slow is why uploads and readers wait.
    pub(super) fn offload_figures(&self) -> OffloadFigures {
        let mut figures = self.offloading.figures();
        if figures.wait.is_none() && self.ledger.uses_store() {
            let tier = self.broker.tier.as_ref();
            let topic = self.ledger.topic_id();
            figures.wait =
                tier.and_then(|tier| tier.throttled_reason().or_else(|| tier.waiting_reason(topic)));
        }
        figures
    }

    /// Decides and has done what is due; called after every turn.
    pub(super) fn offload(&mut self) {
        if self.broker.tier.is_none() || self.is_ending() {
            return;
        }
        let version = self.ledger.chain_version();
        let now_ms = self.broker.clock.wall_ms();
        if self.offloading.seen == Some(version) && self.offloading.wake_ms.is_none_or(|at| now_ms < at) {
            return;
        }
        let rules = Rules {
            before: self.offloading.before,
            again: self.offloading.again,
            uploading: self.offloading.uploading.as_ref().map(|(ledgers, _)| *ledgers),
            ..self.broker.offload_rules(&self.name)
        };
        let mut due = self.ledger.offload_due(&rules);
        due.releases.retain(|ledger| !self.offloading.changing.contains(ledger));
        self.offloading.seen = Some(version);
        self.offloading.wake_ms = due.wake_ms;
        let idle = due.changes.is_empty() && due.upload.is_empty() && rules.uploading.is_none();
        for changes in due.changes {
            self.change_unasked(changes);
        }
        self.release(due.releases, rules.lag_ms, now_ms);
        if due.upload.is_empty() {
            if idle && rules.before.is_some() {
                self.offloading.before = None;
                self.offloading.status = Status::Success(self.ledger.first_not_offloaded());
            }
        } else if now_ms >= self.offloading.not_before_ms || rules.before.is_some() {
            // A person who asks is not made to wait for the pause after a failure.
            self.start_upload(&due.upload);
        } else {
            self.offloading.wake_at(self.offloading.not_before_ms);
        }
    }

    fn start_upload(&mut self, ledgers: &[LedgerId]) {
        let jobs: Option<Vec<_>> = ledgers.iter().map(|ledger| self.ledger.offload_job(*ledger)).collect();
        let (Some(tier), Some(jobs), [first, .., last] | [first @ last]) =
            (self.broker.tier.clone(), jobs, ledgers)
        else {
            return;
        };
        let ledgers = (*first, *last);
        // Ends with the topic: what it had uploaded is given up by whoever owns the topic next.
        let stop = self.broker.tasks.token().child_token();
        self.offloading.uploading = Some((ledgers, stop.clone().drop_guard()));
        let (record, handle) = (Record(self.handle.clone()), self.handle.clone());
        self.broker.tasks.spawn(format!("offload of ledger {first}"), OnFailure::Log, async move {
            let outcome = tokio::select! {
                biased;
                outcome = tier.offloader.offload(jobs, &record) => outcome,
                () = stop.cancelled() => return,
            };
            handle.put(Message::Done(Box::new(move |worker| worker.uploaded(ledgers, outcome))));
        });
    }

    fn uploaded(
        &mut self,
        (first, last): (LedgerId, LedgerId),
        outcome: Result<Vec<ObjectRef>, OffloadError>,
    ) {
        let now_ms = self.broker.clock.wall_ms();
        let state = &mut self.offloading;
        state.uploading = None;
        state.seen = None;
        match outcome {
            Ok(objects) => {
                (state.failures, state.failed) = (0, None);
                state.figures.last_ledger = Some(last);
                state.figures.last_success_ms = now_ms;
                let (ledgers, bytes) = (objects.len(), objects.first().map_or(0, ObjectRef::whole));
                tracing::info!(topic = %self.name, %first, %last, ledgers, bytes, "offloaded");
            }
            Err(error) => {
                let pause = RETRY_MS.0.saturating_mul(1 << state.failures.min(10)).min(RETRY_MS.1);
                state.failures += 1;
                state.not_before_ms = now_ms + pause;
                state.figures.last_failure_ms = now_ms;
                state.failed = Some(match &error {
                    OffloadError::Object(error) => reason(error),
                    other => other.to_string(),
                });
                if state.before.take().is_some() {
                    state.status = Status::Error(error.to_string());
                }
                tracing::warn!(topic = %self.name, %first, %last, %error, pause, "not offloaded; what was to go stays on bookies");
            }
        }
    }

    /// Changes the record because the owner itself wants it, unless that is under way.
    pub(super) fn change_unasked(&mut self, changes: Vec<(LedgerId, Change)>) {
        let changing = &mut self.offloading.changing;
        if !changes.iter().any(|(ledger, _)| changing.contains(ledger)) {
            changing.extend(changes.iter().map(|(ledger, _)| *ledger));
            self.change_offload(changes, None);
        }
    }

    fn change_offload(&mut self, changes: Vec<(LedgerId, Change)>, answer: Option<Answer>) {
        let ledgers = changes.iter().map(|(ledger, _)| *ledger).collect();
        let token = self.ledger.change_offload(changes);
        self.offloading.changes.insert(token, (ledgers, answer));
    }

    /// Takes the outcome of a change of the record, if it is one of these; else gives it back.
    pub(super) fn offload_changed(
        &mut self,
        token: ml::Token,
        result: Result<(), ml::ChangeError>,
    ) -> Option<Result<(), ml::ChangeError>> {
        let Some((ledgers, answer)) = self.offloading.changes.remove(&token) else { return Some(result) };
        let result = result.map_err(|error| match error {
            ml::ChangeError::Offload(refused) => ChangeError::Refused(refused),
            ml::ChangeError::Dead => ChangeError::Unknown(error.to_string()),
            other => ChangeError::NotWritten(other.to_string()),
        });
        match answer {
            // Whoever asked is gone: the record says what holds.
            Some(answer) => drop(answer.send(result)),
            None => {
                self.offloading.changing.retain(|ledger| !ledgers.contains(ledger));
                if let Err(error) = result {
                    tracing::debug!(topic = %self.name, ?ledgers, %error, "offload state not changed; tried again");
                    self.offloading.wake_at(self.broker.clock.wall_ms() + RETRY_MS.0);
                }
            }
        }
        None
    }

    /// Offloads every closed ledger before a position.
    pub(super) fn offload_before(&mut self, to: Position, reply: Reply<()>) {
        if self.offloading.before.is_some() {
            return reply.send(Err(TopicError::Conflict("Offload already in progress".to_owned())));
        }
        self.offloading.before = Some(to.ledger);
        self.offloading.status = Status::Running;
        self.offloading.seen = None;
        reply.send(Ok(()));
    }

    /// How that goes.
    pub(super) fn offload_status(&self) -> Status {
        self.offloading.status.clone()
    }
}

/// The topic record, changed by its owner's task. An owner that is gone leaves the outcome unknown.
struct Record(TopicHandle);

impl TopicRecord for Record {
    fn change(&self, changes: Vec<(LedgerId, Change)>) -> BoxFuture<'_, Result<(), ChangeError>> {
        let (send, receive) = oneshot::channel();
        let ask = move |worker: &mut Worker| worker.change_offload(changes, Some(send));
        self.0.put(Message::Done(Box::new(ask)));
        let gone = || Err(ChangeError::Unknown("the topic has left this broker".to_owned()));
        receive.map(move |answer| answer.unwrap_or_else(|_| gone())).boxed()
    }
}
