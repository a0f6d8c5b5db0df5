//! Fuzz target `names`; what it holds to is in `src/names.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::names::run(data));
