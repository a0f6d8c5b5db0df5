//! Fuzz target `frames`; what it holds to is in `src/frames.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::frames::run(data));
