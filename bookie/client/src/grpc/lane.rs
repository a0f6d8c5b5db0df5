//! A lane: one bidirectional stream to one bookie, opened again when it breaks. Adds and each class of reads have one.
//!
//! Owner: a task for each lane. States: `Idle` (no stream, nothing wanted) → `Opening` (something is wanted; it waits) → `Up` or, when
//! no stream could be had, `Resting` (for the backoff: what is offered is refused at once, so that a writer looks for another bookie
//! instead of waiting) → `Idle`. A stream that breaks tells everything that waits. An idle lane costs nothing: no timers, no
//! attempts.
//!
//! Nothing is batched by time: the transport asks for the next message when it can take one, and gets whatever is queued by then.

use super::window::Violation;
use super::{Endpoint, Shared};
use geminga_common::rng::Rng;
use geminga_common::tasks::OnFailure;
use geminga_proto::bookie::bookie_client::BookieClient;
use geminga_proto::bookie::{Hello, Welcome};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// What travels on a lane. All calls but `open`, `encode` and `tell` are made under the lane's lock and must be short.
pub(super) trait Traffic: Send + Sized + 'static {
    /// What is sent.
    type Up: Send + 'static;
    /// What is received.
    type Down: Send + 'static;
    /// Taken from the queue to be sent.
    type Batch;
    /// An outcome for a caller.
    type Told: Send;
    /// For the task's name.
    const NAME: &'static str;

    fn open(
        client: BookieClient<Channel>,
        outgoing: Outgoing<Self>,
    ) -> impl Future<Output = Result<Streaming<Self::Down>, Status>> + Send;
    fn hello(&self, hello: Hello) -> Self::Up;
    fn welcome(first: Self::Down) -> Option<Welcome>;
    fn opened(&mut self, welcome: &Welcome);
    fn next_batch(&mut self, now: Instant) -> Option<Self::Batch>;
    fn encode(batch: Self::Batch) -> Self::Up;
    fn receive(
        &mut self,
        down: Self::Down,
        now: Instant,
        told: &mut Vec<Self::Told>,
    ) -> Result<(), Violation>;
    fn broken(&mut self, why: &'static str, told: &mut Vec<Self::Told>);
    fn expire(&mut self, now: Instant, told: &mut Vec<Self::Told>);
    fn due(&self) -> Option<Instant>;
    fn wanting(&self) -> bool;
    fn tell(told: Self::Told);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Idle,
    Opening,
    Up,
    Resting,
    /// The group has stopped: nobody is left to tell anything but the caller.
    Stopped,
}

struct Inner<T: Traffic> {
    traffic: T,
    link: Link,
    /// Counts streams: an older stream's outgoing half ends itself.
    stream: u64,
    /// The outgoing half sleeps.
    sleeper: Option<Waker>,
    /// What the task's timer is set to; never later than anything is due. It stays set when the lane falls idle, so that a lane that
    /// is busy with one add after another does not set it for each.
    armed: Option<Instant>,
    /// To be told by the lane's task: never by the caller, who may hold locks that the callee takes.
    refused: Vec<T::Told>,
}

/// Shared by callers, the lane's task and the outgoing half of its stream.
pub(super) struct Lane<T: Traffic> {
    inner: Mutex<Inner<T>>,
    /// Something for the lane's task: a stream is wanted, or somebody is to be told.
    notify: Notify,
}

impl<T: Traffic> Lane<T> {
    /// A lane and its task.
    pub(super) fn start(shared: &Arc<Shared>, endpoint: Arc<Endpoint>, traffic: T) -> Arc<Self> {
        let inner =
            Inner { traffic, link: Link::Idle, stream: 0, sleeper: None, armed: None, refused: Vec::new() };
        let lane = Arc::new(Self { inner: Mutex::new(inner), notify: Notify::new() });
        let (task, shared_) = (lane.clone(), shared.clone());
        let _entered = shared.runtime.enter();
        shared.tasks.spawn(format!("bookie-{}", T::NAME), OnFailure::StopProcess, async move {
            task.run(&shared_, &endpoint).await;
        });
        lane
    }

