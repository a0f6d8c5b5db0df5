//! Where the entries of one ledger come from: bookies while they have it, else the object store. Both answer for one ledger and
//! id, and every entry's own checksum is verified on either way; an error never says that an entry is not there, unless a quorum
//! of bookies proved it and there is no object.

use super::adopt::Holders;
use super::state::Segment;
use super::*;
use geminga_bookie_client::entry;
use geminga_bookie_client::ledgers::{LedgerView, ReadError as LedgerReadError};
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::EntryId;
use geminga_offload::format::footer::Footer;
use geminga_offload::reader::{Reader, Target};
use geminga_offload::state::Offload;

/// A ledger of the chain, as it can be read.
#[derive(Clone)]
pub(super) struct LedgerSource {
    holders: Holders,
    ledger: LedgerId,
    view: Option<LedgerView>,
    object: Option<(Reader, Target)>,
    /// The object of the ledger behind it, if that lies in the store alone.
    next: Option<Target>,
    /// It lies in an object store only, and there is none here.
    lacks_store: bool,
}

impl ManagedLedger {
    /// Where the entries of a ledger of the chain are.
    pub(super) fn source(&self, ledger: LedgerId) -> LedgerSource {
        let (mut view, mut object, mut lacks_store) = (None, None, false);
        match (&self.writer, self.state.segment(ledger)) {
            (Some(writer), _) if writer.ledger() == ledger => view = Some(writer.view()),
            (_, Some(segment)) => {
                view = segment.offload.on_bookies().then(|| segment.ledger().view());
                let reader = self.deps.tier.as_ref().map(|tier| tier.reader.clone());
                object = reader.zip(self.target(segment));
                lacks_store = view.is_none() && object.is_none();
            }
            (_, None) => {}
        }
        let next = object.as_ref().and_then(|_| self.behind(ledger));
        LedgerSource { holders: self.holders(), ledger, view, object, next, lacks_store }
    }

    /// Whether any of its ledgers is on its way to the object store, or there.
    pub fn uses_store(&self) -> bool {
        self.state.segments().iter().any(|segment| segment.offload != Offload::Bookies)
    }

    fn target(&self, segment: &Segment) -> Option<Target> {
        let object = *segment.offload.object()?;
        Some(Target { topic: self.state.topic_id, ledger: segment.id(), object })
    }

    /// Where a reader goes on behind a ledger, if bookies do not have that.
    fn behind(&self, ledger: LedgerId) -> Option<Target> {
        let segments = self.state.segments();
        let next = segments.get(segments.partition_point(|segment| segment.id() <= ledger))?;
        self.target(next).filter(|_| !next.offload.on_bookies())
    }
}

impl LedgerSource {
    /// Which ledger.
    pub(super) fn ledger(&self) -> LedgerId {
        self.ledger
    }

    /// The same, of bookies alone.
    pub(super) fn of_bookies(self) -> Self {
        Self { object: None, next: None, lacks_store: false, ..self }
    }

    /// Whether a read that began now could come from the object store.
    pub(super) fn has_object(&self) -> bool {
        self.object.is_some()
    }

    /// A run of entries from `first` on, at least one, none beyond `last`.
    pub(super) async fn read(
        &self,
        first: EntryId,
        last: EntryId,
        bytes_max: usize,
        class: ReadClass,
    ) -> Result<Vec<ReadEntry>, ReadError> {
        let at = Position::new(self.ledger, first);
        let mut failed =
            if self.lacks_store { ReadError::NoObjectStore(at) } else { ReadError::Unavailable(at) };
        if let Some(view) = &self.view {
            let read = self.holders.read(view, first, last, bytes_max, class).await;
            match self.checked(first, last, read) {
                Ok(entries) => return Ok(entries),
                Err(error) => failed = error,
            }
        }
        let Some((reader, target)) = &self.object else { return Err(failed) };
        let ledger = self.ledger;
        // Their checksums are looked at where they were fetched, not here: here publishers are served.
        let open = move |entries| opened(ledger, entries);
        match reader.read(*target, first..=last, bytes_max, self.next, open).await {
            Ok(entries) => self.checked(first, last, entries),
            Err(error) => Err(ReadError::ObjectStore(at, error.to_string())),
        }
    }

    /// The ledger's index, where only the object store has the ledger.
    pub(super) async fn index_alone(&self) -> Result<Option<Arc<Footer>>, ReadError> {
        let Some((reader, target)) = self.object.as_ref().filter(|_| self.view.is_none()) else {
            return Ok(None);
        };
        let at = Position::new(self.ledger, EntryId(0));
        let index = reader.footer(*target).await;
        index.map(Some).map_err(|error| ReadError::ObjectStore(at, error.to_string()))
    }

    /// What a read brought, as entries of the topic; whatever does not run on without a gap is not believed.
    fn checked(
        &self,
        first: EntryId,
        last: EntryId,
        read: Result<Vec<entry::Entry>, LedgerReadError>,
    ) -> Result<Vec<ReadEntry>, ReadError> {
        let entries = read.map_err(|e| match e {
            LedgerReadError::NoSuchEntry(id) => ReadError::Missing(Position::new(self.ledger, id)),
            LedgerReadError::Unavailable(id) => ReadError::Unavailable(Position::new(self.ledger, id)),
            LedgerReadError::Damaged(id, _) => {
                ReadError::Damaged(Position::new(self.ledger, id), e.to_string())
            }
            LedgerReadError::Lost(ids) => ReadError::Lost(Position::new(self.ledger, ids.first), ids.last),
        })?;
        let runs_on = (first.0..).zip(&entries).all(|(id, e)| e.id.0 == id && e.id <= last);
        if entries.is_empty() || !runs_on {
            return Err(ReadError::Unavailable(Position::new(self.ledger, first)));
        }
        let entry = |e: entry::Entry| ReadEntry {
            position: Position::new(self.ledger, e.id),
            entry: Entry { header: e.header, payload: e.payload.into_bytes() },
        };
        Ok(entries.into_iter().map(entry).collect())
    }
}

/// Entries of an object as bookies would have answered them.
fn opened(
    ledger: LedgerId,
    entries: Vec<geminga_offload::format::block::Entry>,
) -> Result<Vec<entry::Entry>, LedgerReadError> {
    let open = |e: geminga_offload::format::block::Entry| {
        let header = Header::decode(&e.header).ok()?;
        let opened = entry::Entry { id: e.id, crc: e.crc, header, payload: e.payload.into() };
        opened.verify(ledger).then_some(opened)
    };
    entries
        .into_iter()
        .map(|entry| {
            let id = entry.id;
            open(entry).ok_or_else(|| {
                tracing::error!(%ledger, %id, "an offloaded entry does not match its checksum");
                LedgerReadError::Unavailable(id)
            })
        })
        .collect()
}
