//! PEM files by name, so that each complaint names the file that it is about.

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::MaterialError;

/// The largest PEM file that is read, in bytes: a bundle of several hundred roots.
pub const MAX_PEM: usize = 1024 * 1024;

/// The text of a PEM file and the name under which complaints tell of it.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

impl std::fmt::Debug for Pem<'_> {
    /// Tells the name only: the text may be a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> Pem<'a> {
    /// `name` is the file's path, or whatever a person should look at.
    pub const fn new(name: &'a str, bytes: &'a [u8]) -> Self {
        Self { name, bytes }
    }

    /// The name.
    pub const fn name(&self) -> &'a str {
        self.name
    }

    fn bad(&self, reason: impl Into<String>) -> MaterialError {
        MaterialError::Malformed { file: self.name.to_owned(), reason: reason.into() }
    }

    fn bounded(&self) -> Result<&'a [u8], MaterialError> {
        if self.bytes.len() > MAX_PEM {
            return Err(self.bad(format!("it is larger than {MAX_PEM} bytes")));
        }
        Ok(self.bytes)
    }

    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
        let certs: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(self.bounded()?).collect();
        let certs = certs.map_err(|e| self.bad(format!("it is no PEM: {e}")))?;
        if certs.is_empty() {
            return Err(self.bad("it holds no certificate (BEGIN CERTIFICATE)"));
        }
        Ok(certs)
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, MaterialError> {
        PrivateKeyDer::from_pem_slice(self.bounded()?).map_err(|e| match e {
            PemError::NoItemsFound => self.bad("it holds no private key (BEGIN PRIVATE KEY)"),
            // The text is a key: nothing of it is told.
            _ => self.bad("it is no PEM of a private key"),
        })
    }
}
