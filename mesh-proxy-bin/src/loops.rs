//! Connections that must not be followed, because the sidecar would call itself.

use std::net::SocketAddr;

use crate::original::original_destination;

/// The ports on which redirected connections arrive: nothing may be going to them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loops(pub(crate) [u16; 2]);

impl Loops {
    /// Where a redirected connection was going.
    ///
    /// # Errors
    /// A short word for why it must not be followed: the sidecar would call itself, again and again.
    pub(crate) fn original<S: std::os::fd::AsFd>(self, socket: &S) -> Result<SocketAddr, &'static str> {
        match original_destination(socket) {
            Ok(Some(original)) if self.0.contains(&original.port()) => Err("loop"),
            Ok(Some(original)) => Ok(original),
            Ok(None) => Err("not_redirected"),
            Err(_) => Err("no_original_destination"),
        }
    }
}
