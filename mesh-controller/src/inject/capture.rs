//! What of a pod's traffic is redirected to its sidecar: the annotations, and the arguments of
//! `mesh-proxy init` that they become.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::refusal::Refusal;
use super::settings::{INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROXY_ID, READY_PORT, STATUS_PORT};
use super::view;

const PREFIX: &str = "traffic.sidecar.istio.io/";
const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const KNOWN: [&str; 7] = [
    INCLUDE_INBOUND_PORTS,
    EXCLUDE_INBOUND_PORTS,
    INCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    INCLUDE_OUTBOUND_RANGES,
    EXCLUDE_OUTBOUND_RANGES,
    EXCLUDE_INTERFACES,
];
const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// How many ports, ranges or interfaces one list may have.
pub const MAX_ENTRIES: usize = 256;
/// The longest name of an interface: Linux' `IFNAMSIZ` without its final zero.
const MAX_INTERFACE_NAME: usize = 15;

/// A list of what is meant, or all of it (`*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection<T> {
    /// Everything.
    All,
    /// These only; none of it where the list is empty.
    Only(Vec<T>),
}

/// What of a pod's traffic is redirected. [`Default`]: everything but the sidecar's own ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The ports of the pod whose connections arrive at the sidecar.
    pub include_inbound_ports: Selection<u16>,
    /// Those whose do not, with [`STATUS_PORT`], [`READY_PORT`] and [`METRICS_PORT`] always.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports to which connections go through the sidecar whatever their address.
    pub include_outbound_ports: Vec<u16>,
    /// Ports to which connections go straight.
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses to which connections go through the sidecar.
    pub include_outbound_ranges: Selection<IpNet>,
    /// Addresses to which connections go straight.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// Network interfaces that are left alone.
    pub exclude_interfaces: Vec<String>,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            include_inbound_ports: Selection::All,
            exclude_inbound_ports: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_ranges: Selection::All,
            exclude_outbound_ranges: Vec::new(),
            exclude_interfaces: Vec::new(),
        }
    }
}

impl Capture {
    /// What the pod's annotations make of it.
    pub(crate) fn with_annotations(&self, pod: &Value) -> Result<Self, Refusal> {
        only_known(pod)?;
        match view::annotation(pod, INTERCEPTION_MODE) {
            None | Some("REDIRECT") => {}
            Some(mode) => {
                return Err(Refusal::annotation(
                    INTERCEPTION_MODE,
                    format!("{mode:?} is not supported; write REDIRECT or remove it"),
                ));
            }
        }
        let mut capture = self.clone();
        let text = |name| view::annotation(pod, name).map(|text| (name, text));
        if let Some((name, text)) = text(INCLUDE_INBOUND_PORTS) {
            capture.include_inbound_ports = selection(name, text, port)?;
        }
        if let Some((name, text)) = text(EXCLUDE_INBOUND_PORTS) {
            capture.exclude_inbound_ports = entries(name, text, port)?;
        }
        if let Some((name, text)) = text(INCLUDE_OUTBOUND_PORTS) {
            capture.include_outbound_ports = entries(name, text, port)?;
        }
        if let Some((name, text)) = text(EXCLUDE_OUTBOUND_PORTS) {
            capture.exclude_outbound_ports = entries(name, text, port)?;
        }
        if let Some((name, text)) = text(INCLUDE_OUTBOUND_RANGES) {
            capture.include_outbound_ranges = selection(name, text, range)?;
        }
        if let Some((name, text)) = text(EXCLUDE_OUTBOUND_RANGES) {
            capture.exclude_outbound_ranges = entries(name, text, range)?;
        }
        if let Some((name, text)) = text(EXCLUDE_INTERFACES) {
            capture.exclude_interfaces = entries(name, text, interface)?;
        }
        Ok(capture)
    }

    /// The arguments of `mesh-proxy` in the init container.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut excluded: Vec<u16> = [STATUS_PORT, READY_PORT, METRICS_PORT].into();
        excluded.extend(
            self.exclude_inbound_ports.iter().filter(|p| !excluded.contains(p)).copied().collect::<Vec<_>>(),
        );
        let mut arguments = vec![
            "init".to_owned(),
            format!("--outbound-port={OUTBOUND_PORT}"),
            format!("--inbound-port={INBOUND_PORT}"),
            format!("--uid={PROXY_ID}"),
            format!("--gid={PROXY_ID}"),
            format!("--exclude-inbound-ports={}", join(&excluded)),
        ];
        if let Selection::Only(ports) = &self.include_inbound_ports {
            arguments.push(format!("--include-inbound-ports={}", join(ports)));
        }
        if let Selection::Only(ranges) = &self.include_outbound_ranges {
            arguments.push(format!("--include-outbound-ranges={}", join(ranges)));
        }
        let lists = [
            ("include-outbound-ports", join(&self.include_outbound_ports)),
            ("exclude-outbound-ports", join(&self.exclude_outbound_ports)),
            ("exclude-outbound-ranges", join(&self.exclude_outbound_ranges)),
            ("exclude-interfaces", join(&self.exclude_interfaces)),
        ];
        let given = lists.iter().filter(|(_, list)| !list.is_empty());
        arguments.extend(given.map(|(flag, list)| format!("--{flag}={list}")));
        arguments
    }
}

