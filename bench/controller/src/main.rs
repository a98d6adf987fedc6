//! Measures `mesh-controller` with a real API server and simulated proxies. `bench/README.md` says what and how.

use clap::Parser as _;
use mesh_bench_controller::{args::Args, run::run};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(Box::pin(run(Args::parse())))
}
