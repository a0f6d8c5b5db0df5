//! Reads. The tail comes from memory without a hop; what is further back is fetched in windows that double while a reader
//! reads on, one fetch per start position however many wait for it. A surplus is kept as a block, so that the next read, or
//! another reader at the same place, finds it. Point reads (replay) bring exactly what was asked and move no window.

use super::source::LedgerSource;
use super::*;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::EntryId;
use geminga_common::tasks::OnFailure;
use std::collections::HashMap;

/// Reader positions whose windows are remembered; above it all start small again.
const WINDOWS_MAX: usize = 256;

/// An answer to a fetch.
#[derive(Debug)]
pub(super) struct Fetched {
    from: Position,
    class: ReadClass,
    /// Whether the object store was among the places it looked in.
    had_object: bool,
    result: Result<Vec<ReadEntry>, ReadError>,
}

#[cfg(test)]
impl Fetched {
    /// The same, had the answer been this.
    pub(super) fn answering(self, result: Result<Vec<ReadEntry>, ReadError>) -> Self {
        Self { result, ..self }
    }
}

#[derive(Debug, Default)]
struct Fetch {
    waiters: Vec<(Token, ReadLimit)>,
    window: usize,
}

/// Fetches under way and windows.
#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: HashMap<Position, Fetch>,
    windows: HashMap<Position, usize>,
}

impl ManagedLedger {
    /// Reads on from a position, up to the limit; at least one entry. Starts at the next ledger where a closed one ends or
    /// was trimmed. Only confirmed entries are read.
    pub fn read(&mut self, from: Position, limit: ReadLimit, class: ReadClass) -> ReadOutcome {
        let from = self.state.clamp(from);
        if from >= self.state.end() {
            return ReadOutcome::AtEnd;
        }
        if let Some((run, behind)) = self.cache.get(from, limit) {
            if let (Some(behind), Some(last)) = (behind, run.last()) {
                self.fetch_ahead(last.position, behind, run.len(), class);
            }
            return ReadOutcome::Ready(run);
        }
        let token = self.token();
        let window = self.window_at(from).max(limit.bytes.min(self.deps.config.read_ahead_max));
        self.fetch(from, window, class, Some((token, limit)));
        ReadOutcome::Pending(token)
    }

    /// When a block is nearly used up, the next one is fetched while the reader works on this one.
    fn fetch_ahead(&mut self, last: Position, behind: usize, taken: usize, class: ReadClass) {
        if behind > taken {
            return;
        }
        let block_end = Position::new(last.ledger, EntryId(last.entry.0 + behind as u64 + 1));
        let next = self.state.clamp(block_end);
        let one = ReadLimit { entries: 1, bytes: 0 };
        if self.reads.windows.contains_key(&next)
            && next < self.state.end()
            && !self.reads.under_way.contains_key(&next)
            && self.cache.get(next, one).is_none()
        {
            let window = self.window_at(next);
            self.fetch(next, window, class, None);
        }
    }

    /// The window of a reader that arrives here: twice the one that ended here.
    fn window_at(&mut self, from: Position) -> usize {
        let config = &self.deps.config;
        match self.reads.windows.remove(&from) {
            Some(window) => (window * 2).min(config.read_ahead_max),
            None => config.read_ahead_min,
        }
    }

    fn fetch(&mut self, from: Position, window: usize, class: ReadClass, waiter: Option<(Token, ReadLimit)>) {
        if let Some(fetch) = self.reads.under_way.get_mut(&from) {
            fetch.waiters.extend(waiter);
            return;
        }
        self.reads.under_way.insert(from, Fetch { waiters: waiter.into_iter().collect(), window });
        let (events, source) = (self.events.clone(), self.source(from.ledger));
        let last = self.state.entries_of(from.ledger).and_then(|n| n.checked_sub(1));
        self.deps.tasks.spawn("ledger read", OnFailure::StopProcess, async move {
            let had_object = source.has_object();
            let result = match last {
                Some(last) => source.read(from.entry, EntryId(last), window, class).await,
                None => Err(ReadError::Unavailable(from)),
            };
            events(Event(EventKind::Fetched(Fetched { from, class, had_object, result })));
        });
    }

