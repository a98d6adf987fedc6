//! Every file of every corpus goes through its target, without a fuzzer and on any toolchain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tower_mesh_fuzz::TARGETS;

fn names(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_file_keeps_its_targets_promises() {
    for (name, target) in TARGETS {
        let files = names(&format!("corpus/{name}"));
        assert!(files.len() >= 2, "corpus/{name} is empty");
        for file in files {
            // Shown where the target panics.
            println!("{}", file.display());
            let data = fs::read(&file).unwrap();
            target(&data);
            // What is cut short, as it arrives or as it was saved, is read, too.
            for part in 1..8 {
                target(&data[..data.len() * part / 8]);
            }
        }
    }
}

#[test]
fn every_target_has_a_fuzzer_and_a_corpus() {
    let targets: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    for folder in ["corpus", "fuzz_targets"] {
        let found = names(folder);
        let found: BTreeSet<&str> = found.iter().filter_map(|f| f.file_stem()?.to_str()).collect();
        assert_eq!(found, targets, "{folder}");
    }
}
