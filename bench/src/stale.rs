//! Temporary folders of runs that were killed before they could remove them.
//!
//! A folder is named `mesh-bench.PID.RANDOM` after the process that made it. What has another name is none of ours,
//! and what a process that still runs may have made is left alone.

use std::path::Path;

use rustix::process::{Pid, test_kill_process};

const NAME: &str = "mesh-bench.";

/// How the name of a folder of this process begins.
pub(crate) fn prefix(pid: u32) -> String {
    format!("{NAME}{pid}.")
}

/// Removes the folders in `temporary` whose process is gone. What cannot be removed stays.
pub(crate) fn clean(temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else { return };
    for entry in entries.flatten() {
        // A link's type is a link: what it leads to is not touched.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && entry.file_name().to_str().and_then(owner).is_some_and(is_gone) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The process that a folder's name tells.
fn owner(name: &str) -> Option<Pid> {
    let (pid, random) = name.strip_prefix(NAME)?.split_once('.')?;
    let all_digits = pid.bytes().all(|b| b.is_ascii_digit());
    let is_random = !random.is_empty() && random.bytes().all(|b| b.is_ascii_alphanumeric());
    (all_digits && is_random).then(|| pid.parse().ok().and_then(Pid::from_raw)).flatten()
}

/// Whether there is no such process; another user's counts as there.
fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_runs_are_removed() {
        // A process that has been waited for is gone.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let alive = std::process::id();
        let dir = tempfile::tempdir().unwrap();
        let stale = format!("mesh-bench.{dead}.aB3xYz");
        let kept = [
            format!("mesh-bench.{alive}.aB3xYz"),
            format!("mesh-bench.{dead}"),
            format!("mesh-bench.{dead}.notes.txt"),
            format!("other.{dead}.aB3xYz"),
            "mesh-bench.aB3xYz".to_owned(),
            "mesh-bench.0.aB3xYz".to_owned(),
            "mesh-bench.-1.aB3xYz".to_owned(),
            "mesh-bench.99999999999999.aB3xYz".to_owned(),
        ];
        for name in kept.iter().chain([&stale]) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("file"), "x").unwrap();
        }
        // A file, and a link to a folder, with the name of one of ours.
        let file = dir.path().join(format!("mesh-bench.{dead}.file"));
        std::fs::write(&file, "x").unwrap();
        let link = dir.path().join(format!("mesh-bench.{dead}.link"));
        std::os::unix::fs::symlink(dir.path().join("other"), &link).unwrap();

        clean(dir.path());
        assert!(!dir.path().join(&stale).exists());
        for name in kept {
            assert!(dir.path().join(&name).join("file").exists(), "{name}");
        }
        assert!(file.exists() && link.is_symlink());
    }
}
