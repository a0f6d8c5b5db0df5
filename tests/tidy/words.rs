//! Words that must not be in the repository, and what a `lib.rs` may hold.

/// Put together at build time, so that this file passes its own check.
const EVERYWHERE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tm", "p/w/"),
    concat!("/fa", "rm/"),
    concat!("bash", "_jobs"),
    concat!("FIX", "ME"),
];
const RUST: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
    concat!("#[ign", "ore"),
    concat!("unreachable!(\"n", "ot "),
];

/// Whether a file is checked for words.
pub(crate) fn is_text(name: &str) -> bool {
    let known = ["rs", "md", "toml", "py", "go", "java", "xml", "sh", "txt", "proto"];
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    known.contains(&extension) || name.ends_with("/run")
}

/// Banned words of a file, by line.
pub(crate) fn banned(name: &str, text: &str) -> Vec<String> {
    let rust: &[&str] = if name.ends_with(".rs") { RUST } else { &[] };
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in EVERYWHERE.iter().chain(rust).filter(|word| line.contains(**word)) {
            found.push(format!("{name}:{}: {word}", number + 1));
        }
    }
    found
}

/// Lines of a `lib.rs` that are more than a map.
pub(crate) fn not_a_map(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_use = false;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let opens_use = trimmed.starts_with("pub use ") || trimmed.starts_with("use ");
        let map = in_use
            || opens_use
            || trimmed.is_empty()
            || trimmed == "}"
            || ["//", "#[", "#![", "mod ", "pub mod ", "pub(crate) mod ", "include!("]
                .iter()
                .any(|start| trimmed.starts_with(start));
        in_use = (in_use || opens_use) && !trimmed.ends_with(';');
        if !map {
            found.push(format!("{name}:{}: {trimmed}", number + 1));
        }
    }
    found
}

#[test]
fn banned_words_and_more_than_a_map_are_found() {
    let stub = format!("fn x() {{\n    {}) }}", RUST[0]);
    assert_eq!(banned("a.rs", &stub).len(), 1);
    assert_eq!(banned("a.py", &stub).len(), 0);
    assert_eq!(banned("a.md", EVERYWHERE[0]).len(), 1);
    assert!(not_a_map("lib.rs", "//! x\nmod a;\npub use a::{\n    B,\n    C,\n};\n").is_empty());
    assert_eq!(not_a_map("lib.rs", "//! x\nmod a;\npub fn f() {}\n").len(), 1);
}
