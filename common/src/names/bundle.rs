//! Bundles: a namespace's topics split by hash into ranges. A bundle is the unit of ownership.
//!
//! Invariants: the ranges of a [`Bundles`] are ascending, not empty, and cover 0x00000000..=0xffffffff without gap or overlap;
//! as in Pulsar each range excludes its upper bound, except the last, which ends at 0xffffffff and includes it.

use super::{NameError, NamespaceName, TopicName};
use std::fmt;
use std::str::FromStr;

/// The last hash there is; the printed upper bound of the last bundle.
const HASH_MAX: u32 = u32::MAX;

/// Most bundles a namespace may have, as in Pulsar.
pub(crate) const BUNDLES_MAX: u32 = 4096;

/// Where a topic lies among bundles: CRC32 (IEEE) of its whole name, as in Pulsar.
#[must_use]
pub fn topic_hash(topic: &TopicName) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, topic.as_str().as_bytes()) as u32
}

/// Why bundles cannot be made or read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BundleError {
    /// A bundle count outside 1..=4096.
    #[error("{0} bundles asked for; a namespace has 1 to {BUNDLES_MAX}")]
    Count(u32),
    /// Bounds that do not ascend from 0x00000000 to 0xffffffff.
    #[error("bundle boundaries must ascend from 0x00000000 to 0xffffffff")]
    Bounds,
    /// Not of the form `0x00000000_0x40000000`.
    #[error("'{0}' is not a bundle range; it should look like 0x00000000_0x40000000")]
    RangeShape(String),
    /// Not of the form `tenant/namespace/0x00000000_0x40000000`.
    #[error("'{0}' is not a bundle; it should look like tenant/namespace/0x00000000_0x40000000")]
    BundleShape(String),
    /// The namespace in a bundle's name is no namespace.
    #[error(transparent)]
    Namespace(#[from] NameError),
    /// The range to split is not one of the bundles, or the split point is not inside it.
    #[error("bundle {0} cannot be split at 0x{1:08x}")]
    Split(BundleRange, u32),
}

/// A range of topic hashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BundleRange {
    lower: u32,
    upper: u32,
}

impl BundleRange {
    /// The range from `lower` to `upper`, which is excluded unless it is 0xffffffff. `None` when empty.
    #[must_use]
    pub fn new(lower: u32, upper: u32) -> Option<Self> {
        (lower < upper).then_some(Self { lower, upper })
    }

    /// First hash.
    #[must_use]
    pub fn lower(self) -> u32 {
        self.lower
    }

    /// Upper bound as printed.
    #[must_use]
    pub fn upper(self) -> u32 {
        self.upper
    }

    /// Whether a hash lies inside.
    #[must_use]
    pub fn contains(self, hash: u32) -> bool {
        hash >= self.lower && (hash < self.upper || self.upper == HASH_MAX)
    }

    /// Parses `0x00000000_0x40000000`.
    ///
    /// # Errors
    /// On any other shape, and on an empty range.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let bound = |part: &str| {
            let digits = part.strip_prefix("0x").filter(|d| d.len() == 8)?;
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            u32::from_str_radix(digits, 16).ok()
        };
        text.split_once('_')
            .and_then(|(lower, upper)| Self::new(bound(lower)?, bound(upper)?))
            .ok_or_else(|| BundleError::RangeShape(text.to_owned()))
    }
}

impl fmt::Display for BundleRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}_0x{:08x}", self.lower, self.upper)
    }
}

impl FromStr for BundleRange {
    type Err = BundleError;
    fn from_str(text: &str) -> Result<Self, BundleError> {
        Self::parse(text)
    }
}

/// A bundle of a namespace; prints as `tenant/namespace/0x00000000_0x40000000`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bundle {
    /// The namespace.
    pub namespace: NamespaceName,
    /// Its range of hashes.
    pub range: BundleRange,
}

impl Bundle {
    /// Parses what a bundle prints as.
    ///
    /// # Errors
    /// On any other shape.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let Some((namespace, range)) = text.rsplit_once('/') else {
            return Err(BundleError::BundleShape(text.to_owned()));
        };
        Ok(Self { namespace: NamespaceName::parse(namespace)?, range: BundleRange::parse(range)? })
    }

    /// Whether a topic belongs to it.
    #[must_use]
    pub fn contains(&self, topic: &TopicName) -> bool {
        *topic.namespace() == self.namespace && self.range.contains(topic_hash(topic))
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.range)
    }
}

/// How a namespace is split.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bundles {
    /// Ascending; first 0, last [`HASH_MAX`].
    bounds: Vec<u32>,
}

impl Bundles {
    /// Equal bundles, with Pulsar's bounds (Pulsar's default is 4).
    ///
    /// # Errors
    /// When `count` is not 1..=4096.
    pub fn new(count: u32) -> Result<Self, BundleError> {
        if !(1..=BUNDLES_MAX).contains(&count) {
            return Err(BundleError::Count(count));
        }
        let size = (1_u64 << 32) / u64::from(count);
        let lower = (0..u64::from(count)).map(|i| (i * size) as u32);
        Ok(Self { bounds: lower.chain([HASH_MAX]).collect() })
    }

    /// Equal bundles, for a count that the program itself chose.
    ///
    /// # Panics
    /// When `count` is not 1..=4096.
    #[must_use]
    pub fn default_of(count: u32) -> Self {
        Self::new(count).expect("a default bundle count is 1 to 4096")
    }

    /// Bundles between the given bounds.
    ///
    /// # Errors
    /// When the bounds do not ascend from 0x00000000 to 0xffffffff, or are too many.
    pub fn from_bounds(bounds: Vec<u32>) -> Result<Self, BundleError> {
        let ascend = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if bounds.len() < 2 || !ascend || bounds.first() != Some(&0) || bounds.last() != Some(&HASH_MAX) {
            return Err(BundleError::Bounds);
        }
        let count = u32::try_from(bounds.len() - 1).unwrap_or(u32::MAX);
        if count > BUNDLES_MAX { Err(BundleError::Count(count)) } else { Ok(Self { bounds }) }
    }

    /// The bounds, from 0x00000000 to 0xffffffff: one more than there are bundles.
    #[must_use]
    pub fn bounds(&self) -> &[u32] {
        &self.bounds
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = BundleRange> + '_ {
        self.bounds.windows(2).map(|pair| BundleRange { lower: pair[0], upper: pair[1] })
    }

    /// The range a hash lies in.
    #[must_use]
    pub fn range_of(&self, hash: u32) -> BundleRange {
        // The last bound is a bound of the last range, not the start of one.
        let starts = &self.bounds[..self.bounds.len() - 1];
        let at = starts.partition_point(|&lower| lower <= hash) - 1;
        BundleRange { lower: self.bounds[at], upper: self.bounds[at + 1] }
    }

    /// The bundle a topic belongs to.
    #[must_use]
    pub fn bundle_of(&self, topic: &TopicName) -> Bundle {
        Bundle { namespace: topic.namespace().clone(), range: self.range_of(topic_hash(topic)) }
    }

    /// The same bundles with one of them split in two at `at`.
    ///
    /// # Errors
    /// When `range` is not one of the bundles, `at` is not inside it, or there would be too many.
    pub fn split(&self, range: BundleRange, at: u32) -> Result<Self, BundleError> {
        let index = self.ranges().position(|r| r == range).ok_or(BundleError::Split(range, at))?;
        if at <= range.lower || at >= range.upper {
            return Err(BundleError::Split(range, at));
        }
        let mut bounds = self.bounds.clone();
        bounds.insert(index + 1, at);
        Self::from_bounds(bounds)
    }
}
