//! The rules as a script of `iptables-restore`: chains of our own, and one jump to each of them.

use std::fmt::Write;

use super::rules::{Family, Match, Rule, Settings, Verdict};

const INBOUND: &str = "MESH_INBOUND";
const PREROUTING: &str = "MESH_PREROUTING";
const OUTPUT: &str = "MESH_OUTPUT";
/// The jumps, which are all that stands in chains of others.
const JUMPS: [(&str, &str); 2] = [("PREROUTING", PREROUTING), ("OUTPUT", OUTPUT)];

/// The script that sets the rules up. `present` is the nat table as it is (`iptables-save -t nat`): a jump that
/// is there already would otherwise be there twice. It applies whole or not at all.
pub(crate) fn script(settings: &Settings, family: Family, present: &str) -> String {
    let rules = settings.rules(family);
    let mut out = "*nat\n".to_owned();
    // To declare a chain empties it.
    for name in [INBOUND, PREROUTING, OUTPUT] {
        let _ = writeln!(out, ":{name} - [0:0]");
    }
    chain(&mut out, INBOUND, &rules.inbound);
    chain(&mut out, PREROUTING, &rules.prerouting);
    chain(&mut out, OUTPUT, &rules.output);
    for (hook, name) in JUMPS {
        if jumps(present, hook, name) == 0 {
            let _ = writeln!(out, "-A {}", jump(hook, name));
        }
    }
    out.push_str("COMMIT\n");
    out
}

/// The script that leaves nothing of what `present` has of ours; empty where it has nothing.
pub(crate) fn cleanup(present: &str) -> String {
    let mut out = String::new();
    for (hook, name) in JUMPS {
        for _ in 0..jumps(present, hook, name) {
            let _ = writeln!(out, "-D {}", jump(hook, name));
        }
    }
    let chains = [PREROUTING, OUTPUT, INBOUND];
    let there = |name: &&str| present.lines().any(|l| l.split(' ').next() == Some(&format!(":{name}")));
    for command in ["-F", "-X"] {
        for name in chains.iter().filter(|name| there(name)) {
            let _ = writeln!(out, "{command} {name}");
        }
    }
    if out.is_empty() { out } else { format!("*nat\n{out}COMMIT\n") }
}

fn jump(hook: &str, name: &str) -> String {
    format!("{hook} -p tcp -j {name}")
}

fn jumps(present: &str, hook: &str, name: &str) -> usize {
    let line = format!("-A {}", jump(hook, name));
    present.lines().filter(|l| *l == line).count()
}

fn chain(out: &mut String, name: &str, rules: &[Rule]) {
    for (matches, verdict) in rules {
        let _ = write!(out, "-A {name} -p tcp");
        for one in matches {
            condition(out, one);
        }
        let _ = match verdict {
            Verdict::Return => writeln!(out, " -j RETURN"),
            Verdict::Redirect(port) => writeln!(out, " -j REDIRECT --to-ports {port}"),
            Verdict::Inbound => writeln!(out, " -g {INBOUND}"),
        };
    }
}

fn condition(out: &mut String, one: &Match) {
    let _ = match one {
        Match::From(name) => write!(out, " -i {name}"),
        Match::To(name) => write!(out, " -o {name}"),
        Match::Source(net) => write!(out, " -s {net}"),
        Match::Dest(net) => write!(out, " -d {net}"),
        Match::NotDest(net) => write!(out, " ! -d {net}"),
        Match::Port(port) => write!(out, " -m tcp --dport {port}"),
        Match::Uid(id) => write!(out, " -m owner --uid-owner {id}"),
        Match::Gid(id) => write!(out, " -m owner --gid-owner {id}"),
    };
}
