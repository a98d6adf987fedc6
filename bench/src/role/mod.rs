//! The roles in which the program starts itself again.

mod backend;
mod backend_h2;
mod handshakes;
pub mod layers;
pub mod open_loop;
mod relay;
mod tcp;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use hyper::rt::Executor;
use tokio::net::{TcpListener, TcpSocket};

use crate::args::Role;
use crate::load::Found;

/// Plays a role until it is ended.
///
/// # Errors
/// When it cannot.
pub async fn run(role: Role) -> Result<()> {
    match role {
        Role::Backend { listen } => backend::run(&listen).await,
        Role::BackendH2 { listen } => backend_h2::run(&listen).await,
        Role::TcpBackend { listen } => tcp::backend(listen).await,
        Role::TcpRelay { listen, to } => tcp::relay(listen, to).await,
        Role::TcpLoad { to, tunnel, work, connections, seconds } => {
            say(&tcp::load(to, tunnel.as_deref(), work, connections, seconds).await?)
        }
        Role::OpenLoop { to, host, rate, count, connections } => {
            say(&open_loop::run(to, &host, rate, count, connections)?)
        }
        Role::Handshakes { to, ca, concurrency, seconds } => {
            say(&handshakes::run(to, &ca, concurrency, seconds).await?)
        }
        Role::Layers { listen, variant, log } => layers::run(listen, variant, &log).await,
        Role::Relay { listen, to, h2 } => relay::run(listen, to, h2).await,
    }
}

/// Tells the runner.
fn say(found: &Found) -> Result<()> {
    println!("{}", found.line());
    Ok(())
}

/// Runs hyper's tasks on the one thread that there is.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A listener that many can connect to at once.
fn listen_on(addr: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(16_384)
    };
    listen().with_context(|| addr.to_string())
}