    pub(super) fn on_fetched(&mut self, fetched: Fetched, out: &mut Vec<Output>) {
        let Some(fetch) = self.reads.under_way.remove(&fetched.from) else { return };
        let entries = match fetched.result {
            Ok(entries) => entries,
            // Its ledger went to the object store while bookies were asked for it.
            Err(_) if !fetched.had_object && self.source(fetched.from.ledger).has_object() => {
                for waiter in fetch.waiters {
                    self.fetch(fetched.from, fetch.window, fetched.class, Some(waiter));
                }
                return;
            }
            Err(error) => {
                let error = self.or_trimmed(error);
                let failed = |(token, _)| Output::Read { token, result: Err(ReadError::clone(&error)) };
                out.extend(fetch.waiters.into_iter().map(failed));
                return;
            }
        };
        let last = entries.last().map_or(fetched.from, |e| e.position);
        if self.reads.windows.len() >= WINDOWS_MAX {
            self.reads.windows.clear();
        }
        self.reads.windows.insert(self.state.next(last), fetch.window);
        let mut shortest = usize::MAX;
        for (token, limit) in &fetch.waiters {
            let run = limit.take(entries.iter());
            shortest = shortest.min(run.len());
            out.push(Output::Read { token: *token, result: Ok(run) });
        }
        if shortest < entries.len() || fetch.waiters.is_empty() {
            self.cache.push_block(entries);
        }
    }

    /// Reads single entries, for replay. The answer is in the order of `positions` and leaves out those that are not there
    /// (trimmed, or beyond the end). Never [`ReadOutcome::AtEnd`].
    pub fn read_at(&mut self, positions: &[Position]) -> ReadOutcome {
        let one = ReadLimit { entries: 1, bytes: 0 };
        let mut parts: Vec<Result<ReadEntry, Position>> = Vec::new();
        for &p in positions {
            if self.state.entries_of(p.ledger).is_none_or(|n| p.entry.0 >= n) {
                continue;
            }
            let cached = self.cache.get(p, one).and_then(|(run, _)| run.into_iter().next());
            parts.push(cached.ok_or(p));
        }
        if parts.iter().all(Result::is_ok) {
            return ReadOutcome::Ready(parts.into_iter().filter_map(Result::ok).collect());
        }
        let missing = parts.iter().filter_map(|part| part.as_ref().err().map(|p| p.ledger));
        let sources: HashMap<LedgerId, LedgerSource> =
            missing.map(|ledger| (ledger, self.source(ledger))).collect();
        let token = self.token();
        let events = self.events.clone();
        self.deps.tasks.spawn("replay read", OnFailure::StopProcess, async move {
            let result = read_points(&sources, parts).await;
            events(Event(EventKind::Points(token, result)));
        });
        ReadOutcome::Pending(token)
    }

    /// An entry that was trimmed while it was read is not an incident, nor is one whose ledger left the bookies meanwhile.
    pub(super) fn or_trimmed(&self, error: ReadError) -> ReadError {
        let first = self.state.first();
        match error {
            ReadError::Unavailable(p)
            | ReadError::Damaged(p, _)
            | ReadError::Missing(p)
            | ReadError::ObjectStore(p, _)
            | ReadError::NoObjectStore(p)
            | ReadError::Lost(p, _)
                if p < first =>
            {
                ReadError::Trimmed(first)
            }
            ReadError::Missing(p) if self.source(p.ledger).has_object() => ReadError::Unavailable(p),
            other => other,
        }
    }
}

/// Fetches what is missing, neighbours together.
async fn read_points(
    sources: &HashMap<LedgerId, LedgerSource>,
    parts: Vec<Result<ReadEntry, Position>>,
) -> Result<Vec<ReadEntry>, ReadError> {
    let mut all = Vec::with_capacity(parts.len());
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let first = match part {
            Ok(entry) => {
                all.push(entry);
                continue;
            }
            Err(missing) => missing,
        };
        let source = sources.get(&first.ledger).ok_or(ReadError::Unavailable(first))?;
        let mut last = first.entry;
        let follows = |p: &Result<ReadEntry, Position>, last: EntryId| matches!(p, Err(at) if at.ledger == first.ledger && at.entry == last.next());
        while parts.next_if(|p| follows(p, last)).is_some() {
            last = last.next();
        }
        // One answer may bring only a part of the run.
        let mut next = first.entry;
        while next <= last {
            let run = source.read(next, last, usize::MAX >> 1, ReadClass::CatchUp).await?;
            next = EntryId(next.0 + run.len() as u64);
            all.extend(run);
        }
    }
    Ok(all)
}
