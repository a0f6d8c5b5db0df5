//! The pure part of a managed ledger: its chain of ledgers, positions along it, when to roll, what to trim, which index comes
//! next. No async, no locks, time passed in.
//!
//! Invariants: ledger ids rise along the chain; segments are never empty (an empty ledger is tombstoned, not kept), so that
//! position arithmetic has no holes to step over; message indexes run on across segments; the open ledger comes last.
//!
//! A change of the topic record is a [`Change`]: it is applied to a copy to make the record to commit, and to the live state
//! once the commit is known. In between appends go on, which is why the copy is not simply swapped in.

use super::config::{Config, Retention};
use geminga_bookie_client::record::ClosedLedger;
use geminga_common::clock::Mono;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Position, TopicId};
use geminga_offload::state::Offload;
use std::collections::BTreeMap;

/// How far a wall clock may step back and still be taken for jitter: stamps then stay where they are, so that they rise along
/// the topic and can be searched. After a larger step the clock was wrong before, and its time is taken as it is.
const CLOCK_JITTER_MS: u64 = 60_000;

/// A closed ledger of the chain; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    ledger: ClosedLedger,
    last: EntryId,
    /// Index of its first message.
    pub first_index: MessageIndex,
    /// Time stamp of its first entry in ms, or a bound below it when the ledger was recovered.
    pub first_publish_ms: u64,
    /// When it was closed, ms since 1970.
    pub closed_ms: u64,
    /// Where it is: on bookies, in the object store, on its way there.
    pub offload: Offload,
}

impl Segment {
    /// A segment, unless the ledger is empty.
    #[must_use]
    pub fn new(
        ledger: ClosedLedger,
        first_index: MessageIndex,
        first_publish_ms: u64,
        closed_ms: u64,
    ) -> Option<Self> {
        let last = ledger.last?;
        Some(Self { ledger, last, first_index, first_publish_ms, closed_ms, offload: Offload::Bookies })
    }

    /// The closed ledger.
    #[must_use]
    pub fn ledger(&self) -> &ClosedLedger {
        &self.ledger
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> LedgerId {
        self.ledger.id
    }

    /// Its last entry.
    #[must_use]
    pub fn last(&self) -> EntryId {
        self.last
    }

    /// How many entries it holds.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.last.0 + 1
    }

    /// Bytes of headers and payloads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ledger.length
    }
}

/// The open ledger at the end of the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenTail {
    /// The ledger.
    pub id: LedgerId,
    /// Index of its first message.
    pub first_index: MessageIndex,
    /// When it was created, ms since 1970.
    pub created_ms: u64,
    /// When it was created, monotonic.
    pub created: Mono,
    /// Time stamp of its first entry.
    pub first_publish_ms: Option<u64>,
    /// When the last entry was sent, monotonic.
    pub last_sent: Mono,
    /// Entries sent.
    pub sent: u64,
    /// Bytes of headers and payloads sent.
    pub sent_bytes: u64,
    /// Entries confirmed.
    pub confirmed: u64,
    /// Bytes of headers and payloads confirmed.
    pub confirmed_bytes: u64,
}

impl OpenTail {
    /// An empty one.
    #[must_use]
    pub fn new(id: LedgerId, first_index: MessageIndex, created_ms: u64, now: Mono) -> Self {
        Self {
            id,
            first_index,
            created_ms,
            created: now,
            first_publish_ms: None,
            last_sent: now,
            sent: 0,
            sent_bytes: 0,
            confirmed: 0,
            confirmed_bytes: 0,
        }
    }
}

/// What a committed transaction changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The open ledger closes like this, at this time (ms since 1970).
    pub close: Option<(ClosedLedger, u64)>,
    /// This ledger opens.
    pub open: Option<OpenTail>,
    /// This many segments go from the front.
    pub trim: usize,
    /// No more appends, ever.
    pub terminate: bool,
    /// New properties of the topic.
    pub properties: Option<BTreeMap<String, String>>,
    /// New topic epoch.
    pub topic_epoch: Option<u64>,
    /// Closed ledgers are somewhere else now.
    pub offload: Vec<(LedgerId, Offload)>,
}

