//! Audits a cluster from outside, for the fault runs: waits until every closed ledger is on its whole write quorum, then, with
//! `--bytes`, reads every copy from every holder. Says what it saw as one line of JSON.
//!
//!     audit ETCD-URL WAIT-SECONDS [--bytes]

use anyhow::{Context as _, Result};
use geminga_tests::audit::Auditor;
use std::io::Write as _;
use std::time::Duration;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let etcd = words.next().context("audit ETCD-URL WAIT-SECONDS [--bytes]")?;
    let wait = Duration::from_secs(words.next().context("how long to wait, in seconds")?.parse()?);
    let bytes = words.next().is_some_and(|word| word == "--bytes");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let said = runtime.block_on(async {
        let auditor = Auditor::new(etcd).await?;
        let whole = auditor.whole(wait).await;
        let seen = if bytes { auditor.bytes().await? } else { Default::default() };
        let states =
            auditor.states().into_iter().map(|(id, (store, state))| (id, format!("{state:?} {store}")));
        let states: std::collections::BTreeMap<String, String> = states.collect();
        anyhow::Ok(serde_json::json!({
            "whole_ms": whole.as_ref().ok().map(|took| took.as_millis() as u64),
            "why_not": whole.err().map(|error| error.to_string()),
            "bookies": states,
            "ledgers": seen.ledgers,
            "copies": seen.copies,
            "unreadable": seen.unreadable,
            "wrong": seen.wrong,
        }))
    })?;
    Ok(writeln!(std::io::stdout(), "{said}")?)
}
