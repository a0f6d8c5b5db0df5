//! One at a time, for what looks first and acts then: two who look at the same moment would both find room.
//!
//! Within this broker. Brokers that create in one namespace at once may pass its bound together, as on Pulsar.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Names share so many turns.
const TURNS: usize = 64;

/// Turns by name.
#[derive(Debug)]
pub(crate) struct Turns([Arc<Mutex<()>>; TURNS]);

/// It is this one's turn until it is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Arc::default()))
    }
}

impl Turns {
    /// Waits until nobody else has the turn of this name.
    pub(crate) async fn take(&self, name: &impl Hash) -> Turn {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
        let turn = self.0[hash as usize % TURNS].clone();
        turn.lock_owned().await
    }
}
