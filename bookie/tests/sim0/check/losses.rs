//! What is lost, what that leaves, and what is let go of.

use super::{Checker, covered, fragment_of};
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::ids::{EntryId, LedgerId};

impl Checker {
    pub(crate) fn undamaged(&self) -> bool {
        self.ack >= 2 && self.fully_replicated()
    }

    pub(crate) fn is_lost(&self, me: &BookieRef) -> bool {
        self.lost.contains(me)
    }

    pub(crate) fn lost(&mut self, me: &BookieRef) {
        self.lost.insert(me.clone());
    }

    /// An open ledger's writer is told that a member of its ensemble is lost; `amid`: while a change of it is being committed.
    pub(crate) fn told_lost(&mut self, ledger: LedgerId, member: &BookieRef, amid: bool) {
        if self.ledgers.entry(ledger).or_default().told_lost.insert(member.clone()) {
            self.seen.losses_told += 1;
            self.seen.losses_told_amid_a_change += u64::from(amid);
        }
    }

    pub(crate) fn damaged(&mut self, me: &BookieRef) {
        self.lost.insert(me.clone());
    }

    /// A store that was let go of is another one now.
    pub(crate) fn promoted(&mut self, old: &BookieRef, new: &BookieRef) {
        self.heirs.insert(new.clone(), old.clone());
    }

    /// What a store that was let go of held, it may only say not to have where the record does not count on it.
    pub(super) fn heir_lacks(&mut self, me: &BookieRef, ledger: LedgerId, id: EntryId) {
        let mut heir = me;
        while let Some(old) = self.heirs.get(heir) {
            let known = self.ledgers.get(&ledger).filter(|l| !l.may_be_gone(id));
            if self.holds(old, ledger, id)
                && let Some(closed) = known.and_then(|l| l.closed.as_ref())
                && let Some(fragment) = fragment_of(&closed.fragments, id)
                && closed.quorum.write_order(id).any(|slot| {
                    fragment.ensemble[slot as usize].as_ref() == Some(me)
                        && !covered(&closed.repair, slot, id)
                })
            {
                let text =
                    format!("I7: {me} was {old}, which had {ledger}:{id}, and now lacks it without a word");
                return self.broken(text);
            }
            heir = old;
        }
    }

    /// Who is to hold each entry that counts: of closed ledgers all, of others what is acknowledged.
    fn counting(&self) -> impl Iterator<Item = (LedgerId, EntryId, Vec<&BookieRef>)> {
        self.ledgers.iter().filter(|(_, l)| !l.tombstoned).flat_map(|(id, l)| {
            let last = l.closed.as_ref().map_or(l.acked, |c| c.last);
            let quorum = l.record.as_ref().map(|r| r.quorum);
            (0..last.map_or(0, |e| e.0 + 1)).map(EntryId).filter_map(move |entry| {
                let fragment = fragment_of(l.fragments(), entry)?;
                let members =
                    quorum?.write_order(entry).filter_map(|s| fragment.ensemble[s as usize].as_ref());
                Some((*id, entry, members.collect()))
            })
        })
    }

    /// Metadata lets go of a store: what it was to hold must be held by others.
    pub(super) fn let_go(&mut self, store: &BookieRef) {
        self.seen.let_go += 1;
        let alone = |(id, entry, members): &(LedgerId, EntryId, Vec<&BookieRef>)| {
            let held =
                |m: &&&BookieRef| **m != store && !self.lost.contains(*m) && self.holds(m, *id, *entry);
            members.contains(&store) && !members.iter().any(|m| held(&m))
        };
        let last = self.counting().find(alone).map(|(id, entry, _)| (id, entry));
        if let Some((id, entry)) = last {
            self.broken(format!("I15: {store} is let go of, and nobody else holds {id}:{entry}"));
        }
    }

