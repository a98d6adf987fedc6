//! The messages and services as they are on the wire, made from the files in `proto/`.

#![expect(clippy::allow_attributes, reason = "generated")]

/// Discovery: `envoy.service.discovery.v3`.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Certificates: `istio.v1.auth`.
pub mod certificate {
    tonic::include_proto!("istio.v1.auth");
}

/// What travels: `mesh.xds.v1`.
pub mod mesh {
    tonic::include_proto!("mesh.xds.v1");
}
