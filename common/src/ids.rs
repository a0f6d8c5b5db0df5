//! Newtypes for every id. They order and print; they offer no arithmetic beyond `next()`, so that a ledger id can never
//! be mistaken for an entry id or be summed with one.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The id after this one.
            ///
            /// # Panics
            /// When the 64-bit space is exhausted, which no deployment reaches.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect(concat!($what, " space of 64 bits is not exhausted")))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, " {}"), self.0)
            }
        }
    };
}

id!(
    /// A ledger: cluster-wide monotone, never reused, below 2^63 because clients read it as signed.
    LedgerId,
    "ledger"
);
id!(
    /// An entry within its ledger: dense from 0.
    EntryId,
    "entry"
);
id!(
    /// A topic's own id: never reused, so a topic that is deleted and made again inherits nothing.
    TopicId,
    "topic"
);
id!(
    /// A fencing term of one ledger: 1 at creation, raised by every recovery.
    Term,
    "term"
);
id!(
    /// Minted when a bookie's store is formatted or declared damaged: the same address with another incarnation is another
    /// store.
    Incarnation,
    "incarnation"
);
id!(
    /// The epoch of a bundle's owner: raised by each take-over.
    OwnerEpoch,
    "epoch"
);
id!(
    /// Contiguous number of a message along its topic, across ledgers and recoveries; an entry of n messages spans n of them.
    MessageIndex,
    "index"
);
id!(
    /// A producer on one client connection, chosen by the client.
    ProducerId,
    "producer"
);
id!(
    /// A consumer on one client connection, chosen by the client.
    ConsumerId,
    "consumer"
);
id!(
    /// A request on one client connection, chosen by the client; `RequestId::NONE` marks an unasked-for message.
    RequestId,
    "request"
);

impl RequestId {
    /// The wire's −1: no request is being answered.
    pub const NONE: RequestId = RequestId(u64::MAX);
}

impl EntryId {
    /// The id before this one; `None` before entry 0.
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

/// The stable name of a bookie.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BookieId(std::sync::Arc<str>);

impl BookieId {
    /// A bookie id; any text of 1 to 255 bytes without white space, control characters or `/` is one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
        let good = (1..=255).contains(&text.len()) && !text.contains(bad);
        good.then(|| Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BookieId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One entry of one ledger; ordered along a topic, because a topic's ledger ids only rise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry within it.
    pub entry: EntryId,
}

impl Position {
    /// The position `ledger:entry`.
    #[must_use]
    pub fn new(ledger: LedgerId, entry: EntryId) -> Self {
        Self { ledger, entry }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ledger.0, self.entry.0)
    }
}
