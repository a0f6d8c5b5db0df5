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

    fn control<T: Send + 'static, F: Future<Output = Result<T, ControlError>> + Send + 'static>(
        &self,
        to: &BookieRef,
        call: impl FnOnce(Bookie) -> F,
    ) -> BoxFuture<'static, Result<T, ControlError>> {
        match self.find(to) {
            Ok(bookie) => Box::pin(call(bookie)),
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
        match self.find(to) {
            Ok(bookie) => Box::pin(async move { bookie.read(read).await }),
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
        self.control(to, move |bookie| async move { bookie.fence_tail(ledger, term, from).await })
    }

    fn seal(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> BoxFuture<'static, Result<(), ControlError>> {
        self.control(to, move |bookie| async move { bookie.seal(ledger, last).await })
    }

    fn delete(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<(), ControlError>> {
        self.control(to, move |bookie| async move { bookie.delete(ledger).await })
    }

    fn stat(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<LedgerStat, ControlError>> {
        self.control(to, move |bookie| async move { bookie.stat(ledger).await })
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

    fn presence(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        ids: IdRange,
    ) -> BoxFuture<'static, Result<Presence, ControlError>> {
        self.control(to, move |bookie| async move { bookie.presence(ledger, ids).await })
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
