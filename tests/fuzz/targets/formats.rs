//! Fuzz target `formats`; what it holds to is in `src/formats.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::formats::run(data));
