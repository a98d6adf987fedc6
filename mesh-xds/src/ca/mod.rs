//! The certificate service: Istio's, so that other issuers and other proxies fit.
//!
//! A workload sends a certificate request with its token and gets a chain back. [`request_certificate`] is
//! the asking side, [`Certificates`] the answering one around an [`Issuer`], and [`renewal`] says when to ask
//! again.

mod client;
pub mod renewal;
mod server;

pub use client::{CertificateRequest, MAX_CHAIN_BYTES, RequestError, request_certificate};
pub use server::{
    CertificateLimits, CertificateService, Certificates, IssueError, IssueRequest, Issuer, Token,
};
