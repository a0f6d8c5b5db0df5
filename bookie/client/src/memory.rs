//! Bookies in memory, for tests: several [`store::Store`]s behind one [`BookieRpc`], with faults that are switched per bookie and
//! a stepping mode in which nothing arrives until the test says so.
//!
//! Calls are carried out under one lock and answered outside of it, on the caller's thread; a callback may call back in.

pub mod store;
#[cfg(test)]
mod tests;

use crate::entry::Entry;
use crate::repair::pull::{Sink, pull};
use crate::rpc::{
    Add, AddDone, AddError, BookieRef, BookieRpc, ControlError, Doubt, IdRange, LedgerStat, Presence, Read,
    ReadAnswer, Replicate, ReplicateError, Replicated, Tail,
};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, Term};
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use store::Store;

/// Faults of one bookie. All off by default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Calls fail at once, unexecuted; their callers learn nothing.
    pub down: bool,
    /// Calls are carried out, their answers kept until [`MemoryBookies::release`].
    pub hold_answers: bool,
    /// Calls are carried out, their answers lost: callers are told "unknown".
    pub lose_answers: bool,
    /// Adds are refused with this.
    pub refuse_adds: Option<AddError>,
    /// Answers take this long. Needs a tokio runtime.
    pub delay: Duration,
}

/// What a call got to: a store, or nothing.
type Reached<'a> = Option<&'a mut Store>;
/// Tells the caller; made by carrying a call out.
type Answer = Box<dyn FnOnce() + Send>;
/// Carries a call out at a store (`None`: not reached). The flag asks for the answer "unknown" all the same.
type Call = Box<dyn FnOnce(Reached<'_>, bool) -> Answer + Send>;

struct Bookie {
    store: Store,
    faults: Faults,
    held: VecDeque<Answer>,
}

/// A call on its way, in stepping mode.
struct Underway {
    to: BookieId,
    what: String,
    call: Call,
}

#[derive(Default)]
struct World {
    bookies: BTreeMap<BookieId, Bookie>,
    stepping: bool,
    underway: Vec<Underway>,
    adds: u64,
}

/// Bookies in memory. Cloning shares them.
#[derive(Clone, Default)]
pub struct MemoryBookies {
    world: Arc<Mutex<World>>,
    tasks: TaskGroup,
}

impl MemoryBookies {
    /// `count` empty bookies named `bookie-0` and so on, incarnation 1.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let bookies = Self::default();
        for i in 0..count {
            let id = BookieId::new(&format!("bookie-{i}")).expect("a plain name");
            let store = Store::new(BookieRef { id: id.clone(), incarnation: Incarnation(1) });
            let bookie = Bookie { store, faults: Faults::default(), held: VecDeque::new() };
            bookies.world.lock().bookies.insert(id, bookie);
        }
        bookies
    }

    /// All bookies as they are now.
    #[must_use]
    pub fn refs(&self) -> Vec<BookieRef> {
        self.world.lock().bookies.values().map(|b| b.store.me().clone()).collect()
    }

    /// Switches faults of a bookie.
    pub fn faults(&self, id: &BookieId, change: impl FnOnce(&mut Faults)) {
        if let Some(bookie) = self.world.lock().bookies.get_mut(id) {
            change(&mut bookie.faults);
        }
    }

    /// Looks into or changes a store, behind the protocol's back.
    pub fn with_store<T>(&self, id: &BookieId, look: impl FnOnce(&mut Store) -> T) -> Option<T> {
        self.world.lock().bookies.get_mut(id).map(|bookie| look(&mut bookie.store))
    }

    /// Loses a bookie's data. With `tells` it comes back as another incarnation; without, it lies.
    pub fn wipe(&self, id: &BookieId, tells: bool) {
        self.with_store(id, |store| store.wipe(tells));
    }

    /// How many `add` calls were made, to any bookie.
    #[must_use]
    pub fn adds(&self) -> u64 {
        self.world.lock().adds
    }

    /// Gives the answers a bookie holds, and stops holding them.
    pub fn release(&self, id: &BookieId) {
        let held = match self.world.lock().bookies.get_mut(id) {
            Some(bookie) => {
                bookie.faults.hold_answers = false;
                std::mem::take(&mut bookie.held)
            }
            None => return,
        };
        held.into_iter().for_each(|answer| answer());
    }

    /// From now on calls wait for [`Self::deliver`], or no longer (those that wait stay until delivered).
    pub fn stepping(&self, on: bool) {
        self.world.lock().stepping = on;
    }

    /// The calls that wait, in call order: where to, and what.
    #[must_use]
    pub fn underway(&self) -> Vec<(BookieId, String)> {
        self.world.lock().underway.iter().map(|u| (u.to.clone(), u.what.clone())).collect()
    }

    /// Lets the `index`th waiting call arrive.
    ///
    /// # Panics
    /// When there is none.
    pub fn deliver(&self, index: usize) {
        let Underway { to, call, .. } = self.world.lock().underway.remove(index);
        self.arrive(&to, call);
    }

    /// Loses the `index`th waiting call: its caller is told "unknown".
    ///
    /// # Panics
    /// When there is none.
    pub fn lose(&self, index: usize) {
        let Underway { call, .. } = self.world.lock().underway.remove(index);
        call(None, false)();
    }

    fn submit(&self, to: &BookieRef, what: String, call: Call) {
        let mut world = self.world.lock();
        if world.stepping {
            world.underway.push(Underway { to: to.id.clone(), what, call });
            return;
        }
        drop(world);
        self.arrive(&to.id, call);
    }

    fn arrive(&self, to: &BookieId, call: Call) {
        let mut world = self.world.lock();
        let (answer, delay) = match world.bookies.get_mut(to) {
            Some(bookie) if !bookie.faults.down => {
                let answer = call(Some(&mut bookie.store), bookie.faults.lose_answers);
                if bookie.faults.hold_answers {
                    bookie.held.push_back(answer);
                    return;
                }
                (answer, bookie.faults.delay)
            }
            _ => (call(None, false), Duration::ZERO),
        };
        drop(world);
        if delay.is_zero() {
            return answer();
        }
        self.tasks.spawn("slow-bookie", OnFailure::Log, async move {
            tokio::time::sleep(delay).await;
            answer();
        });
    }

    /// Submits a call whose answer is awaited.
    fn ask<T: Send + 'static>(
        &self,
        to: &BookieRef,
        what: String,
        unknown: fn() -> T,
        run: impl FnOnce(&mut Store, &BookieRef) -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let (told, answer) = oneshot::channel();
        let me = to.clone();
        let call: Call = Box::new(move |reached, lost| {
            let result = reached.map(|store| run(store, &me)).filter(|_| !lost).unwrap_or_else(unknown);
            // Whoever asked may have gone.
            Box::new(move || drop(told.send(result)))
        });
        self.submit(to, what, call);
        answer.map(move |result| result.unwrap_or_else(|_| unknown())).boxed()
    }
}

