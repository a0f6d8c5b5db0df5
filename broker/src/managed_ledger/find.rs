//! Searches: the first entry at or after a time, the entry that holds an index. Both rise along the topic, so a binary search
//! over ledgers (by what the record says of their first entries) and then within one (by reading single entries) finds them. Of a
//! ledger that lies in an object store alone its index names the block first: two requests, however large it is.

use super::source::LedgerSource;
use super::*;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::EntryId;
use geminga_common::tasks::OnFailure;
use geminga_offload::format::footer::Footer;

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// The first entry at or after a time, ms since 1970.
    Time(u64),
    /// The entry that holds a message index, or the first above it.
    Index(u64),
}

impl Goal {
    fn is_reached(self, header: &Header) -> bool {
        match self {
            Goal::Time(ms) => header.timestamp_ms >= ms,
            Goal::Index(index) => header.first_index.0 + u64::from(header.messages) > index,
        }
    }

    /// Where it lies: within the last block that begins before it, or at the beginning of the next.
    fn block(self, index: &Footer) -> (u64, u64) {
        let behind = index.rows.partition_point(|row| match self {
            Goal::Time(ms) => row.first_publish_ms < ms,
            Goal::Index(index) => row.first_index.0 <= index,
        });
        let low = behind.checked_sub(1).map_or(0, |nth| index.rows[nth].first.0);
        (low, index.rows.get(behind).map_or(index.entries, |row| row.first.0))
    }
}

impl ManagedLedger {
    /// The first entry that the broker took at or after this time (ms since 1970). Answered by [`Output::Found`].
    pub fn find_by_time(&mut self, time_ms: u64) -> Token {
        let spans = self.state.search_span(|first_ms, _| first_ms < time_ms);
        self.find(spans, Goal::Time(time_ms))
    }

    /// The entry that holds the message of this index, or the first above it. Answered by [`Output::Found`].
    pub fn find_by_index(&mut self, index: u64) -> Token {
        let spans = self.state.search_span(|_, first| first.0 <= index);
        self.find(spans, Goal::Index(index))
    }

    fn find(&mut self, spans: Vec<(LedgerId, u64)>, goal: Goal) -> Token {
        let token = self.token();
        let spans: Vec<_> = spans.into_iter().map(|(id, n)| (id, n, self.source(id))).collect();
        let events = self.events.clone();
        self.deps.tasks.spawn("topic search", OnFailure::StopProcess, async move {
            let result = search(spans, goal).await;
            events(Event(EventKind::Found(token, result)));
        });
        token
    }
}

async fn search(
    spans: Vec<(LedgerId, u64, LedgerSource)>,
    goal: Goal,
) -> Result<Option<Position>, ReadError> {
    for (id, entries, source) in spans {
        let found = match source.index_alone().await? {
            Some(index) => in_block(&source, goal, goal.block(&index)).await?,
            None => by_halves(&source, goal, entries).await?,
        };
        if found < entries {
            return Ok(Some(Position::new(id, EntryId(found))));
        }
    }
    Ok(None)
}

/// The entry of a ledger that is looked for; how many it has if it is behind them.
async fn by_halves(source: &LedgerSource, goal: Goal, entries: u64) -> Result<u64, ReadError> {
    let (mut low, mut high) = (0, entries);
    while low < high {
        let middle = low + (high - low) / 2;
        match near(source, middle, high).await? {
            Some(found) if !goal.is_reached(&found.entry.header) => low = found.position.entry.0 + 1,
            // Where entries are lost the search leans to the earlier side: who reads from there passes them.
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The first entry from `id` on, below `high`, that is not lost for good.
async fn near(source: &LedgerSource, id: u64, high: u64) -> Result<Option<ReadEntry>, ReadError> {
    let mut next = id;
    while next < high {
        match source.read(EntryId(next), EntryId(high - 1), 1, ReadClass::CatchUp).await {
            Ok(found) => return Ok(found.into_iter().next()),
            Err(ReadError::Lost(_, last)) => next = last.0 + 1,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The same within one block, which is read as a whole: single reads in it would look like a reader who reads on.
async fn in_block(source: &LedgerSource, goal: Goal, (low, high): (u64, u64)) -> Result<u64, ReadError> {
    let mut next = low;
    while next < high {
        let all = usize::MAX >> 1;
        let run = source.read(EntryId(next), EntryId(high - 1), all, ReadClass::CatchUp).await?;
        if let Some(hit) = run.iter().find(|read| goal.is_reached(&read.entry.header)) {
            return Ok(hit.position.entry.0);
        }
        next += run.len() as u64;
    }
    Ok(high)
}
