//! Which of our packages may import which, from the manifests.

use anyhow::{Context as _, Result};

/// Package, then what it may import of ours.
const MAY: &[(&str, &[&str])] = &[
    ("geminga-proto", &[]),
    ("geminga-protoc", &[]),
    ("geminga-common", &["geminga-proto"]),
    ("geminga-bookie-client", &["geminga-common", "geminga-proto"]),
    ("geminga-bookie", &["geminga-common", "geminga-proto", "geminga-bookie-client"]),
    ("geminga-offload", &["geminga-common", "geminga-proto"]),
    ("geminga-broker", &["geminga-common", "geminga-proto", "geminga-bookie-client", "geminga-offload"]),
    ("geminga-allocator", &[]),
    ("geminga-admin", &["geminga-common", "geminga-proto"]),
    ("geminga-perf", &["geminga-common", "geminga-proto"]),
];
/// These may import all others.
const ANYTHING: &[&str] = &["geminga", "geminga-tests", "geminga-fuzz"];
/// Nothing may import these.
const TOPS: &[&str] = &["geminga", "geminga-tests", "geminga-fuzz"];

/// Arrows of one manifest that the architecture forbids.
pub(crate) fn wrong(file: &str, manifest: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = toml::from_str(manifest).with_context(|| file.to_owned())?;
    let name = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str());
    let name = name.with_context(|| format!("{file} names no package"))?;
    let may = MAY.iter().find(|(package, _)| *package == name).map(|(_, may)| *may);
    if may.is_none() && !ANYTHING.contains(&name) {
        return Ok(vec![format!("{name} is not in the table of packages")]);
    }
    let mut found = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(|table| table.as_table()) else { continue };
        for import in table.keys().filter(|key| key.starts_with("geminga")) {
            // A package may name itself among its dev-dependencies to switch its own test features on.
            let itself = import == name && section == "dev-dependencies";
            let allowed =
                may.is_none_or(|may| may.contains(&import.as_str())) && !TOPS.contains(&import.as_str());
            if !allowed && !itself {
                found.push(format!("{name} imports {import} ({section})"));
            }
        }
    }
    Ok(found)
}

#[test]
fn a_wrong_arrow_is_found() -> Result<()> {
    let broker = "[package]\nname = 'geminga-broker'\n[dependencies]\ngeminga-bookie.workspace = true";
    assert_eq!(wrong("x", broker)?.len(), 1);
    let perf = "[package]\nname = 'geminga-perf'\n[dev-dependencies]\ngeminga-broker.workspace = true";
    assert_eq!(wrong("x", perf)?.len(), 1);
    assert_eq!(wrong("x", "[package]\nname = 'geminga-new'")?.len(), 1);
    let fine = "[package]\nname = 'geminga-broker'\n[dependencies]\ngeminga-common.workspace = true";
    assert_eq!(wrong("x", fine)?.len(), 0);
    Ok(())
}
