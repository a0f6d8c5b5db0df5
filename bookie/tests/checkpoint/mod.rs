//! Files in which long runs keep how far they came: replaced as a whole, so that a run which is stopped leaves the old one or the new.

use geminga_common::disk::{Disk, OpenMode, RealDisk};
use std::path::Path;

/// Puts text in the place of a file, whole or not at all.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let _absent = RealDisk.remove(&new);
    let out = RealDisk.open(&new, OpenMode::CreateNew).expect("the checkpoint can be made");
    out.write_all_at(text.as_bytes(), 0).expect("the checkpoint can be written");
    out.sync_data().expect("the checkpoint can be written");
    RealDisk.rename(&new, path).expect("the checkpoint can be replaced");
}
