//! A stream of adds.
//!
//! A task takes batches from the transport and offers their adds to the store in order; the store's threads tell the outcomes,
//! which gather as ranges until the transport asks for the next answer. Bounds: unanswered bytes by the stream's credit, gathered
//! outcomes by their number. A caller that breaks either, or sends what is no table, loses its stream: what it had sent is stored
//! or not, as after any broken connection.

use super::hello::{HELLO, refused};
use super::{Answered, Answers, Serves, Shared};
use futures::Stream;
use geminga_bookie_client::grpc::convert::add_refusal;
use geminga_bookie_client::grpc::table::{ReceivedAdd, unpack_adds, wire_size};
use geminga_bookie_client::rpc::AddError;
use geminga_common::budget::Permit;
use geminga_common::error::Code;
use geminga_common::ids::Incarnation;
use geminga_common::tasks::OnFailure;
use geminga_proto::bookie as wire;
use geminga_proto::bookie::add_request::Kind;
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;
use tonic::{Response, Status, Streaming};

/// Smallest share of the credits that a stream is opened with.
const SHARE_MIN: u64 = 1 << 20;
/// Outcomes (ranges and refusals) that may gather; above it no further batch is taken until the caller reads some.
const GATHERED_MAX: usize = 16_384;

/// Opens a stream.
pub(super) async fn open<S: Serves>(
    shared: Arc<Shared<S>>,
    mut incoming: Streaming<wire::AddRequest>,
) -> Answered<Answers<wire::AddAnswers>> {
    let place = shared.place()?;
    let first = tokio::time::timeout(HELLO, incoming.message()).await;
    let first = first.map_err(|_| refused(Code::TIMED_OUT, "no hello in time"))??;
    let Some(Kind::Hello(hello)) = first.and_then(|request| request.kind) else {
        return Err(refused(Code::BAD_REQUEST, "the first message of a stream is a hello"));
    };
    shared.welcome(&hello, 0)?;
    let share = share(&shared)?;
    let welcome = shared.welcome(&hello, share.bytes())?;
    tracing::debug!(client = hello.client, credit = share.bytes(), "add stream opened");
    let outcomes = Arc::new(Outcomes::new(welcome, share));
    let told = outcomes.clone();
    shared.clone().tasks.spawn("add-stream", OnFailure::Log, async move {
        let stop = shared.tasks.token();
        let end = tokio::select! {
            () = stop.cancelled() => Some(refused(Code::SHUTTING_DOWN, "the bookie is shutting down")),
            end = take(&shared, &mut incoming, &told) => end.err(),
        };
        told.end(end);
        drop(place);
    });
    Ok(Response::new(Box::pin(Told(outcomes))))
}

fn share(shared: &Shared<impl Serves>) -> Result<Permit, Status> {
    let mut bytes = shared.config.add_stream_bytes;
    while bytes >= SHARE_MIN.min(shared.config.add_stream_bytes) {
        if let Some(permit) = shared.adds.try_take(bytes) {
            return Ok(permit);
        }
        bytes /= 2;
    }
    Err(refused(Code::OUT_OF_MEMORY_BUDGET, "no credit is left for another stream of adds"))
}

/// Offers batches to the store until the caller ends, or breaks the protocol.
async fn take<S: Serves>(
    shared: &Shared<S>,
    incoming: &mut Streaming<wire::AddRequest>,
    outcomes: &Arc<Outcomes>,
) -> Result<(), Status> {
    let mut number = 0;
    loop {
        outcomes.room().await;
        let Some(request) = incoming.message().await? else { return Ok(()) };
        let Some(Kind::Batch(packed)) = request.kind else {
            return Err(refused(Code::BAD_REQUEST, "a batch of adds was expected"));
        };
        let (incarnation, adds) =
            unpack_adds(packed).map_err(|error| refused(Code::BAD_REQUEST, &error.to_string()))?;
        outcomes.charge(&adds)?;
        for add in adds {
            offer(shared, incarnation, number, add, outcomes);
            number += 1;
        }
    }
}

fn offer<S: Serves>(
    shared: &Shared<S>,
    to: Incarnation,
    number: u64,
    add: ReceivedAdd,
    outcomes: &Arc<Outcomes>,
) {
    let size = add.as_ref().map_or(0, wire_size);
    match add {
        Ok(_) if to != shared.me.incarnation => {
            outcomes.told(number, size, Err(AddError::WrongIncarnation));
        }
        Ok(add) => {
            let outcomes = outcomes.clone();
            shared.bookie.add(add, Box::new(move |result| outcomes.told(number, size, result)));
        }
        Err(error) => outcomes.told(number, size, Err(error)),
    }
}

#[derive(Default)]
struct Gathered {
    welcome: Option<wire::Welcome>,
    durable: Vec<wire::NumberRange>,
    refused: Vec<wire::AddRefusal>,
    /// Adds and their bytes that the store has not answered.
    open: usize,
    open_bytes: usize,
    ended: bool,
    status: Option<Status>,
    sleeper: Option<Waker>,
}

/// What the store told and the transport has not taken.
struct Outcomes {
    gathered: Mutex<Gathered>,
    room: Notify,
    credit: usize,
    /// Held until the last outcome is told.
    _share: Permit,
}

