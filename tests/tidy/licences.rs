//! Licences and duplicate versions of the dependencies, against the lists in `deny.toml`.
//!
//! cargo-deny reads the same file and does more (advisories, sources), but takes minutes to build; this takes a second.

use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What `cargo metadata` shows that `deny.toml` does not allow.
pub(crate) fn check(metadata: &serde_json::Value, deny: &toml::Table) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("metadata lists packages")?;
    let allowed = names(deny, "licenses", "allow").context("deny.toml allows licences")?;
    let skipped = names(deny, "bans", "skip").context("deny.toml has a skip list")?;
    let mut found = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has a name")?;
        versions.entry(name).or_default().insert(package["version"].as_str().unwrap_or_default());
        let licence = package["license"].as_str().unwrap_or("none");
        if !permits(licence, &allowed) {
            found.push(format!("{name}: licence {licence} is not allowed"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| !source.starts_with("registry+https://github.com/rust-lang/")) {
            found.push(format!("{name}: comes from {source:?}"));
        }
    }
    for (name, versions) in versions {
        if (versions.len() > 1) != skipped.contains(name) {
            found.push(format!("{name}: {versions:?}, and deny.toml's skip list says otherwise"));
        }
    }
    Ok(found)
}

fn names<'a>(deny: &'a toml::Table, section: &str, key: &str) -> Option<BTreeSet<&'a str>> {
    let list = deny.get(section)?.get(key)?.as_array()?;
    Some(list.iter().filter_map(|item| item.as_str().or_else(|| item.get("crate")?.as_str())).collect())
}

/// Whether an SPDX expression (with `/` as the old way to say OR) can be met with allowed licences. AND binds closer than OR,
/// and brackets, where real packages use them, hold an OR.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    if let Some((before, rest)) = expression.split_once('(')
        && let Some((inner, after)) = rest.split_once(')')
    {
        // The bracket is replaced by a licence that is allowed, or by one that cannot be.
        let word = if permits(inner, allowed) { allowed.first().copied().unwrap_or("-") } else { "-" };
        return permits(&format!("{before}{word}{after}"), allowed);
    }
    expression.split(" OR ").any(|all| all.split(" AND ").all(|one| allowed.contains(one.trim())))
}

#[test]
fn licences_are_judged() {
    let allowed = BTreeSet::from(["MIT", "Unicode-3.0", "Apache-2.0"]);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "(MIT OR GPL-3.0) AND Unicode-3.0", "MIT AND Apache-2.0"]
    {
        assert!(permits(good, &allowed), "{good}");
    }
    for bad in ["none", "GPL-3.0", "MIT AND GPL-3.0", "(GPL-3.0 OR X) AND MIT", "LGPL-2.1"] {
        assert!(!permits(bad, &allowed), "{bad}");
    }
}
