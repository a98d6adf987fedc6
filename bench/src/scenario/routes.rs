//! Large configurations: `routes`.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Prepared, Wire, idle, plain};
use crate::load::Load;
use crate::measure::{self, BUSY, CPU, LOGGED, P50, P99, RPS, RSS, Running};
use crate::peer::Peer;
use crate::proc::rss_mib;
use crate::report::{Metric, Sample};
use crate::stage::{Ours, Stage};
use crate::template::Values;

/// What is measured.
pub const METRICS: &[Metric] = &[idle::READY, LOADED, RSS, RPS, CPU, P50, P99, BUSY, LOGGED];

/// Memory with the configuration in force and before the first call: without what connections need.
const LOADED: Metric = Metric::new("loaded_mib", "loaded MiB", 1);

/// How large a configuration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Services, each with a VirtualService.
    pub hosts: u32,
    /// Rules of each VirtualService.
    pub rules: u32,
    /// Endpoints of each service, 50,000 at most: addresses of the loopback, all of which are the one backend.
    pub endpoints: u32,
}

/// The parts of a configuration, each rendered from a file of `bench/peers/routes`.
struct Parts<'a> {
    stage: &'a Stage,
    values: Values,
    size: Size,
}

impl Parts<'_> {
    fn template(&self, name: &str) -> Result<String> {
        let path = self.stage.peer_file("routes").join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// The text of `name` for each host, with its rules and endpoints.
    fn hosts(&self, name: &str, rule: Option<&str>, endpoint: Option<&str>) -> Result<Vec<(String, String)>> {
        let text = self.template(name)?;
        let rule = rule.map(|rule| self.template(rule)).transpose()?;
        let endpoint = endpoint.map(|endpoint| self.template(endpoint)).transpose()?;
        let mut all = Vec::new();
        for host in 1..=self.size.hosts {
            let host = format!("svc-{host}");
            let mut values = self.values.clone().with("NAME", &host);
            let mut rules = String::new();
            if let Some(rule) = &rule {
                for n in 1..=self.size.rules {
                    rules.push_str(&values.clone().with("RULE", n).render(rule)?);
                }
            }
            let mut endpoints = String::new();
            if let Some(endpoint) = &endpoint {
                for n in 1..=self.size.endpoints {
                    let values = values.clone().with("ENDPOINT", n).with("ADDRESS", address(n)?);
                    endpoints.push_str(&values.render(endpoint)?);
                }
            }
            values = values.with("RULES", rules.trim_end()).with("ENDPOINTS", endpoints.trim_end());
            all.push((host, values.render(&text)?));
        }
        Ok(all)
    }

    fn joined(&self, name: &str, rule: Option<&str>, endpoint: Option<&str>) -> Result<String> {
        let mut text = String::new();
        for (_, part) in self.hosts(name, rule, endpoint)? {
            let _ = writeln!(text, "{}", part.trim_end());
        }
        Ok(text.trim_end().to_owned())
    }
}

/// The address of an endpoint, counted from 1.
fn address(endpoint: u32) -> Result<Ipv4Addr> {
    let [_, _, high, low] = endpoint.to_be_bytes();
    ensure!(endpoint <= 50_000, "too many endpoints");
    Ok(Ipv4Addr::new(127, 0, high, low))
}

/// A backend at every address of the loopback.
///
/// # Errors
/// When it cannot be started.
pub async fn prepare(stage: &Stage) -> Result<Prepared> {
    let everywhere = || SocketAddr::from((Ipv4Addr::UNSPECIFIED, mesh_test::ports::free_addr().port()));
    super::backends_at(stage, Wire::H1, [everywhere(), everywhere()]).await
}

/// Starts a peer with a configuration of this size, and measures its start and calls all over it.
///
/// # Errors
/// When it does not work, or did not all the time.
pub async fn measure(stage: &Stage, prepared: &Prepared, peer: Peer, size: Size) -> Result<Sample> {
    let listen = mesh_test::ports::free_addr();
    let values = plain::values(prepared, Wire::H1, 64)?.with("PORT", listen.port());
    let parts = Parts { stage, values: values.clone(), size };
    let (spawn, admin) = match peer {
        Peer::Ours | Peer::OursB => {
            let generated =
                parts.hosts("ours-host.yaml", Some("ours-rule.yaml"), Some("ours-endpoint.yaml"))?;
            let web = Ours {
                config: "routes",
                workload: "default/web",
                outbound: Some(listen),
                generated,
                ..Ours::default()
            };
            stage.ours_spawn(peer, &web, &values)?
        }
        Peer::Envoy => {
            let hosts = parts.joined("envoy-virtual-host.yaml", Some("envoy-rule.yaml"), None)?;
            let clusters = parts.joined("envoy-cluster.yaml", None, Some("envoy-endpoint.yaml"))?;
            let values = values.with("VIRTUAL_HOSTS", hosts).with("CLUSTERS", clusters);
            stage.envoy_spawn("routes/envoy.yaml", &values)?
        }
        _ => bail!("no part of this scenario"),
    };
    let (ready, proc) = idle::time_to_ready(spawn, admin).await?;
    tokio::time::sleep(idle::SETTLE).await;
    let loaded = rss_mib(&proc.pids())?;
    let mut running = Running::one(proc, listen);
    for host in [1, size.hosts] {
        let host = format!("svc-{host}:9080");
        let path = format!("/api/v{}/item", size.rules);
        let reply = mesh_test::client::get(listen, &host, &path).await.context("a call")?;
        ensure!(reply.status == 200, "{host}{path} answers {} instead of 200", reply.status);
        let reply = mesh_test::client::get(listen, &host, "/nowhere").await.context("a call")?;
        ensure!(reply.status == 404, "{host}/nowhere answers {} instead of 404", reply.status);
    }
    let script = stage.folder("wrk")?.join("cycle.lua");
    let values = Values::new().with("HOSTS", size.hosts).with("RULE", size.rules);
    values.render_to(&stage.peer_file("routes").join("cycle.lua"), &script)?;
    let load = Load::Wrk {
        url: format!("http://{listen}/"),
        host: "svc-1:9080".into(),
        connections: 64,
        script: Some(script),
    };
    let mut sample = measure::http(stage, &mut running, &load).await?;
    sample.insert(idle::READY.id, ready);
    sample.insert(LOADED.id, loaded);
    Ok(sample)
}
