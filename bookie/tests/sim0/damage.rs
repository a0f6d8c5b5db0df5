//! The budget of S1: how much may be lost for good. At most Qa−1 stores damaged or lost since everything was last on its whole write
//! quorum and nobody could place anything on what is lost any more.
//!
//! Damaged stores that are still in place count for as long as they are: new entries may lie on them. A lost store counts for as long as
//! its registration stands, some process lists it, or a placement on it waits for its commit: a ledger that begins over Qa stores which
//! are gone already has an end that nobody can decide, though nothing in it was ever acknowledged (seed 2183).

use crate::ledger::Bookies;
use crate::meta::{keys, registration};
use crate::plan::{SECOND, Us};
use crate::world::World;
use geminga_bookie::Health;
use geminga_bookie_client::rpc::{BookieRef, Read, ReadAnswer, ReadClass};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// How long a request of a process that died may still be on its way.
const LINGERS: Us = 10 * SECOND;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Known,
    /// Whoever would have learned it died.
    Never,
}

/// A placement whose commit is not known yet.
pub(crate) struct Planned(Rc<Cell<Outcome>>);

impl Planned {
    /// The outcome is known: the record says what became of it.
    pub(crate) fn settled(self) {
        self.0.set(Outcome::Known);
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        if self.0.get() == Outcome::Open {
            self.0.set(Outcome::Never);
        }
    }
}

struct Placement {
    stores: Vec<BookieRef>,
    outcome: Rc<Cell<Outcome>>,
    orphaned: Option<Us>,
}

/// A disk that may be lost although another store is damaged.
#[derive(Clone, Copy)]
pub(crate) struct Loss {
    pub(crate) victim: usize,
    /// The damaged store.
    pub(crate) hurt: usize,
    /// Something is then on the damaged store alone.
    pub(crate) leaves_alone: bool,
}

/// What may still be lost, and who might place on what is.
pub(crate) struct Damage {
    ack: u32,
    outstanding: u32,
    lists: Vec<Weak<RefCell<Vec<BookieRef>>>>,
    placements: Vec<Placement>,
}

impl Damage {
    pub(crate) fn new(ack: u32) -> Self {
        Self { ack, outstanding: 0, lists: Vec::new(), placements: Vec::new() }
    }

    pub(crate) fn knows(&mut self, bookies: &Bookies) {
        self.lists.push(Rc::downgrade(bookies));
    }

    pub(crate) fn plan(&mut self, stores: Vec<BookieRef>) -> Planned {
        self.placements.retain(|p| p.outcome.get() != Outcome::Known);
        let outcome = Rc::new(Cell::new(Outcome::Open));
        self.placements.push(Placement { stores, outcome: outcome.clone(), orphaned: None });
        Planned(outcome)
    }

    /// Whether a placement on a store waits for its commit. After [`Damage::placeable`], which settles them.
    fn planned(&self, store: &BookieRef) -> bool {
        self.placements.iter().any(|p| p.stores.contains(store))
    }

    /// Whether somebody might still place on a store that is gone.
    fn placeable(&mut self, now: Us, gone: impl Fn(&BookieRef) -> bool) -> bool {
        self.lists.retain(|list| list.strong_count() > 0);
        self.placements.retain_mut(|p| match p.outcome.get() {
            Outcome::Open => true,
            Outcome::Known => false,
            Outcome::Never => now < *p.orphaned.get_or_insert(now) + LINGERS,
        });
        let listed = |list: Rc<RefCell<Vec<BookieRef>>>| list.borrow().iter().any(&gone);
        self.lists.iter().filter_map(Weak::upgrade).any(listed)
            || self.placements.iter().any(|p| p.stores.iter().any(&gone))
    }
}

impl World {
    /// The stores that metadata names.
    pub(crate) fn registered(&self) -> Vec<BookieRef> {
        let keys = keys();
        let all = self.meta.peek_all(&keys.bookies_prefix());
        all.iter().filter_map(|r| registration(r, &keys)).map(|(store, _)| store).collect()
    }

    /// Whether somebody might still place on a store that is gone. Damaged ones still in place are not meant: they are counted.
    pub(crate) fn lost_is_placeable(&mut self) -> bool {
        let in_place: Vec<BookieRef> =
            self.nodes.iter().filter(|n| n.damaged).map(|n| n.me.clone()).collect();
        let gone = |b: &BookieRef| self.check.is_lost(b) && !in_place.contains(b);
        self.registered().iter().any(gone) || self.damage.placeable(self.now, gone)
    }

    /// Whether a bookie's disk may be lost although another store is damaged: all that counts on the victim is sound elsewhere, or can still
    /// be read from the damaged one, which must therefore not be let go of before it has been copied. More than S1's budget; what is
    /// open must stay decidable, and nobody may be about to publish what counts on the victim.
    pub(crate) fn may_lose_beside(&mut self, victim: usize) -> Option<Loss> {
        let mut in_place = self.nodes.iter().enumerate().filter(|(_, n)| n.damaged);
        let (Some((at, _)), None) = (in_place.next(), in_place.next()) else { return None };
        let (hurt, victim_ref) = (self.nodes[at].me.clone(), self.nodes[victim].me.clone());
        // Before it is registered as damaged nobody knows, and once it is let go of all may forget it.
        let in_data_loss = !self.meta.is_let_go(&hurt)
            && self.nodes[at].steps.as_ref().is_some_and(|steps| steps.health() == Health::DataLoss);
        let sound = at != victim && self.registered().contains(&victim_ref);
        // What is about to be committed over the victim cannot be seen yet (seed 2443), and what begins over it and one that was lost
        // before it could not be decided (seed 9016).
        let placeable = self.damage.placeable(self.now, |b| *b == hurt)
            || self.damage.planned(&victim_ref)
            || self.lost_is_placeable();
        if !self.plan.let_go || !in_data_loss || !sound || placeable || self.now <= self.looking {
            return None;
        }
        let steps = self.nodes[at].steps.as_ref()?;
        let readable = |ledger, first| {
            let read = Read { ledger, first, last: first, bytes_max: 4000, class: ReadClass::Repair };
            matches!(steps.read(read), ReadAnswer::Found(_))
        };
        let bears = self.check.bears_the_loss_of(&victim_ref, &hurt, readable);
        let leaves_alone = bears && self.check.is_alone_on(&victim_ref);
        bears.then_some(Loss { victim, hurt: at, leaves_alone })
    }

    /// What was lost is more than S1's budget: nothing else may be, until everything is whole again.
    pub(crate) fn begin_second_loss(&mut self) {
        self.damage.outstanding = self.damage.ack;
    }

    /// Whether a bookie may lose data for good now.
    pub(crate) fn may_damage(&mut self) -> bool {
        let in_place = self.nodes.iter().filter(|n| n.damaged).count() as u32;
        let ack = self.damage.ack;
        if in_place + 1 >= ack {
            return false;
        }
        if self.damage.outstanding + 1 >= ack {
            if self.lost_is_placeable() || !self.check.fully_replicated() {
                return false;
            }
            self.damage.outstanding = in_place;
        }
        self.damage.outstanding += 1;
        true
    }
}
