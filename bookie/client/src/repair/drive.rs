//! The driver's side of a repair: one ledger, job after job, until it needs nothing or cannot go on.

use super::plan::{self, Job, Needs, Standing};
use crate::mutant::{Mutant, active};
use crate::placement::Placement;
use crate::record::ClosedLedger;
use crate::rpc::{AddError, BookieRef, BookieRpc, ControlError, Replicate, ReplicateError};
use geminga_common::ids::EntryId;
use std::fmt;

/// Bytes copied by one call.
const CALL_BYTES: u64 = 16 << 20;
/// Calls in a row for one job that copied nothing, before it is given up for now.
const IDLE_CALLS_MAX: u32 = 3;

/// Why a ledger is not whole yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stuck {
    /// No bookie can take the copies.
    NoPlace,
    /// No source can give this entry now.
    Unreadable(EntryId),
    /// The destination does not take them.
    Refused(BookieRef, AddError),
    /// The destination cannot be asked.
    Unreachable(BookieRef, ControlError),
    /// The destination says it copied, and does not have this entry.
    Unproven(BookieRef, EntryId),
    /// Members that lack entries are away.
    Waiting,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace => write!(f, "no other bookie can take the copies"),
            Self::Unreadable(id) => write!(f, "no holder can give entry {id} now"),
            Self::Refused(to, error) => write!(f, "bookie {to} does not take the copies: {error}"),
            Self::Unreachable(to, error) => write!(f, "bookie {to}: {error}"),
            Self::Unproven(to, id) => write!(f, "bookie {to} does not have entry {id} after copying"),
            Self::Waiting => write!(f, "a bookie that lacks entries is away"),
        }
    }
}

/// Who takes part in a repair.
pub struct Means<'m> {
    /// Calls to bookies.
    pub rpc: &'m dyn BookieRpc,
    /// Who else there is.
    pub placement: &'m dyn Placement,
    /// How far each member can be counted on.
    pub standing: &'m (dyn Fn(&BookieRef) -> Standing + Sync),
    /// Told after every call: entries and bytes copied.
    pub copied: &'m (dyn Fn(u64, u64) + Sync),
}

/// How far a repair got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The ledger as it is now, to be published; equal to the old one when nothing was done.
    pub ledger: ClosedLedger,
    /// Why it is not whole; `None` when it is.
    pub stuck: Option<Stuck>,
}

/// Repairs a ledger as far as that goes now. Dropping the future is a crash: what was copied stays and is found by the next attempt.
pub async fn repair(means: &Means<'_>, ledger: ClosedLedger) -> Outcome {
    let mut now = ledger;
    let mut stuck = None;
    let Needs { jobs, waiting } = plan::needs(&now, means.standing);
    for job in jobs {
        match run(means, &now, &job).await {
            Ok(member) => now = plan::apply(&now, &job, &member),
            Err(why) => stuck = Some(why),
        }
    }
    let stuck = stuck.or_else(|| (waiting > 0).then_some(Stuck::Waiting));
    Outcome { ledger: now, stuck }
}

/// Asks members that have found damage in their stores whether they still hold what is theirs of a ledger, and has them fetch what they
/// do not. Whether anything was fetched. The ledger's record does not change by it.
///
/// # Errors
/// Something is missing and cannot be had now.
pub async fn make_good(
    means: &Means<'_>,
    ledger: &ClosedLedger,
    damaged: impl Fn(&BookieRef) -> bool,
) -> Result<bool, Stuck> {
    let mut fetched = false;
    for (fragment, members) in ledger.fragments.iter().map(|fragment| &fragment.ensemble).enumerate() {
        let Some(ids) = plan::ids_of(ledger, fragment) else { continue };
        for (slot, member) in members.iter().enumerate() {
            let Some(member) = member.as_ref().filter(|member| damaged(member)) else { continue };
            let job = Job { fragment, slot: slot as u32, ids, keep: Some(member.clone()), copies: 0 };
            match prove(means, ledger, &job, member).await {
                Ok(()) => {}
                Err(Stuck::Unproven(..)) => {
                    run(means, ledger, &job).await?;
                    fetched = true;
                }
                Err(stuck) => return Err(stuck),
            }
        }
    }
    Ok(fetched)
}

