//! Names of objects: `{cluster}/{yyyymm}/{hash}/{topic id}/{ledger}-{attempt}`. No name of a tenant or topic is in them. They are
//! made of what never changes, so that the topic record need not hold them.

use geminga_common::checksum::crc32c;
use geminga_common::ids::{LedgerId, TopicId};
use std::fmt;

/// A random number that names one attempt in the cluster, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {self}")
    }
}

/// The key of the object that an attempt begun at this time makes.
#[must_use]
pub fn object(cluster: &str, begun_ms: u64, topic: TopicId, ledger: LedgerId, attempt: AttemptId) -> String {
    let (year, month) = month_of(begun_ms);
    let (below, hash) = (below(cluster), spread(topic));
    format!("{below}/{year:04}{month:02}/{hash}/{topic}/{ledger}-{attempt}")
}

/// The object that says whose store it is.
#[must_use]
pub fn identity(cluster: &str) -> String {
    format!("{}/geminga.id", below(cluster))
}

/// What all keys of a cluster begin with, without the slash.
#[must_use]
pub fn below(cluster: &str) -> String {
    // A cluster's name is the operator's; what a key cannot hold is spelt out.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    cluster.chars().map(|c| if plain(c) { c.to_string() } else { format!("={:x}", c as u32) }).collect()
}

/// What the name of an object says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    /// The topic.
    pub topic: TopicId,
    /// The ledger.
    pub ledger: LedgerId,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// Begin of the month in which that was begun, ms since 1970: as good as the time itself for making the name again.
    pub begun_ms: u64,
}

/// Reads a name that [`object`] made; `None` for any other.
#[must_use]
pub fn read(cluster: &str, key: &str) -> Option<Named> {
    let rest = key.strip_prefix(&below(cluster))?.strip_prefix('/')?;
    let [month, _hash, topic, name]: [&str; 4] = rest.split('/').collect::<Vec<_>>().try_into().ok()?;
    let (ledger, attempt) = name.split_once('-')?;
    let (topic, ledger) = (TopicId(topic.parse().ok()?), LedgerId(ledger.parse().ok()?));
    let attempt = AttemptId(u64::from_str_radix(attempt, 16).ok()?);
    let begun_ms = begin_of(month.get(..4)?.parse().ok()?, month.get(4..)?.parse().ok()?)?;
    (object(cluster, begun_ms, topic, ledger, attempt) == key).then_some(Named {
        topic,
        ledger,
        attempt,
        begun_ms,
    })
}

/// The topic of an object, by the end of a name that [`object`] made, whatever is before it.
#[must_use]
pub fn topic_of(name: &str) -> Option<TopicId> {
    let mut parts = name.rsplit('/');
    let (object, topic, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let (ledger, attempt) = object.split_once('-')?;
    let topic = TopicId(topic.parse().ok()?);
    let named = ledger.parse::<u64>().is_ok() && u64::from_str_radix(attempt, 16).is_ok();
    (named && hash == spread(topic)).then_some(topic)
}

/// Spreads topics over a store's partitions, which go by prefix.
fn spread(topic: TopicId) -> String {
    format!("{:02x}", crc32c(&topic.0.to_be_bytes()) as u8)
}

/// When a month begins in UTC, ms since 1970.
fn begin_of(year: u64, month: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let years = (1970..year).map(|year| lengths(year).iter().sum::<u64>()).sum::<u64>();
    let months = lengths(year)[..month as usize - 1].iter().sum::<u64>();
    Some((years + months) * 86_400_000)
}

/// Days of the months of a year.
fn lengths(year: u64) -> [u64; 12] {
    let every = |years: u64| year.is_multiple_of(years);
    let leap = every(4) && (!every(100) || every(400));
    [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

/// Year and month of a time in UTC, ms since 1970.
fn month_of(ms: u64) -> (u64, u64) {
    // A time beyond the year 9999 is damage; it has a month all the same.
    let mut days = (ms / 86_400_000).min(2_932_896);
    let mut year = 1970;
    loop {
        for (month, length) in (1..).zip(lengths(year)) {
            if days < length {
                return (year, month);
            }
            days -= length;
        }
        year += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_of_what_never_changes() {
        let key = object("eu west/1", 1_700_000_000_000, TopicId(77), LedgerId(5), AttemptId(0xab));
        assert_eq!(key, "eu=20west=2f1/202311/e5/77/5-00000000000000ab");
        let named = read("eu west/1", &key).unwrap();
        assert_eq!((named.topic, named.ledger, named.attempt), (TopicId(77), LedgerId(5), AttemptId(0xab)));
        assert_eq!(object("eu west/1", named.begun_ms, named.topic, named.ledger, named.attempt), key);
        for other in [
            "eu=20west=2f1/geminga.id",
            "eu=20west=2f1/202311/e5/77/5-ab",
            "eu=20west=2f1/202313/e5/77/5-00000000000000ab",
            "eu=20west=2f1/202311/e6/77/5-00000000000000ab",
            "eu=20west=2f1/202311/e5/77/05-00000000000000ab",
            "other/202311/e5/77/5-00000000000000ab",
        ] {
            assert_eq!(read("eu west/1", other), None, "{other}");
        }
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        for (ms, month) in [
            (0, (1970, 1)),
            (951_782_400_000, (2000, 2)),
            (951_868_800_000, (2000, 3)),
            (1_709_164_800_000, (2024, 2)),
            (1_709_251_200_000, (2024, 3)),
            (1_735_689_599_999, (2024, 12)),
            (1_735_689_600_000, (2025, 1)),
            (4_107_542_400_000, (2100, 3)),
        ] {
            assert_eq!(month_of(ms), month, "{ms}");
            let begin = begin_of(month.0, month.1).unwrap();
            assert!(begin <= ms && ms - begin < 31 * 86_400_000, "{month:?} begins at {begin}");
            assert_eq!((month_of(begin), begin == 0 || month_of(begin - 1) != month), (month, true));
        }
    }
}
