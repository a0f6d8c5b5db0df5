//! Fuzz target `rpc`; what it holds to is in `src/rpc.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| geminga_fuzz::rpc::run(data));