/// A misspelt exclusion would redirect what must not be, or leave plain what must not stay so.
fn only_known(pod: &Value) -> Result<(), Refusal> {
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    for name in annotations.into_iter().flatten().map(|(name, _)| name.as_str()) {
        if !name.starts_with(PREFIX) || KNOWN.contains(&name) {
            continue;
        }
        let like = |known: &&str| (strsim::jaro_winkler(name, known) * 1e6) as u64;
        let nearest = KNOWN.into_iter().max_by_key(like).unwrap_or_default();
        return Err(Refusal::annotation(
            name,
            format!("is not supported; nearest is {nearest}; remove it or write that"),
        ));
    }
    Ok(())
}

fn selection<T>(
    name: &str,
    text: &str,
    read: fn(&str) -> Result<T, String>,
) -> Result<Selection<T>, Refusal> {
    match text.trim() {
        "*" => Ok(Selection::All),
        text => entries(name, text, read).map(Selection::Only),
    }
}

/// A list with commas; nothing is an empty list.
fn entries<T>(name: &str, text: &str, read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, Refusal> {
    let pieces = text.split(',').map(str::trim).filter(|piece| !piece.is_empty());
    let list = pieces
        .map(|piece| read(piece).map_err(|why| Refusal::annotation(name, format!("{piece:?} {why}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if list.len() > MAX_ENTRIES {
        let message = format!("has {} entries; at most {MAX_ENTRIES} are allowed", list.len());
        return Err(Refusal::annotation(name, message));
    }
    Ok(list)
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("is no port; write numbers from 1 to 65535 with commas between them".into()),
    }
}

fn range(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|e| text.parse::<IpAddr>().map(IpNet::from).map_err(|_| e));
    net.map(|net| net.trunc())
        .map_err(|_| "is no range of addresses; write such as 10.0.0.0/8 with commas between them".into())
}

fn interface(text: &str) -> Result<String, String> {
    let fits = text.len() <= MAX_INTERFACE_NAME
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !matches!(text, "." | "..");
    if fits { Ok(text.to_owned()) } else { Err("is no name of a network interface, such as eth1".into()) }
}

fn join<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(annotations: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let pod = json!({"metadata": {"annotations": annotations}});
        let capture = Capture::default().with_annotations(&pod).map_err(|e| e.to_string())?;
        // The first five are the same always.
        Ok(capture.arguments().into_iter().skip(5).collect())
    }

    #[test]
    fn annotations_become_arguments() {
        let own = "--exclude-inbound-ports=15020,15021,15090";
        for (name, value, expected) in [
            ("", "", vec![own]),
            (INCLUDE_INBOUND_PORTS, "*", vec![own]),
            (INCLUDE_INBOUND_PORTS, "", vec![own, "--include-inbound-ports="]),
            (INCLUDE_INBOUND_PORTS, "80, 443", vec![own, "--include-inbound-ports=80,443"]),
            (EXCLUDE_INBOUND_PORTS, "22,15020", vec!["--exclude-inbound-ports=15020,15021,15090,22"]),
            (INCLUDE_OUTBOUND_PORTS, "9", vec![own, "--include-outbound-ports=9"]),
            (EXCLUDE_OUTBOUND_PORTS, "3306", vec![own, "--exclude-outbound-ports=3306"]),
            (INCLUDE_OUTBOUND_RANGES, "*", vec![own]),
            (INCLUDE_OUTBOUND_RANGES, "", vec![own, "--include-outbound-ranges="]),
            (INCLUDE_OUTBOUND_RANGES, "10.1.2.3/8", vec![own, "--include-outbound-ranges=10.0.0.0/8"]),
            (
                EXCLUDE_OUTBOUND_RANGES,
                "1.2.3.4,fd00::/8",
                vec![own, "--exclude-outbound-ranges=1.2.3.4/32,fd00::/8"],
            ),
            (EXCLUDE_INTERFACES, "eth1,net0", vec![own, "--exclude-interfaces=eth1,net0"]),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap(), expected, "{name}={value}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_way_out() {
        let many = (1..=MAX_ENTRIES + 1).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
        for (name, value, said) in [
            (EXCLUDE_INBOUND_PORTS, "http", "\"http\" is no port"),
            (EXCLUDE_INBOUND_PORTS, "0", "\"0\" is no port"),
            (EXCLUDE_OUTBOUND_PORTS, "70000", "\"70000\" is no port"),
            (EXCLUDE_OUTBOUND_PORTS, &many, "has 257 entries; at most 256"),
            (EXCLUDE_OUTBOUND_RANGES, "10.0.0.0/33", "is no range of addresses"),
            (EXCLUDE_OUTBOUND_RANGES, "*", "is no range of addresses"),
            (EXCLUDE_INTERFACES, "eth0; drop", "is no name of a network interface"),
            (INTERCEPTION_MODE, "TPROXY", "\"TPROXY\" is not supported; write REDIRECT"),
            (
                "traffic.sidecar.istio.io/excludeInboundPort",
                "1",
                "nearest is traffic.sidecar.istio.io/excludeInboundPorts",
            ),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("metadata.annotations[{name}]: ")), "{error}");
            assert!(error.contains(said), "{error}");
        }
    }
}
