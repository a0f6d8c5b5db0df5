//! `geminga bookie inspect`: a store dumped and verified offline.

use crate::cli::{InspectArgs, Shown};
use crate::failure;
use anyhow::Context as _;
use geminga_bookie::inspect::{Dirs, Part, inspect};
use geminga_common::disk::RealDisk;
use geminga_common::error::{Code, Coded as _};
use geminga_common::ids::LedgerId;
use std::io::Write as _;

/// Writes the report to stdout; fails when something in the store does not check.
pub(crate) fn main(args: InspectArgs) -> anyhow::Result<()> {
    let part = match (args.ledger, args.show) {
        (Some(ledger), _) => Part::Ledger(LedgerId(ledger)),
        (None, Some(Shown::Journal)) => Part::Journal,
        (None, Some(Shown::Segments)) => Part::Segments,
        (None, Some(Shown::Manifest)) => Part::Manifest,
        (None, None) => Part::Summary,
    };
    let dir = args.dir.display().to_string();
    let dirs = Dirs { data: args.dir, more_data: args.more_data_dir, journals: args.journal_dir };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let looked = inspect(&RealDisk, &dirs, part, &mut out);
    let findings = looked.map_err(|error| {
        failure::coded(error.code(), format_args!("inspecting the store in {dir}: {error}"))
    })?;
    out.flush().context("writing the report to standard output")?;
    anyhow::ensure!(
        findings.is_empty(),
        "{}: {} findings in the store in {dir}; see the lines that begin with `!`",
        Code::DATA_LOSS,
        findings.len()
    );
    Ok(())
}
