//! Stands between Geminga and an S3 server and makes it as far away, as narrow and as moody as a real one: first-byte latency,
//! bytes a second of each connection, a share of requests answered 503 SlowDown and a share answered slowly. Counts what passes.
//!
//!     s3_shaper UPSTREAM-PORT        prints `ready PORT`; serves until it is killed
//!
//! Steered over HTTP on the same port: `/__set?first_byte_ms=30&mb_s=80&share_503=0.2&retry_after=1&share_slow=0.1&slow_mb_s=4`
//! (all of them, what is not named is off) starts counting anew; `/__counts` tells as JSON; `/__zero?bytes=N` sends so many
//! bytes of its own under the same limits, which tells whether the shaper itself is the narrow place.
//!
//! HTTP/1.1 as S3 clients speak it: bodies of requests have a length. One connection upstream for each of a client's, so that
//! limits of a connection hold on both.

mod http;
mod plan;

use anyhow::{Context as _, Result, bail};
use geminga_common::tasks::{OnFailure, TaskGroup};
use http::{Conn, Head, Length};
use plan::{Fate, Shared, Steering};
use std::io::Write as _;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const SLOW_DOWN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
/// Bytes of one step of a paced body.
const STEP: usize = 128 << 10;

fn main() -> Result<()> {
    let upstream: u16 = std::env::args().nth(1).context("s3_shaper UPSTREAM-PORT")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(upstream))
}

async fn run(upstream: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    writeln!(std::io::stdout(), "ready {port}")?;
    let (tasks, shared) = (TaskGroup::new(), Arc::new(Shared::default()));
    loop {
        let (client, shared) = (listener.accept().await?.0, shared.clone());
        client.set_nodelay(true)?;
        tasks.spawn("client", OnFailure::Log, async move {
            // Either end may go at any time: that ends this pair of connections and nothing else.
            drop(serve(Conn::new(client), upstream, &shared).await);
        });
    }
}

async fn serve(mut client: Conn, upstream: u16, shared: &Shared) -> Result<()> {
    let mut store = None;
    while let Some(head) = client.head().await? {
        if head.target().starts_with("/__") {
            steer(&mut client, &head, shared).await?;
            continue;
        }
        let begun = Instant::now();
        let (fate, _busy) = shared.begin(head.method());
        if fate == Fate::SlowDown {
            client.skip(&head.length(false)?).await?;
            tokio::time::sleep_until(begun + shared.steering().first_byte()).await;
            client.write(slow_down(&shared.steering()).as_bytes()).await?;
            continue;
        }
        let store = match &mut store {
            Some(store) => store,
            None => {
                let stream = TcpStream::connect(("127.0.0.1", upstream)).await?;
                stream.set_nodelay(true)?;
                store.insert(Conn::new(stream))
            }
        };
        pass(&mut client, store, &head, (begun, fate), shared).await?;
    }
    Ok(())
}

fn slow_down(steering: &Steering) -> String {
    let after = if steering.retry_after > 0 {
        format!("Retry-After: {}\r\n", steering.retry_after)
    } else {
        String::new()
    };
    let length = SLOW_DOWN.len();
    format!(
        "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n{after}Content-Length: {length}\r\n\r\n{SLOW_DOWN}"
    )
}

/// One request and its answer, each body at the pace of a connection.
async fn pass(
    client: &mut Conn,
    store: &mut Conn,
    head: &Head,
    (begun, fate): (Instant, Fate),
    shared: &Shared,
) -> Result<()> {
    let steering = shared.steering();
    let rate = steering.rate(fate);
    store.write(head.bytes()).await?;
    copy(client, store, head.length(false)?, rate).await?;
    let Some(answer) = store.head().await? else { bail!("the store ended the connection") };
    tokio::time::sleep_until(begun + steering.first_byte()).await;
    client.write(answer.bytes()).await?;
    let length = if head.method() == "HEAD" { Length::Bytes(0) } else { answer.length(true)? };
    let bytes = copy(store, client, length, rate).await?;
    shared.passed(head.method(), bytes);
    Ok(())
}

/// Moves a body at so many bytes a second; 0 is as fast as it goes.
async fn copy(from: &mut Conn, to: &mut Conn, length: Length, rate: u64) -> Result<u64> {
    let (begun, mut moved) = (Instant::now(), 0u64);
    let mut body = length.body();
    while let Some(step) = from.body(&mut body, STEP).await? {
        moved += step.len() as u64;
        // What a connection has not carried yet has not arrived: a step is sent when its last byte is due.
        if rate > 0 {
            tokio::time::sleep_until(begun + std::time::Duration::from_secs_f64(moved as f64 / rate as f64))
                .await;
        }
        to.write(&step).await?;
    }
    Ok(moved)
}

async fn steer(client: &mut Conn, head: &Head, shared: &Shared) -> Result<()> {
    let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
    let said = match path {
        "/__set" => {
            shared.set(Steering::parse(query)?);
            String::new()
        }
        "/__counts" => shared.counts(),
        "/__zero" => {
            let bytes: u64 = query.strip_prefix("bytes=").context("bytes=N")?.parse()?;
            return zeros(client, bytes, &shared.steering()).await;
        }
        _ => bail!("no such path"),
    };
    client.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len()).as_bytes()).await
}

async fn zeros(client: &mut Conn, bytes: u64, steering: &Steering) -> Result<()> {
    let rate = steering.rate(Fate::Pass);
    tokio::time::sleep(steering.first_byte()).await;
    client.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").as_bytes()).await?;
    let (begun, mut sent, zeros) = (Instant::now(), 0, vec![0; STEP]);
    while sent < bytes {
        let step = (bytes - sent).min(STEP as u64);
        sent += step;
        if rate > 0 {
            tokio::time::sleep_until(begun + std::time::Duration::from_secs_f64(sent as f64 / rate as f64))
                .await;
        }
        client.stream.write_all(&zeros[..step as usize]).await?;
    }
    Ok(())
}