    /// Offers something to the traffic; what it refuses is told from the lane's task.
    pub(super) fn offer(&self, offer: impl FnOnce(&mut T, bool) -> Option<T::Told>) {
        let mut inner = self.inner.lock();
        let reachable = !matches!(inner.link, Link::Resting | Link::Stopped);
        let mut refused = offer(&mut inner.traffic, reachable);
        if inner.link == Link::Stopped {
            drop(inner);
            return refused.into_iter().for_each(T::tell);
        }
        let for_task = refused.is_some() || inner.armed.is_none() || inner.link != Link::Up;
        inner.refused.extend(refused.take());
        let sleeper = inner.sleeper.take();
        drop(inner);
        if for_task {
            self.notify.notify_one();
        }
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    fn tell(&self, act: impl FnOnce(&mut Inner<T>, &mut Vec<T::Told>)) {
        let mut told = Vec::new();
        {
            let mut inner = self.inner.lock();
            told.append(&mut inner.refused);
            act(&mut inner, &mut told);
        }
        told.into_iter().for_each(T::tell);
    }

    async fn run(self: Arc<Self>, shared: &Shared, endpoint: &Endpoint) {
        let stop = shared.tasks.token();
        let served = async {
            let mut failures = 0;
            let mut rng = shared.config.seed.map_or_else(Rng::from_system, Rng::seeded);
            loop {
                self.wanted().await;
                let why = match self.open(shared, endpoint).await {
                    Ok((mut answers, credit)) => {
                        failures = 0;
                        self.up(&credit);
                        self.serve(&mut answers).await
                    }
                    Err(why) => {
                        if failures == 0 {
                            tracing::warn!(bookie = %endpoint.id, lane = T::NAME, %why, "bookie cannot be reached");
                        }
                        why
                    }
                };
                tracing::debug!(bookie = %endpoint.id, lane = T::NAME, %why, "stream to bookie ended");
                self.rest("bookie cannot be reached");
                self.resting(shared.config.backoff.delay(failures, &mut rng)).await;
                failures += 1;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = served => {}
        }
        self.rest("shutting down");
        self.tell(|inner, _| inner.link = Link::Stopped);
    }

    fn arm(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        inner.armed = inner.armed.or(inner.traffic.due());
        inner.armed
    }

    fn expire(&self) {
        self.tell(|inner, told| {
            inner.armed = None;
            inner.traffic.expire(Instant::now(), told);
        });
    }

    /// Until something is wanted; then the lane is opening.
    async fn wanted(&self) {
        loop {
            let mut wanting = false;
            self.tell(|inner, _| {
                wanting = inner.traffic.wanting();
                inner.link = if wanting { Link::Opening } else { Link::Idle };
            });
            if wanting {
                return;
            }
            self.notify.notified().await;
        }
    }

    async fn open(
        self: &Arc<Self>,
        shared: &Shared,
        endpoint: &Endpoint,
    ) -> Result<(Streaming<T::Down>, Welcome), String> {
        let opening = async {
            let channel = endpoint.channel(shared)?;
            let client = shared.client(channel);
            let outgoing = self.outgoing(shared.hello(&endpoint.id));
            let mut answers = T::open(client, outgoing).await.map_err(|status| said(&status))?;
            let first = answers.message().await.map_err(|status| said(&status))?;
            let welcome = first.and_then(T::welcome).ok_or("no welcome came first")?;
            shared.check(&endpoint.id, &welcome)?;
            Ok((answers, welcome))
        };
        let limited = tokio::time::timeout(shared.config.connect_timeout, opening);
        tokio::pin!(limited);
        loop {
            let due = self.arm();
            tokio::select! {
                opened = &mut limited => return opened.unwrap_or_else(|_| Err("no answer in time".to_owned())),
                () = at(due) => self.expire(),
                () = self.notify.notified() => self.tell(|_, _| ()),
            }
        }
    }

    fn outgoing(self: &Arc<Self>, hello: Hello) -> Outgoing<T> {
        let mut inner = self.inner.lock();
        inner.stream += 1;
        let hello = Some(inner.traffic.hello(hello));
        Outgoing { lane: self.clone(), stream: inner.stream, hello }
    }

    fn up(&self, welcome: &Welcome) {
        let mut inner = self.inner.lock();
        inner.link = Link::Up;
        inner.traffic.opened(welcome);
        let sleeper = inner.sleeper.take();
        drop(inner);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Takes answers until the stream ends.
    async fn serve(&self, answers: &mut Streaming<T::Down>) -> String {
        loop {
            let due = self.arm();
            tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        if let Err(violation) = self.take(answer) {
                            tracing::error!(why = violation.0, lane = T::NAME, "bookie breaks the protocol");
                            return violation.0.to_owned();
                        }
                    }
                    Ok(None) => return "the bookie ended it".to_owned(),
                    Err(status) => return said(&status),
                },
                () = self.notify.notified() => self.tell(|_, _| ()),
                () = at(due) => self.expire(),
            }
        }
    }

    fn take(&self, answer: T::Down) -> Result<(), Violation> {
        let (mut outcome, mut sleeper) = (Ok(()), None);
        self.tell(|inner, told| {
            outcome = inner.traffic.receive(answer, Instant::now(), told);
            // There may be credit again.
            sleeper = inner.sleeper.take_if(|_| inner.traffic.wanting());
        });
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
        outcome
    }

    /// Everything that waits is told, and the outgoing half ends.
    fn rest(&self, why: &'static str) {
        let mut sleeper = None;
        self.tell(|inner, told| {
            inner.link = Link::Resting;
            inner.stream += 1;
            inner.traffic.broken(why, told);
            sleeper = inner.sleeper.take();
        });
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    async fn resting(&self, pause: Duration) {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                () = self.notify.notified() => self.tell(|_, _| ()),
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn said(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// The outgoing half of a stream: hello, then whatever is queued when the transport asks.
pub(super) struct Outgoing<T: Traffic> {
    lane: Arc<Lane<T>>,
    stream: u64,
    hello: Option<T::Up>,
}

impl<T: Traffic> Unpin for Outgoing<T> {}

impl<T: Traffic> futures::Stream for Outgoing<T> {
    type Item = T::Up;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T::Up>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello));
        }
        let batch = {
            let mut inner = self.lane.inner.lock();
            if inner.stream != self.stream {
                return Poll::Ready(None);
            }
            match inner.traffic.next_batch(Instant::now()) {
                Some(batch) => batch,
                None => {
                    inner.sleeper = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        Poll::Ready(Some(T::encode(batch)))
    }
}
