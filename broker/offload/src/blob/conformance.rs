//! What every store must do, run on each: the simulated one, a directory, and a real S3 server where `tests/s3 with` has one.

use super::sim::{Faults, SimBlobs};
use super::{BlobError, Blobs, discard, end_uploads, store};
use crate::config::Config;
use crate::meters::Meters;
use bytes::Bytes;
use geminga_common::clock::SystemClock;
use geminga_common::lane::Lane;
use std::sync::Arc;

/// Parts of uploads, but the last, have this size: the least that S3 takes.
const PART: usize = 5 << 20;

fn later() -> u64 {
    SystemClock::shared().wall_ms() + 60_000
}

fn keys(listed: &[super::Listed]) -> Vec<&str> {
    listed.iter().map(|object| object.key.as_str()).collect()
}

async fn objects_are_kept(blobs: &dyn Blobs) {
    let (a, b) = ("c/202611/aa/1/1-000000000000000a", "c/202611/aa/1/2-000000000000000b");
    let bytes = || vec![Bytes::from_static(b"hello "), Bytes::from_static(b"world")];
    assert!(matches!(blobs.size(a).await, Err(BlobError::Absent(_))));
    assert!(matches!(blobs.range(a, 0..1).await, Err(BlobError::Absent(_))));
    blobs.put(a, bytes(), later()).await.unwrap();
    blobs.put(a, bytes(), later()).await.unwrap();
    blobs.put(b, vec![Bytes::from_static(b"x")], later()).await.unwrap();
    assert_eq!(blobs.size(a).await, Ok(11));
    assert_eq!(&blobs.range(a, 4..7).await.unwrap()[..], b"o w");
    assert!(blobs.range(a, 8..12).await.is_err(), "fewer bytes than asked for are an error");
    let listed = blobs.list("c", None, 10).await.unwrap();
    assert_eq!((keys(&listed), listed[0].size), (vec![a, b], 11));
    assert_eq!(keys(&blobs.list("c", Some(a), 10).await.unwrap()), [b]);
    assert_eq!(keys(&blobs.list("c", None, 1).await.unwrap()), [a]);
    assert_eq!(blobs.list("d", None, 10).await, Ok(vec![]));
    for _ in 0..2 {
        blobs.remove(a).await.unwrap();
        discard(blobs, b).await.unwrap();
    }
    assert_eq!(blobs.list("c", None, 10).await, Ok(vec![]));
}

async fn uploads_are_completed_or_ended(blobs: &dyn Blobs) {
    let (a, b) = ("c/202611/bb/1/1-000000000000000a", "c/202611/bb/1/2-000000000000000b");
    let part = |byte: u8, bytes: usize| vec![Bytes::from(vec![byte; bytes])];
    let upload = blobs.begin(a, later()).await.unwrap();
    let parts = vec![
        blobs.part(a, &upload, 0, part(1, PART)).await.unwrap(),
        blobs.part(a, &upload, 1, part(2, 9)).await.unwrap(),
    ];
    assert!(matches!(blobs.size(a).await, Err(BlobError::Absent(_))), "no object before it is completed");
    assert_eq!(blobs.list("c", None, 10).await, Ok(vec![]));
    // One whose answer was lost lies beside it, and one under another key.
    let _lost = blobs.begin(a, later()).await.unwrap();
    let other = blobs.begin(b, later()).await.unwrap();
    let under_way =
        |uploads: Vec<(String, super::UploadId)>| uploads.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(under_way(blobs.uploads(a).await.unwrap()), [a, a]);
    assert_eq!(under_way(blobs.uploads("c").await.unwrap()), [a, a, b]);
    blobs.complete(a, &upload, parts).await.unwrap();
    assert_eq!(under_way(blobs.uploads(a).await.unwrap()), [a]);
    end_uploads(blobs, a).await.unwrap();
    assert_eq!(blobs.uploads(a).await, Ok(vec![]));
    assert_eq!(blobs.size(a).await, Ok(PART as u64 + 9), "the object stays");
    assert_eq!(&blobs.range(a, PART as u64 - 1..PART as u64 + 1).await.unwrap()[..], [1, 2]);
    // An upload that was ended makes no object any more, whatever its author still sends.
    let stored = blobs.part(b, &other, 0, part(3, 9)).await.unwrap();
    discard(blobs, b).await.unwrap();
    // S3 refuses such a part; S3Proxy takes it, and keeps it for nobody.
    let _either_way = blobs.part(b, &other, 1, part(3, 9)).await;
    assert!(blobs.complete(b, &other, vec![stored]).await.is_err());
    assert_eq!((blobs.uploads("c").await, blobs.size(b).await.is_err()), (Ok(vec![]), true));
    discard(blobs, a).await.unwrap();
    assert!(matches!(blobs.size(a).await, Err(BlobError::Absent(_))));
}

