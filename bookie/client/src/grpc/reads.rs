//! The lane of reads of one class.
//!
//! A caller that goes away takes its read back if it has not been sent; an answer that nobody waits for any more is dropped.

use super::convert::{class_out, doubt_in};
use super::lane::{Outgoing, Traffic};
use super::table::unpack_entries;
use super::window::Violation;
use crate::rpc::{Doubt, Proof, Read, ReadAnswer, ReadClass};
use geminga_common::ids::{Incarnation, LedgerId};
use geminga_proto::bookie as wire;
use geminga_proto::bookie::bookie_client::BookieClient;
use geminga_proto::bookie::{
    Hello, ReadAnswers, ReadRequest, Welcome, read_answer, read_answers, read_request,
};
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Most reads in one message.
const BATCH: usize = 256;

struct Waiting {
    ledger: LedgerId,
    answer: oneshot::Sender<ReadAnswer>,
}

/// Reads of one class from one bookie.
pub(super) struct Reads {
    class: ReadClass,
    queue: VecDeque<wire::Read>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    most: usize,
}

type Told = (oneshot::Sender<ReadAnswer>, ReadAnswer);

impl Reads {
    /// At most `most` reads wait at once.
    pub(super) fn new(class: ReadClass, most: usize) -> Self {
        Self { class, queue: VecDeque::new(), waiting: BTreeMap::new(), next: 0, most }
    }

    /// Takes a read in, or answers how it is refused.
    pub(super) fn offer(
        &mut self,
        to: Incarnation,
        read: Read,
        answer: oneshot::Sender<ReadAnswer>,
        reachable: bool,
    ) -> Option<Told> {
        if !reachable || self.waiting.len() >= self.most {
            return Some((answer, ReadAnswer::Unknown(Doubt::Unreachable)));
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, Waiting { ledger: read.ledger, answer });
        self.queue.push_back(wire::Read {
            number,
            incarnation: to.0,
            ledger: read.ledger.0,
            first: read.first.0,
            last: read.last.0,
            bytes_max: read.bytes_max as u64,
        });
        None
    }
}

impl Traffic for Reads {
    type Up = ReadRequest;
    type Down = ReadAnswers;
    type Batch = Vec<wire::Read>;
    type Told = Told;
    const NAME: &'static str = "reads";

    async fn open(
        mut client: BookieClient<Channel>,
        outgoing: Outgoing<Self>,
    ) -> Result<Streaming<ReadAnswers>, Status> {
        Ok(client.read_stream(outgoing).await?.into_inner())
    }

    fn hello(&self, mut hello: Hello) -> ReadRequest {
        hello.read_class = class_out(self.class).into();
        ReadRequest { kind: Some(read_request::Kind::Hello(hello)) }
    }

    fn welcome(first: ReadAnswers) -> Option<Welcome> {
        match first.kind {
            Some(read_answers::Kind::Welcome(welcome)) => Some(welcome),
            _ => None,
        }
    }

    fn opened(&mut self, _welcome: &Welcome) {}

    fn next_batch(&mut self, _now: Instant) -> Option<Self::Batch> {
        let mut reads = Vec::new();
        while reads.len() < BATCH
            && let Some(read) = self.queue.pop_front()
        {
            match self.waiting.get(&read.number) {
                Some(waiting) if !waiting.answer.is_closed() => reads.push(read),
                // Nobody waits for it any more.
                _ => drop(self.waiting.remove(&read.number)),
            }
        }
        (!reads.is_empty()).then_some(reads)
    }

    fn encode(reads: Self::Batch) -> ReadRequest {
        ReadRequest { kind: Some(read_request::Kind::Reads(wire::Reads { reads })) }
    }

    fn receive(&mut self, down: ReadAnswers, _now: Instant, told: &mut Vec<Told>) -> Result<(), Violation> {
        let Some(read_answers::Kind::Answer(answer)) = down.kind else {
            return Err(Violation("an answer to nothing"));
        };
        let waiting = self.waiting.remove(&answer.number).ok_or(Violation("an answer to no read"))?;
        let answer = match answer.kind {
            Some(read_answer::Kind::Found(packed)) => match unpack_entries(packed) {
                Ok((ledger, entries)) if ledger == waiting.ledger && !entries.is_empty() => {
                    ReadAnswer::Found(entries)
                }
                _ => ReadAnswer::Unknown(Doubt::Damaged),
            },
            // The proof was made by the bookie's index; this carries it on.
            Some(read_answer::Kind::NotFound(_)) => ReadAnswer::NotFound(Proof::from_intact_index()),
            Some(read_answer::Kind::Unknown(doubt)) => ReadAnswer::Unknown(doubt_in(doubt)),
            None => ReadAnswer::Unknown(Doubt::Unreachable),
        };
        told.push((waiting.answer, answer));
        Ok(())
    }

    fn broken(&mut self, _why: &'static str, told: &mut Vec<Told>) {
        self.queue.clear();
        let waiting = std::mem::take(&mut self.waiting).into_values();
        told.extend(waiting.map(|waiting| (waiting.answer, ReadAnswer::Unknown(Doubt::Unreachable))));
    }

    // A read's deadline is its caller's future.
    fn expire(&mut self, _now: Instant, _told: &mut Vec<Told>) {}

    fn due(&self) -> Option<Instant> {
        None
    }

    fn wanting(&self) -> bool {
        !self.queue.is_empty()
    }

    fn tell((answer, told): Told) {
        // A caller that went away does not want to know.
        let _gone = answer.send(told);
    }
}
