//! An object store in memory that fails at a chosen step: an error before or after the deed, a deed that happens long after its
//! error, a crash before or after. Steps are counted by [`Faults`], which the test's metadata shares, so that a schedule names
//! one step of a whole protocol.

use super::{Answer, BlobError, Blobs, Listed, Part, SMALL_MAX, UploadId};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What happens to one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An error; nothing was done.
    FailBefore,
    /// An error, though it was done.
    FailAfter,
    /// An error, and it is done when [`SimBlobs::land`] is called.
    Late,
    /// The caller dies; nothing was done.
    CrashBefore,
    /// The caller dies, though it was done.
    CrashAfter,
    /// The caller falls asleep with the request on its way: it is seen no more, and the request arrives when
    /// [`SimBlobs::wake`] is called, unless its time is up.
    Asleep,
}

/// All faults.
pub const FAULTS: [Fault; 6] =
    [Fault::FailBefore, Fault::FailAfter, Fault::Late, Fault::CrashBefore, Fault::CrashAfter, Fault::Asleep];

#[derive(Debug, Default)]
struct Plan {
    step: usize,
    at: Option<(usize, Fault)>,
    crash: CancellationToken,
}

/// Counts the steps of a protocol and says which of them fails.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    /// Step `at` from now on (from 0) meets this fault. The answer is cancelled when the caller is to die: drop its future then.
    pub fn plan(&self, at: Option<(usize, Fault)>) -> CancellationToken {
        let mut plan = self.0.lock();
        *plan = Plan { step: 0, at, crash: CancellationToken::new() };
        plan.crash.clone()
    }

    /// Steps taken since the last plan.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.0.lock().step
    }

    /// The fault of the next step; counts it.
    pub fn next(&self) -> Option<Fault> {
        let mut plan = self.0.lock();
        plan.step += 1;
        plan.at.filter(|(at, _)| at + 1 == plan.step).map(|(_, fault)| fault)
    }

    /// The caller dies here.
    pub async fn die(&self) -> ! {
        self.0.lock().crash.cancel();
        std::future::pending().await
    }
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<String, Bytes>,
    uploads: HashMap<(String, String), BTreeMap<usize, Bytes>>,
    next: u64,
    deleted: Vec<String>,
    reads: Vec<(String, Range<u64>)>,
    far: bool,
    /// Bytes of ranged reads under way, and the most there ever were.
    under_way: (u64, u64),
    /// On what ranged reads were asked for.
    threads: HashSet<ThreadId>,
}

type Deed = Box<dyn FnOnce(&mut Inner) + Send>;

/// The store. Cloning shares it.
#[derive(Clone, Default)]
pub struct SimBlobs {
    inner: Arc<Mutex<Inner>>,
    faults: Faults,
    late: Arc<Mutex<Vec<Deed>>>,
    asleep: Arc<Mutex<Vec<(u64, Deed)>>>,
}

impl SimBlobs {
    /// An empty store whose steps are counted by `faults`.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        Self { faults, ..Self::default() }
    }

    /// The same objects, seen without being counted or failed.
    #[must_use]
    pub fn observer(&self) -> Self {
        Self { inner: self.inner.clone(), ..Self::default() }
    }

    /// Does what was late.
    pub fn land(&self) {
        let late = std::mem::take(&mut *self.late.lock());
        late.into_iter().for_each(|deed| deed(&mut self.inner.lock()));
    }

    /// Requests that slept arrive, at this time by the store's clock (ms since 1970). What has expired is refused.
    pub fn wake(&self, store_ms: u64) {
        for (until_ms, deed) in std::mem::take(&mut *self.asleep.lock()) {
            if store_ms <= until_ms {
                deed(&mut self.inner.lock());
            }
        }
    }

    /// Keys of all objects.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.inner.lock().objects.keys().cloned().collect()
    }

    /// Uploads that hold parts or wait for them.
    #[must_use]
    pub fn uploads_open(&self) -> usize {
        self.inner.lock().uploads.len()
    }

    /// Keys of objects that were removed, in order.
    #[must_use]
    pub fn deleted(&self) -> Vec<String> {
        self.inner.lock().deleted.clone()
    }

    /// Ranges read since last asked.
    #[must_use]
    pub fn reads(&self) -> Vec<(String, Range<u64>)> {
        std::mem::take(&mut self.inner.lock().reads)
    }

    /// From now on a ranged read takes 3 ms and one for each MiB, as from a store that is far away.
    pub fn go_far(&self) {
        self.inner.lock().far = true;
    }

    /// Most bytes that ranged reads asked for at the same time.
    #[must_use]
    pub fn most_under_way(&self) -> u64 {
        self.inner.lock().under_way.1
    }

    /// Threads on which ranged reads were asked for.
    #[must_use]
    pub fn threads(&self) -> HashSet<ThreadId> {
        self.inner.lock().threads.clone()
    }

    /// Changes an object behind everybody's back.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner.lock();
        let mut bytes = inner.objects.get(key).map(|bytes| bytes.to_vec()).unwrap_or_default();
        change(&mut bytes);
        inner.objects.insert(key.to_owned(), bytes.into());
    }

    fn step<'a, T: Send + 'static>(
        &'a self,
        key: &'a str,
        deed: impl FnOnce(&mut Inner) -> Result<T, BlobError> + Send + 'static,
    ) -> Answer<'a, T> {
        self.step_until(key, u64::MAX, deed)
    }

    fn step_until<'a, T: Send + 'static>(
        &'a self,
        key: &'a str,
        until_ms: u64,
        deed: impl FnOnce(&mut Inner) -> Result<T, BlobError> + Send + 'static,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let failed = || BlobError::Failed { key: key.to_owned(), reason: "simulated".to_owned() };
            match self.faults.next() {
                None => deed(&mut self.inner.lock()),
                Some(Fault::FailBefore) => Err(failed()),
                Some(Fault::FailAfter) => {
                    let _lost = deed(&mut self.inner.lock());
                    Err(failed())
                }
                Some(Fault::Late) => {
                    self.late.lock().push(Box::new(|inner| drop(deed(inner))));
                    Err(failed())
                }
                Some(Fault::CrashBefore) => self.faults.die().await,
                Some(Fault::CrashAfter) => {
                    let _lost = deed(&mut self.inner.lock());
                    self.faults.die().await
                }
                Some(Fault::Asleep) => {
                    self.asleep.lock().push((until_ms, Box::new(|inner| drop(deed(inner)))));
                    self.faults.die().await
                }
            }
        })
    }
}

