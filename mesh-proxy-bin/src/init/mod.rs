//! `mesh-proxy init`: redirects a pod's traffic to its sidecar.
//!
//! Which rules there are is a function of the settings ([`rules`]), and so are the scripts of the two programs
//! that can set them up ([`nftables`], [`iptables`]). Here they are run.

mod iptables;
mod nftables;
mod rules;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};

use crate::args::{Backend, InitArgs, Selection};
use rules::{Family, Settings};

/// The bit of `CAP_NET_ADMIN` among the capabilities of a process.
const CAP_NET_ADMIN: u32 = 12;
/// How much of another program's complaint is passed on, in bytes.
const MAX_COMPLAINT: usize = 4096;

/// Sets the rules up, removes them, or prints them.
pub(crate) fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let settings = settings(args);
    let families = families(Path::new("/proc"));
    if args.dry_run {
        print(args, &settings, families);
        return Ok(ExitCode::SUCCESS);
    }
    may_change_the_network()?;
    if args.cleanup {
        return cleanup(args.backend, families);
    }
    let program = Program::find(args.backend, &|name| in_path(name))?;
    let mut done = Vec::new();
    for family in families {
        match program.apply(&settings, *family) {
            Ok(()) => done.push(name(*family)),
            // Without an address of it there is nothing to redirect, and a kernel need not be able to.
            Err(error) if *family == Family::V6 && !has_v6_address(Path::new("/proc")) => {
                eprintln!("mesh-proxy init: IPv6 is left alone, since there is no address of it: {error:#}");
            }
            Err(error) => return Err(error),
        }
    }
    println!(
        "redirected by {}: {}; out to port {}, in to port {}",
        program.name(),
        done.join(", "),
        settings.outbound_port,
        settings.inbound_port
    );
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &InitArgs) -> Settings {
    Settings {
        outbound_port: args.outbound_port,
        inbound_port: args.inbound_port,
        uid: args.uid,
        gid: args.gid,
        include_inbound_ports: only(&args.include_inbound_ports),
        exclude_inbound_ports: args.exclude_inbound_ports.0.clone(),
        include_outbound_ports: args.include_outbound_ports.0.clone(),
        exclude_outbound_ports: args.exclude_outbound_ports.0.clone(),
        include_outbound_ranges: only(&args.include_outbound_ranges),
        exclude_outbound_ranges: args.exclude_outbound_ranges.0.clone(),
        exclude_interfaces: args.exclude_interfaces.0.iter().map(|name| name.0.clone()).collect(),
    }
}

fn only<T: Clone>(selection: &Selection<T>) -> Option<Vec<T>> {
    match selection {
        Selection::All => None,
        Selection::Only(list) => Some(list.clone()),
    }
}

fn print(args: &InitArgs, settings: &Settings, families: &[Family]) {
    for family in families {
        let script = match (args.backend, args.cleanup) {
            (Backend::Iptables, false) => iptables::script(settings, *family, ""),
            (Backend::Iptables, true) => iptables::cleanup(&iptables::script(settings, *family, "")),
            (_, false) => nftables::script(settings, *family),
            (_, true) => nftables::cleanup(*family),
        };
        print!("# {}\n{script}", name(*family));
    }
}

/// With no program chosen, what either may have left is removed.
fn cleanup(backend: Backend, families: &[Family]) -> anyhow::Result<ExitCode> {
    let wanted = match backend {
        Backend::Auto => vec![Backend::Nftables, Backend::Iptables],
        one => vec![one],
    };
    let mut programs = Vec::new();
    for backend in wanted {
        match Program::find(backend, &|name| in_path(name)) {
            Ok(program) => programs.push(program),
            Err(error) if programs.is_empty() && backend == Backend::Iptables => return Err(error),
            Err(_) => {}
        }
    }
    for program in &programs {
        for family in families {
            match program.cleanup(*family) {
                Err(error) if *family == Family::V6 && !has_v6_address(Path::new("/proc")) => {
                    eprintln!(
                        "mesh-proxy init: IPv6 is left alone, since there is no address of it: {error:#}"
                    );
                }
                result => result?,
            }
        }
    }
    println!("nothing is redirected any more");
    Ok(ExitCode::SUCCESS)
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// What the kernel has. IPv4 is always there.
fn families(proc: &Path) -> &'static [Family] {
    if proc.join("net/if_inet6").exists() { &[Family::V4, Family::V6] } else { &[Family::V4] }
}

