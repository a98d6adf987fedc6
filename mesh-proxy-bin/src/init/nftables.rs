//! The rules as a script of `nft`: a table of our own, replaced as a whole.

use std::fmt::Write;

use super::rules::{Family, Match, Rule, Settings, Verdict};

/// The table, in both families.
const TABLE: &str = "mesh_proxy";

/// The script that sets the rules up, whatever was there before. It applies whole or not at all.
pub(crate) fn script(settings: &Settings, family: Family) -> String {
    let rules = settings.rules(family);
    let mut out = cleanup(family);
    let _ = writeln!(out, "table {} {TABLE} {{", word(family));
    chain(&mut out, "inbound", None, &rules.inbound, family);
    // -100 is the priority at which destinations are translated.
    chain(
        &mut out,
        "prerouting",
        Some("type nat hook prerouting priority -100; policy accept;"),
        &rules.prerouting,
        family,
    );
    chain(
        &mut out,
        "output",
        Some("type nat hook output priority -100; policy accept;"),
        &rules.output,
        family,
    );
    out.push_str("}\n");
    out
}

/// The script that leaves nothing; to name the table first makes it one that can be deleted.
pub(crate) fn cleanup(family: Family) -> String {
    let family = word(family);
    format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn chain(out: &mut String, name: &str, hook: Option<&str>, rules: &[Rule], family: Family) {
    let _ = writeln!(out, "\tchain {name} {{");
    if let Some(hook) = hook {
        let _ = writeln!(out, "\t\t{hook}");
        out.push_str("\t\tmeta l4proto != tcp return\n");
    }
    for (matches, verdict) in rules {
        out.push_str("\t\t");
        for one in matches {
            condition(out, one, family);
        }
        // A redirection has to see for itself that there are ports.
        let _ = match verdict {
            Verdict::Return => writeln!(out, "return"),
            Verdict::Redirect(port) if matches.iter().any(|m| matches!(m, Match::Port(_))) => {
                writeln!(out, "redirect to :{port}")
            }
            Verdict::Redirect(port) => writeln!(out, "meta l4proto tcp redirect to :{port}"),
            Verdict::Inbound => writeln!(out, "goto inbound"),
        };
    }
    out.push_str("\t}\n");
}

fn condition(out: &mut String, one: &Match, family: Family) {
    let ip = word(family);
    let _ = match one {
        Match::From(name) => write!(out, "iifname \"{name}\" "),
        Match::To(name) => write!(out, "oifname \"{name}\" "),
        Match::Source(net) => write!(out, "{ip} saddr {net} "),
        Match::Dest(net) => write!(out, "{ip} daddr {net} "),
        Match::NotDest(net) => write!(out, "{ip} daddr != {net} "),
        Match::Port(port) => write!(out, "tcp dport {port} "),
        Match::Uid(id) => write!(out, "meta skuid {id} "),
        Match::Gid(id) => write!(out, "meta skgid {id} "),
    };
}