/// Whether sound members other than `lost` hold every id that `lost` is to hold of a closed ledger: asked, not concluded.
pub async fn held_elsewhere(means: &Means<'_>, ledger: &ClosedLedger, lost: &BookieRef) -> bool {
    if active(Mutant::ReleaseUnchecked) {
        return true;
    }
    for (fragment, members) in ledger.fragments.iter().map(|fragment| &fragment.ensemble).enumerate() {
        let Some(ids) = plan::ids_of(ledger, fragment) else { continue };
        let Some(slot) = members.iter().position(|member| member.as_ref() == Some(lost)) else { continue };
        let mut held = Vec::new();
        for member in
            members.iter().flatten().filter(|m| *m != lost && (means.standing)(m) == Standing::Sound)
        {
            // Who cannot be asked has nothing.
            held.extend(means.rpc.presence(member, ledger.id, ids).await.unwrap_or_default().present);
        }
        held.sort();
        let job = Job { fragment, slot: slot as u32, ids, keep: None, copies: 0 };
        if plan::first_missing(ledger.quorum, &job, &held).is_some() {
            return false;
        }
    }
    true
}

async fn run(means: &Means<'_>, ledger: &ClosedLedger, job: &Job) -> Result<BookieRef, Stuck> {
    let members = &ledger.fragments[job.fragment].ensemble;
    let to = match &job.keep {
        Some(member) => member.clone(),
        None => destination(means, members, job.slot).ok_or(Stuck::NoPlace)?,
    };
    copy(means, ledger, job, &to).await?;
    prove(means, ledger, job, &to).await?;
    if let Err(error) = means.rpc.seal(&to, ledger.id, ledger.last).await {
        // A hint to the store, no part of the promise.
        tracing::debug!(ledger = %ledger.id, bookie = %to, %error, "a copy is not sealed");
    }
    Ok(to)
}

/// Beside the members that stay, none of the members.
fn destination(means: &Means<'_>, members: &[Option<BookieRef>], slot: u32) -> Option<BookieRef> {
    let all: Vec<BookieRef> = members.iter().flatten().cloned().collect();
    let stays = |(at, member): (usize, &Option<BookieRef>)| member.clone().filter(|_| at != slot as usize);
    let keep: Vec<BookieRef> = members.iter().enumerate().filter_map(stays).collect();
    means.placement.replace(1, &keep, &all).pop()
}

async fn copy(means: &Means<'_>, ledger: &ClosedLedger, job: &Job, to: &BookieRef) -> Result<(), Stuck> {
    let mut request = Replicate {
        ledger: ledger.id,
        quorum: ledger.quorum,
        slot: job.slot,
        ensemble: ledger.fragments[job.fragment].ensemble.clone(),
        ids: job.ids,
        bytes_max: CALL_BYTES,
    };
    let mut idle = 0;
    loop {
        let done = match means.rpc.replicate(to, request.clone()).await {
            Ok(done) => done,
            Err(ReplicateError::Unreadable(id)) => return Err(Stuck::Unreadable(id)),
            Err(ReplicateError::Store(error)) => return Err(Stuck::Refused(to.clone(), error)),
            Err(ReplicateError::Call(error)) => return Err(Stuck::Unreachable(to.clone(), error)),
        };
        (means.copied)(done.entries, done.bytes);
        match done.next {
            None => return Ok(()),
            Some(next) => {
                idle = if next > request.ids.first { 0 } else { idle + 1 };
                if idle >= IDLE_CALLS_MAX {
                    return Err(Stuck::Unproven(to.clone(), next));
                }
                request.ids.first = next;
            }
        }
    }
}

async fn prove(means: &Means<'_>, ledger: &ClosedLedger, job: &Job, to: &BookieRef) -> Result<(), Stuck> {
    let presence = means.rpc.presence(to, ledger.id, job.ids).await;
    let presence = presence.map_err(|error| Stuck::Unreachable(to.clone(), error))?;
    match plan::first_missing(ledger.quorum, job, &presence.present) {
        None => Ok(()),
        Some(id) => Err(Stuck::Unproven(to.clone(), id)),
    }
}

#[cfg(test)]
mod tests;
