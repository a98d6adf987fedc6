//! Why an identity cannot be used, said with the file and the times that matter.

use std::time::SystemTime;

use mesh_core::identity::InvalidIdentity;

use crate::clock::utc;

/// Why a certificate names no workload of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// The bytes are no X.509 certificate.
    #[error("it is no X.509 certificate: {0}")]
    Malformed(String),
    /// No URI among the subject alternative names.
    #[error(
        "it has no URI SAN: a workload's certificate carries exactly one, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
    )]
    NoUri,
    /// Several URIs: which one would a policy mean?
    #[error("it has {0} URI SANs: a workload's certificate carries exactly one")]
    SeveralUris(usize),
    /// The URI is no SPIFFE ID.
    #[error(transparent)]
    NotSpiffe(#[from] InvalidIdentity),
    /// The SPIFFE ID has no path: it names a trust domain, which cannot speak.
    #[error("its SPIFFE ID names a whole trust domain, not a workload")]
    NoWorkload,
    /// The certificate may sign others (key usage `keyCertSign` or `cRLSign`), which no workload's may.
    #[error("its key may sign certificates: a workload's must not (key usage)")]
    Signing,
    /// One certificate is larger than [`MAX_CERTIFICATE`](crate::MAX_CERTIFICATE).
    #[error("it has {0} bytes, more than {max}", max = crate::MAX_CERTIFICATE)]
    TooLarge(usize),
    /// More certificates than [`MAX_CHAIN`](crate::MAX_CHAIN).
    #[error("its chain has {0} certificates, more than {max}", max = crate::MAX_CHAIN)]
    ChainTooLong(usize),
    /// No roots are known for the trust domain that it names.
    #[error("no trust bundle is known for its trust domain {0:?}")]
    UnknownTrustDomain(String),
}

/// Why certificate, key and bundle cannot be put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system says.
        reason: String,
    },
    /// The file cannot be written.
    #[error("{file}: cannot be written: {reason}")]
    Unwritable {
        /// The file.
        file: String,
        /// What the system says.
        reason: String,
    },
    /// The file does not hold what it should.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The leaf names no workload.
    #[error("{file}: {error}")]
    Leaf {
        /// The file.
        file: String,
        /// What is wrong.
        error: LeafError,
    },
    /// The key belongs to another certificate.
    #[error(
        "{key_file}: the private key does not match the certificate in {cert_file}: replace both together"
    )]
    KeyMismatch {
        /// The key's file.
        key_file: String,
        /// The certificate's file.
        cert_file: String,
    },
    /// The certificate's time is over.
    #[error("{file}: the certificate expired at {}, and it is {}", utc(*.not_after), utc(*.now))]
    Expired {
        /// The file.
        file: String,
        /// Until when it was valid.
        not_after: SystemTime,
        /// What time it was.
        now: SystemTime,
    },
    /// The certificate's time has not come.
    #[error("{file}: the certificate is valid from {} on, and it is {}: compare the clocks", utc(*.not_before), utc(*.now))]
    NotYetValid {
        /// The file.
        file: String,
        /// From when on it is valid.
        not_before: SystemTime,
        /// What time it was.
        now: SystemTime,
    },
    /// The certificate is for somebody else.
    #[error(
        "the issued certificate is for {found}, and not for {expected}; compare the token's service account with the workload's"
    )]
    Stranger {
        /// Who it should be for.
        expected: String,
        /// Who it is for.
        found: String,
    },
    /// The chain does not lead to the bundle.
    #[error("{file}: the certificate's chain does not lead to a root in {bundle_file}: {reason}")]
    Untrusted {
        /// The certificate's file.
        file: String,
        /// The bundle's file.
        bundle_file: String,
        /// What verification says.
        reason: String,
    },
    /// The TLS library refuses it.
    #[error("TLS cannot be set up with {file}: {reason}")]
    Tls {
        /// The certificate's file.
        file: String,
        /// What the library says.
        reason: String,
    },
}
