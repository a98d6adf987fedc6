//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures mesh-controller: a real API server is filled, proxies are simulated, and changes are timed from the
/// write to the last proxy's ACK.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-bench-controller", version)]
pub struct Args {
    /// The program that is measured
    #[arg(long, value_name = "FILE")]
    pub controller: PathBuf,

    /// How to reach an API server with nothing in it, with an administrator's rights
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,

    /// Which loads; several with commas
    #[arg(long, value_name = "CASES", value_delimiter = ',', default_value = "few,all")]
    pub cases: Vec<Case>,

    /// Services, each with a VirtualService
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub services: usize,

    /// Pods behind each service
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub endpoints: usize,

    /// Proxies in the case `few`
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub few_proxies: usize,

    /// Services that each of them uses
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub few_services: usize,

    /// Proxies in the case `all`, each of which uses all services
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub all_proxies: usize,

    /// Proxies in the case `herd`, each of which uses as many services as in `few`
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub herd_proxies: usize,

    /// Seconds for which the controller is gone in the case `herd`; several with commas
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', default_value = "0,60")]
    pub herd_away: Vec<u64>,

    /// Changes of each sort
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub changes: u16,

    /// Seconds in which proxies are warm, at most
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub patience: u64,
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Many proxies that use few services each
    Few,
    /// Proxies that use every service
    All,
    /// Proxies that lose the controller together, and come back by the sidecar's own code
    Herd,
}
