//! Control calls: unary, on a connection of their own, so that no stream of data can hold a fence up.

use super::convert::{add_error, control_error, minus_one, plus_one, ranges_in, ranges_out, replicate_out};
use super::{Endpoint, PROTOCOL, Shared};
use crate::record::LedgerAttributes;
use crate::rpc::{ControlError, IdRange, LedgerStat, Presence, Replicate, ReplicateError, Replicated, Tail};
use bytes::Bytes;
use geminga_common::ids::{EntryId, Incarnation, LedgerId, Term};
use geminga_proto::bookie as wire;
use geminga_proto::bookie::bookie_client::BookieClient;
use geminga_proto::bookie::{fence_tail_answer, presence_answer, replicate_answer, stat_answer};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// A replication copies up to its byte limit, from bookies that serve others first.
const REPLICATE_DEADLINE: Duration = Duration::from_secs(120);

/// Control calls to one bookie.
pub(super) struct Control {
    client: BookieClient<Channel>,
    target: wire::Target,
    deadline: Duration,
}

type Outcome<T> = Result<T, ControlError>;

fn attributes(bytes: &Bytes) -> Outcome<Option<Arc<LedgerAttributes>>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = LedgerAttributes::decode(bytes);
    decoded.map(|a| Some(Arc::new(a))).map_err(|_| ControlError::Unknown("attributes cannot be read"))
}

fn failed(status: &Status) -> ControlError {
    tracing::debug!(code = ?status.code(), message = status.message(), "control call to bookie failed");
    match status.code() {
        Code::FailedPrecondition => ControlError::Unknown("the bookie refuses this caller"),
        _ => ControlError::Unknown("bookie cannot be reached"),
    }
}

impl Control {
    /// Connects when first used, and again when the connection breaks. `None` while nobody knows where the bookie is.
    pub(super) fn new(shared: &Shared, endpoint: &Endpoint) -> Option<Self> {
        let channel = endpoint.channel(shared).ok()?;
        let target = wire::Target {
            protocol: PROTOCOL,
            cluster: shared.config.cluster.clone(),
            bookie: endpoint.id.as_str().to_owned(),
            incarnation: 0,
            ledger: 0,
        };
        let client = shared.client(channel);
        Some(Self { client, target, deadline: shared.config.control_deadline })
    }

    fn target(&self, incarnation: Incarnation, ledger: LedgerId) -> Option<wire::Target> {
        Some(wire::Target { incarnation: incarnation.0, ledger: ledger.0, ..self.target.clone() })
    }

    async fn call<T>(
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Outcome<T> {
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(ControlError::Unknown("no answer in time")),
        }
    }

