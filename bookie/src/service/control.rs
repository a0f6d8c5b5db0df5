//! Control calls: one message, one answer. An outcome of the store is an answer; a caller of another cluster, or one that means
//! another bookie, gets a status.

use super::hello::refused;
use super::{Answered, Serves, Shared};
use geminga_bookie_client::grpc::convert::{
    add_refusal, control_refusal, minus_one, plus_one, range_in, ranges_out, replicate_in,
};
use geminga_bookie_client::grpc::table::pack_entries;
use geminga_bookie_client::record::LedgerAttributes;
use geminga_bookie_client::repair::pull::pull;
use geminga_bookie_client::rpc::{ControlError, LedgerStat, ReplicateError, Tail};
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_proto::bookie as wire;
use geminga_proto::bookie::{fence_tail_answer, stat_answer};
use std::sync::Arc;
use tokio::sync::SemaphorePermit;
use tonic::{Response, Status};

/// A call that may go on, and for which ledger.
struct Admitted<'s> {
    ledger: LedgerId,
    _place: SemaphorePermit<'s>,
}

fn admit<'s, S: Serves>(
    shared: &'s Shared<S>,
    target: Option<&wire::Target>,
) -> Result<Result<Admitted<'s>, ControlError>, Status> {
    if !shared.target(target)? {
        return Ok(Err(ControlError::WrongIncarnation));
    }
    let place = shared.control.try_acquire();
    let place = place.map_err(|_| refused(Code::TOO_MANY_REQUESTS, "too many control calls are at work"))?;
    let ledger = LedgerId(target.map_or(0, |target| target.ledger));
    Ok(Ok(Admitted { ledger, _place: place }))
}

fn bytes(attributes: Option<&LedgerAttributes>) -> bytes::Bytes {
    attributes.map(LedgerAttributes::encode).unwrap_or_default()
}

fn done(result: Result<(), ControlError>) -> Answered<wire::ControlAnswer> {
    Ok(Response::new(wire::ControlAnswer { refusal: result.err().as_ref().map(control_refusal) }))
}

/// See [`Serves::fence_tail`].
pub(super) async fn fence_tail<S: Serves>(
    shared: Arc<Shared<S>>,
    request: wire::FenceTailRequest,
) -> Answered<wire::FenceTailAnswer> {
    let result = match admit(&shared, request.target.as_ref())? {
        Ok(call) => {
            let fenced = shared.bookie.fence_tail(call.ledger, Term(request.term), EntryId(request.from));
            fenced.await.map(|tail| tail_out(call.ledger, &tail))
        }
        Err(error) => Err(error),
    };
    let kind = match result {
        Ok(tail) => fence_tail_answer::Kind::Tail(tail),
        Err(error) => fence_tail_answer::Kind::Refusal(control_refusal(&error)),
    };
    Ok(Response::new(wire::FenceTailAnswer { kind: Some(kind) }))
}

/// See [`Serves::seal`].
pub(super) async fn seal<S: Serves>(
    shared: Arc<Shared<S>>,
    request: wire::SealRequest,
) -> Answered<wire::ControlAnswer> {
    match admit(&shared, request.target.as_ref())? {
        Ok(call) => done(shared.bookie.seal(call.ledger, minus_one(request.last_plus_one)).await),
        Err(error) => done(Err(error)),
    }
}

/// See [`Serves::delete`].
pub(super) async fn delete<S: Serves>(
    shared: Arc<Shared<S>>,
    request: wire::DeleteRequest,
) -> Answered<wire::ControlAnswer> {
    match admit(&shared, request.target.as_ref())? {
        Ok(call) => done(shared.bookie.delete(call.ledger).await),
        Err(error) => done(Err(error)),
    }
}

/// See [`Serves::stat`].
pub(super) async fn stat<S: Serves>(
    shared: Arc<Shared<S>>,
    request: wire::StatRequest,
) -> Answered<wire::StatAnswer> {
    let result = match admit(&shared, request.target.as_ref())? {
        Ok(call) => shared.bookie.stat(call.ledger).await,
        Err(error) => Err(error),
    };
    let kind = match result {
        Ok(stat) => stat_answer::Kind::Stat(stat_out(&stat)),
        Err(error) => stat_answer::Kind::Refusal(control_refusal(&error)),
    };
    Ok(Response::new(wire::StatAnswer { kind: Some(kind) }))
}

/// See [`geminga_bookie_client::rpc::BookieRpc::replicate`]. The copies come from the peers of this node.
pub(super) async fn replicate<S: Serves>(
    shared: Arc<Shared<S>>,
    request: wire::ReplicateRequest,
) -> Answered<wire::ReplicateAnswer> {
    use wire::replicate_answer::Kind;
    let kind = match admit(&shared, request.target.as_ref())? {
        Ok(call) => {
            let wanted = replicate_in(call.ledger, &request)
                .ok_or_else(|| refused(Code::BAD_REQUEST, "the replication names no slot of an ensemble"))?;
            match pull(&*shared.peers, &shared.bookie, &wanted).await {
                Ok(done) => Kind::Done(wire::Replicated {
                    next_plus_one: plus_one(done.next),
                    entries: done.entries,
                    bytes: done.bytes,
                }),
                Err(ReplicateError::Unreadable(id)) => Kind::Unreadable(id.0),
                Err(ReplicateError::Store(error)) => Kind::Store(add_refusal(&error)),
                Err(ReplicateError::Call(error)) => Kind::Refusal(control_refusal(&error)),
            }
        }
        Err(error) => Kind::Refusal(control_refusal(&error)),
    };
    Ok(Response::new(wire::ReplicateAnswer { kind: Some(kind) }))
}

/// See [`Sink::presence`](geminga_bookie_client::repair::pull::Sink::presence).
pub(super) async fn presence<S: Serves>(
    shared: Arc<Shared<S>>,
    request: wire::PresenceRequest,
) -> Answered<wire::PresenceAnswer> {
    use wire::presence_answer::Kind;
    let result = match admit(&shared, request.target.as_ref())? {
        Ok(call) => {
            let ids = range_in(request.ids.as_ref())
                .ok_or_else(|| refused(Code::BAD_REQUEST, "the ids are no range"))?;
            shared.bookie.presence(call.ledger, ids).await
        }
        Err(error) => Err(error),
    };
    let kind = match result {
        Ok(answer) => Kind::Presence(wire::Presence {
            present: ranges_out(&answer.present),
            doubtful: ranges_out(&answer.doubtful),
        }),
        Err(error) => Kind::Refusal(control_refusal(&error)),
    };
    Ok(Response::new(wire::PresenceAnswer { kind: Some(kind) }))
}

fn tail_out(ledger: LedgerId, tail: &Tail) -> wire::Tail {
    wire::Tail {
        lac_plus_one: plus_one(tail.lac),
        lafr_plus_one: plus_one(tail.lafr),
        present: ranges_out(&tail.present),
        doubtful: ranges_out(&tail.doubtful),
        entries: Some(pack_entries(ledger, &tail.entries)),
        attributes: bytes(tail.attributes.as_deref()),
    }
}

fn stat_out(stat: &LedgerStat) -> wire::LedgerStat {
    wire::LedgerStat {
        term: stat.term.0,
        sealed: stat.sealed.is_some(),
        sealed_plus_one: stat.sealed.map_or(0, plus_one),
        lac_plus_one: plus_one(stat.lac),
        present: ranges_out(&stat.present),
        attributes: bytes(stat.attributes.as_deref()),
    }
}
