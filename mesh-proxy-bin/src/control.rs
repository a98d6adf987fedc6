//! The flags of a sidecar that is configured by a control plane.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use mesh::ControlPlane;
use mesh::control::Address;

/// Where configuration and certificate come from, in place of a directory.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// The control plane, such as https://mesh-controller.mesh-system.svc:15012: configuration and certificate
    /// come from there
    #[arg(long, value_name = "URL", env = "MESH_CONTROLLER", requires_all = ["token", "ca_root"])]
    pub(crate) controller: Option<Address>,

    /// File with the workload's token, by which the control plane knows it; read again for each use
    #[arg(long, value_name = "FILE", env = "MESH_TOKEN")]
    token: Option<PathBuf>,

    /// File with the roots by which the control plane is known; read again for each connection
    #[arg(long, value_name = "FILE", env = "MESH_CA_ROOT")]
    ca_root: Option<PathBuf>,

    /// Directory for what a restart without control plane needs: configuration, certificate, key
    #[arg(long, value_name = "DIR", env = "MESH_STATE")]
    state: Option<PathBuf>,

    /// The workload's service account: a certificate for another is refused [default: any of its namespace]
    #[arg(long, value_name = "NAME", env = "MESH_SERVICE_ACCOUNT")]
    service_account: Option<String>,
}

impl ControlArgs {
    /// What the flags say; nothing without --controller.
    pub(crate) fn plane(&self) -> anyhow::Result<Option<ControlPlane>> {
        let Some(address) = &self.controller else { return Ok(None) };
        let token = self.token.clone().context("--controller needs --token")?;
        let ca_root = self.ca_root.clone().context("--controller needs --ca-root")?;
        Ok(Some(ControlPlane {
            state: self.state.clone(),
            service_account: self.service_account.clone(),
            ..ControlPlane::new(&address.to_string(), token, ca_root)?
        }))
    }
}
