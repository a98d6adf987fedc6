//! The control plane, put together.

use std::process::ExitCode;

use crate::args::RunArgs;

pub(crate) fn run(_args: RunArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