    /// Whether all that counts on `victim` is on sound stores besides, or readable on `hurt`; and the end of
    /// what is open stays decidable.
    pub(crate) fn bears_the_loss_of(
        &self,
        victim: &BookieRef,
        hurt: &BookieRef,
        readable: impl Fn(LedgerId, EntryId) -> bool,
    ) -> bool {
        // An end must stay decidable: fewer than Qa slots without a sound store.
        let undecidable = |l: &super::Ledger| {
            let last = l.fragments().len().saturating_sub(1);
            let unsound = |at: usize, slot: &Option<BookieRef>| match slot {
                Some(member) => member == victim || member == hurt || self.lost.contains(member),
                None => at == last,
            };
            let count = |(at, f): (usize, &geminga_bookie_client::record::Fragment)| {
                f.ensemble.iter().filter(|slot| unsound(at, slot)).count()
            };
            l.fragments().iter().enumerate().any(|fragment| count(fragment) >= self.ack as usize)
        };
        let open = |(id, l): (&LedgerId, &super::Ledger)| {
            !l.tombstoned && (l.closed.is_none() || self.topic.open == Some(*id)) && undecidable(l)
        };
        !self.ledgers.iter().any(open)
            && self.counting().all(|(id, entry, members)| {
                let good = |m: &&BookieRef| {
                    *m != victim
                        && (!self.lost.contains(*m) && self.holds(m, id, entry)
                            || *m == hurt && readable(id, entry))
                };
                !members.contains(&victim) || members.iter().any(good)
            })
    }

    /// Whether something that counts is on no other sound store than this one.
    pub(crate) fn is_alone_on(&self, store: &BookieRef) -> bool {
        let others =
            |m: &&BookieRef, id, entry| **m != *store && !self.lost.contains(*m) && self.holds(m, id, entry);
        self.counting().any(|(id, entry, members)| {
            members.contains(&store) && !members.iter().any(|m| others(m, id, entry))
        })
    }

    pub(super) fn holds(&self, me: &BookieRef, ledger: LedgerId, id: EntryId) -> bool {
        self.durable.get(&(me.clone(), ledger)).is_some_and(|ids| ids.contains(&id))
    }

    /// Whether everything that counts is on all of its write quorum, on sound stores.
    pub(crate) fn fully_replicated(&self) -> bool {
        self.missing().is_none()
    }

    /// Something that is not on all of its write quorum.
    pub(crate) fn missing(&self) -> Option<String> {
        for (id, l) in self.ledgers.iter().filter(|(_, l)| !l.tombstoned) {
            let last = l.closed.as_ref().map_or(l.acked, |c| c.last);
            let Some(quorum) = l.record.as_ref().map(|r| r.quorum) else { continue };
            // Who lost Qa of an open ledger's bookies can never decide its end, whatever was acknowledged.
            let tail = l.fragments().last().filter(|_| l.closed.is_none());
            if let Some(gone) = tail.and_then(|f| f.ensemble.iter().flatten().find(|m| self.lost.contains(m)))
            {
                return Some(format!("{id} is open over {gone}, which is lost"));
            }
            for entry in (0..last.map_or(0, |e| e.0 + 1)).map(EntryId) {
                let Some(fragment) = fragment_of(l.fragments(), entry) else {
                    return Some(format!("{id}:{entry}"));
                };
                for slot in quorum.write_order(entry) {
                    let member = fragment.ensemble[slot as usize].as_ref();
                    // A hung bookie is not asked; what it lacks cannot be repaired.
                    let hung = member.is_some() && member == self.hung.as_ref();
                    let good = |m: &BookieRef| !self.lost.contains(m) && self.holds(m, *id, entry);
                    if !hung && !member.is_some_and(good) {
                        let lost = member.is_some_and(|m| self.lost.contains(m));
                        return Some(format!(
                            "{id}:{entry} on slot {slot} {member:?} lost {lost} of {:?}",
                            l.closed
                        ));
                    }
                }
            }
        }
        None
    }
}
