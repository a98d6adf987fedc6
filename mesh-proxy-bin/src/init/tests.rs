use std::collections::HashMap;

use clap::Parser;

use super::*;
use crate::args::{Cli, Command as Subcommand};

fn parsed(flags: &[&str]) -> Settings {
    match Cli::try_parse_from([&["mesh-proxy", "init"], flags].concat()).unwrap().command {
        Subcommand::Init(args) => settings(&args),
        other => panic!("{other:?}"),
    }
}

/// What injection asks for where a pod has no wishes.
const DEFAULT: [&str; 5] = [
    "--outbound-port=15001",
    "--inbound-port=15006",
    "--uid=1337",
    "--gid=1337",
    "--exclude-inbound-ports=15020,15021,15090",
];
const WISHES: [&str; 6] = [
    "--include-inbound-ports=80,8080",
    "--include-outbound-ports=9000",
    "--exclude-outbound-ports=3306,25,25",
    "--include-outbound-ranges=10.0.0.0/8,fd00::/8",
    "--exclude-outbound-ranges=10.1.2.3,10.9.9.9/16",
    "--exclude-interfaces=eth1",
];

#[test]
fn flags_have_defaults_that_stand_for_themselves() {
    assert_eq!(parsed(&[]), parsed(&DEFAULT));
    assert_eq!(parsed(&[]).include_inbound_ports, None);
    assert_eq!(parsed(&["--include-inbound-ports=*"]).include_inbound_ports, None);
    assert_eq!(parsed(&["--include-inbound-ports="]).include_inbound_ports, Some(vec![]));
    assert_eq!(parsed(&["--include-outbound-ranges="]).include_outbound_ranges, Some(vec![]));
    for bad in [
        "--uid=x",
        "--uid=0",
        "--inbound-port=0",
        "--exclude-inbound-ports=http",
        "--exclude-outbound-ranges=10.0.0.0/40",
        "--exclude-interfaces=eth0; flush ruleset",
        "--exclude-interfaces=a\"b",
        "--exclude-interfaces=abcdefghijklmnop",
        "--backend=pf",
    ] {
        assert!(Cli::try_parse_from(["mesh-proxy", "init", bad]).is_err(), "{bad}");
    }
    let many = |n: usize| format!("--exclude-inbound-ports={}", vec!["1"; n].join(","));
    assert!(Cli::try_parse_from(["mesh-proxy", "init", &many(512)]).is_ok());
    assert!(Cli::try_parse_from(["mesh-proxy", "init", &many(513)]).is_err());
}

/// What `meshctl inject` writes into a pod is what this program understands.
#[test]
fn the_arguments_of_an_injected_pod_are_understood() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../mesh-cli/tests/golden/deployment.injected.yaml");
    let documents = mesh::core::yaml::documents(&std::fs::read_to_string(golden).unwrap());
    let deployment = documents[1].root.as_ref().unwrap();
    let path = ["spec", "template", "spec", "initContainers"];
    let containers = path.into_iter().fold(deployment, |node, key| node.get(key).unwrap()).as_list().unwrap();
    let args: Vec<_> = containers[0].get("args").and_then(|a| a.as_list()).unwrap().iter().collect();
    let args: Vec<_> = args.iter().map(|a| a.as_text().unwrap()).collect();
    assert_eq!(args[0], "init");
    let wish = parsed(&["--exclude-outbound-ports=5432"]);
    assert_eq!(parsed(&args[1..]), wish);
}

#[test]
fn nftables_by_default() {
    assert_eq!(
        nftables::script(&parsed(&DEFAULT), Family::V4),
        "\
table ip mesh_proxy
delete table ip mesh_proxy
table ip mesh_proxy {
\tchain inbound {
\t\ttcp dport 15020 return
\t\ttcp dport 15021 return
\t\ttcp dport 15090 return
\t\tmeta l4proto tcp redirect to :15006
\t}
\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\tgoto inbound
\t}
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\toifname \"lo\" ip saddr 127.0.0.6/32 return
\t\toifname \"lo\" ip daddr != 127.0.0.0/8 meta skuid 1337 goto inbound
\t\toifname \"lo\" ip daddr != 127.0.0.0/8 meta skgid 1337 goto inbound
\t\toifname \"lo\" return
\t\tmeta skuid 1337 return
\t\tmeta skgid 1337 return
\t\ttcp dport 53 return
\t\tmeta l4proto tcp redirect to :15001
\t}
}
"
    );
}

#[test]
fn nftables_with_every_wish() {
    assert_eq!(
        nftables::script(&parsed(&WISHES), Family::V6),
        "\
table ip6 mesh_proxy
delete table ip6 mesh_proxy
table ip6 mesh_proxy {
\tchain inbound {
\t\ttcp dport 15020 return
\t\ttcp dport 15021 return
\t\ttcp dport 15090 return
\t\ttcp dport 80 redirect to :15006
\t\ttcp dport 8080 redirect to :15006
\t}
\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\tiifname \"eth1\" return
\t\tgoto inbound
\t}
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\toifname \"eth1\" return
\t\ttcp dport 25 return
\t\ttcp dport 3306 return
\t\toifname \"lo\" ip6 saddr ::1/128 return
\t\toifname \"lo\" ip6 daddr != ::1/128 meta skuid 1337 goto inbound
\t\toifname \"lo\" ip6 daddr != ::1/128 meta skgid 1337 goto inbound
\t\toifname \"lo\" return
\t\tmeta skuid 1337 return
\t\tmeta skgid 1337 return
\t\ttcp dport 9000 redirect to :15001
\t\ttcp dport 53 return
\t\tip6 daddr fd00::/8 meta l4proto tcp redirect to :15001
\t}
}
"
    );
}