/// Whether an interface other than the loopback has an IPv6 address by which others could be reached.
fn has_v6_address(proc: &Path) -> bool {
    // address, index, prefix length, scope (00 is global), flags, name
    let text = std::fs::read_to_string(proc.join("net/if_inet6")).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(3);
        let scope = fields.next();
        scope == Some("00") && fields.nth(1).is_some_and(|name| name != "lo")
    })
}

/// Looks before anything is tried: what the programs say themselves is that one has to be root.
fn may_change_the_network() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    match effective_capabilities(&status) {
        Some(bits) if bits >> CAP_NET_ADMIN & 1 == 1 => Ok(()),
        Some(_) => bail!(
            "the capability NET_ADMIN is missing: add it to securityContext.capabilities.add of this container and \
             let it run as user 0 (--dry-run needs no right)"
        ),
        None => bail!("/proc/self/status has no line CapEff; is this Linux?"),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A program that sets rules up.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    Nft(PathBuf),
    /// Four programs, one for each family and use; each is looked for when it is needed.
    Iptables,
}

impl Program {
    /// The one that was asked for, or the first that is there.
    fn find(backend: Backend, look: &dyn Fn(&str) -> Option<PathBuf>) -> anyhow::Result<Self> {
        let nft = || look("nft").map(Program::Nft);
        let iptables = || look("iptables-restore").map(|_| Program::Iptables);
        let (found, missing) = match backend {
            Backend::Auto => (nft().or_else(iptables), "neither nft nor iptables-restore is"),
            Backend::Nftables => (nft(), "nft is not"),
            Backend::Iptables => (iptables(), "iptables-restore is not"),
        };
        let way_out =
            "use the mesh's image, which has it, or install the package nftables or iptables in yours";
        found.with_context(|| format!("{missing} to be found in PATH; {way_out}"))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Nft(_) => "nftables",
            Self::Iptables => "iptables",
        }
    }

    fn apply(&self, settings: &Settings, family: Family) -> anyhow::Result<()> {
        match self {
            Self::Nft(program) => feed(program, &["-f", "-"], &nftables::script(settings, family)).map(drop),
            Self::Iptables => {
                let present = iptables_save(family)?;
                iptables_restore(family, &iptables::script(settings, family, &present))
            }
        }
    }

    fn cleanup(&self, family: Family) -> anyhow::Result<()> {
        match self {
            Self::Nft(program) => feed(program, &["-f", "-"], &nftables::cleanup(family)).map(drop),
            Self::Iptables => match iptables::cleanup(&iptables_save(family)?) {
                script if script.is_empty() => Ok(()),
                script => iptables_restore(family, &script),
            },
        }
    }
}

fn iptables_program(family: Family, what: &str) -> anyhow::Result<PathBuf> {
    let prefix = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let program = format!("{prefix}-{what}");
    in_path(&program)
        .with_context(|| format!("{program} is not to be found in PATH; install the package iptables"))
}

fn iptables_save(family: Family) -> anyhow::Result<String> {
    feed(&iptables_program(family, "save")?, &["-t", "nat"], "").context(
        "cannot read the rules that are there (iptables-legacy needs the capability NET_RAW besides NET_ADMIN; \
         nft and the iptables that stands on nftables do not)",
    )
}

fn iptables_restore(family: Family, script: &str) -> anyhow::Result<()> {
    feed(&iptables_program(family, "restore")?, &["--noflush"], script).map(drop)
}

/// Runs a program with a script as its input, and gives what it printed.
fn feed(program: &Path, args: &[&str], script: &str) -> anyhow::Result<String> {
    let what = || format!("cannot run {}", program.display());
    let mut child = Command::new(program)
        .args(args)
        // The lock is for several who change one network; a pod's is its own, and its root is read-only.
        .env("XTABLES_LOCKFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(what)?;
    // One that ends early says why.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().with_context(what)?;
    if !output.status.success() {
        let complaint = output.stderr.get(..MAX_COMPLAINT).unwrap_or(&output.stderr);
        let complaint = String::from_utf8_lossy(complaint);
        bail!(
            "{} {} failed, and changed nothing ({}): {}",
            program.display(),
            args.join(" "),
            output.status,
            complaint.trim()
        );
    }
    written.with_context(what)?;
    String::from_utf8(output.stdout).with_context(what)
}
