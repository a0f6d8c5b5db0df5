//! What this process logs, as the lines that an operator would read on standard error.

use parking_lot::Mutex;
use std::io;
use std::sync::LazyLock;

/// The log of the whole process: tests that run beside each other all write to it.
#[derive(Default)]
pub(crate) struct Log(Mutex<Vec<u8>>);

impl Log {
    /// Begins to keep what is logged; what was logged before is not there.
    pub(crate) fn kept() -> &'static Self {
        static LOG: LazyLock<Log> = LazyLock::new(|| {
            let log = tracing_subscriber::fmt().with_writer(Log::kept).with_ansi(false);
            tracing::subscriber::set_global_default(log.finish()).expect("nobody else reads the log");
            Log::default()
        });
        &LOG
    }

    /// The lines so far that hold all of `words`.
    pub(crate) fn lines(&self, words: &[&str]) -> Vec<String> {
        let bytes = self.0.lock();
        let text = String::from_utf8_lossy(&bytes);
        let with = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        with.map(str::to_owned).collect()
    }
}

/// The number of a field in a line, such as `latency_us=5000`.
pub(crate) fn number(line: &str, field: &str) -> Option<u64> {
    let value = line.split(' ').find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
    value?.parse().ok()
}

impl io::Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
