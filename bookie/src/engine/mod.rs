//! The running store: threads around a [`Store`].
//!
//! Journal threads take turns: one claims the inbox, admits, builds a batch, writes it and answers, while others may claim the
//! next. So an add on an idle store costs one wake-up. The inbox's lock is short; the shard's is held for admission, never across a
//! disk call; no answer is given under a lock. A flush thread, a thread that prepares journal files and a few readers stand
//! beside them. All of them sleep without timers when there is nothing to do.

mod background;
mod journal;
mod pace;
mod reads;

use crate::config::Config;
use crate::format::losses::{AcceptedLoss, may_lack};
use crate::query::ReadStart;
use crate::shard::{ControlDone, Op, Status};
use crate::store::{Accepted, Damage, OpenError, Progress, Store, View, open_all};
use crate::{Figures, Room};
use background::Background;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{
    Add, AddDone, AddError, ControlError, IdRange, LedgerStat, Presence, Read, ReadAnswer, ReadClass, Tail,
};
use geminga_common::clock::{Clock, Mono};
use geminga_common::disk::Disk;
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, Term};
use geminga_common::tasks::{OnFailure, TaskGroup};
use pace::Latency;
use parking_lot::{Condvar, Mutex};
use reads::Jobs;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// What a store can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Everything.
    Serving,
    /// It lost something it had acknowledged: it serves what it has, proves no absence and takes nothing.
    DataLoss,
    /// A write or sync failed: it answers nothing any more; the process should end.
    Failed,
}

#[derive(Default)]
struct Inbox {
    ops: VecDeque<Op>,
    bytes: usize,
    /// When the oldest came.
    since: Mono,
    claimed: usize,
    sleeping: usize,
    /// No room in cache or journal: wait for a flush or a file.
    blocked: bool,
    marker_at: Option<Mono>,
    marker_watched: bool,
    stop: bool,
}

/// What all shards tell together.
struct Node {
    health: watch::Sender<Health>,
    rooms: Mutex<Vec<Room>>,
    room: watch::Sender<Room>,
    /// Per shard.
    damages: Mutex<Vec<u64>>,
    damage: watch::Sender<u64>,
}

impl Node {
    fn fail(&self) {
        self.health.send_if_modified(|health| std::mem::replace(health, Health::Failed) != Health::Failed);
    }

    /// Takes in how much of a shard's segments does not check.
    fn damage(&self, shard: usize, damage: u64) {
        let mut damages = self.damages.lock();
        damages[shard] = damage;
        let all = damages.iter().sum();
        self.damage.send_if_modified(|known| std::mem::replace(known, all) != all);
    }

    fn damage_of(&self, shard: usize) -> u64 {
        self.damages.lock()[shard]
    }

    fn room(&self, shard: usize, room: Room) {
        let mut rooms = self.rooms.lock();
        rooms[shard] = room;
        let fullest = rooms.iter().copied().max().unwrap_or_default();
        self.room.send_if_modified(|known| std::mem::replace(known, fullest) != fullest);
    }
}

struct Core {
    store: Store,
    inbox: Mutex<Inbox>,
    work: Condvar,
    background: Mutex<Background>,
    flusher: Condvar,
    preparer: Condvar,
    jobs: Mutex<Jobs>,
    readers: Condvar,
    keeper: Condvar,
    latency: Latency,
    number: usize,
    node: Arc<Node>,
}

/// A running store. Cloning shares it; it stops with its task group.
#[derive(Clone)]
pub struct Bookie {
    /// A ledger belongs to the one whose number is its id modulo theirs.
    shards: Arc<[Arc<Core>]>,
    node: Arc<Node>,
}

impl std::fmt::Debug for Bookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bookie").field("id", self.id()).finish_non_exhaustive()
    }
}

