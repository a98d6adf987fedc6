//! `mesh-proxy init` in a network of its own, as a pod has one, with a second beside it for those who call.
//!
//! Each test runs itself again inside of a new network namespace, so nothing of the machine's is touched, and the
//! namespaces end with their processes.

use std::io::Write;
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::original::original_destination;

/// Says to a test that it runs inside of its own network.
const INSIDE: &str = "MESH_TEST_INSIDE";
/// The listeners of the pod, by what they say they are.
const LISTENERS: [(&str, u16); 5] =
    [("outbound", 15001), ("inbound", 15006), ("app", 8080), ("excluded", 22), ("status", 15021)];

/// Runs `inside` in a new network, or says why it cannot. `test` is the whole name of an ignored test.
pub(crate) fn in_a_network_of_its_own(test: &str, inside: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if !is_root() {
        eprintln!("{test} is skipped: only root can make a network");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A process that ends with its owner.
pub(crate) struct Held(pub(crate) Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("bash").args(["-euc", script]).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The pod's side has 10.99.0.1 and fd99::1; the peer has 10.99.0.2, 10.98.0.2 and fd99::2.
struct Network {
    peer: Held,
}

impl Network {
    fn new() -> Self {
        let peer = Held(Command::new("unshare").args(["--net", "--", "sleep", "600"]).spawn().unwrap());
        let ns = format!("/proc/{}/ns/net", peer.0.id());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let made = async || std::fs::read_link(&ns).is_ok_and(|link| link != own);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(mesh_test::wait::until_secs(10, "the peer's network", made));
        let network = Self { peer };
        sh(&format!(
            "ip link set lo up
             ip link add v0 type veth peer name v1
             ip link set v1 netns {}
             ip addr add 10.99.0.1/24 dev v0; ip -6 addr add fd99::1/64 dev v0 nodad; ip link set v0 up",
            network.peer.0.id()
        ));
        network.at_peer(
            "ip link set lo up; ip addr add 10.99.0.2/24 dev v1; ip addr add 10.98.0.2/32 dev v1
             ip -6 addr add fd99::2/64 dev v1 nodad; ip link set v1 up",
        );
        sh("ip route add default via 10.99.0.2; ip -6 route add default via fd99::2");
        for (name, port) in LISTENERS {
            listen(name, TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        }
        network
    }

    fn at_peer(&self, script: &str) -> String {
        sh(&format!("nsenter --net=/proc/{}/ns/net bash -euc '{script}'", self.peer.0.id()))
    }

    /// What the pod's listener says to the peer that calls it.
    fn called(&self, host: &str, port: u16) -> String {
        self.at_peer(&dial(host, port))
    }
}

/// Says to each that calls what it is and where the call was going.
fn listen(name: &'static str, listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let original = original_destination(&stream).unwrap();
            let original = original.map_or("-".to_owned(), |addr| addr.to_string());
            let _ = stream.write_all(format!("{name} {original}").as_bytes());
        }
    });
}

/// A connection that is refused went straight to where nobody listens.
fn dial(host: &str, port: u16) -> String {
    format!(
        "timeout 10 bash -c \"cat < /dev/tcp/{host}/{port}\" 2>&1 | grep -o -m1 -e \"refused\" -e \"^[a-z]* [-0-9\\[].*\""
    )
}

/// What somebody in the pod hears, as user and group `id`.
fn calls(user: u32, group: u32, host: &str, port: u16) -> String {
    let dial = dial(host, port);
    sh(&format!("setpriv --reuid {user} --regid {group} --clear-groups bash -euc '{dial}'")).trim().to_owned()
}

fn init(flags: &[&str]) -> std::process::Output {
    // The rights of the container: user 0 with NET_ADMIN and nothing else.
    Command::new("setpriv")
        .args(["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"])
        .args([env!("CARGO_BIN_EXE_mesh-proxy"), "init"])
        .args(flags)
        .output()
        .unwrap()
}

fn works(flags: &[&str]) {
    let output = init(flags);
    assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn redirects(backend: &str, rules: &str) {
    let network = Network::new();
    let flags = [
        backend,
        "--exclude-inbound-ports=15020,15021,15090,22",
        "--exclude-outbound-ports=3306",
        "--exclude-outbound-ranges=10.98.0.0/16",
    ];
    works(&flags);
    let once = sh(rules);
    works(&flags);
    assert_eq!(sh(rules), once, "twice is once");

    const APP: u32 = 1000;
    const PROXY: u32 = 1337;
    for (user, group, host, port, expected) in [
        // The application calls others.
        (APP, APP, "10.99.0.2", 80, "outbound 10.99.0.2:80"),
        (APP, APP, "10.1.2.3", 443, "outbound 10.1.2.3:443"),
        (APP, APP, "fd99::2", 80, "outbound [fd99::2]:80"),
        (APP, APP, "fd00::7", 443, "outbound [fd00::7]:443"),
        (0, 0, "10.1.2.3", 443, "outbound 10.1.2.3:443"),
        // Exclusions, and DNS.
        (APP, APP, "10.99.0.2", 3306, "refused"),
        (APP, APP, "fd99::2", 3306, "refused"),
        (APP, APP, "10.98.0.2", 80, "refused"),
        (APP, APP, "10.99.0.2", 53, "refused"),
        // The sidecar calls others, by its user or its group.
        (PROXY, PROXY, "10.99.0.2", 80, "refused"),
        (PROXY, APP, "10.99.0.2", 80, "refused"),
        (APP, PROXY, "10.99.0.2", 80, "refused"),
        (PROXY, PROXY, "fd99::2", 80, "refused"),
        // The application calls itself.
        (APP, APP, "127.0.0.1", 8080, "app -"),
        (APP, APP, "::1", 8080, "app -"),
        (APP, APP, "10.99.0.1", 8080, "app -"),
        (APP, APP, "fd99::1", 8080, "app -"),
        // By way of its service: the sidecar calls the pod's address, like any other pod.
        (PROXY, PROXY, "10.99.0.1", 8080, "inbound 10.99.0.1:8080"),
        (PROXY, PROXY, "fd99::1", 8080, "inbound [fd99::1]:8080"),
        (PROXY, APP, "10.99.0.1", 8080, "inbound 10.99.0.1:8080"),
        (APP, PROXY, "10.99.0.1", 8080, "inbound 10.99.0.1:8080"),
        (PROXY, PROXY, "10.99.0.1", 22, "excluded -"),
        (PROXY, PROXY, "127.0.0.1", 8080, "app -"),
        (PROXY, PROXY, "::1", 8080, "app -"),
    ] {
        assert_eq!(calls(user, group, host, port), expected, "{user}:{group} to {host} {port}");
    }
    // The sidecar hands a connection to the application.
    for (from, to) in [("127.0.0.6", "10.99.0.1"), ("::1", "[fd99::1]")] {
        let handover = format!(
            "setpriv --reuid 1337 --regid 1337 --clear-groups \
             curl -s -m 10 --interface {from} telnet://{to}:8080 </dev/null"
        );
        assert_eq!(sh(&handover), "app -");
    }
    for (host, port, expected) in [
        ("10.99.0.1", 8080, "inbound 10.99.0.1:8080"),
        ("fd99::1", 8080, "inbound [fd99::1]:8080"),
        ("10.99.0.1", 9999, "inbound 10.99.0.1:9999"),
        ("10.99.0.1", 15001, "inbound 10.99.0.1:15001"),
        ("10.99.0.1", 15021, "status -"),
        ("fd99::1", 15021, "status -"),
        ("10.99.0.1", 22, "excluded -"),
    ] {
        assert_eq!(network.called(host, port).trim(), expected, "the peer to {host} {port}");
    }

    // Another wish replaces the first whole.
    works(&[backend, "--include-inbound-ports=9999", "--include-outbound-ranges=10.98.0.0/16,fd98::/16"]);
    assert_eq!(network.called("10.99.0.1", 8080).trim(), "app -");
    assert_eq!(network.called("10.99.0.1", 9999).trim(), "inbound 10.99.0.1:9999");
    assert_eq!(calls(APP, APP, "10.98.0.2", 80), "outbound 10.98.0.2:80");
    assert_eq!(calls(APP, APP, "10.99.0.2", 80), "refused");
    assert_eq!(calls(APP, APP, "fd98::2", 80), "outbound [fd98::2]:80");

    works(&[backend, "--cleanup"]);
    assert!(!sh(rules).to_lowercase().contains("mesh"), "{}", sh(rules));
    assert_eq!(network.called("10.99.0.1", 8080).trim(), "app -");
    assert_eq!(calls(APP, APP, "10.99.0.2", 80), "refused");
    works(&[backend, "--cleanup"]);
}

#[test]
#[ignore = "needs nft, ip, setpriv and curl"]
fn nftables_redirects_a_pod() {
    in_a_network_of_its_own("interception::nftables_redirects_a_pod", || {
        redirects("--backend=nftables", "nft list ruleset")
    });
}

#[test]
#[ignore = "needs iptables, ip, setpriv and curl"]
fn iptables_redirects_a_pod() {
    in_a_network_of_its_own("interception::iptables_redirects_a_pod", || {
        redirects("--backend=iptables", "iptables -t nat -S; ip6tables -t nat -S");
    });
}

#[test]
#[ignore = "needs nft and setpriv"]
fn the_rules_of_others_stay() {
    in_a_network_of_its_own("interception::the_rules_of_others_stay", || {
        sh("nft add table ip others");
        works(&[]);
        works(&["--cleanup"]);
        assert_eq!(sh("nft list tables").lines().filter(|l| l.contains("others")).count(), 1);
        assert!(!sh("nft list ruleset").contains("mesh"));
    });
}

/// Whoever comes straight to a listener was going nowhere else, in both families.
#[test]
fn a_connection_that_was_not_redirected_has_no_other_destination() {
    for bound in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let listener = TcpListener::bind(bound).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = if bound.starts_with("[::1]") { "[::1]" } else { "127.0.0.1" };
        let _caller = TcpStream::connect(format!("{host}:{port}")).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(original_destination(&accepted).unwrap(), None, "{bound}");
    }
}

#[test]
fn without_the_right_or_the_program_it_says_what_to_do() {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let program = env!("CARGO_BIN_EXE_mesh-proxy");
    let (code, complaint, _) = if is_root() {
        // The directory of the build may be root's alone; the capability is what counts.
        run(Command::new("setpriv").args(["--bounding-set=-net_admin", "--inh-caps=-all", program, "init"]))
    } else {
        run(Command::new(program).arg("init"))
    };
    assert_eq!(code, Some(1));
    assert!(complaint.starts_with("mesh-proxy: the capability NET_ADMIN is missing: add it"), "{complaint}");

    let (code, _, rules) = run(Command::new(program).args(["init", "--dry-run"]).env("PATH", "/nowhere"));
    assert_eq!(code, Some(0));
    assert!(rules.starts_with("# IPv4\ntable ip mesh_proxy\n"), "{rules}");
    let (code, _, rules) =
        run(Command::new(program).args(["init", "--dry-run", "--cleanup", "--backend=iptables"]));
    assert_eq!(code, Some(0));
    assert!(rules.contains("-D OUTPUT -p tcp -j MESH_OUTPUT\n"), "{rules}");

    if is_root() {
        // No program, no change: this cannot reach the machine's network.
        let (code, complaint, _) = run(Command::new(program).arg("init").env("PATH", "/nowhere"));
        assert_eq!(code, Some(1));
        assert!(complaint.contains("neither nft nor iptables-restore is to be found in PATH"), "{complaint}");
    }
}
