//! Writes the seed corpora; see `geminga_fuzz::seed`. Linked like a target, because instrumented code needs the fuzzer's runtime.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(
    init: geminga_fuzz::seed::write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")),
    |_data: &[u8]| std::process::exit(0)
);
