//! What the controller logs: to standard error, coloured on a terminal only.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging at `directives` (a level, or `info,mesh_xds=debug`).
pub(crate) fn start(directives: &str) -> anyhow::Result<()> {
    let output = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true);
    tracing_subscriber::registry()
        .with(parse(directives)?)
        .with(output)
        .try_init()
        .context("logging was started twice")
}

fn parse(directives: &str) -> anyhow::Result<EnvFilter> {
    // The workspace's crates are published under longer names than people should have to type.
    let long = directives.replace("mesh_", "tower_mesh_").replace("tower_tower_", "tower_");
    let long = long.replace("tower_mesh_controller", "mesh_controller");
    EnvFilter::builder()
        .parse(&long)
        .with_context(|| format!("{directives:?} is no log level; use off, error, warn, info, debug, trace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives() {
        for good in ["info", "off", "debug,mesh_xds=trace", "tower_mesh_xds=info,mesh_controller=debug"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        assert_eq!(parse("mesh_xds=trace").unwrap().to_string(), "tower_mesh_xds=trace");
        assert!(format!("{:#}", parse("loud=noise").unwrap_err()).contains("off, error, warn"));
    }
}