/// The chain and what else the topic record holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The topic's own id.
    pub topic_id: TopicId,
    /// Owner epoch that wrote the record last.
    pub writer_epoch: OwnerEpoch,
    /// Epoch of exclusive producers; `None` before the first.
    pub topic_epoch: Option<u64>,
    /// The topic takes no more entries.
    pub terminated: bool,
    /// Properties, as the admin API sets them.
    pub properties: BTreeMap<String, String>,
    /// When the topic was created, ms since 1970.
    pub created_ms: u64,
    /// Index of the next message to be sent.
    pub next_index: MessageIndex,
    /// Last confirmed entry ever, trimmed or not.
    pub last: Option<Position>,
    /// Ordinal of the next ledger in the chain.
    pub next_ordinal: u64,
    /// Highest time stamp given, ms since 1970.
    pub last_stamp_ms: u64,
    segments: Vec<Segment>,
    /// Entries and bytes in the segments before each.
    sums: Vec<(u64, u64)>,
    open: Option<OpenTail>,
}

impl State {
    /// A topic without a ledger.
    #[must_use]
    pub fn new(topic_id: TopicId, properties: BTreeMap<String, String>, created_ms: u64) -> Self {
        Self {
            topic_id,
            writer_epoch: OwnerEpoch(0),
            topic_epoch: None,
            terminated: false,
            properties,
            created_ms,
            next_index: MessageIndex(0),
            last: None,
            next_ordinal: 0,
            last_stamp_ms: 0,
            segments: Vec::new(),
            sums: Vec::new(),
            open: None,
        }
    }

    /// Puts a stored chain in; false when ledger ids do not rise (a damaged record).
    #[must_use]
    pub fn set_chain(&mut self, segments: Vec<Segment>, open: Option<OpenTail>) -> bool {
        let rising = segments.windows(2).all(|w| w[0].id() < w[1].id());
        let open_last = open.as_ref().is_none_or(|o| segments.last().is_none_or(|s| s.id() < o.id));
        self.segments = segments;
        self.open = open;
        self.sum_up();
        rising && open_last
    }

    /// Takes over where the closed ledgers are, from what a repairer made of this very record. False when anything else differs:
    /// then nothing is taken over, and the record is not ours.
    #[must_use]
    pub fn adopt(&mut self, stored: &State) -> bool {
        let same = self.segments.len() == stored.segments.len()
            && self.segments.iter().zip(&stored.segments).all(|(a, b)| a.ledger.is_repaired(&b.ledger));
        if same {
            for (own, moved) in self.segments.iter_mut().zip(&stored.segments) {
                own.ledger.fragments.clone_from(&moved.ledger.fragments);
                own.ledger.repair.clone_from(&moved.ledger.repair);
            }
        }
        same
    }

    /// Closed ledgers, oldest first.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The open ledger.
    #[must_use]
    pub fn open(&self) -> Option<&OpenTail> {
        self.open.as_ref()
    }

    /// The highest ledger id of the chain ever: a new ledger's id must lie above it.
    #[must_use]
    pub fn highest_ledger(&self) -> Option<LedgerId> {
        let open = self.open.as_ref().map(|o| o.id);
        open.or(self.segments.last().map(Segment::id)).max(self.last.map(|p| p.ledger))
    }

    fn sum_up(&mut self) {
        let mut sum = (0, 0);
        self.sums.clear();
        for segment in &self.segments {
            self.sums.push(sum);
            sum = (sum.0 + segment.entries(), sum.1 + segment.bytes());
        }
    }

    /// Takes a change in.
    ///
    /// # Panics
    /// When a ledger would open at or below an id of the chain, or beside an open one: I12 would be broken.
    pub fn apply(&mut self, change: &Change) {
        if let Some((closed, closed_ms)) = &change.close {
            self.close(closed.clone(), *closed_ms);
        }
        self.segments.drain(..change.trim);
        if let Some(open) = &change.open {
            assert!(self.open.is_none(), "one open ledger at most");
            assert!(Some(open.id) > self.highest_ledger(), "ledger ids rise along a topic");
            self.open = Some(open.clone());
            self.next_ordinal += 1;
        }
        self.terminated |= change.terminate;
        if let Some(properties) = &change.properties {
            self.properties.clone_from(properties);
        }
        if change.topic_epoch.is_some() {
            self.topic_epoch = change.topic_epoch;
        }
        for (ledger, offload) in &change.offload {
            if let Ok(at) = self.segments.binary_search_by_key(ledger, Segment::id) {
                self.segments[at].offload = offload.clone();
            }
        }
        self.sum_up();
    }

    fn close(&mut self, closed: ClosedLedger, closed_ms: u64) {
        let Some(open) = self.open.take() else { return };
        assert_eq!(open.id, closed.id, "the open ledger is the one that closes");
        if let Some(last) = closed.last {
            self.last = Some(Position::new(closed.id, last));
        }
        let first_publish = open.first_publish_ms.unwrap_or(open.created_ms);
        self.segments.extend(Segment::new(closed, open.first_index, first_publish, closed_ms));
    }

