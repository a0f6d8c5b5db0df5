//! What a range of seeds amounted to: summed up, printed, and kept in a file that a later run goes on from.

use crate::check::Seen;
use crate::checkpoint::replace;
use crate::run::Report;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Default)]
pub(crate) struct Totals {
    /// The first seed that has not run.
    pub(crate) next: u64,
    pub(crate) seeds: u64,
    pub(crate) canaries: u64,
    events: u64,
    simulated: u64,
    injected: BTreeMap<String, u64>,
    seen: BTreeMap<String, u64>,
    pub(crate) broken: Vec<String>,
}

fn file() -> Option<String> {
    std::env::var("GEMINGA_SIM0_CHECKPOINT").ok()
}

impl Totals {
    /// At `first`, or where the checkpoint says.
    pub(crate) fn begin(first: u64) -> Self {
        let kept = file().and_then(|file| std::fs::read_to_string(file).ok());
        let mut totals = kept.map_or_else(Self::default, |text| Self::parse(&text));
        totals.next = totals.next.max(first);
        totals
    }

    fn parse(text: &str) -> Self {
        let mut totals = Self::default();
        for line in text.lines() {
            let (key, value) = line.split_once('=').expect("key=value");
            let number = || value.parse().expect("a number");
            match key.split_once('.') {
                Some(("fault", what)) => drop(totals.injected.insert(what.to_owned(), number())),
                Some(("seen", what)) => drop(totals.seen.insert(what.to_owned(), number())),
                _ => match key {
                    "next" => totals.next = number(),
                    "seeds" => totals.seeds = number(),
                    "canaries" => totals.canaries = number(),
                    "events" => totals.events = number(),
                    "simulated_us" => totals.simulated = number(),
                    "broken" => totals.broken.push(value.to_owned()),
                    other => panic!("the checkpoint holds an unknown {other}"),
                },
            }
        }
        totals
    }

    fn text(&self) -> String {
        let Self { next, seeds, canaries, events, simulated, injected, seen, broken } = self;
        let mut out = format!(
            "next={next}\nseeds={seeds}\ncanaries={canaries}\nevents={events}\nsimulated_us={simulated}\n"
        );
        out.extend(injected.iter().map(|(what, n)| format!("fault.{what}={n}\n")));
        out.extend(seen.iter().map(|(what, n)| format!("seen.{what}={n}\n")));
        out.extend(broken.iter().map(|what| format!("broken={}\n", what.replace('\n', " "))));
        out
    }

    /// Replaces the checkpoint, if one is wanted.
    pub(crate) fn keep(&self) {
        if let Some(file) = file() {
            replace(Path::new(&file), &self.text());
        }
    }

    pub(crate) fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.events += report.events;
        self.simulated += report.simulated;
        report
            .injected
            .iter()
            .for_each(|(what, n)| *self.injected.entry((*what).to_owned()).or_default() += n);
        let mut seen: Seen = report.seen;
        for (what, n) in seen.all() {
            *self.seen.entry(what.to_owned()).or_default() += *n;
        }
    }

    pub(crate) fn print(&self) {
        let faults: u64 = self.injected.values().sum();
        println!(
            "sim0: {} seeds, {} run twice, {} events, {:.1} simulated hours, {faults} faults, violations {}",
            self.seeds,
            self.canaries,
            self.events,
            self.simulated as f64 / 3.6e9,
            self.broken.len()
        );
        println!("faults {:?}", self.injected);
        println!("seen {:?}", self.seen);
    }

    /// "0 violations" proves something only if the rare paths were taken.
    pub(crate) fn reached(&self) {
        for (what, n) in &self.seen {
            assert!(*n > 3, "{what}: reached {n} times only");
        }
    }
}

#[test]
fn totals_survive_their_file() {
    let text = "next=7\nseeds=6\ncanaries=1\nevents=12\nsimulated_us=99\nfault.disk full=3\nseen.acked=4\nbroken=seed 5: I1\n";
    assert_eq!(Totals::parse(text).text(), text);
}
