//! A lane: threads of their own and of a lower priority, for work that nobody's acknowledgement waits for.
//!
//! Where one thread serves all connections, a megabyte that is copied and checked on it is a millisecond that every publisher
//! waits, whatever the system's scheduler thinks of it. What runs in a lane waits for them instead: on a thread that is theirs
//! never, on a core that they leave. A lane that is not given threads ([`Lane::here`]) runs everything where it is asked for, so that a
//! simulator sees one thread and one order.
//!
//! Locks are shared with whoever holds none for long: a thread of low priority that sleeps in one keeps others from it.

use crate::tasks::{OnFailure, TaskGroup};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// By how much a lane's threads are nicer than the one that makes it: with 10 a busy lane gets a tenth of a core that others want
/// whole, and all of what they leave.
pub const NICER: i32 = 10;
/// Nicest that the system knows.
const NICEST: i32 = 19;
/// Longest that what is under way may still take when the group stops.
const LINGER: Duration = Duration::from_secs(2);

/// The lane's threads have ended: the process stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the process is stopping")]
pub struct Stopped;

#[derive(Debug)]
struct Own {
    threads: Handle,
    /// Work under way.
    running: Arc<AtomicUsize>,
}

/// Where such work runs. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Lane(Option<Arc<Own>>);

/// Counts what is under way, however it ends.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lane {
    /// No threads: work runs in the task that asks for it.
    #[must_use]
    pub fn here() -> Self {
        Self(None)
    }

    /// So many threads (at least one), nicer by [`NICER`] than the thread that calls this; they end with the group.
    ///
    /// # Errors
    /// The system refuses what a runtime needs.
    pub fn new(tasks: &TaskGroup, name: &'static str, threads: usize) -> std::io::Result<Self> {
        let nice = nicer();
        let mut builder =
            if threads > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
        if threads > 1 {
            builder.worker_threads(threads);
        }
        let runtime =
            builder.thread_name(name).on_thread_start(move || step_back(nice)).enable_all().build()?;
        let own = Own { threads: runtime.handle().clone(), running: Arc::default() };
        let (stop, running) = (tasks.token(), own.running.clone());
        tasks.thread(name, OnFailure::StopProcess, move || {
            // A runtime of one thread runs on this one, which it does not start.
            step_back(nice);
            serve(runtime, async move {
                stop.cancelled().await;
                let done = async {
                    while running.load(Ordering::Relaxed) > 0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                let _late_work_ends_here = tokio::time::timeout(LINGER, done).await;
            });
        });
        Ok(Self(Some(Arc::new(own))))
    }

    /// Runs work in the lane and waits for it; work that nobody waits for any more is dropped. What it spawns runs in the lane as
    /// well. A panic goes on in the caller.
    ///
    /// # Errors
    /// The lane has ended.
    #[allow(clippy::disallowed_methods)] // this is the seam; the caller's task has the name
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Stopped> {
        let Some(own) = &self.0 else { return Ok(work.await) };
        own.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(own.running.clone());
        let work = own.threads.spawn(async move {
            let _running = running;
            work.await
        });
        joined(AbortOnDropHandle::new(work).await)
    }

    /// Runs work that blocks, such as reading a file, on a further thread of this priority, which ends when it was idle for a while;
    /// it goes on when nobody waits for it any more. A lane without threads runs it here. A panic goes on in the caller.
    ///
    /// # Errors
    /// The lane has ended.
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let Some(own) = &self.0 else { return Ok(work()) };
        own.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(own.running.clone());
        let work = own.threads.spawn_blocking(move || {
            let _running = running;
            work()
        });
        joined(work.await)
    }
}

fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, Stopped> {
    match outcome {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Stopped),
        },
    }
}

/// Files that are still read must not keep the process from ending.
fn serve(runtime: Runtime, until: impl Future<Output = ()>) {
    runtime.block_on(until);
    runtime.shutdown_background();
}

/// How nice a lane's threads are that this thread makes. Told as a number, because threads start others, which inherit it.
#[cfg(target_os = "linux")]
fn nicer() -> i32 {
    let now = rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap_or(0);
    (now + NICER).min(NICEST)
}

/// Makes this thread so nice. A system that refuses it is no reason not to run.
#[cfg(target_os = "linux")]
fn step_back(nice: i32) {
    // Linux takes a thread's id here and changes that thread alone.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice) {
        tracing::warn!(%error, "the priority of a thread cannot be lowered");
    }
}

