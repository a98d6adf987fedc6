//! What the linker is asked for, so that a sidecar has less of its program in memory.
//!
//! The addresses that are set right when the program is loaded are packed: half a megabyte less. Programs linked so run where
//! glibc is 2.36 or newer and say so elsewhere; who builds with an older one gets the ordinary kind.
//!
//! What runs at the start comes first in the program, what serves next (`order.txt`): a page that is needed brings the 15
//! around it into memory, and those are then needed, too. Only where LLD links, which is Rust's own on x86-64 Linux, and only in
//! a release build.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SINCE: (u32, u32) = (2, 36);
/// Functions, as `order` writes them.
const ORDER: &str = "order.txt";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={ORDER}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|is| is == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    let native = env::var("HOST").ok() == env::var("TARGET").ok();
    if native && glibc() >= Some(SINCE) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if is("PROFILE", "release")
        && let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from)
        && links_with_lld(&out) == Some(true)
        && let Ok(names) = fs::read_to_string(ORDER)
    {
        let script = out.join("order.ld");
        if fs::write(&script, in_order(&names)).is_ok() {
            println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
        }
    }
}

/// The version of this machine's C library.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

/// Whether a program that is linked as this one will be is LLD's work: it leaves its name in what it has made.
fn links_with_lld(out: &Path) -> Option<bool> {
    let (source, program) = (out.join("probe.rs"), out.join("probe"));
    fs::write(&source, "fn main() {}").ok()?;
    let mut rustc = Command::new(env::var_os("RUSTC")?);
    rustc.arg("--edition=2024").arg("--target").arg(env::var_os("TARGET")?);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", linker.display()));
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    let made = rustc.arg("-o").arg(&program).arg(&source).output().ok()?;
    let name = b"Linker: LLD";
    Some(made.status.success() && fs::read(&program).ok()?.windows(name.len()).any(|bytes| bytes == name))
}

/// A linker script that puts code in the order of `names`, and all other code behind it. A name is a pattern: what changes
/// with the compiler or with another function's body is left out of it.
fn in_order(names: &str) -> String {
    let mut script = String::from("SECTIONS {\n  .text : {\n");
    for name in names.lines().filter(|name| !name.is_empty() && !name.starts_with('#')) {
        let _ = writeln!(script, "    *(.text.{name} .text.unlikely.{name})");
    }
    script + "    *(.text.unlikely .text.unlikely.* .text .text.*)\n  }\n} INSERT AFTER .eh_frame;\n"
}
