//! Fuzz target `messages`; what it holds to is in `src/messages.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::messages::run(data));