impl Bookie {
    /// Opens a store, formatting a blank one, and starts its threads in `tasks`. Blocks on the disk until the journal is replayed.
    /// A damaged store opens too, in [`Health::DataLoss`].
    ///
    /// # Errors
    /// See [`OpenError`]; of those but `Disk`, none changes anything.
    pub fn open(
        config: Config,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        tasks: &TaskGroup,
    ) -> Result<Self, OpenError> {
        let stores = open_all(config, disk, clock)?;
        let state = |store: &Store| {
            let shard = store.shard.lock();
            (shard.status == Status::DataLoss, shard.room)
        };
        let (losses, rooms): (Vec<bool>, Vec<Room>) = stores.iter().map(state).unzip();
        let health = if losses.contains(&true) { Health::DataLoss } else { Health::Serving };
        let fullest = rooms.iter().copied().max().unwrap_or_default();
        let damages: Vec<u64> = stores.iter().map(Store::damage).collect();
        let node = Arc::new(Node {
            damage: watch::Sender::new(damages.iter().sum()),
            damages: Mutex::new(damages),
            health: watch::Sender::new(health),
            rooms: Mutex::new(rooms),
            room: watch::Sender::new(fullest),
        });
        let shards =
            stores.into_iter().enumerate().map(|(number, store)| Core::start(store, number, &node, tasks));
        Ok(Self { shards: shards.collect(), node })
    }

    fn of(&self, ledger: LedgerId) -> &Arc<Core> {
        &self.shards[(ledger.0 % self.shards.len() as u64) as usize]
    }

    /// Stable name.
    #[must_use]
    pub fn id(&self) -> &BookieId {
        &self.shards[0].store.config.id
    }

