//! `LOSSES`: what a store lost for good, and under which incarnations it did. Two copies, beside the two identities of each shard; all say
//! the same, and one is enough.
//!
//! Magic `GMLOSSES` 8, version u32 = 1, store id u64, number of acceptances u32; of each, oldest first: incarnation that lost it u64, time of
//! acceptance u64 (ms since 1970), number of ledger ranges u32 and per range first and last ledger u64, number of lines u32 and per line
//! length u32 + UTF-8; CRC32C u32 over all before.

use super::Fields;
use geminga_common::checksum::crc32c;
use geminga_common::ids::{Incarnation, LedgerId};

const MAGIC: &[u8; 8] = b"GMLOSSES";
const VERSION: u32 = 1;
/// Ranges of one acceptance; above it they are taken as one.
const RANGES_MAX: usize = 64;
/// Lines of one acceptance; above it the last one counts the rest.
const LINES_MAX: usize = 32;

/// All ledgers there are.
pub(crate) const EVERY_LEDGER: (LedgerId, LedgerId) = (LedgerId(0), LedgerId(u64::MAX));

/// A loss that was accepted for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcceptedLoss {
    /// The incarnation that had what was lost.
    pub incarnation: Incarnation,
    /// When it was accepted, ms since 1970.
    pub at_ms: u64,
    /// Ledgers, first and last, of which something may be lost.
    pub ledgers: Vec<(LedgerId, LedgerId)>,
    /// What was lost, in words, file by file.
    pub lines: Vec<String>,
}

impl AcceptedLoss {
    /// Takes in what is lost besides.
    pub(crate) fn add(
        &mut self,
        ledgers: impl IntoIterator<Item = (LedgerId, LedgerId)>,
        lines: Vec<String>,
    ) {
        self.ledgers.extend(ledgers);
        self.ledgers.sort();
        self.ledgers.dedup();
        if self.ledgers.len() > RANGES_MAX {
            let first = self.ledgers.iter().map(|range| range.0).min();
            let last = self.ledgers.iter().map(|range| range.1).max();
            self.ledgers = first.zip(last).into_iter().collect();
        }
        for line in lines {
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
        if self.lines.len() > LINES_MAX {
            let more = self.lines.len() + 1 - LINES_MAX;
            self.lines.truncate(LINES_MAX - 1);
            self.lines.push(format!("and {more} more"));
        }
    }

    fn has(&self, ledger: LedgerId) -> bool {
        self.ledgers.iter().any(|(first, last)| (*first..=*last).contains(&ledger))
    }
}

/// Whether something of a ledger that counts on `incarnation` may be among what was lost; `None`: this store never was that one. What a
/// later incarnation lost, an earlier one has lost as well.
pub(crate) fn may_lack(all: &[AcceptedLoss], incarnation: Incarnation, ledger: LedgerId) -> Option<bool> {
    let at = all.iter().position(|loss| loss.incarnation == incarnation)?;
    Some(all[at..].iter().any(|loss| loss.has(ledger)))
}

pub(crate) fn encode(store: u64, all: &[AcceptedLoss]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&store.to_le_bytes());
    out.extend_from_slice(&(all.len() as u32).to_le_bytes());
    for loss in all {
        out.extend_from_slice(&loss.incarnation.0.to_le_bytes());
        out.extend_from_slice(&loss.at_ms.to_le_bytes());
        out.extend_from_slice(&(loss.ledgers.len() as u32).to_le_bytes());
        for (first, last) in &loss.ledgers {
            out.extend_from_slice(&first.0.to_le_bytes());
            out.extend_from_slice(&last.0.to_le_bytes());
        }
        out.extend_from_slice(&(loss.lines.len() as u32).to_le_bytes());
        for line in &loss.lines {
            out.extend_from_slice(&(line.len() as u32).to_le_bytes());
            out.extend_from_slice(line.as_bytes());
        }
    }
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// What a file says, if it checks and is this store's.
pub(crate) fn decode(bytes: &[u8], store: u64) -> Option<Vec<AcceptedLoss>> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32c(body) {
        return None;
    }
    let mut f = Fields(body);
    if f.take(8)? != MAGIC || f.u32()? != VERSION || f.u64()? != store {
        return None;
    }
    let mut all = Vec::new();
    for _ in 0..f.u32()? {
        let (incarnation, at_ms) = (Incarnation(f.u64()?), f.u64()?);
        let mut loss = AcceptedLoss { incarnation, at_ms, ledgers: Vec::new(), lines: Vec::new() };
        for _ in 0..f.u32()? {
            loss.ledgers.push((LedgerId(f.u64()?), LedgerId(f.u64()?)));
        }
        for _ in 0..f.u32()? {
            loss.lines.push(f.text()?);
        }
        all.push(loss);
    }
    f.end()?;
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(incarnation: u64, ledgers: &[(u64, u64)]) -> AcceptedLoss {
        let ledgers = ledgers.iter().map(|(a, b)| (LedgerId(*a), LedgerId(*b))).collect();
        let lines = vec![format!("/s/{incarnation:016x}.seg is missing")];
        AcceptedLoss { incarnation: Incarnation(incarnation), at_ms: 7, ledgers, lines }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let all = vec![loss(1, &[(0, u64::MAX)]), loss(2, &[(3, 5), (9, 9)])];
        let bytes = encode(77, &all);
        assert_eq!(decode(&bytes, 77), Some(all));
        assert_eq!(decode(&bytes, 78), None, "another store's");
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(decode(&flipped, 77), None, "byte {at}");
            assert_eq!(decode(&bytes[..at], 77), None, "cut at {at}");
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode(1, &[loss(2, &[(3, 4)])]);
        let head = [b"GMLOSSES".as_slice(), &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]].concat();
        let body = [2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4];
        assert_eq!(bytes[..24], head);
        assert_eq!(bytes[24..53], body);
    }

    #[test]
    fn a_later_loss_is_one_of_every_incarnation_before() {
        let all = [loss(1, &[(5, 5)]), loss(2, &[(8, 9)])];
        let lack = |incarnation, ledger| may_lack(&all, Incarnation(incarnation), LedgerId(ledger));
        assert_eq!((lack(1, 5), lack(1, 8), lack(1, 6)), (Some(true), Some(true), Some(false)));
        assert_eq!((lack(2, 5), lack(2, 8), lack(3, 5)), (Some(false), Some(true), None));
    }

    #[test]
    fn a_record_of_losses_is_bounded() {
        let mut all = loss(1, &[]);
        for n in 0..500_u64 {
            all.add([(LedgerId(n * 2), LedgerId(n * 2))], vec![format!("line {n}")]);
        }
        assert!(all.ledgers.len() <= RANGES_MAX && all.lines.len() <= LINES_MAX, "{all:?}");
        assert!((0..500).all(|n| all.has(LedgerId(n * 2))), "none is forgotten");
    }
}
