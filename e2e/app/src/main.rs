//! An application in a pod of the end-to-end tests. It knows nothing of a mesh: it serves HTTP and TCP, and calls
//! others by names and ports as any program does, when the control port tells it to.
//!
//! The control port is how a test gets at the client in the pod. A pod with a sidecar excludes it from redirection
//! (`traffic.sidecar.istio.io/excludeInboundPorts`), so that tests reach it whatever the mesh does.

mod client;
mod control;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use mesh_test::backend::Backend;
use mesh_test::tcp::EchoServer;
use tokio::signal::unix::{SignalKind, signal};

/// What it serves.
#[derive(Debug, Parser)]
#[command(name = "e2e-app", version)]
struct Args {
    /// Answers carry it in `x-served-by`
    #[arg(long, env = "APP_NAME", default_value = "app")]
    name: String,
    /// Ports that serve HTTP/1.1 and HTTP/2
    #[arg(long, env = "APP_HTTP", value_delimiter = ',', value_name = "PORTS")]
    http: Vec<u16>,
    /// Ports that send back each byte
    #[arg(long, env = "APP_TCP", value_delimiter = ',', value_name = "PORTS")]
    tcp: Vec<u16>,
    /// Ports that say "NAME" and a line feed first, then send back each byte
    #[arg(long, env = "APP_TCP_FIRST", value_delimiter = ',', value_name = "PORTS")]
    tcp_first: Vec<u16>,
    /// The port where it is told what to do
    #[arg(long, env = "APP_CONTROL", default_value_t = 7000, value_name = "PORT")]
    control: u16,
    /// How many seconds it goes on serving after SIGTERM
    #[arg(long, env = "APP_LINGER", default_value_t = 0, value_name = "SECONDS")]
    linger: u64,
    /// Ends by itself after so many seconds, as the container of a Job does
    #[arg(long, env = "APP_LIFETIME", value_name = "SECONDS")]
    lifetime: Option<u64>,
    /// Calls this address once when it starts, before it serves anything, and ends with 1 when that fails
    #[arg(long, env = "APP_CALL_FIRST", value_name = "URL")]
    call_first: Option<String>,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let args = Args::parse();
    if let Some(url) = &args.call_first {
        let outcome = client::call(&client::Order::get(url)).await;
        println!("{}", serde_json::json!({ "call_first": outcome }));
        if !outcome.is_good() {
            return std::process::ExitCode::FAILURE;
        }
    }
    serve(args).await;
    std::process::ExitCode::SUCCESS
}

async fn serve(args: Args) {
    let mut backends = Vec::new();
    for port in &args.http {
        backends.push(Backend::bind(&args.name, any(*port)).await);
    }
    let mut echoes = Vec::new();
    for port in &args.tcp {
        echoes.push(EchoServer::with_banner(any(*port), "").await);
    }
    for port in &args.tcp_first {
        echoes.push(EchoServer::with_banner(any(*port), &format!("{}\n", args.name)).await);
    }
    let backends = Arc::new(backends);
    let control = tokio::spawn(control::serve(any(args.control), Arc::clone(&backends)));
    println!("{} serves", args.name);
    until_told(args.lifetime.map(Duration::from_secs)).await;
    tokio::time::sleep(Duration::from_secs(args.linger)).await;
    control.abort();
    let _ = control.await;
    // The control port held the other half; it is gone.
    for backend in Arc::into_inner(backends).unwrap_or_default() {
        backend.stop_graceful().await;
    }
}

/// IPv6 and, as Linux does by default, IPv4.
fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

async fn until_told(lifetime: Option<Duration>) {
    let told = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    match lifetime {
        Some(lifetime) => drop(tokio::time::timeout(lifetime, told).await),
        None => told.await,
    }
}
