//! What many seeds amounted to. Each runs in a process of its own, two at a time; every hundredth runs twice, and both must be the same.

use crate::check::Seen;
use crate::checkpoint::replace;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Processes at a time.
const ABREAST: u64 = 2;

#[derive(Default)]
pub(crate) struct Totals {
    next: u64,
    pub(crate) seeds: u64,
    canaries: u64,
    events: u64,
    ms: u64,
    seen: Seen,
    pub(crate) broken: Vec<String>,
}

fn start(seed: u64, mutant: Option<&str>) -> Child {
    let me = std::env::current_exe().expect("a test has a file");
    let mut command = Command::new(me);
    command.env("GEMINGA_SIM1_SEED", seed.to_string());
    #[cfg(feature = "museum")]
    command.envs(mutant.map(|mutant| (crate::museum::VARIABLE, mutant)));
    #[cfg(not(feature = "museum"))]
    assert!(mutant.is_none(), "no defect is part of this build");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the test starts once more")
}

/// The line of a seed; what else its process said when there is none.
fn line(seed: u64, child: Child) -> Result<String, String> {
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = said.lines().find_map(|line| line.find("sim1 seed=").map(|at| line[at..].to_owned()));
    found.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let end: Vec<&str> = stderr.lines().rev().take(12).collect();
        format!(
            "seed {seed}: its process ended ({}): {}",
            output.status,
            end.into_iter().rev().collect::<Vec<_>>().join(" | ")
        )
    })
}

fn field(line: &str, name: &str) -> u64 {
    let wanted = format!("{name}=");
    let word = line.split(' ').find_map(|word| word.strip_prefix(wanted.as_str()));
    word.and_then(|word| word.parse().ok()).unwrap_or_default()
}

impl Totals {
    pub(crate) fn run(first: u64, end: u64) -> Self {
        let mut totals = Self::begin(first);
        while totals.next < end && totals.broken.len() < 10 {
            let seeds = totals.next..(totals.next + ABREAST).min(end);
            let children: Vec<(u64, Child)> = seeds.clone().map(|seed| (seed, start(seed, None))).collect();
            for (seed, child) in children {
                totals.take(seed, line(seed, child));
            }
            totals.next = seeds.end;
            totals.keep();
        }
        totals
    }

    /// Seeds until a defect shows, and how; `None`: it does not.
    #[cfg(feature = "museum")]
    pub(crate) fn until_broken(most: u64, mutant: &str) -> Option<(u64, String)> {
        (0..most).step_by(ABREAST as usize).find_map(|first| {
            let children = (first..first + ABREAST).map(|seed| (seed, start(seed, Some(mutant))));
            let lines =
                children.collect::<Vec<_>>().into_iter().map(|(seed, child)| (seed, line(seed, child)));
            let shown = |(seed, line): (u64, Result<String, String>)| match line {
                Ok(line) if line.ends_with(" broken=nothing") => None,
                Ok(line) => Some((seed + 1, line.split_once(" broken=")?.1.to_owned())),
                Err(died) => Some((seed + 1, died)),
            };
            lines.collect::<Vec<_>>().into_iter().find_map(shown)
        })
    }

    fn take(&mut self, seed: u64, line: Result<String, String>) {
        self.seeds += 1;
        let said = match line {
            Ok(said) => said,
            Err(why) => return self.broken.push(why),
        };
        self.events += field(&said, "events");
        self.ms += field(&said, "ms");
        self.seen.fields().into_iter().for_each(|(name, sum)| *sum += field(&said, name));
        match said.split_once(" broken=") {
            Some((_, "nothing")) => {}
            other => self.broken.push(format!(
                "seed {seed}: {}; replay: GEMINGA_SIM1_REPLAY={seed} cargo test --release -p geminga-bookie --test sim1",
                other.map_or("an unreadable line", |(_, broken)| broken)
            )),
        }
        if seed.is_multiple_of(100) {
            self.canaries += 1;
            if self::line(seed, start(seed, None)).as_ref() != Ok(&said) {
                self.broken.push(format!("seed {seed} does not repeat itself"));
            }
        }
    }

    fn file() -> Option<PathBuf> {
        std::env::var_os("GEMINGA_SIM1_CHECKPOINT").map(PathBuf::from)
    }

    fn numbers(&mut self) -> Vec<&mut u64> {
        let Self { next, seeds, canaries, events, ms, seen, .. } = self;
        let mut all = vec![next, seeds, canaries, events, ms];
        all.extend(seen.fields().into_iter().map(|(_, number)| number));
        all
    }

    /// Goes on where a checkpoint ended.
    fn begin(first: u64) -> Self {
        let mut totals = Self { next: first, ..Self::default() };
        let kept = Self::file().and_then(|file| std::fs::read_to_string(file).ok());
        if let Some(kept) = kept {
            let mut lines = kept.lines();
            let numbers =
                lines.next().unwrap_or_default().split(' ').map(|word| word.parse().expect("a number"));
            totals.numbers().into_iter().zip(numbers).for_each(|(number, kept)| *number = kept);
            totals.broken.extend(lines.map(str::to_owned));
        }
        totals
    }

    fn keep(&mut self) {
        if let Some(file) = Self::file() {
            let numbers: Vec<String> = self.numbers().into_iter().map(|number| number.to_string()).collect();
            let text = format!("{}\n{}", numbers.join(" "), self.broken.join("\n"));
            replace(&file, &text);
        }
    }

    pub(crate) fn print(&self) {
        let mut seen = self.seen;
        let seen: Vec<String> =
            seen.fields().iter().map(|(name, number)| format!("{name} {number}")).collect();
        println!(
            "figure: SIM1 {} seeds, {} canaries, {} violations, {:.1} simulated hours, {} events: {}",
            self.seeds,
            self.canaries,
            self.broken.len(),
            self.ms as f64 / 3.6e6,
            self.events,
            seen.join(", ")
        );
    }

    /// What every short run must have seen.
    pub(crate) fn reached(&mut self) {
        let seen = self.seen.fields();
        let rare: Vec<&str> = seen.into_iter().filter(|(_, n)| **n == 0).map(|(name, _)| name).collect();
        if !rare.is_empty() {
            self.broken.push(format!("never happened: {rare:?}"));
        }
    }
}