    // ---- appends -------------------------------------------------------------------------------------------------------

    /// A time stamp for entries taken at this wall time.
    pub fn stamp(&mut self, wall_ms: u64) -> u64 {
        let jitter = wall_ms < self.last_stamp_ms && wall_ms + CLOCK_JITTER_MS >= self.last_stamp_ms;
        self.last_stamp_ms = if jitter { self.last_stamp_ms } else { wall_ms };
        self.last_stamp_ms
    }

    /// How many more entries the open ledger takes.
    #[must_use]
    pub fn room(&self, config: &Config) -> usize {
        let full = |o: &OpenTail| o.sent_bytes >= config.roll_bytes;
        match &self.open {
            Some(o) if !full(o) => config.roll_entries.max(1).saturating_sub(o.sent) as usize,
            _ => 0,
        }
    }

    /// Whether the open ledger is full or old. An empty one never rolls.
    #[must_use]
    pub fn roll_due(&self, config: &Config, now: Mono) -> bool {
        let Some(o) = &self.open else { return false };
        o.sent > 0 && (self.room(config) == 0 || now.saturating_sub(o.created) >= config.roll_age)
    }

    /// Whether the open ledger is three quarters full.
    #[must_use]
    pub fn roll_near(&self, config: &Config) -> bool {
        let near = |have: u64, limit: u64| have >= limit - limit / 4;
        let open = self.open.as_ref().filter(|o| o.sent > 0);
        open.is_some_and(|o| near(o.sent, config.roll_entries) || near(o.sent_bytes, config.roll_bytes))
    }

    /// Whether the open ledger has had no append for long enough to be closed.
    #[must_use]
    pub fn idle(&self, config: &Config, now: Mono) -> bool {
        self.open.as_ref().is_some_and(|o| now.saturating_sub(o.last_sent) >= config.idle_close)
    }

    /// An entry goes to the open ledger; the answer is the index of its first message.
    ///
    /// # Panics
    /// Without an open ledger.
    pub fn sent(&mut self, messages: u32, bytes: u64, stamp_ms: u64, now: Mono) -> MessageIndex {
        let open = self.open.as_mut().expect("entries are sent to an open ledger only");
        open.sent += 1;
        open.sent_bytes += bytes;
        open.last_sent = now;
        open.first_publish_ms.get_or_insert(stamp_ms);
        let index = self.next_index;
        self.next_index = MessageIndex(index.0 + u64::from(messages));
        index
    }

    /// The next entry of the open ledger is confirmed; the answer is its position.
    ///
    /// # Panics
    /// When more is confirmed than was sent.
    pub fn confirmed(&mut self, bytes: u64) -> Position {
        let open = self.open.as_mut().expect("entries are confirmed by an open ledger only");
        assert!(open.confirmed < open.sent, "only what was sent is confirmed");
        let position = Position::new(open.id, EntryId(open.confirmed));
        open.confirmed += 1;
        open.confirmed_bytes += bytes;
        self.last = Some(position);
        position
    }

    // ---- positions -----------------------------------------------------------------------------------------------------

    /// Entries confirmed in a ledger of the chain; `None` when it is not (or no longer) in it.
    #[must_use]
    pub fn entries_of(&self, ledger: LedgerId) -> Option<u64> {
        if let Some(open) = self.open.as_ref().filter(|o| o.id == ledger) {
            return Some(open.confirmed);
        }
        self.segment(ledger).map(Segment::entries)
    }

    /// The first ledger with an id of at least `from` that holds confirmed entries, and how many.
    #[must_use]
    pub fn entries_from(&self, from: LedgerId) -> Option<(LedgerId, u64)> {
        let at = self.segments.partition_point(|segment| segment.id() < from);
        let closed = self.segments.get(at).map(|segment| (segment.id(), segment.entries()));
        let open =
            || self.open.as_ref().filter(|o| o.id >= from && o.confirmed > 0).map(|o| (o.id, o.confirmed));
        closed.or_else(open)
    }

    /// A closed ledger of the chain.
    #[must_use]
    pub fn segment(&self, ledger: LedgerId) -> Option<&Segment> {
        self.segments.binary_search_by_key(&ledger, Segment::id).ok().map(|i| &self.segments[i])
    }

