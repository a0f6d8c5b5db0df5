//! `geminga admin accept-loss`: a standalone whose store lost something, or holds what does not check, and of which there is no copy, goes on
//! with what is left. All that is stored is read for it. Offline and deliberate: without `--yes` it tells what that means and changes nothing. The states and the steps: `bookie/src/store/accept.rs`.

use crate::cli::AcceptLossArgs;
use crate::failure;
use crate::halves::Halves;
use crate::standalone::Offline;
use anyhow::Context as _;
use geminga_bookie::{Config, Damage, OpenError, View, accept_loss, view_loss};
use geminga_bookie_client::rpc::{BookieRef, IdRange};
use geminga_broker::loss::{Left, OwnerLoss, survey};
use geminga_common::clock::SystemClock;
use geminga_common::disk::{Disk, RealDisk};
use geminga_common::error::{Code, Coded as _};
use geminga_common::ids::{EntryId, Incarnation, LedgerId};
use geminga_common::metadata::MetadataStore;
use geminga_common::tasks::TaskGroup;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

struct OfView<'v>(&'v View);

impl Left for OfView<'_> {
    fn left(&self, ledger: LedgerId, ids: IdRange) -> Vec<IdRange> {
        self.0.presence(ledger, ids).present
    }

    fn tail(&self, ledger: LedgerId) -> (Option<EntryId>, Option<EntryId>) {
        let stat = self.0.stat(ledger);
        let known = self.0.last_lost(ledger);
        stat.map_or((None, None), |stat| (stat.present.last().map(|run| run.last), stat.lac.max(known)))
    }

    fn may_lack(&self, ledger: LedgerId) -> bool {
        let ranges = self.0.lost.iter().flat_map(|lost| &lost.ledgers);
        ranges.into_iter().any(|(first, last)| (*first..=*last).contains(&ledger))
    }
}

/// Of which nothing can be looked at.
struct Untold;

impl Left for Untold {
    fn left(&self, _: LedgerId, ids: IdRange) -> Vec<IdRange> {
        vec![ids]
    }

    fn tail(&self, _: LedgerId) -> (Option<EntryId>, Option<EntryId>) {
        (None, None)
    }

    fn may_lack(&self, _: LedgerId) -> bool {
        true
    }
}

/// What a look has found.
enum Told {
    /// All is there, and checks.
    Nothing,
    /// Something is lost; with what does not check, as far as that could be looked for.
    Lost(Option<Vec<Damage>>),
}

/// Incarnations of the store that ledgers in metadata name. `LOSSES` has to name all of them, also those of acceptances of which it told
/// once and was lost itself: who counts on one that nobody knows would wait for ever.
type Named = Mutex<BTreeSet<Incarnation>>;

