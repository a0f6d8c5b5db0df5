//! `geminga cluster`: a real cluster of processes on this machine — etcd, bookies, a broker — for trying out and for tests.
//!
//! | file | what it holds |
//! |---|---|
//! | `state` | what is in the directory: ports, processes |
//! | `process` | starting, watching and ending processes, by id and start time |
//!
//! Everything lies in one directory: `cluster.json`, `logs/`, `etcd/`, `bookie-N/`. `up` starts what is not running, so that it is
//! also the way to start again what was killed; ports stay the same. `down` ends broker, bookies, etcd, in this order; the data
//! stays. Either takes names, for one process or some. Loopback only: nobody is authenticated.
#![allow(clippy::disallowed_methods)] // real files, processes and clocks: a tool for people, nothing to simulate

mod process;
mod state;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use process::Standing;
use state::{Cluster, Kind};
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for one process to be ready.
const READY: Duration = Duration::from_secs(60);
/// Longest wait for one process to end by itself.
const END: Duration = Duration::from_secs(15);

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Command {
    /// Start etcd, bookies and a broker, or what of them does not run.
    Up(UpArgs),
    /// Show which processes run and where they listen.
    Status(Dir),
    /// Show the end of the processes' logs.
    Logs(LogsArgs),
    /// End all processes, or those named. The data stays.
    Down(DownArgs),
}

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Dir {
    /// Directory that holds everything.
    #[arg(long, default_value = "cluster")]
    dir: PathBuf,
}

/// Flags of `up`. What is fixed at the first start is kept in the directory.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    dir: Dir,
    /// Processes to start, such as `bookie-1`. Default: all.
    names: Vec<String>,
    /// Bookies, 1 to 9. Entries go to three of them and are acknowledged by two; with fewer bookies there are fewer copies.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    bookies: u16,
    /// Configuration file (TOML) of brokers and bookies, such as `[broker.offload]` for an object store. What this command gives by
    /// itself (ports, metadata, copies) beats it. Kept for later starts until another is given.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The etcd binary, 3.4 or above. Default: `etcd` on PATH.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Port of the Pulsar protocol, 0 for any free one. Fixed at the first start.
    #[arg(long, default_value_t = 6650)]
    pulsar_port: u16,
    /// Port of REST and metrics, 0 for any free one. Fixed at the first start.
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
}

/// Flags of `down`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    dir: Dir,
    /// Processes to end, such as `bookie-1`. Default: all.
    names: Vec<String>,
}

/// Flags of `logs`.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    dir: Dir,
    /// Processes to show, such as `broker` or `bookie-1`. Default: all.
    names: Vec<String>,
    /// Lines of each.
    #[arg(long, default_value_t = 20)]
    lines: usize,
}

/// Runs one command.
pub(crate) fn main(command: Command) -> Result<()> {
    match command {
        Command::Up(args) => up(&args),
        Command::Status(args) => status(&args.dir),
        Command::Logs(args) => logs(&args),
        Command::Down(args) => down(&args),
    }
}

fn say(line: std::fmt::Arguments<'_>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("writing to standard output")
}

