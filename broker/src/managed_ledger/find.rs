//! Searches: the first entry at or after a time, the entry that holds an index. Both rise along the topic, so a binary search
//! over ledgers (by what the record says of their first entries) and then within one (by reading single entries) finds them.

use super::source::LedgerSource;
use super::*;
use geminga_common::ids::EntryId;
use geminga_common::tasks::OnFailure;

impl ManagedLedger {
    /// The first entry that the broker took at or after this time (ms since 1970). Answered by [`Output::Found`].
    pub fn find_by_time(&mut self, time_ms: u64) -> Token {
        let spans = self.state.search_span(|first_ms, _| first_ms < time_ms);
        self.find(spans, move |header| header.timestamp_ms >= time_ms)
    }

    /// The entry that holds the message of this index, or the first above it. Answered by [`Output::Found`].
    pub fn find_by_index(&mut self, index: u64) -> Token {
        let spans = self.state.search_span(|_, first| first.0 <= index);
        self.find(spans, move |header| header.first_index.0 + u64::from(header.messages) > index)
    }

    fn find(
        &mut self,
        spans: Vec<(LedgerId, u64)>,
        hit: impl Fn(&Header) -> bool + Send + Sync + 'static,
    ) -> Token {
        let token = self.token();
        let spans: Vec<_> = spans.into_iter().map(|(id, n)| (id, n, self.source(id))).collect();
        let events = self.events.clone();
        self.deps.tasks.spawn("topic search", OnFailure::StopProcess, async move {
            let result = search(spans, hit).await;
            events(Event(EventKind::Found(token, result)));
        });
        token
    }
}

async fn search(
    spans: Vec<(LedgerId, u64, LedgerSource)>,
    hit: impl Fn(&Header) -> bool,
) -> Result<Option<Position>, ReadError> {
    for (id, entries, source) in spans {
        let (mut low, mut high) = (0, entries);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = source.read_one(EntryId(middle)).await?;
            if hit(&found.entry.header) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if low < entries {
            return Ok(Some(Position::new(id, EntryId(low))));
        }
    }
    Ok(None)
}