/// Other systems have one priority for a whole process.
#[cfg(not(target_os = "linux"))]
fn nicer() -> i32 {
    0
}

#[cfg(not(target_os = "linux"))]
fn step_back(_nice: i32) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread::ThreadId;

    fn this() -> (ThreadId, i32) {
        let id = rustix::thread::gettid();
        (std::thread::current().id(), rustix::process::getpriority_process(Some(id)).unwrap())
    }

    #[tokio::test]
    async fn a_lanes_threads_are_others_and_nicer_and_so_is_what_is_spawned_there() {
        let (here, nice) = this();
        let wanted = (nice + NICER).min(NICEST);
        for threads in [1, 3] {
            let tasks = TaskGroup::new();
            let lane = Lane::new(&tasks, "lane", threads).unwrap();
            let spawning = tasks.clone();
            let seen = lane.run(async move {
                let (tell, told) = tokio::sync::oneshot::channel();
                spawning.spawn("inner", OnFailure::Log, async move {
                    tell.send(this()).unwrap();
                });
                #[allow(clippy::disallowed_methods)] // what files are read on
                let blocking = tokio::task::spawn_blocking(this).await.unwrap();
                [this(), told.await.unwrap(), blocking]
            });
            for (thread, nice) in seen.await.unwrap() {
                assert_ne!(thread, here);
                assert_eq!(nice, wanted, "{threads} threads");
            }
            assert_eq!(this(), (here, nice), "the caller's own priority stays");
            tasks.stop();
            assert_eq!(tasks.join(Duration::from_secs(20)).await, Vec::<String>::new());
        }
    }

    #[tokio::test]
    async fn work_that_blocks_has_a_thread_of_its_own_of_the_same_priority() {
        let (here, nice) = this();
        let tasks = TaskGroup::new();
        let lane = Lane::new(&tasks, "lane", 1).unwrap();
        let (go, gone) = std::sync::mpsc::sync_channel(1);
        let (blocking, free) = (lane.clone(), lane.clone());
        let both = async move {
            // The lane's one thread serves others meanwhile: one of them ends the wait.
            let waits = blocking.blocking(move || gone.recv().map(|()| this()));
            tokio::join!(waits, free.run(async move { go.send(()).unwrap() }))
        };
        let (seen, _) = lane.run(both).await.unwrap();
        let (thread, niceness) = seen.unwrap().unwrap();
        assert_ne!(thread, here);
        assert_eq!(niceness, (nice + NICER).min(NICEST));
        assert_eq!(Lane::here().blocking(this).await, Ok((here, nice)));
        tasks.stop();
        assert_eq!(tasks.join(Duration::from_secs(20)).await, Vec::<String>::new());
        assert_eq!(lane.blocking(this).await, Err(Stopped));
    }

    #[tokio::test]
    async fn work_that_never_yields_keeps_nobody_else_waiting() {
        let tasks = TaskGroup::new();
        let lane = Lane::new(&tasks, "lane", 1).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let hog = done.clone();
        let work = lane.run(async move {
            while !hog.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        // On one thread with it this would never get a turn.
        let (ended, ()) = tokio::join!(work, async { done.store(true, Ordering::Relaxed) });
        assert_eq!(ended, Ok(()));
        tasks.stop();
    }

    #[tokio::test]
    async fn a_lane_without_threads_runs_where_it_is_asked() {
        let here = std::thread::current().id();
        assert_eq!(Lane::here().run(async { std::thread::current().id() }).await, Ok(here));
    }

    #[tokio::test]
    async fn work_under_way_ends_with_the_group_and_later_work_is_refused() {
        let tasks = TaskGroup::new();
        let lane = Lane::new(&tasks, "lane", 1).unwrap();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let under_way = lane.run(async move { gone.await.is_ok() });
        let stopping = async {
            tokio::task::yield_now().await;
            tasks.stop();
            go.send(()).unwrap();
        };
        let (finished, ()) = tokio::join!(biased; under_way, stopping);
        assert_eq!(finished, Ok(true));
        assert_eq!(tasks.join(Duration::from_secs(20)).await, Vec::<String>::new());
        assert_eq!(lane.run(async {}).await, Err(Stopped));
    }

    #[tokio::test]
    #[should_panic(expected = "told to the caller")]
    async fn a_panic_goes_on_in_the_caller() {
        let tasks = TaskGroup::new();
        let lane = Lane::new(&tasks, "lane", 1).unwrap();
        let _panics = lane.run(async { panic!("told to the caller") }).await;
    }
}
