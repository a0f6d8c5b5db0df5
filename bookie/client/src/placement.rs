//! Which bookies a ledger goes to. The seam is narrow on purpose: the protocol asks for some bookies outside a set, and takes
//! fewer when there are no more; zones, load and labels are the placement's own affair.

pub mod zones;

use crate::rpc::BookieRef;
use std::fmt;

/// Chooses bookies.
pub trait Placement: Send + Sync + 'static {
    /// Up to `count` writable bookies, most wanted first, none of `exclude`, none twice. A bookie of an excluded name but another
    /// incarnation is another store and may be chosen: else a ledger over a node that lost its disk could not be closed for
    /// want of a spare. Never blocks: it answers from what it knows.
    fn choose(&self, count: usize, exclude: &[BookieRef]) -> Vec<BookieRef>;
    /// Bookies to stand beside `keep`, the members of an ensemble that stay; `exclude` holds all its members, those to be replaced too.
    fn replace(&self, count: usize, keep: &[BookieRef], exclude: &[BookieRef]) -> Vec<BookieRef> {
        // Who stays matters to those alone who know where bookies stand.
        let _ = keep;
        self.choose(count, exclude)
    }
    /// In what way the last ensemble that was chosen fell short of what was asked for; `None` when it did not.
    fn degraded(&self) -> Option<Degraded> {
        // Who always answers the same has nothing to choose from.
        None
    }
    /// A number that moves when it is time for writers to ask [`Placement::instead_of_slow`] about their members.
    fn slow_told(&self) -> u64 {
        // Who does not measure finds nobody slow.
        0
    }
    /// A bookie to take the place of `member` of an open ledger, because `member` is slow, beside `keep`; `exclude` holds all members.
    /// `None`: it is not slow, or nobody better could stand in its place. Slow is better than missing.
    fn instead_of_slow(
        &self,
        member: &BookieRef,
        keep: &[BookieRef],
        exclude: &[BookieRef],
    ) -> Option<BookieRef> {
        let _ = (member, keep, exclude);
        None
    }
    /// How often a bookie was found slow since the start.
    fn slow_verdicts(&self) -> u64 {
        0
    }
    /// Whether a bookie's store is given up for good, so that nobody need wait for it to delete anything. Being out of reach is
    /// not enough.
    fn given_up(&self, bookie: &BookieRef) -> bool {
        // Only who follows the registry can know.
        let _ = bookie;
        false
    }
}

/// What a placement tells of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// In what way the last ensemble fell short.
    pub degraded: Option<Degraded>,
    /// How often a bookie was found slow since the start.
    pub slow_verdicts: u64,
}

/// In what way the last ensemble fell short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Degraded {
    /// Bookies asked for and found.
    pub bookies: (usize, usize),
    /// Zones that the rule asks for, and zones that the ensemble stands in.
    pub zones: (usize, usize),
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((wanted, found), (zones, stands)) = (self.bookies, self.zones);
        write!(f, "{found} of {wanted} bookies, in {stands} of {zones} zones")
    }
}

/// Always the same bookies, in the same order: standalone, and tests.
#[derive(Clone, Debug)]
pub struct StaticPlacement(Vec<BookieRef>);

impl StaticPlacement {
    /// A placement over these bookies.
    #[must_use]
    pub fn new(bookies: Vec<BookieRef>) -> Self {
        Self(bookies)
    }
}

impl Placement for StaticPlacement {
    fn choose(&self, count: usize, exclude: &[BookieRef]) -> Vec<BookieRef> {
        self.0.iter().filter(|b| !exclude.contains(b)).take(count).cloned().collect()
    }
}

impl<F: Fn(usize, &[BookieRef]) -> Vec<BookieRef> + Send + Sync + 'static> Placement for F {
    fn choose(&self, count: usize, exclude: &[BookieRef]) -> Vec<BookieRef> {
        self(count, exclude)
    }
}
