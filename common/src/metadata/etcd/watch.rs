//! A watch that outlives connections, leaders and compactions.
//!
//! It resumes at the revision after the last one it has told, so that nothing is told twice or left out while etcd still has
//! that history. When history is compacted, or an answer cannot be taken, it reads the newest revision, tells
//! [`WatchEvent::Resync`], and goes on from there: the listing that the reader then makes is at least that new.
//!
//! Revisions of events decide where to resume, never the header's: a header may run ahead of the events still to come.

use super::super::watches::Watch;
use super::super::{MetaError, Revision, WatchEvent};
use super::call::{Calls, OUT_OF_RANGE};
use super::record;
use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// First and longest pause before a broken watch is opened again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Largest answer that is taken: a watch that catches up gets many events at once.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The newest revision, by a linearizable read.
pub(super) async fn revision(client: &Client, calls: &Calls) -> Result<Revision, MetaError> {
    let call = || {
        let mut kv = client.kv_client();
        async move { kv.get("\0", Some(GetOptions::new().with_keys_only())).await }
    };
    let answer = calls.read(call).await?;
    let header =
        answer.header().ok_or_else(|| MetaError::Unavailable("an answer without header".to_owned()))?;
    Ok(Revision(header.revision() as u64))
}

/// Why one stream of events ended.
enum End {
    /// Nobody reads any more.
    Left,
    /// It broke: go on where it was.
    Broken,
    /// History is gone: say so, and go on from now.
    Gap,
}

/// Tells the changes below the watch's prefix after revision `from`, until its reader leaves or `stop`.
pub(super) async fn run(client: Client, calls: Calls, told: Watch, from: Revision, stop: CancellationToken) {
    let mut last = from;
    let mut pause = PAUSE.0;
    loop {
        let before = last;
        let end = tokio::select! {
            () = stop.cancelled() => return,
            () = told.left() => return,
            end = follow(&client, &told, &mut last) => end,
        };
        match end {
            End::Left => return,
            End::Broken => tracing::debug!(prefix = told.prefix(), %last, "watch broke, resuming"),
            End::Gap => match revision(&client, &calls).await {
                Ok(now) => {
                    last = now;
                    if !told.tell(&[WatchEvent::Resync]) {
                        return;
                    }
                }
                Err(error) => tracing::debug!(prefix = told.prefix(), %error, "watch cannot resync yet"),
            },
        }
        if last > before {
            pause = PAUSE.0;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = told.left() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn follow(client: &Client, told: &Watch, last: &mut Revision) -> End {
    let options = WatchOptions::new().with_start_revision(last.0 as i64 + 1);
    let (key, options) = match told.prefix() {
        "" => ("\0", options.with_from_key()),
        prefix => (prefix, options.with_prefix()),
    };
    let mut watcher = client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut stream = match watcher.watch(key, Some(options)).await {
        Ok(stream) => stream,
        Err(error) => return broken(&error),
    };
    loop {
        match stream.message().await {
            Ok(Some(answer)) if answer.compact_revision() > 0 => return End::Gap,
            // etcd ends a watch for reasons of its own, such as a token that is no longer good.
            Ok(Some(answer)) if answer.canceled() => return End::Broken,
            Ok(Some(answer)) => {
                let Some(events) = events(&answer) else { return End::Gap };
                if !told.tell(&events) {
                    return End::Left;
                }
                *last = events.iter().filter_map(WatchEvent::revision).fold(*last, Revision::max);
            }
            Ok(None) => return End::Broken,
            Err(error) => return broken(&error),
        }
    }
}

fn broken(error: &etcd_client::Error) -> End {
    match error {
        // An answer that is too large would be so again.
        etcd_client::Error::GRpcStatus(status) if status.code() as i32 == OUT_OF_RANGE => End::Gap,
        _ => End::Broken,
    }
}

/// The events of an answer; `None` when one of them cannot be told.
fn events(answer: &WatchResponse) -> Option<Vec<WatchEvent>> {
    let tell = |event: &etcd_client::Event| {
        let record = record(event.kv()?).ok()?;
        Some(match event.event_type() {
            EventType::Put => WatchEvent::Put(record),
            EventType::Delete => WatchEvent::Deleted(record.key, record.mod_revision),
        })
    };
    answer.events().iter().map(tell).collect()
}
