//! [`Serves`]: what the edge asks of the store behind it. [`Bookie`] is one; simulations serve a store without threads.

use crate::Bookie;
use geminga_bookie_client::repair::pull::Sink;
use geminga_bookie_client::rpc::{Add, AddDone, ControlError, LedgerStat, Read, ReadAnswer, Tail};
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::future::Future;

/// A store that can be served. Its name, what is there, and the storing of copies come from [`Sink`].
pub trait Serves: Sink + 'static {
    /// See [`geminga_bookie_client::rpc::BookieRpc::add`]. `done` is told once, possibly from another thread.
    fn add(&self, add: Add, done: AddDone);
    /// See [`geminga_bookie_client::rpc::BookieRpc::read`].
    fn read(&self, read: Read) -> impl Future<Output = ReadAnswer> + Send;
    /// See [`geminga_bookie_client::rpc::BookieRpc::fence_tail`].
    fn fence_tail(
        &self,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> impl Future<Output = Result<Tail, ControlError>> + Send;
    /// See [`geminga_bookie_client::rpc::BookieRpc::seal`].
    fn seal(
        &self,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// See [`geminga_bookie_client::rpc::BookieRpc::delete`].
    fn delete(&self, ledger: LedgerId) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// See [`geminga_bookie_client::rpc::BookieRpc::stat`].
    fn stat(&self, ledger: LedgerId) -> impl Future<Output = Result<LedgerStat, ControlError>> + Send;
}

impl Serves for Bookie {
    fn add(&self, add: Add, done: AddDone) {
        Bookie::add(self, add, done);
    }

    fn read(&self, read: Read) -> impl Future<Output = ReadAnswer> + Send {
        Bookie::read(self, read)
    }

    fn fence_tail(
        &self,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> impl Future<Output = Result<Tail, ControlError>> + Send {
        Bookie::fence_tail(self, ledger, term, from)
    }

    fn seal(
        &self,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> impl Future<Output = Result<(), ControlError>> + Send {
        Bookie::seal(self, ledger, last)
    }

    fn delete(&self, ledger: LedgerId) -> impl Future<Output = Result<(), ControlError>> + Send {
        Bookie::delete(self, ledger)
    }

    fn stat(&self, ledger: LedgerId) -> impl Future<Output = Result<LedgerStat, ControlError>> + Send {
        Bookie::stat(self, ledger)
    }
}
