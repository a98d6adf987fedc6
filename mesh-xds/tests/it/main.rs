//! Server and client over connections: sockets where the protocol is tested, pipes where time is.

mod certificates;
mod limits;
mod reconnect;
mod streams;
mod world;
