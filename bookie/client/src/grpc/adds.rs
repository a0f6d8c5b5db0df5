//! The lane of adds.

use super::convert::add_error;
use super::health::Health;
use super::lane::{Outgoing, Traffic};
use super::table::pack_adds;
use super::window::{Answer, Limits, Violation, Window};
use crate::rpc::{Add, AddDone};
use geminga_common::ids::{BookieId, Incarnation};
use geminga_proto::bookie::bookie_client::BookieClient;
use geminga_proto::bookie::{AddAnswers, AddRequest, Hello, Welcome, add_request};
use std::sync::Arc;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Adds to one bookie.
pub(super) struct Adds {
    window: Window<AddDone>,
    bookie: BookieId,
    health: Arc<Health>,
}

impl Adds {
    pub(super) fn new(limits: Limits, bookie: BookieId, health: Arc<Health>) -> Self {
        Self { window: Window::new(limits), bookie, health }
    }

    /// Takes an add in, or answers how it is refused.
    pub(super) fn offer(
        &mut self,
        to: Incarnation,
        add: Add,
        done: AddDone,
        reachable: bool,
    ) -> Option<Answer<AddDone>> {
        if !reachable {
            return Some((done, Err(crate::rpc::AddError::Unknown("bookie cannot be reached"))));
        }
        self.window.offer(to, add, done, Instant::now()).err()
    }
}

impl Traffic for Adds {
    type Up = AddRequest;
    type Down = AddAnswers;
    type Batch = (Incarnation, Vec<Add>);
    type Told = Answer<AddDone>;
    const NAME: &'static str = "adds";

    async fn open(
        mut client: BookieClient<Channel>,
        outgoing: Outgoing<Self>,
    ) -> Result<Streaming<AddAnswers>, Status> {
        Ok(client.add_stream(outgoing).await?.into_inner())
    }

    fn hello(&self, hello: Hello) -> AddRequest {
        AddRequest { kind: Some(add_request::Kind::Hello(hello)) }
    }

    fn welcome(first: AddAnswers) -> Option<Welcome> {
        first.welcome
    }

    fn opened(&mut self, welcome: &Welcome) {
        self.window.opened(usize::try_from(welcome.credit_bytes).unwrap_or(usize::MAX));
    }

    fn next_batch(&mut self, now: Instant) -> Option<Self::Batch> {
        self.window.next_batch(now)
    }

    fn encode((incarnation, adds): Self::Batch) -> AddRequest {
        AddRequest { kind: Some(add_request::Kind::Batch(pack_adds(incarnation, &adds))) }
    }

    fn receive(
        &mut self,
        down: AddAnswers,
        now: Instant,
        told: &mut Vec<Self::Told>,
    ) -> Result<(), Violation> {
        let mut took = None;
        for range in down.durable {
            took = self.window.answered((range.first, range.count), &Ok(()), now, told)?.or(took);
        }
        for refused in down.refused {
            let refusal = refused.refusal.ok_or(Violation("a refusal without a reason"))?;
            self.window.answered((refused.number, 1), &Err(add_error(&refusal)), now, told)?;
        }
        if let Some(took) = took {
            self.health.answered(&self.bookie, took, now);
        }
        Ok(())
    }

    fn broken(&mut self, why: &'static str, told: &mut Vec<Self::Told>) {
        self.window.broken(why, told);
    }

    fn expire(&mut self, now: Instant, told: &mut Vec<Self::Told>) {
        let before = told.len();
        self.window.expire(now, told);
        if told.len() > before {
            // No answer at all is the slowest of answers.
            self.health.answered(&self.bookie, self.window.deadline(), now);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.window.due()
    }

    fn wanting(&self) -> bool {
        self.window.wanting()
    }

    fn tell((done, result): Self::Told) {
        done(result);
    }
}