impl Outcomes {
    fn new(welcome: wire::Welcome, share: Permit) -> Self {
        let credit = usize::try_from(share.bytes()).unwrap_or(usize::MAX);
        let gathered = Mutex::new(Gathered { welcome: Some(welcome), ..Gathered::default() });
        Self { gathered, room: Notify::new(), credit, _share: share }
    }

    /// Counts a batch; refuses one beyond the credit. An add larger than all of it may go alone.
    fn charge(&self, adds: &[ReceivedAdd]) -> Result<(), Status> {
        let bytes: usize = adds.iter().flatten().map(wire_size).sum();
        let mut gathered = self.gathered.lock();
        let alone = gathered.open == 0 && adds.len() == 1;
        if gathered.open_bytes.saturating_add(bytes) > self.credit && !alone {
            return Err(refused(Code::BAD_REQUEST, "more adds than the credit allows"));
        }
        gathered.open += adds.len();
        gathered.open_bytes += bytes;
        Ok(())
    }

    fn told(&self, number: u64, size: usize, result: Result<(), AddError>) {
        let mut gathered = self.gathered.lock();
        gathered.open -= 1;
        gathered.open_bytes -= size;
        match result {
            Ok(()) => match gathered.durable.last_mut() {
                Some(last) if last.first + last.count == number => last.count += 1,
                _ => gathered.durable.push(wire::NumberRange { first: number, count: 1 }),
            },
            Err(error) => {
                let refusal = Some(add_refusal(&error));
                gathered.refused.push(wire::AddRefusal { number, refusal });
            }
        }
        let sleeper = gathered.sleeper.take();
        drop(gathered);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    async fn room(&self) {
        loop {
            let freed = self.room.notified();
            {
                let gathered = self.gathered.lock();
                if gathered.durable.len() + gathered.refused.len() < GATHERED_MAX {
                    return;
                }
            }
            freed.await;
        }
    }

    /// No further batch comes.
    fn end(&self, status: Option<Status>) {
        let mut gathered = self.gathered.lock();
        gathered.ended = true;
        gathered.status = status;
        let sleeper = gathered.sleeper.take();
        drop(gathered);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<wire::AddAnswers, Status>>> {
        let mut gathered = self.gathered.lock();
        let full = gathered.durable.len() + gathered.refused.len() >= GATHERED_MAX;
        let welcome = gathered.welcome.take();
        let durable = std::mem::take(&mut gathered.durable);
        let refusals = std::mem::take(&mut gathered.refused);
        if welcome.is_some() || !durable.is_empty() || !refusals.is_empty() {
            if full {
                self.room.notify_one();
            }
            return Poll::Ready(Some(Ok(wire::AddAnswers { welcome, durable, refused: refusals })));
        }
        // What is open is answered before the end, whatever ends the stream.
        if gathered.ended && gathered.open == 0 {
            return Poll::Ready(gathered.status.take().map(Err));
        }
        gathered.sleeper = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The answering half of a stream.
struct Told(Arc<Outcomes>);

impl Stream for Told {
    type Item = Result<wire::AddAnswers, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::budget::Budget;
    use std::task::Waker;

    fn outcomes(credit: u64) -> Outcomes {
        let share = Budget::new(credit).try_take(credit).unwrap();
        let outcomes = Outcomes::new(wire::Welcome::default(), share);
        next(&outcomes);
        outcomes
    }

    fn next(outcomes: &Outcomes) -> Option<wire::AddAnswers> {
        match outcomes.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => answers.map(|answers| answers.unwrap()),
            Poll::Pending => None,
        }
    }

    fn adds(count: usize) -> Vec<ReceivedAdd> {
        let add = geminga_bookie_client::rpc::Add {
            ledger: geminga_common::ids::LedgerId(1),
            term: geminga_common::ids::Term(1),
            lac: None,
            lafr: None,
            attributes: None,
            entries: vec![],
        };
        vec![Ok(add); count]
    }

    #[test]
    fn outcomes_gather_as_ranges() {
        let outcomes = outcomes(1 << 20);
        outcomes.charge(&adds(6)).unwrap();
        for number in [0, 1, 2, 5] {
            outcomes.told(number, 48, Ok(()));
        }
        outcomes.told(3, 48, Err(AddError::DiskFull));
        let answers = next(&outcomes).unwrap();
        let ranges: Vec<_> = answers.durable.iter().map(|range| (range.first, range.count)).collect();
        assert_eq!(ranges, [(0, 3), (5, 1)]);
        assert_eq!(answers.refused[0].number, 3);
        assert_eq!(next(&outcomes), None, "told once");
        outcomes.end(None);
        outcomes.told(4, 48, Ok(()));
        assert_eq!(next(&outcomes).unwrap().durable[0].first, 4, "what is open is answered before the end");
    }

    #[test]
    fn credit_bounds_what_is_open() {
        let outcomes = outcomes(100);
        outcomes.charge(&adds(2)).unwrap();
        assert!(outcomes.charge(&adds(1)).is_err());
        outcomes.told(0, 48, Ok(()));
        outcomes.charge(&adds(1)).unwrap();
        let small = self::outcomes(10);
        small.charge(&adds(1)).expect("one that alone is larger");
        assert!(self::outcomes(10).charge(&adds(2)).is_err());
    }
}
