//! A small fuzzer without an engine: changes the files of the corpora at random, always in the same way.
//!
//! It is no substitute for the fuzzers, but it runs on stable and in seconds. `FUZZ_ROUNDS` sets how many
//! changes each target gets (default: [`ROUNDS`]), `FUZZ_SEED` starts elsewhere.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tower_mesh_fuzz::{TARGETS, Target};

const ROUNDS: u64 = 300;

/// Marsaglia's xorshift: the same numbers everywhere.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or_default() % n.max(1)
    }
}

/// What stands between the parts of what we read.
const WORDS: [&[u8]; 40] = [
    b"/",
    b"//",
    b"..",
    b".",
    b"%2e",
    b"%2f",
    b"%5c",
    b"%25",
    b"\\",
    b"*",
    b"?",
    b"#",
    b":",
    b"@",
    b"[::1]",
    b"-",
    b",",
    b"=",
    b"\"",
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b"|",
    b"\n",
    b"\r",
    b"\n---\n",
    b"\n===\n",
    b"&a ",
    b"*a",
    b"<<: ",
    b"~",
    b"\0",
    b"\xff",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"/admin",
    b"(?x)",
    b"_.",
];

fn change(data: &mut Vec<u8>, other: &[u8], draw: &mut Draw) {
    let at = draw.below(data.len() + 1);
    let end = at + draw.below((data.len() - at).min(24) + 1);
    match draw.below(8) {
        0 => drop(data.drain(at..end)),
        1 if at < data.len() => data[at] ^= 1 << draw.below(8),
        2 if at < data.len() => data[at] = draw.below(256) as u8,
        3 => {
            let part = data[at..end].to_vec();
            data.splice(at..at, part);
        }
        4 => {
            let from = draw.below(other.len() + 1);
            let to = from + draw.below((other.len() - from).min(64) + 1);
            data.splice(at..end, other[from..to].iter().copied());
        }
        5 => data.truncate(at),
        _ => drop(data.splice(at..at, WORDS[draw.below(WORDS.len())].iter().copied())),
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn run(name: &str, target: Target) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15 ^ number("FUZZ_SEED").unwrap_or_default());
    for round in 0..number("FUZZ_ROUNDS").unwrap_or(ROUNDS) {
        let mut data = seeds[draw.below(seeds.len())].clone();
        let other = &seeds[draw.below(seeds.len())];
        for _ in 0..=draw.below(6) {
            change(&mut data, other, &mut draw);
        }
        if catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
            return Err(format!("{name}, round {round}: b\"{}\"", data.escape_ascii()));
        }
    }
    Ok(())
}

#[test]
fn changes_of_the_corpora_break_no_promise() {
    let threads: Vec<_> =
        TARGETS.iter().map(|(name, target)| std::thread::spawn(move || run(name, *target))).collect();
    let broken: Vec<String> = threads.into_iter().filter_map(|t| t.join().unwrap().err()).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
