//! Reads. The tail comes from memory without a hop; what is further back is fetched in windows that double while a reader
//! reads on, one fetch per start position however many wait for it. A surplus is kept as a block, so that the next read, or
//! another reader at the same place, finds it. Point reads (replay) bring exactly what was asked and move no window.

use super::adopt::Source;
use super::*;
use geminga_bookie_client::entry;
use geminga_bookie_client::ledgers::{LedgerView, ReadError as LedgerReadError};
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
    result: Result<Vec<ReadEntry>, ReadError>,
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
        let (source, events, view) = (self.source(), self.events.clone(), self.view(from.ledger));
        let last = self.state.entries_of(from.ledger).and_then(|n| n.checked_sub(1));
        self.deps.tasks.spawn("ledger read", OnFailure::StopProcess, async move {
            let result = match (view, last) {
                (Some(view), Some(last)) => {
                    let read = source.read(&view, from.entry, EntryId(last), window, class).await;
                    checked(from, EntryId(last), read)
                }
                _ => Err(ReadError::Unavailable(from)),
            };
            events(Event(EventKind::Fetched(Fetched { from, result })));
        });
    }

    pub(super) fn on_fetched(&mut self, fetched: Fetched, out: &mut Vec<Output>) {
        let Some(fetch) = self.reads.under_way.remove(&fetched.from) else { return };
        let entries = match fetched.result {
            Ok(entries) => entries,
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
        let mut parts: Vec<Result<ReadEntry, (Position, Option<LedgerView>)>> = Vec::new();
        for &p in positions {
            if self.state.entries_of(p.ledger).is_none_or(|n| p.entry.0 >= n) {
                continue;
            }
            let cached = self.cache.get(p, one).and_then(|(run, _)| run.into_iter().next());
            parts.push(cached.ok_or((p, None)));
        }
        if parts.iter().all(Result::is_ok) {
            return ReadOutcome::Ready(parts.into_iter().filter_map(Result::ok).collect());
        }
        let mut views: HashMap<LedgerId, Option<LedgerView>> = HashMap::new();
        for missing in parts.iter_mut().filter_map(|p| p.as_mut().err()) {
            let view = views.entry(missing.0.ledger).or_insert_with(|| self.view(missing.0.ledger));
            missing.1.clone_from(view);
        }
        let token = self.token();
        let (source, events) = (self.source(), self.events.clone());
        self.deps.tasks.spawn("replay read", OnFailure::StopProcess, async move {
            let result = read_points(&source, parts).await;
            events(Event(EventKind::Points(token, result)));
        });
        ReadOutcome::Pending(token)
    }

    /// Where the entries of a ledger of the chain are.
    pub(super) fn view(&self, ledger: LedgerId) -> Option<LedgerView> {
        match &self.writer {
            Some(writer) if writer.ledger() == ledger => Some(writer.view()),
            _ => self.state.segment(ledger).map(|s| s.ledger().view()),
        }
    }

    /// An entry that was trimmed while it was read is not an incident.
    pub(super) fn or_trimmed(&self, error: ReadError) -> ReadError {
        let first = self.state.first();
        match error {
            ReadError::Unavailable(p) | ReadError::Missing(p) if p < first => ReadError::Trimmed(first),
            other => other,
        }
    }
}

/// What a ledger read brought, as entries of the topic; whatever does not run on without a gap is not believed.
fn checked(
    from: Position,
    last: EntryId,
    read: Result<Vec<entry::Entry>, LedgerReadError>,
) -> Result<Vec<ReadEntry>, ReadError> {
    let entries = read.map_err(|e| match e {
        LedgerReadError::NoSuchEntry(id) => ReadError::Missing(Position::new(from.ledger, id)),
        LedgerReadError::Unavailable(id) => ReadError::Unavailable(Position::new(from.ledger, id)),
    })?;
    let runs_on = (from.entry.0..).zip(&entries).all(|(id, e)| e.id.0 == id && e.id <= last);
    if entries.is_empty() || !runs_on {
        return Err(ReadError::Unavailable(from));
    }
    let entry = |e: entry::Entry| ReadEntry {
        position: Position::new(from.ledger, e.id),
        entry: Entry { header: e.header, payload: e.payload },
    };
    Ok(entries.into_iter().map(entry).collect())
}

/// One entry of a ledger.
pub(super) async fn read_one(
    source: &Source,
    view: &LedgerView,
    id: EntryId,
) -> Result<ReadEntry, ReadError> {
    let at = Position::new(view.id, id);
    let read = source.read(view, id, id, 1, ReadClass::CatchUp).await;
    let mut entries = checked(at, id, read)?;
    entries.pop().ok_or(ReadError::Unavailable(at))
}

/// Fetches what is missing, neighbours together.
async fn read_points(
    source: &Source,
    parts: Vec<Result<ReadEntry, (Position, Option<LedgerView>)>>,
) -> Result<Vec<ReadEntry>, ReadError> {
    let mut all = Vec::with_capacity(parts.len());
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let (first, view) = match part {
            Ok(entry) => {
                all.push(entry);
                continue;
            }
            Err(missing) => missing,
        };
        let view = view.ok_or(ReadError::Unavailable(first))?;
        let mut last = first.entry;
        let follows = |p: &Result<ReadEntry, (Position, _)>, last: EntryId| matches!(p, Err((at, _)) if at.ledger == first.ledger && at.entry == last.next());
        while parts.next_if(|p| follows(p, last)).is_some() {
            last = last.next();
        }
        // One answer may bring only a part of the run.
        let mut next = first;
        while next.entry <= last {
            let read = source.read(&view, next.entry, last, usize::MAX >> 1, ReadClass::CatchUp).await;
            let run = checked(next, last, read)?;
            next.entry = EntryId(next.entry.0 + run.len() as u64);
            all.extend(run);
        }
    }
    Ok(all)
}