impl BookieRpc for MemoryBookies {
    fn add(&self, to: &BookieRef, add: Add, done: AddDone) {
        let mut world = self.world.lock();
        world.adds += 1;
        let refuse = world.bookies.get(&to.id).and_then(|b| b.faults.refuse_adds.clone());
        drop(world);
        let what = format!("add of {} to ledger {}", add.entries.len(), add.ledger);
        let me = to.clone();
        let call: Call = Box::new(move |reached, lost| {
            let result = match (reached, refuse) {
                (None, _) => Err(AddError::Unknown("unreachable")),
                (Some(_), Some(error)) => Err(error),
                (Some(store), None) => store.add(&me, add),
            };
            let result = if lost { Err(AddError::Unknown("answer lost")) } else { result };
            Box::new(move || done(result))
        });
        self.submit(to, what, call);
    }

    fn read(&self, to: &BookieRef, read: Read) -> BoxFuture<'static, ReadAnswer> {
        let what = format!("read {}:{}", read.ledger, read.first);
        let unknown = || ReadAnswer::Unknown(Doubt::Unreachable);
        self.ask(to, what, unknown, move |store, me| store.read(me, read))
    }

    fn fence_tail(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> BoxFuture<'static, Result<Tail, ControlError>> {
        let what = format!("fence ledger {ledger} at term {term}");
        let unknown = || Err(ControlError::Unknown("unreachable"));
        self.ask(to, what, unknown, move |store, me| store.fence_tail(me, ledger, term, from))
    }

    fn seal(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> BoxFuture<'static, Result<(), ControlError>> {
        let unknown = || Err(ControlError::Unknown("unreachable"));
        self.ask(to, format!("seal ledger {ledger}"), unknown, move |store, me| store.seal(me, ledger, last))
    }

    fn delete(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<(), ControlError>> {
        let unknown = || Err(ControlError::Unknown("unreachable"));
        self.ask(to, format!("delete ledger {ledger}"), unknown, move |store, me| store.delete(me, ledger))
    }

    fn stat(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<LedgerStat, ControlError>> {
        let unknown = || Err(ControlError::Unknown("unreachable"));
        self.ask(to, format!("stat ledger {ledger}"), unknown, move |store, me| store.stat(me, ledger))
    }

    fn replicate(
        &self,
        to: &BookieRef,
        request: Replicate,
    ) -> BoxFuture<'static, Result<Replicated, ReplicateError>> {
        let sink = Copies { bookies: self.clone(), me: to.clone() };
        async move { pull(&sink.bookies, &sink, &request).await }.boxed()
    }

    fn presence(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        ids: IdRange,
    ) -> BoxFuture<'static, Result<Presence, ControlError>> {
        let unknown = || Err(ControlError::Unknown("unreachable"));
        let what = format!("presence in ledger {ledger}");
        self.ask(to, what, unknown, move |store, me| store.presence(me, ledger, ids))
    }
}

/// The store that gets copies.
struct Copies {
    bookies: MemoryBookies,
    me: BookieRef,
}

impl Sink for Copies {
    fn me(&self) -> BookieRef {
        self.me.clone()
    }

    fn presence(&self, ledger: LedgerId, ids: IdRange) -> BoxFuture<'_, Result<Presence, ControlError>> {
        BookieRpc::presence(&self.bookies, &self.me, ledger, ids)
    }

    fn store(&self, ledger: LedgerId, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), AddError>> {
        let unknown = || Err(AddError::Unknown("unreachable"));
        let what = format!("copies of {} for ledger {ledger}", entries.len());
        self.bookies.ask(&self.me, what, unknown, move |store, me| store.store_copies(me, ledger, entries))
    }
}
