//! The shape of the repository, as tests: arrows between packages, sizes, words, formatting, licences.
//!
//! Every check is a function over texts that is also shown a bad text here, so that a check that finds nothing can be told
//! from a check that cannot find anything.
#![allow(clippy::disallowed_methods)] // reads the real repository

mod arrows;
mod licences;
mod sizes;
mod words;

use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What may lie at the root besides dot-files.
const ROOT: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "broker",
    "bookie",
    "common",
    "deny.toml",
    "deploy",
    "proto",
    "tests",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Every file that is, or by the ignore rules could be, in the repository.
fn files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "git ls-files failed; tidy needs the repository");
    let mut names: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    names.retain(|name| root().join(name).is_file());
    ensure!(names.len() > 50, "git lists {} files only", names.len());
    Ok(names)
}

fn read(name: &str) -> Result<String> {
    std::fs::read_to_string(root().join(name)).with_context(|| name.to_owned())
}

fn sources() -> Result<Vec<(String, String)>> {
    let names = files()?.into_iter().filter(|name| name.ends_with(".rs"));
    names.map(|name| read(&name).map(|text| (name, text))).collect()
}

fn none(what: &str, found: &[String]) -> Result<()> {
    ensure!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
    Ok(())
}

#[test]
fn packages_import_only_what_the_architecture_allows() -> Result<()> {
    let manifests: Vec<String> = files()?.into_iter().filter(|name| name.ends_with("/Cargo.toml")).collect();
    ensure!(manifests.len() >= 8, "only {manifests:?}");
    let mut wrong = Vec::new();
    for name in manifests {
        wrong.extend(arrows::wrong(&name, &read(&name)?)?);
    }
    none("wrong arrows", &wrong)
}

#[test]
fn the_root_holds_what_was_agreed() -> Result<()> {
    let mut odd: Vec<String> = files()?
        .iter()
        .map(|name| name.split('/').next().unwrap_or_default().to_owned())
        .filter(|top| !top.starts_with('.') && !ROOT.contains(&top.as_str()))
        .collect();
    odd.dedup();
    none("at the root", &odd)
}

#[test]
fn files_and_functions_are_short() -> Result<()> {
    let (failures, warnings) = sizes::check(&sources()?, &read("tests/tidy/ratchet.txt")?)?;
    for warning in warnings {
        println!("over 600 lines: {warning}");
    }
    none("too long, or the ratchet is out of date", &failures)
}

#[test]
fn no_stubs_no_machine_paths() -> Result<()> {
    let mut found = Vec::new();
    for name in files()? {
        if words::is_text(&name)
            && let Ok(text) = read(&name)
        {
            found.extend(words::banned(&name, &text));
        }
    }
    none("banned words", &found)
}

#[test]
fn every_source_file_opens_with_its_purpose() -> Result<()> {
    let silent: Vec<String> =
        sources()?.into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name).collect();
    none("no `//!` at the head", &silent)
}

#[test]
fn every_lib_rs_is_only_a_map() -> Result<()> {
    let mut found = Vec::new();
    for (name, text) in sources()? {
        if name.ends_with("/lib.rs") {
            found.extend(words::not_a_map(&name, &text));
        }
    }
    none("more than a map", &found)
}

#[test]
fn nothing_generated_is_kept_and_the_lock_file_is() -> Result<()> {
    let names = files()?;
    ensure!(names.iter().any(|name| name == "Cargo.lock"), "Cargo.lock is not committed");
    let generated = |name: &&String| {
        name.ends_with(".pb.rs")
            || name.ends_with("_pb2.py")
            || name.contains("/generated/")
            || name.contains("/gen/")
    };
    let found: Vec<String> = names.iter().filter(generated).cloned().collect();
    none("generated", &found)
}

#[test]
fn the_code_is_formatted() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["fmt", "--all", "--check"]).current_dir(root()).output()?;
    ensure!(output.status.success(), "cargo fmt --check:\n{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn licences_and_duplicates_are_as_deny_toml_says() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let found =
        licences::check(&serde_json::from_slice(&output.stdout)?, &toml::from_str(&read("deny.toml")?)?)?;
    none("dependencies", &found)
}
