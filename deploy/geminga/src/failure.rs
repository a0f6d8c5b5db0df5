//! Failures as people read them: one line with a code of the catalogue, the object, and what to do next; never a back-trace.

use geminga_common::error::{Code, Coded};
use std::fmt::Display;
use std::io;
use std::path::Path;

/// A failure with its code.
pub(crate) fn coded(code: Code, text: impl Display) -> anyhow::Error {
    anyhow::anyhow!("{code}: {text}")
}

/// The failure in one line. A cause that the text before it has said already is left out.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text =
            text.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        if !line.contains(&text) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&text);
        }
    }
    line
}

/// What the operating system refused about `path`, in words that help. `doing` is what was tried, as in "making the data directory".
pub(crate) fn disk(error: &io::Error, doing: &str, path: &Path) -> anyhow::Error {
    let (code, help) = match error.kind() {
        io::ErrorKind::StorageFull => (Code::DISK_FULL, "the disk is full; free some space and start again"),
        io::ErrorKind::ReadOnlyFilesystem => (
            Code::READ_ONLY_DISK,
            "the file system is read-only; mount it for writing, or pass another --data-dir",
        ),
        io::ErrorKind::PermissionDenied => (
            Code::DATA_DIRECTORY_UNUSABLE,
            "it cannot be written: is the file system read-only, or are owner, mode or attributes (lsattr) against it?",
        ),
        io::ErrorKind::IsADirectory => (
            Code::DATA_DIRECTORY_UNUSABLE,
            "a directory lies where a file belongs; move it away and put the file back from a copy",
        ),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => (
            Code::DATA_DIRECTORY_UNUSABLE,
            "something else lies where a directory belongs; move it away, or pass another --data-dir",
        ),
        _ => (Code::DATA_DIRECTORY_UNUSABLE, "it cannot be used; look at the path and its disk"),
    };
    coded(code, format_args!("{doing} {}: {help} ({error})", path.display()))
}

/// What failed about `path` as its own error tells it, whose text says what to do next.
pub(crate) fn about(error: &impl Coded, doing: &str, path: &Path) -> anyhow::Error {
    coded(error.code(), format_args!("{doing} {}: {error}", path.display()))
}

/// A code and a word of help for what has none yet, where the disk that holds `dir` is the cause, however deep below.
pub(crate) fn explain(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    let texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    let says = |words: &str| texts.iter().any(|text| text.contains(words));
    if texts.iter().any(|text| text.starts_with("GM-")) {
        return error;
    }
    let found = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    // Some stores hand the system's error on as text only.
    let kind = match found.map(io::Error::kind) {
        Some(kind) => kind,
        None if says("os error 28") => io::ErrorKind::StorageFull,
        None if says("os error 30") => io::ErrorKind::ReadOnlyFilesystem,
        None => return error.context(format!("{}: starting failed", Code::INTERNAL)),
    };
    disk(&io::Error::new(kind, line(&error)), "starting in", dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_failure_is_one_line_and_says_nothing_twice() {
        let error =
            anyhow::anyhow!("no\n such\n\nthing").context("GM-6005: opening x: no; such; thing").context("y");
        assert_eq!(line(&error), "y: GM-6005: opening x: no; such; thing");
    }

    #[test]
    fn a_full_disk_is_named_however_deep_below() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let deep = Err::<(), _>(full()).context("a").context("b").unwrap_err();
        let text = line(&explain(deep, Path::new("/d")));
        assert!(
            text.starts_with("GM-4002") && text.contains("/d") && text.contains("free some space"),
            "{text}"
        );
        let text = line(&explain(anyhow::anyhow!("I/O error: (os error 30)"), Path::new("/d")));
        assert!(text.starts_with("GM-4003"), "{text}");
        let known = line(&explain(anyhow::anyhow!("GM-6001: taken").context("starting"), Path::new("/d")));
        assert_eq!(known, "starting: GM-6001: taken");
    }
}
