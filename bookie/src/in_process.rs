//! [`BookieRpc`] over stores in this process: standalone, and tests of the client against the real store.

use crate::Bookie;
use futures::future::{BoxFuture, ready};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::repair::pull::{Sink, pull};
use geminga_bookie_client::rpc::{
    Add, AddDone, AddError, BookieRef, BookieRpc, ControlError, Doubt, IdRange, LedgerStat, Presence, Read,
    ReadAnswer, Replicate, ReplicateError, Replicated, Tail,
};
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bookies of this process by name.
#[derive(Clone, Debug, Default)]
pub struct InProcess {
    bookies: Arc<BTreeMap<geminga_common::ids::BookieId, Bookie>>,
}

impl InProcess {
    /// A transport that reaches these bookies.
    #[must_use]
    pub fn new(bookies: impl IntoIterator<Item = Bookie>) -> Self {
        let by_name = bookies.into_iter().map(|bookie| (bookie.id().clone(), bookie));
        Self { bookies: Arc::new(by_name.collect()) }
    }

    /// How to call each of them.
    #[must_use]
    pub fn refs(&self) -> Vec<BookieRef> {
        let name = |b: &Bookie| BookieRef { id: b.id().clone(), incarnation: b.incarnation() };
        self.bookies.values().map(name).collect()
    }

    fn find(&self, to: &BookieRef) -> Result<Bookie, ControlError> {
        match self.bookies.get(&to.id) {
            None => Err(ControlError::Unknown("no such bookie")),
            Some(bookie) if bookie.incarnation() != to.incarnation => Err(ControlError::WrongIncarnation),
            Some(bookie) => Ok(bookie.clone()),
        }
    }

    /// The store that holds what is left of a ledger, under whatever incarnation it did: who counts on a former one, whose loss was
    /// accepted, may ask and decide, and add nothing. Also whether something of the ledger may be lost.
    fn holder(&self, to: &BookieRef, ledger: LedgerId) -> Result<(Bookie, bool), ControlError> {
        let bookie = self.bookies.get(&to.id).ok_or(ControlError::Unknown("no such bookie"))?;
        let lacks = bookie.may_lack(to.incarnation, ledger).ok_or(ControlError::WrongIncarnation)?;
        Ok((bookie.clone(), lacks))
    }

    fn control<T: Send + 'static, F: Future<Output = Result<T, ControlError>> + Send + 'static>(
        &self,
        (to, ledger): (&BookieRef, LedgerId),
        call: impl FnOnce(Bookie, bool) -> F,
    ) -> BoxFuture<'static, Result<T, ControlError>> {
        match self.holder(to, ledger) {
            Ok((bookie, lacks)) => Box::pin(call(bookie, lacks)),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

impl BookieRpc for InProcess {
    fn add(&self, to: &BookieRef, add: Add, done: AddDone) {
        match self.find(to) {
            Ok(bookie) => bookie.add(add, done),
            Err(error) => {
                let error = match error {
                    ControlError::WrongIncarnation => AddError::WrongIncarnation,
                    _ => AddError::Unknown("no such bookie"),
                };
                // Any thread but the caller's: it may hold locks that its callback takes.
                match self.bookies.values().next() {
                    Some(bookie) => bookie.refuse(done, error),
                    None => done(Err(error)),
                }
            }
        }
    }

    fn read(&self, to: &BookieRef, read: Read) -> BoxFuture<'static, ReadAnswer> {
        match self.holder(to, read.ledger) {
            Ok((bookie, lacks)) => Box::pin(async move {
                match bookie.read(read).await {
                    ReadAnswer::NotFound(_) if lacks => lost(&bookie, read).await,
                    answer => answer,
                }
            }),
            Err(ControlError::WrongIncarnation) => {
                Box::pin(ready(ReadAnswer::Unknown(Doubt::WrongIncarnation)))
            }
            Err(_) => Box::pin(ready(ReadAnswer::Unknown(Doubt::Unreachable))),
        }
    }

    fn fence_tail(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> BoxFuture<'static, Result<Tail, ControlError>> {
        self.control((to, ledger), move |bookie, lacks| async move {
            let tail = bookie.fence_tail(ledger, term, from).await?;
            Ok(Tail { lacks, ..tail })
        })
    }

    fn seal(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> BoxFuture<'static, Result<(), ControlError>> {
        self.control((to, ledger), move |bookie, _| async move { bookie.seal(ledger, last).await })
    }

    fn delete(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<(), ControlError>> {
        self.control((to, ledger), move |bookie, _| async move { bookie.delete(ledger).await })
    }

    fn stat(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<LedgerStat, ControlError>> {
        self.control((to, ledger), move |bookie, _| async move { bookie.stat(ledger).await })
    }

    fn replicate(
        &self,
        to: &BookieRef,
        request: Replicate,
    ) -> BoxFuture<'static, Result<Replicated, ReplicateError>> {
        let found = self.find(to);
        let peers = self.clone();
        Box::pin(async move { pull(&peers, &found?, &request).await })
    }

    fn may_lack(&self, to: &BookieRef, ledger: LedgerId) -> bool {
        self.holder(to, ledger).is_ok_and(|(_, lacks)| lacks)
    }

    fn only_copy_damaged(&self, to: &BookieRef, ledger: LedgerId) -> Option<String> {
        self.holder(to, ledger).ok()?.0.only_copy_damaged(ledger)
    }

    fn presence(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        ids: IdRange,
    ) -> BoxFuture<'static, Result<Presence, ControlError>> {
        self.control((to, ledger), move |bookie, _| async move { bookie.presence(ledger, ids).await })
    }
}

/// How far what is not there reaches, from the first id wanted on.
async fn lost(bookie: &Bookie, read: Read) -> ReadAnswer {
    let ids = IdRange { first: read.first, last: read.last };
    let Ok(Presence { present, doubtful }) = bookie.presence(read.ledger, ids).await else {
        return ReadAnswer::Unknown(Doubt::Unreachable);
    };
    match present.iter().chain(&doubtful).map(|run| run.first).min() {
        None => ReadAnswer::Lost { last: read.last },
        Some(next) if next > read.first => ReadAnswer::Lost { last: EntryId(next.0 - 1) },
        // It came meanwhile.
        Some(_) => ReadAnswer::Unknown(Doubt::Damaged),
    }
}

impl Sink for Bookie {
    fn me(&self) -> BookieRef {
        BookieRef { id: self.id().clone(), incarnation: self.incarnation() }
    }

    fn presence(&self, ledger: LedgerId, ids: IdRange) -> BoxFuture<'_, Result<Presence, ControlError>> {
        Box::pin(Bookie::presence(self, ledger, ids))
    }

    fn store(&self, ledger: LedgerId, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), AddError>> {
        Box::pin(self.store_copies(ledger, entries))
    }
}
