//! The client's own asynchronous code over simulated calls: what it asks is collected while it is polled and sent afterwards, so that it
//! need not know of the world, whose parts are of one thread.

use crate::calls::{Outcome, Req};
use crate::world::Cx;
use futures::future::BoxFuture;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::repair::pull::Sink;
use geminga_bookie_client::rpc::{
    Add, AddDone, AddError, BookieRef, BookieRpc, ControlError, Doubt, IdRange, LedgerStat, Presence, Read,
    ReadAnswer, Replicate, ReplicateError, Replicated, Tail,
};
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

/// Where an answer arrives, and who waits for it.
#[derive(Default)]
struct Slot {
    answer: Option<Outcome>,
    waker: Option<Waker>,
}

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("no holder panics")
}

/// Calls that were made and not yet sent.
#[derive(Clone, Default)]
pub(crate) struct Calls(Shared<Vec<(BookieRef, Req, Shared<Slot>)>>);

const LOST: ControlError = ControlError::Unknown("another kind of answer");

impl Calls {
    fn ask<T: Send + 'static>(
        &self,
        to: &BookieRef,
        req: Req,
        pick: impl Fn(Outcome) -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let slot = Shared::<Slot>::default();
        lock(&self.0).push((to.clone(), req, slot.clone()));
        Box::pin(poll_fn(move |context| {
            let mut slot = lock(&slot);
            match slot.answer.take() {
                Some(answer) => Poll::Ready(pick(answer)),
                None => {
                    slot.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }

    /// Runs a future of the client, and sends what it asks.
    pub(crate) async fn carry<T>(&self, cx: &Cx, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| {
            let polled = future.as_mut().poll(context);
            for (to, req, slot) in std::mem::take(&mut *lock(&self.0)) {
                cx.send(&to, req, move |outcome| {
                    let mut slot = lock(&slot);
                    slot.answer = Some(outcome);
                    slot.waker.take().into_iter().for_each(Waker::wake);
                });
            }
            polled
        })
        .await
    }
}

impl BookieRpc for Calls {
    fn add(&self, to: &BookieRef, add: Add, done: AddDone) {
        // Writers have shells of their own here; nobody else adds.
        let _never = (to, add);
        done(Err(AddError::Failed));
    }

    fn read(&self, to: &BookieRef, read: Read) -> BoxFuture<'static, ReadAnswer> {
        self.ask(to, Req::Read(read), |outcome| match outcome {
            Outcome::Read(answer) => answer,
            _ => ReadAnswer::Unknown(Doubt::Unreachable),
        })
    }

    fn fence_tail(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> BoxFuture<'static, Result<Tail, ControlError>> {
        self.ask(to, Req::Fence { ledger, term, from }, |outcome| match outcome {
            Outcome::Tail(answer) => answer,
            _ => Err(LOST),
        })
    }

    fn seal(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> BoxFuture<'static, Result<(), ControlError>> {
        self.ask(to, Req::Seal { ledger, last }, control)
    }

    fn delete(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<(), ControlError>> {
        self.ask(to, Req::Delete { ledger }, control)
    }

    fn stat(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<LedgerStat, ControlError>> {
        self.ask(to, Req::Stat { ledger }, |outcome| match outcome {
            Outcome::Stat(answer) => answer,
            _ => Err(LOST),
        })
    }

    fn replicate(
        &self,
        to: &BookieRef,
        request: Replicate,
    ) -> BoxFuture<'static, Result<Replicated, ReplicateError>> {
        self.ask(to, Req::Replicate(request), |outcome| match outcome {
            Outcome::Replicated(answer) => answer,
            _ => Err(LOST.into()),
        })
    }

    fn presence(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        ids: IdRange,
    ) -> BoxFuture<'static, Result<Presence, ControlError>> {
        self.ask(to, Req::Presence { ledger, ids }, |outcome| match outcome {
            Outcome::Presence(answer) => answer,
            _ => Err(LOST),
        })
    }
}

fn control(outcome: Outcome) -> Result<(), ControlError> {
    match outcome {
        Outcome::Control(answer) => answer,
        _ => Err(LOST),
    }
}

/// A bookie's own store, as the destination of a repair.
pub(crate) struct Own {
    pub(crate) me: BookieRef,
    pub(crate) calls: Calls,
}

impl Sink for Own {
    fn me(&self) -> BookieRef {
        self.me.clone()
    }

    fn presence(&self, ledger: LedgerId, ids: IdRange) -> BoxFuture<'_, Result<Presence, ControlError>> {
        self.calls.presence(&self.me, ledger, ids)
    }

    fn store(&self, ledger: LedgerId, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), AddError>> {
        self.calls.ask(&self.me, Req::Copies { ledger, entries }, |outcome| match outcome {
            Outcome::Add(answer) => answer,
            _ => Err(AddError::Unknown("another kind of answer")),
        })
    }
}
