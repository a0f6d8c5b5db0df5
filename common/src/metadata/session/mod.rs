//! A process's session: its one lease, kept alive, and the keys that show it is there.
//!
//! Owner: a thread with a runtime of its own, so that no busy executor lets the lease run out. Whoever asks for the standing
//! computes it from the clock, so that a stalled keeper is seen as well. When the lease is lost a new one is granted and the keys
//! are put again, under the next generation: everything that hung on the lease before is void, and its users are told.

mod state;
#[cfg(test)]
mod tests;

pub use state::{Standing, State};

use super::{LeaseId, MetaError, MetadataStore, Op, Txn};
use crate::clock::{Clock, Mono};
use crate::retry::Reminders;
use crate::tasks::{OnFailure, TaskGroup};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a session is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time to live of the lease. 10 s in a cluster; at least three times the longest call to the store.
    pub ttl: Duration,
    /// Keys that live as long as the process does, with their values.
    pub keys: Vec<(String, Bytes)>,
}

struct Shared {
    store: Arc<dyn MetadataStore>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    state: Mutex<State>,
    generation: watch::Sender<u64>,
    ended: CancellationToken,
}

/// A handle to the session. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("state", &*self.shared.state.lock()).finish_non_exhaustive()
    }
}

impl Session {
    /// Gets a lease, puts the keys, and keeps both until `tasks` stop.
    ///
    /// # Errors
    /// The store's, when the first lease or its keys cannot be had.
    pub async fn start(
        store: Arc<dyn MetadataStore>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        tasks: &TaskGroup,
    ) -> Result<Self, MetaError> {
        let state = Mutex::new(State::new(settings.ttl));
        let (generation, _) = watch::channel(0);
        let shared =
            Arc::new(Shared { store, clock, settings, state, generation, ended: CancellationToken::new() });
        shared.begin().await?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| MetaError::Unavailable(format!("no runtime: {error}")))?;
        let (keeper, stop) = (shared.clone(), tasks.token());
        tasks.thread("session", OnFailure::StopProcess, move || runtime.block_on(keeper.keep(stop)));
        Ok(Self { shared })
    }

    /// How sure the process may be of its lease now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.shared.state.lock().standing(self.shared.clock.mono())
    }

    /// The lease and its generation, while it is surely held.
    #[must_use]
    pub fn held(&self) -> Option<(LeaseId, u64)> {
        let state = self.shared.state.lock();
        match state.standing(self.shared.clock.mono()) {
            Standing::Held => state.lease().map(|lease| (lease, state.generation())),
            Standing::Doubtful | Standing::Lost => None,
        }
    }

    /// The generation; when it rises, or is 0, the lease before is gone.
    #[must_use]
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// Ends the lease, so that others need not wait for it to run out. Best effort; call it when nothing is owned any more.
    pub async fn end(&self) {
        self.shared.ended.cancel();
        let lease = self.shared.state.lock().lease();
        if let Some(lease) = lease {
            self.shared.lost(lease);
            if let Err(error) = self.shared.store.lease_revoke(lease).await {
                tracing::debug!(%error, "lease is left to run out");
            }
        }
    }
}

impl Shared {
    /// A lease with its keys.
    async fn begin(&self) -> Result<(), MetaError> {
        let asked = self.clock.mono();
        let lease = self.store.lease_grant(self.settings.ttl).await?;
        let put = |(key, value): &(String, Bytes)| Op::Put {
            key: key.clone(),
            value: value.clone(),
            lease: Some(lease),
        };
        let ops: Vec<Op> = self.settings.keys.iter().map(put).collect();
        if !ops.is_empty() {
            // Putting them twice does no harm, so an unknown outcome is simply tried again by the caller.
            self.store.txn(Txn { compares: Vec::new(), ops }).await?;
        }
        let generation = {
            let mut state = self.state.lock();
            state.granted(lease, asked);
            state.generation()
        };
        self.generation.send_replace(generation);
        Ok(())
    }

    fn lost(&self, lease: LeaseId) {
        self.state.lock().gone(lease);
        self.generation.send_replace(0);
    }

    async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let pause = (self.settings.ttl / 20).min(Duration::from_secs(1));
        let mut trouble = None;
        loop {
            let (lease, due) = {
                let state = self.state.lock();
                (state.lease(), state.renew_at())
            };
            let wait = match lease {
                Some(_) => due.saturating_sub(self.clock.mono()).max(pause),
                None => pause,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ended.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let asked = self.clock.mono();
            let Err(error) = self.renew(lease, asked).await else {
                if trouble.take().is_some() {
                    tracing::info!("the metadata store answers again");
                }
                continue;
            };
            let (since, reminders) = trouble.get_or_insert_with(|| (asked, Reminders::default()));
            let since = asked.saturating_sub(*since);
            if reminders.due(since) {
                tracing::warn!(%error, ?since, "lease not renewed, trying again");
            }
        }
    }

    /// Renews the lease, or begins anew without one.
    async fn renew(&self, lease: Option<LeaseId>, asked: Mono) -> Result<(), MetaError> {
        let Some(lease) = lease else {
            self.begin().await?;
            tracing::warn!("a new lease after the last one was lost");
            return Ok(());
        };
        match self.store.lease_keep_alive(lease).await {
            Ok(()) => self.state.lock().renewed(lease, asked),
            Err(MetaError::LeaseGone(_)) => {
                tracing::warn!("the lease is gone: what this process owned may be another's now");
                self.lost(lease);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