async fn what_has_expired_is_not_written(blobs: &dyn Blobs) {
    let key = "c/202611/cc/1/1-000000000000000a";
    let past = SystemClock::shared().wall_ms() - 1;
    assert!(blobs.put(key, vec![Bytes::from_static(b"x")], past).await.is_err());
    assert!(blobs.begin(key, past).await.is_err());
    assert_eq!((blobs.size(key).await.is_err(), blobs.uploads(key).await), (true, Ok(vec![])));
}

async fn what_is_created_is_never_replaced(blobs: &dyn Blobs) {
    let key = "c/geminga.id";
    assert!(matches!(blobs.small(key).await, Err(BlobError::Absent(_))));
    assert_eq!(blobs.create(key, Bytes::from_static(b"first")).await, Ok(true));
    for late in ["second", "first"] {
        assert_eq!(blobs.create(key, Bytes::from(late)).await, Ok(false));
        assert_eq!(blobs.small(key).await, Ok(Bytes::from_static(b"first")));
    }
    blobs.remove(key).await.unwrap();
    // Of many at once one is first, and its bytes are there.
    let texts: Vec<String> = (0..16).map(|n| format!("of {n}")).collect();
    let made = texts.iter().map(|text| blobs.create(key, Bytes::from(text.clone())));
    let made: Vec<bool> = futures::future::join_all(made).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(made.iter().filter(|made| **made).count(), 1, "{made:?}");
    let first = made.iter().position(|made| *made).unwrap();
    assert_eq!(blobs.small(key).await, Ok(Bytes::from(texts[first].clone())));
    blobs.remove(key).await.unwrap();
    blobs.put(key, vec![Bytes::from(vec![0; super::SMALL_MAX as usize + 1])], later()).await.unwrap();
    assert!(matches!(blobs.small(key).await, Err(BlobError::Failed { .. })), "too much to be read whole");
    blobs.remove(key).await.unwrap();
}

async fn conforms(blobs: &dyn Blobs) {
    what_is_created_is_never_replaced(blobs).await;
    objects_are_kept(blobs).await;
    uploads_are_completed_or_ended(blobs).await;
}

#[tokio::test]
async fn the_simulated_store_conforms() {
    // It has no clock: that it refuses what has expired is shown by the stories.
    conforms(&SimBlobs::new(Faults::default())).await;
}

fn opened(config: &Config) -> Arc<dyn Blobs> {
    let clock = SystemClock::shared();
    store::open(config, clock.clone(), &Meters::new(clock), Lane::here()).unwrap()
}