    /// Incarnation of the store.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shards[0].store.incarnation
    }

    /// Losses of this store that were accepted for good, oldest first.
    #[must_use]
    pub fn accepted_losses(&self) -> &[AcceptedLoss] {
        &self.shards[0].store.accepted
    }

    /// Whether something of a ledger that counts on `incarnation` may have been lost, and that accepted; `None`: it was never this store.
    pub(crate) fn may_lack(&self, incarnation: Incarnation, ledger: LedgerId) -> Option<bool> {
        if incarnation == self.incarnation() {
            return Some(false);
        }
        may_lack(self.accepted_losses(), incarnation, ledger)
    }

    /// Where something of a ledger lies that does not check, if this is its only copy: nobody else can bring it back.
    pub(crate) fn only_copy_damaged(&self, ledger: LedgerId) -> Option<String> {
        let store = &self.of(ledger).store;
        store.config.only_copy.then(|| store.damage_of(ledger)).flatten()
    }

    /// Starts of the store so far, this one included.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.shards[0].store.boot()
    }

    /// The cluster knows that this store lost something it had acknowledged, by what its disk cannot tell (a volume that went back in
    /// time). To be called before anything is asked of it; not kept on disk, because the cluster's record is.
    pub fn declare_data_loss(&self) {
        for core in self.shards.iter() {
            core.store.shard.lock().status = Status::DataLoss;
        }
        self.node.health.send_replace(Health::DataLoss);
    }

    /// What the store can do, watched.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.node.health.subscribe()
    }

    /// Becomes true when the store has failed: a write or sync error was answered, and the process should end.
    #[must_use]
    pub fn failed(&self) -> bool {
        *self.node.health.borrow() == Health::Failed
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::add`].
    pub fn add(&self, add: Add, done: AddDone) {
        let core = self.of(add.ledger);
        let checked = core.store.check(&add);
        core.push(Op::Add { add, copies: false, checked, stored: None, done });
    }

    /// Stores copies of entries of a closed ledger, whatever its term; answered when they are durable. No term changes.
    ///
    /// # Errors
    /// As for an add, but for terms.
    pub async fn store_copies(&self, ledger: LedgerId, entries: Vec<Entry>) -> Result<(), AddError> {
        let core = self.of(ledger);
        let add = Add { ledger, term: Term(0), lac: None, lafr: None, attributes: None, entries };
        let checked = core.store.check(&add);
        let (tell, told) = tokio::sync::oneshot::channel();
        let done: AddDone = Box::new(move |result| drop(tell.send(result)));
        core.push(Op::Add { add, copies: true, checked, stored: None, done });
        told.await.unwrap_or(Err(AddError::Unknown("shut down")))
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::presence`].
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub async fn presence(&self, ledger: LedgerId, ids: IdRange) -> Result<Presence, ControlError> {
        // What is visible may not be durable yet.
        self.control(ledger, |done| Op::Barrier { done }).await?;
        let look = move |core: &Core| (core.store.presence(ledger, ids), 0);
        let presence = self.of(ledger).ask(ReadClass::Repair, look).await;
        presence.unwrap_or(Err(ControlError::Unknown("shut down")))
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::read`]. What the cache holds is answered at once.
    pub async fn read(&self, read: Read) -> ReadAnswer {
        let core = self.of(read.ledger);
        match core.store.read_start(read) {
            ReadStart::Answered(answer) => answer,
            ReadStart::Segments(segments, read) => {
                let unreachable = ReadAnswer::Unknown(geminga_bookie_client::rpc::Doubt::Unreachable);
                let job = move |core: &Core| {
                    let answer = core.store.read_segments(&segments, &read);
                    core.judge_soon(&answer, &segments);
                    let bytes = match &answer {
                        ReadAnswer::Found(entries) => entries.iter().map(|e| e.size() as u64).sum(),
                        _ => 0,
                    };
                    (answer, bytes)
                };
                core.ask(read.class, job).await.unwrap_or(unreachable)
            }
        }
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::fence_tail`].
    ///
    /// # Errors
    /// A higher term, a deleted ledger, or a failed store.
    pub async fn fence_tail(
        &self,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> Result<Tail, ControlError> {
        self.control(ledger, |done| Op::Fence { ledger, term, done }).await?;
        let tail = self.of(ledger).ask(ReadClass::Tail, move |core| (core.store.tail(ledger, from), 0)).await;
        tail.unwrap_or(Err(ControlError::Unknown("shut down")))
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::seal`].
    ///
    /// # Errors
    /// A deleted ledger, a seal at another end, or a failed store.
    pub async fn seal(&self, ledger: LedgerId, last: Option<EntryId>) -> Result<(), ControlError> {
        if last.is_some_and(|last| last.0 >= crate::query::ID_LIMIT) {
            return Err(ControlError::Unknown("entry id out of range"));
        }
        self.control(ledger, |done| Op::Seal { ledger, last, done }).await
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::delete`].
    ///
    /// # Errors
    /// A failed store.
    pub async fn delete(&self, ledger: LedgerId) -> Result<(), ControlError> {
        self.control(ledger, |done| Op::Delete { ledger, done }).await?;
        self.of(ledger).signal(true, false);
        Ok(())
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::stat`].
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub async fn stat(&self, ledger: LedgerId) -> Result<LedgerStat, ControlError> {
        let stat = self.of(ledger).ask(ReadClass::Tail, move |core| (core.store.stat(ledger), 0)).await;
        let stat = stat.unwrap_or(Err(ControlError::Unknown("shut down")))?;
        // What is visible may not be durable yet, and a repair that believed the list would count a copy that a crash takes back.
        self.control(ledger, |done| Op::Barrier { done }).await?;
        Ok(stat)
    }

    /// Flushes now, without waiting for size or age.
    pub fn flush_soon(&self) {
        self.shards.iter().for_each(|core| core.signal(true, false));
    }

    /// What the fullest disk has room for, watched. Placement avoids a store that is not [`Room::Open`] for new ledgers.
    #[must_use]
    pub fn room(&self) -> watch::Receiver<Room> {
        self.node.room.subscribe()
    }

    /// Blocks and footers of segments that are known not to check, watched. What they held answers `Unknown` until it has been copied
    /// here again; the number does not fall by that.
    #[must_use]
    pub fn damage(&self) -> watch::Receiver<u64> {
        self.node.damage.subscribe()
    }

    /// What is stored and what was done. Costs a look at every ledger: for scrapes, not for calls.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.shards.iter().map(|core| core.store.figures()).sum()
    }

    /// Takes no add for a ledger up to `to` any more, whatever its term; durable when answered. The caller knows that no ledger at or
    /// below is open or in recovery, and that none will be made. Never goes back: a lower one changes nothing.
    ///
    /// # Errors
    /// A failed store.
    pub async fn raise_watermark(&self, to: LedgerId) -> Result<(), ControlError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let done: ControlDone = Box::new(move |result| drop(tell.send(result)));
        for (core, done) in self.shards.iter().zip(split(done, self.shards.len())) {
            core.push(Op::Watermark { to, done });
        }
        told.await.unwrap_or(Err(ControlError::Unknown("shut down")))
    }

    /// Refuses an add, from another thread.
    pub(crate) fn refuse(&self, done: AddDone, error: AddError) {
        self.shards[0].tell((crate::shard::Done::Add(done), Err(error)));
    }

    async fn control(
        &self,
        ledger: LedgerId,
        op: impl FnOnce(ControlDone) -> Op,
    ) -> Result<(), ControlError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.of(ledger).push(op(Box::new(move |result| {
            // A caller that went away does not want to know.
            let _gone = tell.send(result);
        })));
        told.await.unwrap_or(Err(ControlError::Unknown("shut down")))
    }
}

impl Core {
    /// The threads of one shard, in `tasks`.
    fn start(store: Store, number: usize, node: &Arc<Node>, tasks: &TaskGroup) -> Arc<Self> {
        let core = Arc::new(Core {
            store,
            inbox: Mutex::default(),
            work: Condvar::new(),
            background: Mutex::default(),
            flusher: Condvar::new(),
            preparer: Condvar::new(),
            keeper: Condvar::new(),
            jobs: Mutex::default(),
            readers: Condvar::new(),
            latency: Latency::default(),
            number,
            node: node.clone(),
        });
        let spawn = |name: String, body: fn(&Core)| {
            let core = core.clone();
            tasks.thread(name, OnFailure::StopProcess, move || body(&core));
        };
        for n in 0..core.store.config.journal_in_flight {
            spawn(format!("journal-{number}-{n}"), Core::journal_loop);
        }
        for n in 0..core.store.config.readers {
            spawn(format!("read-{number}-{n}"), Core::read_loop);
        }
        spawn(format!("flush-{number}"), Core::flush_loop);
        spawn(format!("files-{number}"), Core::prepare_loop);
        spawn(format!("keep-{number}"), Core::keep_loop);
        let (token, stopped) = (tasks.token(), core.clone());
        tasks.thread(format!("bookie-stop-{number}"), OnFailure::Log, move || {
            futures::executor::block_on(token.cancelled());
            stopped.stop();
        });
        core
    }
}

/// One answer that is given when all parts have theirs; the first error counts.
pub(crate) fn split(done: ControlDone, parts: usize) -> Vec<ControlDone> {
    let state = Arc::new(Mutex::new((parts, Ok(()), Some(done))));
    let part = || -> ControlDone {
        let state = state.clone();
        Box::new(move |result| {
            let mut state = state.lock();
            state.0 -= 1;
            if state.1.is_ok() {
                state.1 = result;
            }
            let whole = if state.0 == 0 { state.2.take() } else { None };
            let result = state.1.clone();
            drop(state);
            if let Some(done) = whole {
                done(result);
            }
        })
    };
    (0..parts).map(|_| part()).collect()
}

/// Gives a store that lost data a new incarnation, after the controller has proven that nothing relies on the old one. What can be read
/// stays. The store must not be open; afterwards it opens and serves. Blocks on the disk.
///
/// # Errors
/// [`OpenError::NotLost`] when nothing was lost, and those of opening.
pub fn promote(config: Config, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Result<Incarnation, OpenError> {
    crate::store::promote(config, disk, clock)
}

/// Accepts the loss of a store that has the only copy: it goes on with what is left, under a new incarnation. The store must not be open;
/// afterwards it opens and serves. `known`: incarnations that metadata name. `damage`: what [`view_loss`] has found not to check; without it
/// the store is looked at now. Blocks on the disk.
///
/// # Errors
/// [`OpenError::NotLost`] when nothing was lost, and those of opening.
pub fn accept_loss(
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    known: &[Incarnation],
    damage: Option<Vec<Damage>>,
) -> Result<Accepted, OpenError> {
    crate::store::accept(config, disk, clock, known, damage)
}

/// Looks at what is left of a store that lost something or holds what does not check, without changing anything of it; every byte of its
/// segments is read, and `progress` told how many of how many. It must not be open. Blocks on the disk.
///
/// # Errors
/// [`OpenError::NotLost`] when nothing was lost, [`OpenError::Lost`] when nothing can be looked at, and those of opening.
pub fn view_loss(
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    progress: Progress<'_>,
) -> Result<View, OpenError> {
    crate::store::view(config, disk, clock, progress)
}
