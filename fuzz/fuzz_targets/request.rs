//! Runs [`tower_mesh_fuzz::request`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_mesh_fuzz::request(data));
