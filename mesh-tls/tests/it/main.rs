//! The crate against real sockets, real handshakes and real files.

mod accept;
mod certificates;
mod files;
mod interop;
mod mtls;
mod support;
