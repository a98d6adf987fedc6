//! Which of a pod's connections are redirected, as a function of the settings.
//!
//! The rules are Istio's in effect, so that what its users know of exclusions and of calls to oneself holds:
//!
//! - Incoming: every TCP connection arrives at the inbound port, but for excluded ports.
//! - Outgoing: every TCP connection arrives at the outbound port, but for excluded ports and ranges, what stays
//!   on the loopback interface, what the sidecar itself sends, and DNS.
//! - The sidecar's own calls to the pod's address count as incoming: a pod that calls its own service passes the
//!   inbound side like anybody else. When it hands a connection to the application, it says so by the source
//!   127.0.0.6 (or ::1), and is left alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The source from which the sidecar hands connections to the application.
pub(crate) const HANDOVER_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6, whose loopback is this one address. A call of the pod's own address has that address as
/// its source as well, unless the caller chooses another, so the two are told apart.
pub(crate) const HANDOVER_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;
/// Name servers over TCP; over UDP nothing is redirected at all.
const DNS_PORT: u16 = 53;

/// What is redirected where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) outbound_port: u16,
    pub(crate) inbound_port: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Absent means all.
    pub(crate) include_inbound_ports: Option<Vec<u16>>,
    pub(crate) exclude_inbound_ports: Vec<u16>,
    pub(crate) include_outbound_ports: Vec<u16>,
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Absent means all.
    pub(crate) include_outbound_ranges: Option<Vec<IpNet>>,
    pub(crate) exclude_outbound_ranges: Vec<IpNet>,
    pub(crate) exclude_interfaces: Vec<String>,
}

/// An IP version. Each has rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What a TCP packet has to be for a rule to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    From(String),
    To(String),
    Source(IpNet),
    Dest(IpNet),
    NotDest(IpNet),
    Port(u16),
    Uid(u32),
    Gid(u32),
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is left alone.
    Return,
    /// It goes to this port of the pod.
    Redirect(u16),
    /// The rules for what comes in decide.
    Inbound,
}

/// All of the matches, then the verdict.
pub(crate) type Rule = (Vec<Match>, Verdict);

/// The rules of one family, for TCP only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// For what comes in from outside.
    pub(crate) prerouting: Vec<Rule>,
    /// For what comes in, also from the pod itself.
    pub(crate) inbound: Vec<Rule>,
    /// For what the pod sends.
    pub(crate) output: Vec<Rule>,
}

impl Settings {
    /// The rules of one family.
    pub(crate) fn rules(&self, family: Family) -> Rules {
        Rules { prerouting: self.prerouting(), inbound: self.inbound(), output: self.output(family) }
    }

    fn prerouting(&self) -> Vec<Rule> {
        let excluded =
            self.exclude_interfaces.iter().map(|name| (vec![Match::From(name.clone())], Verdict::Return));
        excluded.chain([(Vec::new(), Verdict::Inbound)]).collect()
    }

    fn inbound(&self) -> Vec<Rule> {
        let redirect = Verdict::Redirect(self.inbound_port);
        let mut rules = ports(&self.exclude_inbound_ports, Verdict::Return);
        match &self.include_inbound_ports {
            None => rules.push((Vec::new(), redirect)),
            Some(list) => rules.extend(ports(list, redirect)),
        }
        rules
    }

    fn output(&self, family: Family) -> Vec<Rule> {
        let redirect = Verdict::Redirect(self.outbound_port);
        let lo = || Match::To("lo".into());
        let (handover, loopback) = match family {
            Family::V4 => {
                let net = Ipv4Net::new(Ipv4Addr::LOCALHOST, 8).map(|net| net.trunc());
                (IpNet::from(IpAddr::V4(HANDOVER_V4)), net.map(IpNet::V4))
            }
            Family::V6 => {
                let net = Ipv6Net::new(Ipv6Addr::LOCALHOST, 128);
                (IpNet::from(IpAddr::V6(HANDOVER_V6)), net.map(IpNet::V6))
            }
        };
        // The lengths are right; a host's own address is the smallest loopback there is.
        let loopback = loopback.unwrap_or(handover);
        let mut rules: Vec<Rule> = self
            .exclude_interfaces
            .iter()
            .map(|name| (vec![Match::To(name.clone())], Verdict::Return))
            .collect();
        rules.extend(ports(&self.exclude_outbound_ports, Verdict::Return));
        rules.push((vec![lo(), Match::Source(handover)], Verdict::Return));
        for own in [Match::Uid(self.uid), Match::Gid(self.gid)] {
            rules.push((vec![lo(), Match::NotDest(loopback), own], Verdict::Inbound));
        }
        rules.push((vec![lo()], Verdict::Return));
        rules.push((vec![Match::Uid(self.uid)], Verdict::Return));
        rules.push((vec![Match::Gid(self.gid)], Verdict::Return));
        rules.extend(ranges(&self.exclude_outbound_ranges, family, Verdict::Return));
        rules.extend(ports(&self.include_outbound_ports, redirect));
        rules.push((vec![Match::Port(DNS_PORT)], Verdict::Return));
        match &self.include_outbound_ranges {
            None => rules.push((Vec::new(), redirect)),
            Some(list) => rules.extend(ranges(list, family, redirect)),
        }
        rules
    }
}

fn ports(list: &[u16], verdict: Verdict) -> Vec<Rule> {
    let once: BTreeSet<_> = list.iter().copied().collect();
    once.into_iter().map(|port| (vec![Match::Port(port)], verdict)).collect()
}

fn ranges(list: &[IpNet], family: Family, verdict: Verdict) -> Vec<Rule> {
    let once: BTreeSet<_> = list.iter().map(IpNet::trunc).collect();
    once.into_iter()
        .filter(|net| matches!((net, family), (IpNet::V4(_), Family::V4) | (IpNet::V6(_), Family::V6)))
        .map(|net| (vec![Match::Dest(net)], verdict))
        .collect()
}
