//! How fast one bookie, and three of them, take entries over gRPC on this machine, beside what its disk can do.
//!
//!     ingest bookie  --dir DIR [--secs N] [--rounds N] [--size BYTES,...] [--shards N]
//!     ingest quorum  --dir DIR [--secs N] [--rounds N] [--size BYTES,...]
//!     ingest beside  --dir DIR [--secs N] [--rounds N] [--gb N]
//!     ingest ledgers --dir DIR [--count N]
//!
//! `bookie`: adds pipelined to one store in a process of its own; then synced writes of that store's own mean batch size by a plain
//! loop, in the same directory; then adds at half the rate, for their latency. `quorum`: the ledger client with 3/3/2, bookies in
//! this process against bookies behind gRPC. `beside`: a reader far behind beside writes at a quarter of the rate. `ledgers`: that many open ledgers in one store. Figures of one run belong together; those
//! of different runs do not.

#![allow(clippy::disallowed_methods)] // a measurement: real time, and threads that wait for real disks, are its subject

mod beside;
mod ledgers;
mod load;
mod node;
mod probe;
mod quorum;
mod single;

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

// As the product does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is asked for.
pub(crate) struct Args {
    pub(crate) dir: PathBuf,
    pub(crate) secs: u64,
    pub(crate) rounds: u64,
    pub(crate) sizes: Vec<usize>,
    pub(crate) count: u64,
    pub(crate) gb: f64,
    pub(crate) shards: u16,
}

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = Self {
            dir: PathBuf::new(),
            secs: 4,
            rounds: 3,
            sizes: Vec::new(),
            count: 100_000,
            gb: 4.0,
            shards: 1,
        };
        let mut words = words;
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--dir" => args.dir = value.into(),
                "--secs" => args.secs = value.parse()?,
                "--rounds" => args.rounds = value.parse()?,
                "--size" => args.sizes = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--count" => args.count = value.parse()?,
                "--gb" => args.gb = value.parse()?,
                "--shards" => args.shards = value.parse()?,
                other => bail!("{other} is not known"),
            }
        }
        if args.dir.as_os_str().is_empty() {
            bail!("--dir is wanted: where the stores go");
        }
        Ok(args)
    }
}

/// A line on standard output.
pub(crate) fn say(text: &str) -> Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let what = words.next().context("ingest bookie | quorum | ledgers")?;
    let args = Args::parse(words)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match what.as_str() {
        "serve" => runtime.block_on(node::serve(&args)),
        "bookie" => runtime.block_on(single::run(args)),
        "quorum" => runtime.block_on(quorum::run(args)),
        "beside" => runtime.block_on(beside::run(args)),
        "ledgers" => runtime.block_on(ledgers::run(args)),
        other => bail!("{other} is not known"),
    }
}