fn joined(bytes: impl IntoIterator<Item = Bytes>) -> Bytes {
    bytes
        .into_iter()
        .fold(BytesMut::new(), |mut all, next| {
            all.extend_from_slice(&next);
            all
        })
        .freeze()
}

impl Blobs for SimBlobs {
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool> {
        let owned = key.to_owned();
        self.step(key, move |inner| {
            let absent = !inner.objects.contains_key(&owned);
            inner.objects.entry(owned).or_insert(bytes);
            Ok(absent)
        })
    }

    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes> {
        let owned = key.to_owned();
        self.step(key, move |inner| match inner.objects.get(&owned) {
            Some(bytes) if bytes.len() as u64 > SMALL_MAX => {
                Err(BlobError::Failed { key: owned, reason: format!("it has {} bytes", bytes.len()) })
            }
            found => found.cloned().ok_or(BlobError::Absent(owned)),
        })
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()> {
        let owned = key.to_owned();
        self.step_until(key, until_ms, move |inner| {
            inner.objects.insert(owned, joined(bytes));
            Ok(())
        })
    }

    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId> {
        let owned = key.to_owned();
        self.step_until(key, until_ms, move |inner| {
            inner.next += 1;
            let id = inner.next.to_string();
            inner.uploads.insert((owned, id.clone()), BTreeMap::new());
            Ok(UploadId(id))
        })
    }

    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part> {
        let at = (key.to_owned(), upload.0.clone());
        self.step(key, move |inner| match inner.uploads.get_mut(&at) {
            Some(parts) => {
                parts.insert(number, joined(bytes));
                Ok(Part(number.to_string()))
            }
            None => Err(BlobError::Absent(at.0)),
        })
    }

    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()> {
        let at = (key.to_owned(), upload.0.clone());
        self.step(key, move |inner| match inner.uploads.remove(&at) {
            Some(stored) if stored.len() == parts.len() => {
                inner.objects.insert(at.0, joined(stored.into_values()));
                Ok(())
            }
            _ => Err(BlobError::Absent(at.0)),
        })
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        let owned = key.to_owned();
        self.step(key, move |inner| {
            inner.objects.get(&owned).map(|bytes| bytes.len() as u64).ok_or(BlobError::Absent(owned))
        })
    }

    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        let owned = key.to_owned();
        let bytes = range.end - range.start;
        let pause = Duration::from_millis(3 + (bytes >> 20));
        let read = self.step(key, move |inner| {
            inner.reads.push((owned.clone(), range.clone()));
            let bytes = inner.objects.get(&owned).ok_or_else(|| BlobError::Absent(owned.clone()))?;
            let (from, to) = (range.start as usize, range.end as usize);
            let short =
                || BlobError::Failed { key: owned.clone(), reason: "the object ends before".to_owned() };
            if to > bytes.len() { Err(short()) } else { Ok(bytes.slice(from..to)) }
        });
        Box::pin(async move {
            let far = {
                let mut inner = self.inner.lock();
                inner.threads.insert(std::thread::current().id());
                let now = inner.under_way.0 + bytes;
                inner.under_way = (now, now.max(inner.under_way.1));
                inner.far
            };
            if far {
                tokio::time::sleep(pause).await;
            }
            let read = read.await;
            self.inner.lock().under_way.0 -= bytes;
            read
        })
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>> {
        let below = prefix.to_owned();
        self.step(prefix, move |inner| {
            let found = inner.uploads.keys().filter(|(key, _)| key.starts_with(&below));
            let mut found: Vec<_> = found.map(|(key, id)| (key.clone(), UploadId(id.clone()))).collect();
            found.sort_by(|(a, id), (b, other)| (a, &id.0).cmp(&(b, &other.0)));
            Ok(found)
        })
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()> {
        let at = (key.to_owned(), upload.0.clone());
        self.step(key, move |inner| {
            inner.uploads.remove(&at);
            Ok(())
        })
    }

    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        let owned = key.to_owned();
        self.step(key, move |inner| {
            if inner.objects.remove(&owned).is_some() {
                inner.deleted.push(owned);
            }
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        let (below, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.step(prefix, move |inner| {
            let wanted =
                |key: &str| key.starts_with(&below) && after.as_deref().is_none_or(|after| key > after);
            let found = inner.objects.iter().filter(|(key, _)| wanted(key)).take(limit);
            Ok(found.map(|(key, bytes)| Listed { key: key.clone(), size: bytes.len() as u64 }).collect())
        })
    }
}
