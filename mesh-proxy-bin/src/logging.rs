//! What the proxy itself logs: to standard error, coloured on a terminal only, its level changeable while
//! running.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes what is logged.
#[derive(Clone, Debug)]
pub(crate) struct LogControl(reload::Handle<EnvFilter, Registry>);

/// Starts logging at `directives` (a level, or `info,mesh_route=debug`).
pub(crate) fn start(directives: &str) -> anyhow::Result<LogControl> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    let output = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true);
    tracing_subscriber::registry()
        .with(filter)
        .with(output)
        .try_init()
        .context("logging was started twice")?;
    Ok(LogControl(handle))
}

fn parse(directives: &str) -> anyhow::Result<EnvFilter> {
    // The workspace's crates are published under longer names than people should have to type.
    let long = directives.replace("mesh_", "tower_mesh_").replace("tower_tower_", "tower_");
    let long = long.replace("tower_mesh_proxy", "mesh_proxy");
    EnvFilter::builder()
        .parse(&long)
        .with_context(|| format!("{directives:?} is no log level; use off, error, warn, info, debug, trace"))
}

impl LogControl {
    /// Logs at `directives` from now on.
    pub(crate) fn set(&self, directives: &str) -> anyhow::Result<()> {
        self.0.reload(parse(directives)?).context("logging has ended")
    }

    /// What is logged now.
    pub(crate) fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives() {
        for good in ["info", "off", "debug,mesh_route=trace", "tower_mesh_route=info,mesh_proxy=debug"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        assert_eq!(parse("mesh_route=trace").unwrap().to_string(), "tower_mesh_route=trace");
        assert!(format!("{:#}", parse("loud=noise").unwrap_err()).contains("off, error, warn"));
    }
}