fn up(args: &UpArgs) -> Result<()> {
    let etcd = process::find_etcd(args.etcd.as_deref())?;
    std::fs::create_dir_all(&args.dir.dir)
        .with_context(|| format!("the directory {} cannot be made", args.dir.dir.display()))?;
    let dir = args.dir.dir.canonicalize()?;
    let _lock = state::lock(&dir)?;
    let mut cluster = match Cluster::load(&dir)? {
        Some(cluster) => cluster,
        None => Cluster::new(&dir, args.bookies, args.pulsar_port, args.http_port)?,
    };
    if let Some(config) = &args.config {
        let found = config.canonicalize();
        cluster.config = Some(found.with_context(|| {
            format!("GM-6005: configuration file {} cannot be read; correct --config", config.display())
        })?);
    }
    let wanted = cluster.wanted(&args.names)?;
    for n in wanted.iter().copied() {
        let name = cluster.processes[n].name.clone();
        match process::standing(&cluster.processes[n]) {
            Standing::Running => continue,
            // A second one beside it would find the ports and the directory taken.
            Standing::Stopped => anyhow::bail!(
                "{name} is paused by a signal: `kill -CONT {}` lets it go on, `geminga cluster down {name}` ends it",
                cluster.processes[n].running.map_or(0, |running| running.id)
            ),
            Standing::Ending => process::wait_gone(&cluster.processes[n], READY)?,
            Standing::Down => {}
        }
        let started = process::start(&dir, &cluster, n, &etcd)?;
        cluster.processes[n].running = Some(started);
        // Written before it is waited for: whatever happens, `down` knows of it.
        cluster.store(&dir)?;
        process::wait_ready(&dir, &cluster.processes[n], READY).with_context(|| {
            let log = state::log(&dir, &name);
            format!("{name} did not become ready; its log is {}", log.display())
        })?;
        say(format_args!("{name} runs as process {}", started.id))?;
    }
    let broker = cluster.of(Kind::Broker);
    if process::standing(broker) != Standing::Running {
        return Ok(());
    }
    say(format_args!(
        "ready: pulsar://127.0.0.1:{} http://127.0.0.1:{} dir {}",
        broker.port,
        broker.second_port,
        dir.display()
    ))
}

fn existing(dir: &Path) -> Result<(PathBuf, Cluster)> {
    let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let cluster = Cluster::load(&absolute)?;
    let cluster = cluster.with_context(|| {
        format!("there is no cluster in {}; `geminga cluster up --dir …` makes one", dir.display())
    })?;
    Ok((absolute, cluster))
}

fn status(dir: &Path) -> Result<()> {
    let (_, cluster) = existing(dir)?;
    let mut down = 0;
    for p in &cluster.processes {
        let (standing, id) = match (process::standing(p), p.running) {
            (Standing::Running, Some(running)) => ("running", running.id.to_string()),
            (Standing::Stopped, Some(running)) => ("paused", running.id.to_string()),
            (Standing::Ending, Some(running)) => ("ending", running.id.to_string()),
            _ => ("down", "-".to_owned()),
        };
        down += usize::from(standing != "running");
        say(format_args!("{:<10} {standing:<8} process {id:<8} 127.0.0.1:{}", p.name, p.port))?;
    }
    anyhow::ensure!(
        down == 0,
        "{down} of {} processes do not run; `up` starts them again",
        cluster.processes.len()
    );
    Ok(())
}

fn logs(args: &LogsArgs) -> Result<()> {
    let (dir, cluster) = existing(&args.dir.dir)?;
    for n in cluster.wanted(&args.names)? {
        let name = &cluster.processes[n].name;
        let path = state::log(&dir, name);
        say(format_args!("== {name}: {}", path.display()))?;
        let Ok(file) = std::fs::File::open(&path) else { continue };
        let mut last = std::collections::VecDeque::new();
        for line in std::io::BufReader::new(file).split(b'\n') {
            last.push_back(line?);
            if last.len() > args.lines {
                last.pop_front();
            }
        }
        for line in last {
            say(format_args!("{}", String::from_utf8_lossy(&line)))?;
        }
    }
    Ok(())
}

fn down(args: &DownArgs) -> Result<()> {
    let (dir, mut cluster) = existing(&args.dir.dir)?;
    let _lock = state::lock(&dir)?;
    // What stands on others goes first.
    for n in cluster.wanted(&args.names)?.into_iter().rev() {
        let name = cluster.processes[n].name.clone();
        if let Some(how) = process::end(&cluster.processes[n], END)? {
            say(format_args!("{name} {how}"))?;
        }
        cluster.processes[n].running = None;
        cluster.store(&dir)?;
    }
    if args.names.is_empty() {
        say(format_args!("all is down; the data stays in {}", dir.display()))?;
    }
    Ok(())
}
