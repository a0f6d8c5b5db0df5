//! A stream of reads of one class.
//!
//! A task takes reads from the transport, asks the store, and hands answers on as they come, in any order. Bounds: reads at work,
//! and the bytes of answers from the moment a read is started until the transport has taken its answer. A caller that does not
//! read its answers stops its own stream and nobody else's.

use super::hello::{HELLO, refused};
use super::{Answered, Answers, Serves, Shared};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use geminga_bookie_client::grpc::convert::{class_in, doubt_out};
use geminga_bookie_client::grpc::table::pack_entries;
use geminga_bookie_client::rpc::{Doubt, Read, ReadAnswer, ReadClass};
use geminga_common::budget::{Budget, Permit};
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, Incarnation, LedgerId};
use geminga_common::tasks::OnFailure;
use geminga_proto::bookie as wire;
use geminga_proto::bookie::read_answer::Kind as Outcome;
use geminga_proto::bookie::read_answers::Kind as Sent;
use geminga_proto::bookie::read_request::Kind;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

/// Reads at work on one stream; more wait in the transport.
const AT_WORK: usize = 256;
/// Reads in one message.
const MESSAGE_READS: usize = 1024;
/// A read counts at least this much.
const COST_MIN: u64 = 4 << 10;

type Out = (wire::ReadAnswers, Option<Permit>);

/// Opens a stream.
pub(super) async fn open<S: Serves>(
    shared: Arc<Shared<S>>,
    mut incoming: Streaming<wire::ReadRequest>,
) -> Answered<Answers<wire::ReadAnswers>> {
    let place = shared.place()?;
    let first = tokio::time::timeout(HELLO, incoming.message()).await;
    let first = first.map_err(|_| refused(Code::TIMED_OUT, "no hello in time"))??;
    let Some(Kind::Hello(hello)) = first.and_then(|request| request.kind) else {
        return Err(refused(Code::BAD_REQUEST, "the first message of a stream is a hello"));
    };
    let welcome = wire::ReadAnswers { kind: Some(Sent::Welcome(shared.welcome(&hello, 0)?)) };
    let class = class_in(hello.read_class());
    let (out, answers) = mpsc::channel::<Result<Out, Status>>(16);
    let welcomed = out.try_send(Ok((welcome, None)));
    debug_assert!(welcomed.is_ok(), "a fresh channel has room");
    shared.clone().tasks.spawn("read-stream", OnFailure::Log, async move {
        let stop = shared.tasks.token();
        let budget = Budget::new(shared.config.read_stream_bytes);
        let end = tokio::select! {
            () = stop.cancelled() => Err(refused(Code::SHUTTING_DOWN, "the bookie is shutting down")),
            end = answer(&shared, class, &budget, &mut incoming, &out) => end,
        };
        if let Err(status) = end {
            // A caller that went away does not want to know.
            let _gone = out.try_send(Err(status));
        }
        drop(place);
    });
    // The permit goes back when the answer has been handed to the transport.
    let stream = futures::stream::unfold(answers, |mut answers| async {
        let answer = answers.recv().await?;
        Some((answer.map(|(answer, _permit)| answer), answers))
    });
    Ok(Response::new(Box::pin(stream)))
}

async fn answer<S: Serves>(
    shared: &Shared<S>,
    class: ReadClass,
    budget: &Budget,
    incoming: &mut Streaming<wire::ReadRequest>,
    out: &mpsc::Sender<Result<Out, Status>>,
) -> Result<(), Status> {
    let mut at_work = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(answer) = at_work.next(), if !at_work.is_empty() => {
                if out.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
            request = incoming.message(), if at_work.len() < AT_WORK => {
                let Some(request) = request? else { break };
                let reads = match request.kind {
                    Some(Kind::Reads(reads)) if reads.reads.len() <= MESSAGE_READS => reads.reads,
                    _ => return Err(refused(Code::BAD_REQUEST, "up to 1024 reads were expected")),
                };
                at_work.extend(reads.into_iter().map(|read| one(shared, class, budget, read)));
            }
        }
    }
    // The caller has no further reads; it may still wait for these.
    while let Some(answer) = at_work.next().await {
        if out.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn one<S: Serves>(shared: &Shared<S>, class: ReadClass, budget: &Budget, read: wire::Read) -> Out {
    let most = shared.config.read_bytes_max;
    let bytes_max = usize::try_from(read.bytes_max).unwrap_or(usize::MAX).min(most);
    let permit = budget.take((bytes_max as u64).max(COST_MIN)).await;
    let (ledger, first, last) = (LedgerId(read.ledger), EntryId(read.first), EntryId(read.last));
    let answer = if Incarnation(read.incarnation) == shared.me.incarnation {
        shared.bookie.read(Read { ledger, first, last, bytes_max, class }).await
    } else {
        ReadAnswer::Unknown(Doubt::WrongIncarnation)
    };
    let kind = match answer {
        ReadAnswer::Found(entries) => Outcome::Found(pack_entries(ledger, &entries)),
        ReadAnswer::NotFound(_) => Outcome::NotFound(wire::NotFound {}),
        ReadAnswer::Unknown(doubt) => Outcome::Unknown(doubt_out(doubt).into()),
        // Accepting a loss is for a store that nobody reaches but its own process.
        ReadAnswer::Lost { .. } => Outcome::Unknown(doubt_out(Doubt::DataLoss).into()),
    };
    let answer = wire::ReadAnswer { number: read.number, kind: Some(kind) };
    (wire::ReadAnswers { kind: Some(Sent::Answer(answer)) }, Some(permit))
}
