//! Named tasks and threads with one owner. Everything that runs beside its caller is spawned here, so that shutdown can name
//! who is late and a panic is never swallowed.

use crate::error::Code;
use parking_lot::Mutex;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a task's panic means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// Log it: the task served one peer only.
    Log,
    /// Stop the process: state that others rely on is gone.
    StopProcess,
}

/// A group of tasks and threads that stop together. Cloning shares the group.
#[derive(Clone, Debug)]
pub struct TaskGroup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stop: CancellationToken,
    next: AtomicU64,
    running: Mutex<BTreeMap<u64, Cow<'static, str>>>,
    left: Notify,
}

struct Registration {
    inner: Arc<Inner>,
    id: u64,
    on_failure: OnFailure,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let name = self.inner.running.lock().remove(&self.id).unwrap_or_default();
        if std::thread::panicking() {
            tracing::error!(code = %Code::INTERNAL, task = %name, "task panicked");
            if self.on_failure == OnFailure::StopProcess {
                std::process::abort();
            }
        }
        self.inner.left.notify_waiters();
    }
}

impl Default for TaskGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl TaskGroup {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        let inner = Inner {
            stop: CancellationToken::new(),
            next: AtomicU64::new(0),
            running: Mutex::default(),
            left: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Cancelled when the group is told to stop; tasks watch it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Runs a future as a named task on the current runtime.
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub fn spawn(
        &self,
        name: impl Into<Cow<'static, str>>,
        on_failure: OnFailure,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let registration = self.register(name.into(), on_failure);
        let _detached = tokio::spawn(async move {
            let _registration = registration;
            task.await;
        });
    }

    /// Runs a closure on a named thread of its own.
    ///
    /// # Panics
    /// When the system refuses a thread.
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub fn thread(
        &self,
        name: impl Into<Cow<'static, str>>,
        on_failure: OnFailure,
        body: impl FnOnce() + Send + 'static,
    ) {
        let name = name.into();
        let registration = self.register(name.clone(), on_failure);
        std::thread::Builder::new()
            .name(name.into_owned())
            .spawn(move || {
                let _registration = registration;
                body();
            })
            .expect("the system grants a thread at start-up");
    }

    /// Tells every task to stop.
    pub fn stop(&self) {
        self.inner.stop.cancel();
    }

    /// Waits until all have left; at the deadline answers the names of those still there.
    pub async fn join(&self, deadline: Duration) -> Vec<String> {
        let all_left = async {
            loop {
                let left = self.inner.left.notified();
                if self.inner.running.lock().is_empty() {
                    return;
                }
                left.await;
            }
        };
        match tokio::time::timeout(deadline, all_left).await {
            Ok(()) => Vec::new(),
            Err(_) => self.inner.running.lock().values().map(ToString::to_string).collect(),
        }
    }

    fn register(&self, name: Cow<'static, str>, on_failure: OnFailure) -> Registration {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.running.lock().insert(id, name);
        Registration { inner: self.inner.clone(), id, on_failure }
    }
}