    pub(super) fn fence_tail(
        &self,
        to: Incarnation,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> impl Future<Output = Outcome<Tail>> + Send + use<> {
        let request = wire::FenceTailRequest { target: self.target(to, ledger), term: term.0, from: from.0 };
        let (mut client, deadline) = (self.client.clone(), self.deadline);
        async move {
            match Self::call(deadline, client.fence_tail(request)).await?.kind {
                Some(fence_tail_answer::Kind::Tail(answer)) => tail(ledger, answer),
                Some(fence_tail_answer::Kind::Refusal(refusal)) => Err(control_error(&refusal)),
                None => Err(ControlError::Unknown("an empty answer")),
            }
        }
    }

    pub(super) fn seal(
        &self,
        to: Incarnation,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> impl Future<Output = Outcome<()>> + Send + use<> {
        let request = wire::SealRequest { target: self.target(to, ledger), last_plus_one: plus_one(last) };
        let (mut client, deadline) = (self.client.clone(), self.deadline);
        async move { done(&Self::call(deadline, client.seal(request)).await?) }
    }

    pub(super) fn delete(
        &self,
        to: Incarnation,
        ledger: LedgerId,
    ) -> impl Future<Output = Outcome<()>> + Send + use<> {
        let request = wire::DeleteRequest { target: self.target(to, ledger) };
        let (mut client, deadline) = (self.client.clone(), self.deadline);
        async move { done(&Self::call(deadline, client.delete(request)).await?) }
    }

    pub(super) fn stat(
        &self,
        to: Incarnation,
        ledger: LedgerId,
    ) -> impl Future<Output = Outcome<LedgerStat>> + Send + use<> {
        let request = wire::StatRequest { target: self.target(to, ledger) };
        let (mut client, deadline) = (self.client.clone(), self.deadline);
        async move {
            match Self::call(deadline, client.stat(request)).await?.kind {
                Some(stat_answer::Kind::Stat(answer)) => stat(&answer),
                Some(stat_answer::Kind::Refusal(refusal)) => Err(control_error(&refusal)),
                None => Err(ControlError::Unknown("an empty answer")),
            }
        }
    }

    pub(super) fn replicate(
        &self,
        to: Incarnation,
        request: &Replicate,
    ) -> impl Future<Output = Result<Replicated, ReplicateError>> + Send + use<> {
        let target = wire::Target { incarnation: to.0, ledger: request.ledger.0, ..self.target.clone() };
        let request = replicate_out(target, request);
        let mut client = self.client.clone();
        async move {
            match Self::call(REPLICATE_DEADLINE, client.replicate(request)).await?.kind {
                Some(replicate_answer::Kind::Done(done)) => Ok(Replicated {
                    next: minus_one(done.next_plus_one),
                    entries: done.entries,
                    bytes: done.bytes,
                }),
                Some(replicate_answer::Kind::Unreadable(id)) => Err(ReplicateError::Unreadable(EntryId(id))),
                Some(replicate_answer::Kind::Store(refusal)) => {
                    Err(ReplicateError::Store(add_error(&refusal)))
                }
                Some(replicate_answer::Kind::Refusal(refusal)) => Err(control_error(&refusal).into()),
                None => Err(ControlError::Unknown("an empty answer").into()),
            }
        }
    }

    pub(super) fn presence(
        &self,
        to: Incarnation,
        ledger: LedgerId,
        ids: IdRange,
    ) -> impl Future<Output = Outcome<Presence>> + Send + use<> {
        let request =
            wire::PresenceRequest { target: self.target(to, ledger), ids: ranges_out(&[ids]).pop() };
        let (mut client, deadline) = (self.client.clone(), self.deadline);
        async move {
            let unreadable = ControlError::Unknown("the runs cannot be read");
            match Self::call(deadline, client.presence(request)).await?.kind {
                Some(presence_answer::Kind::Presence(answer)) => Ok(Presence {
                    present: ranges_in(&answer.present).ok_or(unreadable.clone())?,
                    doubtful: ranges_in(&answer.doubtful).ok_or(unreadable)?,
                }),
                Some(presence_answer::Kind::Refusal(refusal)) => Err(control_error(&refusal)),
                None => Err(ControlError::Unknown("an empty answer")),
            }
        }
    }
}

fn done(answer: &wire::ControlAnswer) -> Outcome<()> {
    answer.refusal.as_ref().map_or(Ok(()), |refusal| Err(control_error(refusal)))
}

fn tail(ledger: LedgerId, answer: wire::Tail) -> Outcome<Tail> {
    let unreadable = || ControlError::Unknown("the tail cannot be read");
    let (of, entries) = match answer.entries {
        Some(packed) => super::table::unpack_entries(packed).map_err(|_| unreadable())?,
        None => (ledger, Vec::new()),
    };
    if of != ledger {
        return Err(unreadable());
    }
    Ok(Tail {
        lacks: false,
        lac: minus_one(answer.lac_plus_one),
        lafr: minus_one(answer.lafr_plus_one),
        present: ranges_in(&answer.present).ok_or_else(unreadable)?,
        doubtful: ranges_in(&answer.doubtful).ok_or_else(unreadable)?,
        entries,
        attributes: attributes(&answer.attributes)?,
    })
}

fn stat(answer: &wire::LedgerStat) -> Outcome<LedgerStat> {
    Ok(LedgerStat {
        term: Term(answer.term),
        sealed: answer.sealed.then(|| minus_one(answer.sealed_plus_one)),
        lac: minus_one(answer.lac_plus_one),
        present: ranges_in(&answer.present).ok_or(ControlError::Unknown("the runs cannot be read"))?,
        attributes: attributes(&answer.attributes)?,
    })
}