    /// Where the next entry will be read; once the ledger there is closed, [`Self::clamp`] leads on.
    #[must_use]
    pub fn end(&self) -> Position {
        match (&self.open, self.last) {
            (Some(open), _) => Position::new(open.id, EntryId(open.confirmed)),
            (None, Some(last)) => Position::new(last.ledger, last.entry.next()),
            (None, None) => Position::new(LedgerId(0), EntryId(0)),
        }
    }

    /// The first entry that is there, or the end.
    #[must_use]
    pub fn first(&self) -> Position {
        match self.segments.first() {
            Some(segment) => Position::new(segment.id(), EntryId(0)),
            None => self.open.as_ref().map_or_else(|| self.end(), |o| Position::new(o.id, EntryId(0))),
        }
    }

    /// The first position at or after `p` that holds an entry, or the end: leads over closed ends and trimmed ledgers.
    #[must_use]
    pub fn clamp(&self, p: Position) -> Position {
        let at = self.segments.partition_point(|s| s.id() < p.ledger);
        match self.segments.get(at) {
            Some(s) if s.id() > p.ledger => Position::new(s.id(), EntryId(0)),
            Some(s) if p.entry <= s.last() => p,
            Some(_) => match self.segments.get(at + 1) {
                Some(next) => Position::new(next.id(), EntryId(0)),
                None => self.clamp_open(LedgerId(0), p.entry),
            },
            None => self.clamp_open(p.ledger, p.entry),
        }
    }

    fn clamp_open(&self, ledger: LedgerId, entry: EntryId) -> Position {
        match &self.open {
            Some(o) if ledger < o.id => Position::new(o.id, EntryId(0)),
            Some(o) if ledger == o.id && entry.0 < o.confirmed => Position::new(ledger, entry),
            _ => self.end(),
        }
    }

    /// The position after `p`.
    #[must_use]
    pub fn next(&self, p: Position) -> Position {
        self.clamp(Position::new(p.ledger, p.entry.next()))
    }

    /// The last entry before `p` that is there.
    #[must_use]
    pub fn previous(&self, p: Position) -> Option<Position> {
        let within = |last: u64| p.entry.previous().map(|e| Position::new(p.ledger, e.min(EntryId(last))));
        if let Some(open) = &self.open {
            if p.ledger == open.id && p.entry.0 > 0 && open.confirmed > 0 {
                return within(open.confirmed - 1);
            }
            if p.ledger > open.id && open.confirmed > 0 {
                return Some(Position::new(open.id, EntryId(open.confirmed - 1)));
            }
        }
        if let Some(segment) = self.segment(p.ledger).filter(|_| p.entry.0 > 0) {
            return within(segment.last().0);
        }
        let before = self.segments.partition_point(|s| s.id() < p.ledger);
        before.checked_sub(1).map(|i| Position::new(self.segments[i].id(), self.segments[i].last()))
    }

    /// Entries and bytes before `p`; bytes within a ledger by its mean entry.
    #[must_use]
    pub fn rank(&self, p: Position) -> (u64, u64) {
        let p = self.clamp(p);
        let at = self.segments.partition_point(|s| s.id() < p.ledger);
        let share = |bytes: u64, entries: u64| {
            (u128::from(bytes) * u128::from(p.entry.0) / u128::from(entries.max(1))) as u64
        };
        if let Some(s) = self.segments.get(at).filter(|s| s.id() == p.ledger) {
            let (entries, bytes) = self.sums[at];
            let into = p.entry.0.min(s.entries());
            return (entries + into, bytes + share(s.bytes(), s.entries()).min(s.bytes()));
        }
        let (entries, bytes) = self.totals_closed();
        match self.open.as_ref().filter(|o| o.id == p.ledger) {
            Some(o) => (entries + p.entry.0, bytes + share(o.confirmed_bytes, o.confirmed)),
            None => (entries, bytes),
        }
    }

    /// Index of the first message at `p`; within a ledger by its mean entry.
    #[must_use]
    pub fn index_rank(&self, p: Position) -> u64 {
        let p = self.clamp(p);
        let at = self.segments.partition_point(|s| s.id() < p.ledger);
        let open_first = self.open.as_ref().map(|o| o.first_index.0);
        let share = |from: u64, to: u64, entries: u64| {
            let messages = u128::from(to.saturating_sub(from));
            from + (messages * u128::from(p.entry.0.min(entries)) / u128::from(entries.max(1))) as u64
        };
        if let Some(s) = self.segments.get(at).filter(|s| s.id() == p.ledger) {
            let next = self.segments.get(at + 1).map(|n| n.first_index.0).or(open_first);
            return share(s.first_index.0, next.unwrap_or(self.next_index.0), s.entries());
        }
        match self.open.as_ref().filter(|o| o.id == p.ledger) {
            Some(o) => share(o.first_index.0, self.next_index.0, o.sent),
            None => self.next_index.0,
        }
    }