#[test]
fn iptables_with_every_wish() {
    assert_eq!(
        iptables::script(&parsed(&WISHES), Family::V4, ""),
        "\
*nat
:MESH_INBOUND - [0:0]
:MESH_PREROUTING - [0:0]
:MESH_OUTPUT - [0:0]
-A MESH_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A MESH_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A MESH_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A MESH_INBOUND -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15006
-A MESH_INBOUND -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 15006
-A MESH_PREROUTING -p tcp -i eth1 -j RETURN
-A MESH_PREROUTING -p tcp -g MESH_INBOUND
-A MESH_OUTPUT -p tcp -o eth1 -j RETURN
-A MESH_OUTPUT -p tcp -m tcp --dport 25 -j RETURN
-A MESH_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN
-A MESH_OUTPUT -p tcp -o lo -s 127.0.0.6/32 -j RETURN
-A MESH_OUTPUT -p tcp -o lo ! -d 127.0.0.0/8 -m owner --uid-owner 1337 -g MESH_INBOUND
-A MESH_OUTPUT -p tcp -o lo ! -d 127.0.0.0/8 -m owner --gid-owner 1337 -g MESH_INBOUND
-A MESH_OUTPUT -p tcp -o lo -j RETURN
-A MESH_OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN
-A MESH_OUTPUT -p tcp -m owner --gid-owner 1337 -j RETURN
-A MESH_OUTPUT -p tcp -d 10.1.2.3/32 -j RETURN
-A MESH_OUTPUT -p tcp -d 10.9.0.0/16 -j RETURN
-A MESH_OUTPUT -p tcp -m tcp --dport 9000 -j REDIRECT --to-ports 15001
-A MESH_OUTPUT -p tcp -m tcp --dport 53 -j RETURN
-A MESH_OUTPUT -p tcp -d 10.0.0.0/8 -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp -j MESH_PREROUTING
-A OUTPUT -p tcp -j MESH_OUTPUT
COMMIT
"
    );
}

#[test]
fn iptables_jumps_once_and_leaves_nothing() {
    let settings = parsed(&[]);
    let present = "*nat\n:PREROUTING ACCEPT [0:0]\n:MESH_INBOUND - [0:0]\n:MESH_PREROUTING - [0:0]\n\
                   -A PREROUTING -p tcp -j MESH_PREROUTING\n-A PREROUTING -j OTHERS\nCOMMIT\n";
    let script = iptables::script(&settings, Family::V4, present);
    assert!(!script.contains("-A PREROUTING"), "{script}");
    assert!(script.contains("-A OUTPUT -p tcp -j MESH_OUTPUT"), "{script}");
    assert_eq!(
        iptables::cleanup(present),
        "*nat\n-D PREROUTING -p tcp -j MESH_PREROUTING\n-F MESH_PREROUTING\n-F MESH_INBOUND\n\
         -X MESH_PREROUTING\n-X MESH_INBOUND\nCOMMIT\n"
    );
    assert_eq!(iptables::cleanup("*nat\n-A OUTPUT -j OTHERS\nCOMMIT\n"), "");
}

#[test]
fn the_first_program_that_is_there_is_taken() {
    let with = |programs: &[&str], backend| {
        let there: HashMap<_, _> = programs.iter().map(|p| ((*p).to_owned(), PathBuf::from(p))).collect();
        Program::find(backend, &|name| there.get(name).cloned()).map_err(|e| e.to_string())
    };
    let nft = || Ok(Program::Nft("nft".into()));
    assert_eq!(with(&["nft", "iptables-restore"], Backend::Auto), nft());
    assert_eq!(with(&["nft", "iptables-restore"], Backend::Iptables), Ok(Program::Iptables));
    assert_eq!(with(&["iptables-restore"], Backend::Auto), Ok(Program::Iptables));
    let error = with(&[], Backend::Auto).unwrap_err();
    assert!(error.starts_with("neither nft nor iptables-restore is to be found in PATH; use"), "{error}");
    assert!(with(&["iptables-restore"], Backend::Nftables).unwrap_err().starts_with("nft is not"));
    assert!(with(&["nft"], Backend::Iptables).unwrap_err().starts_with("iptables-restore is not"));
}

#[test]
fn what_the_kernel_and_the_pod_have_is_read_from_proc() {
    let proc = tempfile::tempdir().unwrap();
    std::fs::create_dir(proc.path().join("net")).unwrap();
    assert_eq!(families(proc.path()), [Family::V4]);
    assert!(!has_v6_address(proc.path()));
    let lo = "00000000000000000000000000000001 01 80 10 80       lo\n";
    let link = "fe8000000000000010a1f2fffe000001 02 40 20 80     eth0\n";
    let global = "fd990000000000000000000000000001 02 40 00 80     eth0\n";
    let lo_global = "fd990000000000000000000000000001 01 40 00 80     lo\n";
    for (text, has) in
        [(String::new(), false), ([lo, link, lo_global].concat(), false), ([lo, link, global].concat(), true)]
    {
        std::fs::write(proc.path().join("net/if_inet6"), text).unwrap();
        assert_eq!(families(proc.path()), [Family::V4, Family::V6]);
        assert_eq!(has_v6_address(proc.path()), has);
    }
    assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000001000\n"), Some(1 << CAP_NET_ADMIN));
    assert_eq!(effective_capabilities("Name:\tx\n"), None);
}
