//! What happened: a running hash of every event for the canary, and text when a seed is replayed.

use crate::plan::Us;
use crate::world::Ev;
use std::fmt::Write as _;

#[derive(Default)]
pub(crate) struct Trace {
    verbose: bool,
    hash: u64,
    pub(crate) events: u64,
    lines: String,
}

/// Bytes of text kept of a replay: the end matters.
const TEXT_MAX: usize = 8 << 20;

impl Trace {
    pub(crate) fn new(verbose: bool) -> Self {
        Self { verbose, ..Self::default() }
    }

    pub(crate) fn on(&self) -> bool {
        self.verbose
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn lines(&self) -> &str {
        &self.lines
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
    }

    pub(crate) fn text(&mut self, now: Us, text: &str) {
        if self.lines.len() > TEXT_MAX {
            self.lines.drain(..TEXT_MAX / 2);
        }
        let _infallible = writeln!(self.lines, "{:>11.6} {text}", now as f64 / 1e6);
    }

    /// An event leaves the queue.
    pub(crate) fn event(&mut self, at: Us, seq: u64, ev: &Ev) {
        self.events += 1;
        let (kind, a) = match ev {
            Ev::ToBookie { node, call, .. } => (1, call << 8 | *node as u64),
            Ev::ToProc { call, .. } => (2, *call),
            Ev::Node(node, run, _) => (3, run << 8 | *node as u64),
            Ev::MetaArrives { call, .. } => (4, *call),
            Ev::Resume(proc, _) | Ev::StartBroker(proc) => (5, *proc as u64),
            Ev::Fault(fault) => (6, *fault as u64),
            Ev::Window(number) => (7, *number as u64),
            Ev::Hint(proc) => (8, *proc as u64),
        };
        self.mix(at ^ seq << 40);
        self.mix(kind << 56 ^ a);
    }

    /// Something worth knowing.
    pub(crate) fn note(
        &mut self,
        now: Us,
        kind: &'static str,
        a: u64,
        b: u64,
        text: impl FnOnce() -> String,
    ) {
        self.mix(kind.len() as u64 ^ a << 48 ^ b);
        if self.verbose {
            let text = text();
            self.text(now, &text);
        }
    }
}
