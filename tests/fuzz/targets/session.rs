//! Fuzz target `session`; what it holds to is in `src/session.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::session::run(data));
