//! Fuzz target `objects`; what it holds to is in `src/objects.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::objects::run(data));
