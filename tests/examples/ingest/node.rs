//! A bookie in a process of its own, without metadata: this program again, as `ingest serve`.

use crate::{Args, say};
use anyhow::{Context as _, Result, ensure};
use geminga_bookie::service::{self, Service};
use geminga_bookie::{Bookie, Config, InProcess};
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::ids::{BookieId, Incarnation};
use geminga_common::tasks::{OnFailure, TaskGroup};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

pub(crate) const CLUSTER: &str = "ingest";

/// The settings of a store: the defaults of the product.
pub(crate) fn config(name: &str, dir: &Path, shards: u16) -> Result<Config> {
    let mut config =
        Config::new(BookieId::new(name).context("a name for a bookie")?, dir.to_owned(), CLUSTER);
    config.shards = shards;
    Ok(config)
}

/// The child: serves until its input ends, and answers each line of it with its figures.
pub(crate) async fn serve(args: &Args) -> Result<()> {
    let name = args.dir.file_name().and_then(|name| name.to_str()).context("a directory with a name")?;
    let config = config(name, &args.dir, args.shards)?;
    let settings = service::Config::new(&config);
    let (edge, storage) = (TaskGroup::new(), TaskGroup::new());
    let bookie = Bookie::open(config, RealDisk::shared(), SystemClock::shared(), &storage)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&format!("ready {} {}", listener.local_addr()?, bookie.incarnation().0))?;
    let served =
        Service::new(bookie.clone(), CLUSTER, settings, Arc::new(InProcess::default()), edge.clone());
    edge.spawn("service", OnFailure::Log, async move { drop(served.serve(listener).await) });
    let told = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines() {
            if line? == "flush" {
                bookie.flush_soon();
            }
            let figures = bookie.figures();
            say(&serde_json::json!({
                "writes": figures.journal_writes,
                "journal": figures.journal_bytes,
                "segments": figures.segment_bytes,
                "cached": figures.cached_bytes,
                "ledgers": figures.ledgers,
            })
            .to_string())?;
        }
        anyhow::Ok(())
    });
    told.await??;
    edge.stop();
    edge.join(Duration::from_secs(10)).await;
    storage.stop();
    storage.join(Duration::from_secs(30)).await;
    Ok(())
}

/// What a store had done at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) writes: f64,
    pub(crate) journal: f64,
    pub(crate) segments: f64,
    pub(crate) cached: f64,
    /// CPU seconds of its process.
    pub(crate) cpu: f64,
}

/// The parent's side.
pub(crate) struct Node {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) address: String,
    pub(crate) store: BookieRef,
    /// From exec to the line that says it serves.
    pub(crate) ready: Duration,
}

impl Node {
    pub(crate) fn start(dir: &Path, shards: u16) -> Result<Self> {
        let begun = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--shards", &shards.to_string(), "--dir"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("a pipe")?;
        let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words.len() == 3, "a bookie did not start: {line:?}");
        let name = dir.file_name().and_then(|name| name.to_str()).context("a directory with a name")?;
        let store = BookieRef {
            id: BookieId::new(name).context("a name for a bookie")?,
            incarnation: Incarnation(words[2].parse()?),
        };
        let address = words[1].to_owned();
        Ok(Self { child, stdin, stdout, address, store, ready: begun.elapsed() })
    }

    /// Asks; `word` is `figures` or `flush`.
    pub(crate) fn ask(&mut self, word: &str) -> Result<Done> {
        writeln!(self.stdin, "{word}")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let told: Value = serde_json::from_str(&line)?;
        let of = |key: &str| told[key].as_f64().with_context(|| format!("no {key} in {line}"));
        Ok(Done {
            writes: of("writes")?,
            journal: of("journal")?,
            segments: of("segments")?,
            cached: of("cached")?,
            cpu: cpu_seconds(self.child.id())?,
        })
    }

    /// Resident memory now, and at its highest, in MB.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let of = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kb| kb.parse::<f64>().ok())
        };
        let kb = of("VmRSS:").zip(of("VmHWM:")).context("no memory in /proc")?;
        Ok((kb.0 / 1000.0, kb.1 / 1000.0))
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).map_err(Into::into)
    }
}

/// User and system time of a process, in seconds; Linux counts in hundredths.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("no stat")?;
    let ticks: Vec<f64> =
        rest.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
