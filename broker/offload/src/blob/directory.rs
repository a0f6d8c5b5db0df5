//! A local directory as a store: for one machine, and for tests. Written with fsync of files and directories.
//!
//! A file that is not finished has the key and `#n` for a name; it is what an upload in parts is here. Nobody but us refuses a
//! write whose time is up, so it is looked at before the file is begun: a process that sleeps right behind that look, for longer
//! than the sweep waits, may leave a file. Its sweep sleeps with it in a process that does all.
//!
//! The directory may be where a file system is mounted, or lie in one. Only what says whose store it is makes it, and once that was
//! read objects are written to that very directory alone: what lies there while the file system is away is another one.

use super::store::{self, blob_error, expired, failed, payload};
use super::{Answer, BlobError, Blobs, Listed, Part, UploadId};
use bytes::Bytes;
use futures::FutureExt as _;
use geminga_common::clock::Clock;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files of a directory's uploads are looked for this deep below it at most.
const DEPTH_MAX: usize = 16;

type Staged = Arc<tokio::sync::Mutex<Box<dyn MultipartUpload>>>;

/// Tells a directory from any other that is there at the same time: device and inode.
type Which = (u64, u64);

/// A directory.
pub(super) struct Directory {
    /// The files, once the directory was found.
    files: Mutex<Option<LocalFileSystem>>,
    root: PathBuf,
    /// Where a small object (what says whose store it is) was found last.
    found: Mutex<Option<Which>>,
    clock: Arc<dyn Clock>,
    next: AtomicU64,
    /// Uploads under way live in this process, by key and id: after a crash only their unfinished files are left.
    under_way: Mutex<HashMap<(String, String), Staged>>,
}

impl Directory {
    pub(super) fn open(path: &str, clock: Arc<dyn Clock>) -> Self {
        let (files, found, under_way) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { files, root: PathBuf::from(path), found, clock, next: AtomicU64::new(0), under_way }
    }

    /// The files of the directory, which has to be there.
    #[allow(clippy::disallowed_methods)] // this is the seam
    async fn files(&self, key: &str) -> Result<LocalFileSystem, BlobError> {
        if let Some(files) = &*self.files.lock() {
            return Ok(files.clone());
        }
        let root = self.root.clone();
        let there = Self::blocking(key, move || match std::fs::metadata(&root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            there => there.map(|_| Some(LocalFileSystem::new_with_prefix(&root))),
        });
        let files = there.await?.ok_or_else(|| BlobError::Absent(key.to_owned()))?;
        let files = files.map_err(|error| blob_error(key, error))?;
        let files = files.with_fsync(true).with_automatic_cleanup(true);
        Ok(self.files.lock().get_or_insert(files).clone())
    }

    /// Which directory is there now.
    #[allow(clippy::disallowed_methods)] // this is the seam
    async fn which(&self, key: &str) -> Result<Option<Which>, BlobError> {
        let root = self.root.clone();
        Self::blocking(key, move || match std::fs::metadata(&root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            there => there.map(|there| Some((there.dev(), there.ino()))),
        })
        .await
    }

    /// The files, if they are in the directory that was found to be the store.
    async fn files_of_the_store(&self, key: &str) -> Result<LocalFileSystem, BlobError> {
        let (now, found) = (self.which(key).await?, *self.found.lock());
        if found.is_some() && now != found {
            let root = self.root.display();
            return Err(failed(
                key,
                format!("{root} is another directory than before; is its file system mounted?"),
            ));
        }
        self.files(key).await
    }

    fn staged(&self, key: &str, upload: &UploadId) -> Result<Staged, BlobError> {
        let staged = self.under_way.lock().get(&(key.to_owned(), upload.0.clone())).cloned();
        staged.ok_or_else(|| failed(key, "its upload was ended"))
    }

    /// Has file system calls done in the pool that the directory's store uses itself.
    #[allow(clippy::disallowed_methods)] // this is the seam
    async fn blocking<T: Send + 'static>(
        key: &str,
        deed: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, BlobError> {
        let done = tokio::task::spawn_blocking(deed).await;
        done.map_err(|error| failed(key, error.to_string()))?.map_err(|error| failed(key, error.to_string()))
    }
}

