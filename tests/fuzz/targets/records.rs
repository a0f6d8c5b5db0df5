//! Fuzz target `records`; what it holds to is in `src/records.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::records::run(data));
