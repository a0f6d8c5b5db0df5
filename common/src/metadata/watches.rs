//! The watches of one store: bounded channels that never hold the store up.
//!
//! Owner: the store, under its lock or on its thread, so that events leave in revision order. Invariant: a reader that missed
//! an event finds a [`WatchEvent::Resync`] in its place. The last free slot of a channel is kept for it: once it is taken,
//! events are dropped until the reader has come to it, because the listing that follows shows their outcome.

use super::{WatchEvent, WatchStream};
use tokio::sync::mpsc;

/// Events a slow reader may have waiting.
const WATCH_QUEUE: usize = 1024;

#[derive(Debug)]
struct Watch {
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

impl Watches {
    pub(super) fn add(&mut self, prefix: &str) -> WatchStream {
        self.0.retain(|watch| !watch.events.is_closed());
        let (events, stream) = mpsc::channel(WATCH_QUEUE);
        self.0.push(Watch { prefix: prefix.to_owned(), events });
        stream
    }

    /// Tells one transaction's changes, which are in effect already.
    pub(super) fn tell(&mut self, changes: &[WatchEvent]) {
        let mut some_left = false;
        for watch in &self.0 {
            for event in changes {
                if !key_of(event).is_none_or(|key| key.starts_with(&watch.prefix)) {
                    continue;
                }
                // Only this side sends, so a slot that is free now stays free.
                let event = match watch.events.capacity() {
                    0 => break,
                    1 => WatchEvent::Resync,
                    _ => event.clone(),
                };
                some_left |= watch.events.try_send(event).is_err();
            }
        }
        if some_left {
            self.0.retain(|watch| !watch.events.is_closed());
        }
    }
}