impl Blobs for Directory {
    #[allow(clippy::disallowed_methods)] // this is the seam
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool> {
        async move {
            let root = self.root.clone();
            Self::blocking(key, move || std::fs::create_dir_all(root)).await?;
            store::create(&self.files(key).await?, Path::from(key), key, bytes).await
        }
        .boxed()
    }

    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes> {
        async move {
            let before = self.which(key).await?;
            let small = store::small(&self.files(key).await?, Path::from(key), key).await?;
            // What changes hands meanwhile is looked at again.
            if before.is_none() || self.which(key).await? != before {
                return Err(failed(key, "its directory was changed for another while it was read"));
            }
            *self.found.lock() = before;
            Ok(small)
        }
        .boxed()
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()> {
        async move {
            if self.clock.wall_ms() > until_ms {
                return Err(expired(key));
            }
            let files = self.files_of_the_store(key).await?;
            let put = files.put_opts(&Path::from(key), payload(bytes), Default::default()).await;
            put.map(drop).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId> {
        async move {
            if self.clock.wall_ms() > until_ms {
                return Err(expired(key));
            }
            let files = self.files_of_the_store(key).await?;
            let begun = files.put_multipart_opts(&Path::from(key), Default::default()).await;
            let upload = begun.map_err(|error| blob_error(key, error))?;
            let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
            let staged = Arc::new(tokio::sync::Mutex::new(upload));
            self.under_way.lock().insert((key.to_owned(), id.clone()), staged);
            Ok(UploadId(id))
        }
        .boxed()
    }

    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        _number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part> {
        async move {
            let staged = self.staged(key, upload)?;
            // Parts are given in order; the file grows by each.
            let put = staged.lock().await.put_part(payload(bytes));
            put.await.map(|()| Part(String::new())).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, _parts: Vec<Part>) -> Answer<'a, ()> {
        async move {
            let staged = self.staged(key, upload)?;
            self.files_of_the_store(key).await?;
            let completed = staged.lock().await.complete().await;
            self.under_way.lock().remove(&(key.to_owned(), upload.0.clone()));
            completed.map(drop).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        async move { store::size(&self.files(key).await?, Path::from(key), key).await }.boxed()
    }

    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        async move { store::range(&self.files(key).await?, Path::from(key), key, range).await }.boxed()
    }

    /// Told by the files: what this process has under way has one as well.
    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>> {
        async move {
            let (root, below) = (self.root.clone(), prefix.to_owned());
            Self::blocking(prefix, move || {
                // Only the directory that the prefix lies in has to be looked at.
                let from =
                    below.rsplit_once('/').map_or(String::new(), |(directory, _)| directory.to_owned());
                let mut found = Vec::new();
                unfinished(&root, &from, DEPTH_MAX, &mut found)?;
                found.retain(|(key, _)| key.starts_with(&below));
                found.sort_by(|(a, id), (b, other)| (a, &id.0).cmp(&(b, &other.0)));
                Ok(found)
            })
            .await
        }
        .boxed()
    }

    #[allow(clippy::disallowed_methods)] // this is the seam
    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()> {
        async move {
            self.under_way.lock().retain(|(of, _), _| of != key);
            let Some(suffix) = upload.0.strip_prefix('#') else { return Ok(()) };
            let file = self.root.join(format!("{key}#{suffix}"));
            Self::blocking(key, move || match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
            .await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        async move {
            match self.files(key).await {
                Ok(files) => store::remove(&files, Path::from(key), key).await,
                Err(error) => store::absent_is_fine(Err(error)),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        async move {
            // A directory is read in no order: all of it, then the first.
            let files = match self.files(prefix).await {
                Err(BlobError::Absent(_)) => return Ok(Vec::new()),
                files => files?,
            };
            let mut found = store::list(&files, "", prefix, after, usize::MAX).await?;
            found.truncate(limit);
            Ok(found)
        }
        .boxed()
    }
}

/// Unfinished files below a directory of the store: their keys, and what is behind them as the upload's name.
fn unfinished(
    root: &std::path::Path,
    directory: &str,
    depth: usize,
    found: &mut Vec<(String, UploadId)>,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(root.join(directory)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        if entry.file_type()?.is_dir() {
            if depth > 0 {
                unfinished(root, &path, depth - 1, found)?;
            }
        } else if let Some((key, number)) = path.rsplit_once('#') {
            found.push((key.to_owned(), UploadId(format!("#{number}"))));
        }
    }
    Ok(())
}
