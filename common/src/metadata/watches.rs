//! The watches of one store: bounded channels that never hold the store up.
//!
//! Owner: the store, under its lock or on its thread, so that events leave in revision order. Invariant: a reader that missed
//! an event finds a [`WatchEvent::Resync`] in its place. The last free slot of a channel is kept for it: once it is taken,
//! events are dropped until the reader has come to it, because the listing that follows shows their outcome.

use super::{WatchEvent, WatchStream};
use tokio::sync::mpsc;

/// Events a slow reader may have waiting.
const WATCH_QUEUE: usize = 1024;

/// One watch, as the store sees it.
#[derive(Debug)]
pub(super) struct Watch {
    prefix: String,
    events: mpsc::Sender<WatchEvent>,
}

/// All watches of one store.
#[derive(Debug, Default)]
pub(super) struct Watches(Vec<Watch>);

fn key_of(event: &WatchEvent) -> Option<&str> {
    match event {
        WatchEvent::Put(record) => Some(&record.key),
        WatchEvent::Deleted(key, _) => Some(key),
        WatchEvent::Resync => None,
    }
}

impl Watch {
    pub(super) fn new(prefix: &str) -> (Self, WatchStream) {
        let (events, stream) = mpsc::channel(WATCH_QUEUE);
        (Self { prefix: prefix.to_owned(), events }, stream)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Resolves when the reader has left.
    pub(super) async fn left(&self) {
        self.events.closed().await;
    }

    /// Tells changes, which are in effect already, as far as they are below the prefix; false once the reader has left.
    pub(super) fn tell(&self, changes: &[WatchEvent]) -> bool {
        let mut there = true;
        for event in changes {
            if !key_of(event).is_none_or(|key| key.starts_with(&self.prefix)) {
                continue;
            }
            // Only this side sends, so a slot that is free now stays free.
            let event = match self.events.capacity() {
                0 => break,
                1 => WatchEvent::Resync,
                _ => event.clone(),
            };
            there &= self.events.try_send(event).is_ok();
        }
        there
    }
}

impl Watches {
    pub(super) fn add(&mut self, prefix: &str) -> WatchStream {
        self.0.retain(|watch| !watch.events.is_closed());
        let (watch, stream) = Watch::new(prefix);
        self.0.push(watch);
        stream
    }

    /// Tells one transaction's changes.
    pub(super) fn tell(&mut self, changes: &[WatchEvent]) {
        let mut some_left = false;
        for watch in &self.0 {
            some_left |= !watch.tell(changes);
        }
        if some_left {
            self.0.retain(|watch| !watch.events.is_closed());
        }
    }
}