#[tokio::test]
async fn a_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { url: format!("file://{}", directory.path().display()), ..Config::default() };
    let blobs = opened(&config);
    conforms(&*blobs).await;
    what_has_expired_is_not_written(&*blobs).await;
    // A process that died left an unfinished file; another ends it.
    let key = "c/202611/dd/1/1-000000000000000a";
    let upload = blobs.begin(key, later()).await.unwrap();
    blobs.part(key, &upload, 0, vec![Bytes::from_static(b"x")]).await.unwrap();
    let other = opened(&config);
    assert_eq!(other.uploads(key).await.unwrap().len(), 1);
    discard(&*other, key).await.unwrap();
    assert_eq!(blobs.uploads(key).await, Ok(vec![]));
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // it plays the one who mounts
async fn a_directory_that_is_another_by_now_takes_nothing_and_is_not_made() {
    let parent = tempfile::tempdir().unwrap();
    let (root, aside) = (parent.path().join("store"), parent.path().join("aside"));
    let config = Config { url: format!("file://{}", root.display()), ..Config::default() };
    let blobs = opened(&config);
    let (id, key) = ("c/geminga.id", "c/202611/dd/1/1-000000000000000a");
    let bytes = || vec![Bytes::from_static(b"x")];
    assert!(matches!(blobs.small(id).await, Err(BlobError::Absent(_))));
    assert!(blobs.put(key, bytes(), later()).await.is_err());
    assert!(!root.exists(), "what does not say whose it is makes no directory");
    blobs.create(id, Bytes::from_static(b"ours")).await.unwrap();
    blobs.small(id).await.unwrap();
    blobs.put(key, bytes(), later()).await.unwrap();
    let upload = blobs.begin(key, later()).await.unwrap();
    let part = blobs.part(key, &upload, 0, bytes()).await.unwrap();
    // The file system goes, and leaves an empty directory or none.
    std::fs::rename(&root, &aside).unwrap();
    for empty in [true, false] {
        if empty {
            std::fs::create_dir(&root).unwrap();
        }
        assert!(matches!(blobs.small(id).await, Err(BlobError::Absent(_))));
        assert!(matches!(blobs.put(key, bytes(), later()).await, Err(BlobError::Failed { .. })));
        assert!(matches!(blobs.begin(key, later()).await, Err(BlobError::Failed { .. })));
        let completed = blobs.complete(key, &upload, vec![part.clone()]).await;
        assert!(matches!(completed, Err(BlobError::Failed { .. })), "{completed:?}");
        if empty {
            assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
            std::fs::remove_dir(&root).unwrap();
        }
        assert!(!root.exists());
    }
    std::fs::rename(&aside, &root).unwrap();
    blobs.small(id).await.unwrap();
    blobs.put(key, bytes(), later()).await.unwrap();
    assert_eq!(blobs.size(key).await, Ok(1));
}

/// The bucket that `tests/s3 with` made, if the test runs beside it.
pub(super) fn real_s3(prefix: &str) -> Option<Config> {
    let Ok(endpoint) = std::env::var("GEMINGA_TEST_S3") else {
        println!("a real S3 server: run by `tests/s3 with cargo test -p geminga-offload --lib real_s3`");
        return None;
    };
    Some(Config { url: format!("s3://conformance/{prefix}"), endpoint, ..Config::default() })
}

#[tokio::test]
async fn real_s3_conforms() {
    let (Some(one), Some(two)) = (real_s3("one"), real_s3("two")) else { return };
    let blobs = opened(&one);
    conforms(&*blobs).await;
    what_has_expired_is_not_written(&*blobs).await;
    // Another prefix of the same bucket is another store.
    let other = opened(&two);
    other.put("c/x", vec![Bytes::from_static(b"x")], later()).await.unwrap();
    other.begin("c/y", later()).await.unwrap();
    assert_eq!((blobs.list("c", None, 9).await, blobs.uploads("c").await), (Ok(vec![]), Ok(vec![])));
    // A bucket that does not exist is not one without objects.
    let nowhere = Config { url: "s3://nobody/x".to_owned(), ..one };
    let nowhere = opened(&nowhere);
    let refused = nowhere.small("c/geminga.id").await;
    assert!(matches!(refused, Err(BlobError::Refused { .. })), "{refused:?}");
}
