//! One small record per sticky hash in use: how many entries of it are outstanding with whom, and how many are held back.
//!
//! Owned by `KeyShared`. Because a key is outstanding on at most one consumer, one holder and one count per hash say all that
//! PIP-379 needs: a hash is *draining* when its holder is not (or no longer) its owner. No list of moved hashes is built on a
//! join, and a hash that returns to its old owner is free at once. Pages of 256 hashes are made on first use, at most 1 MiB.

use super::consumers::Slot;

const PAGE: usize = 256;

#[derive(Clone, Copy, Default)]
pub(super) struct Cell {
    /// Who holds the outstanding entries; means nothing while there are none.
    pub(super) holder: Slot,
    /// Entries handed out and not acknowledged.
    pub(super) outstanding: u32,
    /// Entries in the replay set.
    pub(super) waiting: u32,
    /// How often an entry had to wait because the hash was draining; reset when it is drained.
    pub(super) blocked_attempts: u32,
}

pub(super) struct KeyCells {
    pages: Vec<Option<Box<[Cell; PAGE]>>>,
}

impl KeyCells {
    pub(super) fn new() -> Self {
        Self { pages: Vec::new() }
    }

    pub(super) fn get(&self, hash: u16) -> Cell {
        let (page, at) = (usize::from(hash) / PAGE, usize::from(hash) % PAGE);
        self.pages.get(page).and_then(Option::as_ref).map_or_else(Cell::default, |cells| cells[at])
    }

    pub(super) fn at(&mut self, hash: u16) -> &mut Cell {
        let (page, at) = (usize::from(hash) / PAGE, usize::from(hash) % PAGE);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        &mut self.pages[page].get_or_insert_with(|| Box::new([Cell::default(); PAGE]))[at]
    }

    /// Every hash with outstanding entries.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = (u16, Cell)> + '_ {
        self.pages
            .iter()
            .enumerate()
            .filter_map(|(page, cells)| cells.as_ref().map(|cells| (page, cells)))
            .flat_map(|(page, cells)| {
                cells.iter().enumerate().map(move |(at, cell)| ((page * PAGE + at) as u16, *cell))
            })
            .filter(|(_, cell)| cell.outstanding > 0)
    }
}