    fn totals_closed(&self) -> (u64, u64) {
        match (self.sums.last(), self.segments.last()) {
            (Some(sum), Some(s)) => (sum.0 + s.entries(), sum.1 + s.bytes()),
            _ => (0, 0),
        }
    }

    /// Entries and bytes that are there.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let (entries, bytes) = self.totals_closed();
        self.open.as_ref().map_or((entries, bytes), |o| (entries + o.confirmed, bytes + o.confirmed_bytes))
    }

    /// The ledger in which a search ends, and the one after it: the first entries of ledgers before it satisfy `before`, which
    /// must hold for a prefix of the chain. Ledgers are named with their number of entries and only if they hold any.
    #[must_use]
    pub fn search_span(&self, before: impl Fn(u64, MessageIndex) -> bool) -> Vec<(LedgerId, u64)> {
        let open = self.open.as_ref().filter(|o| o.confirmed > 0);
        let mut spans: Vec<(LedgerId, u64)> = Vec::with_capacity(2);
        let k = self.segments.partition_point(|s| before(s.first_publish_ms, s.first_index));
        let from = k.saturating_sub(1);
        let open_before = k == self.segments.len()
            && open.is_some_and(|o| before(o.first_publish_ms.unwrap_or(o.created_ms), o.first_index));
        if !open_before {
            spans.extend(self.segments[from..].iter().take(2).map(|s| (s.id(), s.entries())));
        }
        if spans.len() < 2 {
            spans.extend(open.map(|o| (o.id, o.confirmed)));
        }
        spans
    }

    // ---- trimming ------------------------------------------------------------------------------------------------------

    /// How many segments may go from the front, `max` at most: those that lie wholly below `floor`, the smallest position that
    /// some *durably persisted* cursor still needs (`None`: no cursor, all is consumed), and that retention lets go.
    #[must_use]
    pub fn trim_choice(
        &self,
        floor: Option<Position>,
        retention: Retention,
        now_ms: u64,
        max: usize,
    ) -> usize {
        let mut left = self.totals().1;
        let mut count = 0;
        for segment in self.segments.iter().take(max) {
            let consumed = floor.is_none_or(|f| Position::new(segment.id(), segment.last()) < f);
            let old = retention.time_ms.is_some_and(|t| now_ms.saturating_sub(segment.closed_ms) >= t);
            let over = retention.size_bytes.is_some_and(|s| left - segment.bytes() >= s);
            if !consumed || !(old || over) {
                break;
            }
            left -= segment.bytes();
            count += 1;
        }
        count
    }

    /// When retention lets the first closed ledger go, ms since 1970 (the past means now); `None`: not by time alone. `floor` as
    /// in [`Self::trim_choice`].
    #[must_use]
    pub fn next_trim_ms(&self, floor: Option<Position>, retention: Retention, now_ms: u64) -> Option<u64> {
        let first = self.segments.first()?;
        if self.trim_choice(floor, retention, now_ms, 1) > 0 {
            return Some(now_ms);
        }
        let consumed = floor.is_none_or(|f| Position::new(first.id(), first.last()) < f);
        retention.time_ms.filter(|_| consumed).map(|time| first.closed_ms.saturating_add(time))
    }

    /// The first position from which at most `bytes` lie before the end, within a ledger by its mean entry.
    #[must_use]
    pub fn position_leaving(&self, bytes: u64) -> Position {
        let skip = self.totals().1.saturating_sub(bytes);
        let entry = |bytes: u64, of: u64, entries: u64| {
            (u128::from(bytes) * u128::from(entries)).div_ceil(u128::from(of.max(1))) as u64
        };
        let at = self.segments.iter().zip(&self.sums).find(|(s, sum)| sum.1 + s.bytes() > skip);
        let to = match (at, &self.open) {
            (Some((s, sum)), _) => {
                Position::new(s.id(), EntryId(entry(skip.saturating_sub(sum.1), s.bytes(), s.entries())))
            }
            (None, Some(open)) => {
                let into = skip.saturating_sub(self.totals_closed().1);
                Position::new(open.id, EntryId(entry(into, open.confirmed_bytes, open.confirmed)))
            }
            (None, None) => self.end(),
        };
        self.clamp(to)
    }
}
