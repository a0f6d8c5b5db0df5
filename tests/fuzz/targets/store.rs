//! Fuzz target `store`; what it holds to is in `src/store.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::store::run(data));
