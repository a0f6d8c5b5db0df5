//! A mailbox: any thread puts messages in without waiting, one task takes all of them at once.
//!
//! It has no bound of its own, because a ledger's acknowledgement must never be refused. Whoever puts in is bounded: publishes
//! by the broker's byte budget, requests by what a connection may have in flight, events by what the topic itself started.

use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    filled: Notify,
}

struct Queue<T> {
    messages: Vec<T>,
    /// Set when the owner is gone: what is put in then is dropped at once, so that requests in it answer themselves.
    closed: bool,
}

/// The end that puts in. Cloning is cheap.
pub(crate) struct Mailbox<T>(Arc<Shared<T>>);

/// The end that takes out; one task owns it.
pub(crate) struct Inbox<T>(Arc<Shared<T>>);

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A connected pair.
pub(crate) fn mailbox<T>() -> (Mailbox<T>, Inbox<T>) {
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue { messages: Vec::new(), closed: false }),
        filled: Notify::new(),
    });
    (Mailbox(shared.clone()), Inbox(shared))
}

impl<T> Mailbox<T> {
    /// Whether both lead to the same inbox.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Puts a message in.
    pub(crate) fn put(&self, message: T) {
        let first = {
            let mut queue = self.0.queue.lock();
            if queue.closed {
                drop(queue);
                return drop(message);
            }
            queue.messages.push(message);
            queue.messages.len() == 1
        };
        if first {
            self.0.filled.notify_one();
        }
    }
}

impl<T> Inbox<T> {
    /// Waits until there is something and swaps it into `batch`, which must be empty (its memory is reused).
    pub(crate) async fn take(&self, batch: &mut Vec<T>) {
        debug_assert!(batch.is_empty(), "the last batch is handled before the next is taken");
        loop {
            {
                let mut queue = self.0.queue.lock();
                if !queue.messages.is_empty() {
                    std::mem::swap(&mut queue.messages, batch);
                    return;
                }
            }
            self.0.filled.notified().await;
        }
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        let left = {
            let mut queue = self.0.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.messages)
        };
        drop(left);
    }
}
