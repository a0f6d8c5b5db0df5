//! Lengths of files and functions, with a ratchet: what is too long today is listed with its length and a reason, may shrink,
//! may not grow, and leaves the list when it is short enough.
//!
//! Functions are found by indentation, which rustfmt makes reliable: a function ends at the first line that is a closing
//! brace at its own depth.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

const FILE_WARN: usize = 600;
const FILE_MAX: usize = 800;
const FUNCTION_MAX: usize = 70;

/// Failures and warnings over all sources.
pub(crate) fn check(sources: &[(String, String)], ratchet: &str) -> Result<(Vec<String>, Vec<String>)> {
    let mut listed = parse(ratchet)?;
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    for (name, text) in sources {
        let lines = text.lines().count();
        if lines > FILE_MAX {
            judge(name.clone(), lines, &mut listed, &mut failures);
        } else if lines > FILE_WARN {
            warnings.push(format!("{name} ({lines})"));
        }
        for (function, length) in functions(text) {
            if length > FUNCTION_MAX {
                judge(format!("{name}::{function}"), length, &mut listed, &mut failures);
            }
        }
    }
    failures
        .extend(listed.into_keys().map(|what| format!("{what} is short enough; take it off the ratchet")));
    Ok((failures, warnings))
}

fn judge(what: String, length: usize, listed: &mut BTreeMap<String, usize>, failures: &mut Vec<String>) {
    match listed.remove(&what) {
        Some(max) if length <= max => {}
        Some(max) => failures.push(format!("{what} grew from {max} to {length} lines")),
        None => failures.push(format!("{what} has {length} lines")),
    }
}

/// Lines `LENGTH WHAT REASON...`.
fn parse(ratchet: &str) -> Result<BTreeMap<String, usize>> {
    let lines = ratchet.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let length = words.next().and_then(|word| word.parse().ok());
            let what = words.next();
            let reason = words.next().filter(|reason| reason.len() > 10);
            let row = length.zip(what).zip(reason);
            let ((length, what), _) =
                row.with_context(|| format!("length, name and reason expected: {line}"))?;
            Ok((what.to_owned(), length))
        })
        .collect()
}

/// Names and lengths of the functions of a formatted source.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let end = lines[start..].iter().position(|line| {
            let trimmed = line.trim_start();
            line.len() - trimmed.len() == indent
                && (trimmed == "}" || trimmed.ends_with(';') || trimmed.ends_with("{}"))
        });
        found.push((name.to_owned(), end.map_or(1, |end| end + 1)));
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        rest = match rest.split_once(' ') {
            Some(("pub" | "pub(crate)" | "pub(super)" | "const" | "async", rest)) => rest,
            Some(("fn", rest)) => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
                return Some(&rest[..end]);
            }
            _ => return None,
        };
    }
}

#[test]
fn lengths_are_counted_and_the_ratchet_only_turns_one_way() -> Result<()> {
    let body = "        step();\n".repeat(FUNCTION_MAX);
    let long = format!(
        "//! x\nimpl X {{\n    pub(crate) async fn long() {{\n{body}    }}\n\n    fn short() {{\n    }}\n}}\n"
    );
    let sources = [("a.rs".to_owned(), long)];
    assert_eq!(check(&sources, "")?.0, ["a.rs::long has 72 lines"]);
    assert!(check(&sources, "72 a.rs::long a reason that is long")?.0.is_empty());
    assert_eq!(check(&sources, "71 a.rs::long a reason that is long")?.0.len(), 1);
    assert_eq!(check(&[], "72 a.rs::long a reason that is long")?.0.len(), 1);
    assert!(parse("72 a.rs::long").is_err());
    let file = [("b.rs".to_owned(), "x\n".repeat(FILE_MAX + 1))];
    assert_eq!(check(&file, "")?.0.len(), 1);
    Ok(())
}