/// Tells what is lost; accepts it with `--yes`.
pub(crate) async fn main(args: AcceptLossArgs) -> anyhow::Result<()> {
    let tasks = TaskGroup::new();
    let data_dir = args.data_dir.as_deref();
    let Offline { dir, settings, metadata, halves, checked, lock } =
        crate::standalone::offline(args.config.as_deref(), data_dir, &tasks).await?;
    let named: Named = Mutex::new(Halves::counted_on(&checked).into_iter().collect());
    let told = tell(&settings, &halves, &named, &*metadata, &dir).await;
    let outcome = match told {
        Ok(Told::Nothing) => Ok(()),
        Ok(Told::Lost(damage)) if args.yes => accept(settings, &named, &dir, damage),
        Ok(Told::Lost(_)) => say(
            "nothing was changed. Is there a copy as new as the rest? Put the files back from it. Is there none? The same command with \
             --yes accepts the loss, for good",
        ),
        Err(error) => Err(error),
    };
    tasks.stop();
    drop(lock);
    outcome
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing to standard output")
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

/// Says how far the reading of all that is stored has come, to whoever watches.
fn progress() -> impl FnMut(u64, u64) {
    let clock = SystemClock::shared();
    let mut last = clock.mono();
    move |done, all| {
        let now = clock.mono();
        if done == all || now.saturating_sub(last) >= PROGRESS_EVERY {
            last = now;
            // Nobody may be watching.
            let _told = writeln!(std::io::stderr(), "checked {} of {} MiB", done >> 20, all >> 20);
        }
    }
}

/// Says what is lost; whether anything is.
async fn tell(
    settings: &Config,
    halves: &Halves,
    named: &Named,
    metadata: &dyn MetadataStore,
    dir: &Path,
) -> anyhow::Result<Told> {
    let view = match view_loss(settings.clone(), disk(), SystemClock::shared(), &mut progress()) {
        Err(OpenError::NotLost) => {
            say(&format!(
                "{}: nothing is missing and everything checks, there is no loss to accept",
                dir.display()
            ))?;
            return Ok(Told::Nothing);
        }
        Err(OpenError::Lost(losses)) => {
            owners(halves, named, metadata, &Untold).await?;
            losses.0.iter().try_for_each(|lost| say(&format!("lost: {}", lost.line())))?;
            say("what was in it cannot be told before the loss is accepted")?;
            return Ok(Told::Lost(None));
        }
        other => {
            other.map_err(|error| failure::about(&error, "looking at the store in", &halves.store_path))?
        }
    };
    view.lost.iter().try_for_each(|lost| say(&format!("lost: {}", lost.line())))?;
    let owners = owners(halves, named, metadata, &OfView(&view)).await?;
    owners.iter().try_for_each(|owner| say(&owner.to_string()))?;
    let (cursors, topics): (Vec<&OwnerLoss>, Vec<&OwnerLoss>) =
        owners.iter().partition(|owner| owner.cursors);
    let entries: u64 = topics.iter().map(|topic| topic.entries()).sum();
    say(&format!(
        "{entries} entries of {} topics are known to be lost",
        topics.iter().filter(|t| t.entries() > 0).count()
    ))?;
    if !cursors.is_empty() {
        say(
            "positions of subscriptions may be lost: none skips a message, messages come again; the subscription `lost-cursors` \
             of each topic keeps everything until it is deleted",
        )?;
    }
    if let Some(known) = settings.known {
        say(&format!("the store was incarnation {known}; it gets a new one"))?;
    }
    Ok(Told::Lost(Some(view.into_damage())))
}

/// What owners of ledgers lost; takes in which incarnations their ledgers name.
async fn owners(
    halves: &Halves,
    named: &Named,
    metadata: &dyn MetadataStore,
    left: &(dyn Left + Sync),
) -> anyhow::Result<Vec<OwnerLoss>> {
    let me = |member: &BookieRef| {
        let mine = member.id == halves.id;
        if mine {
            named.lock().insert(member.incarnation);
        }
        mine
    };
    survey(metadata, &halves.keys, &me, left).await.map_err(|error| {
        let text = format!("telling what is lost of the store in {}: {error}", halves.store_path.display());
        failure::coded(error.code(), text)
    })
}

fn accept(settings: Config, named: &Named, dir: &Path, damage: Option<Vec<Damage>>) -> anyhow::Result<()> {
    let path = settings.data_dir.clone();
    let known: Vec<Incarnation> = named.lock().iter().copied().collect();
    let accepted = accept_loss(settings, disk(), SystemClock::shared(), &known, damage);
    let accepted =
        accepted.map_err(|error| failure::about(&error, "accepting the loss of the store in", &path))?;
    say(&format!(
        "the loss is accepted: the store is incarnation {} from now on, {} tells what was lost. Start the server",
        accepted.incarnation,
        path.join("LOSSES").display()
    ))?;
    tracing::warn!(
        code = %Code::LOST_FOR_GOOD, data = %dir.display(), incarnation = %accepted.incarnation,
        "the loss of a store was accepted"
    );
    Ok(())
}
