//! Where a test tells the application what to do.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /` | 200 once everything is served |
//! | `POST /call` | one call, see `client::Order`; gives `client::Outcome` |
//! | `POST /tcp` | one TCP connection, see `client::TcpOrder` |
//! | `POST /load/NAME` | starts a load under that name |
//! | `GET /load/NAME` | its report so far |
//! | `POST /load/NAME/lap` | its report so far, and a new one begins |
//! | `DELETE /load/NAME` | ends it and gives its report |
//! | `POST /fail/STATUS` | answers every request with that status from now on; 0 ends it |
//! | `GET /served` | how many requests were served |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use mesh_test::backend::{Backend, Failing};
use mesh_test::load::Load;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::client::{self, Order, Outcome, TcpOrder, TcpOutcome};

/// Loads at once.
const MAX_LOADS: usize = 16;

type Answer = Result<Json<Value>, (StatusCode, String)>;

#[derive(Clone)]
struct Shared {
    backends: Arc<Vec<Backend>>,
    loads: Arc<Mutex<BTreeMap<String, Load>>>,
}

/// Serves until it is dropped.
pub(crate) async fn serve(addr: SocketAddr, backends: Arc<Vec<Backend>>) {
    let shared = Shared { backends, loads: Arc::default() };
    let router = Router::new()
        .route("/", get(async || "serves\n"))
        .route("/call", post(call))
        .route("/tcp", post(tcp))
        .route("/load/{name}", get(report).post(start).delete(stop))
        .route("/load/{name}/lap", post(lap))
        .route("/fail/{status}", post(fail))
        .route("/served", get(served))
        .with_state(shared);
    let served = async { axum::serve(tokio::net::TcpListener::bind(addr).await?, router).await };
    if let Err(error) = served.await {
        eprintln!("control port {addr}: {error}");
    }
}

async fn call(Json(order): Json<Order>) -> Json<Outcome> {
    Json(client::call(&order).await)
}

async fn tcp(Json(order): Json<TcpOrder>) -> Json<TcpOutcome> {
    Json(client::tcp(&order).await)
}

async fn start(State(shared): State<Shared>, Path(name): Path<String>, Json(order): Json<Order>) -> Answer {
    let load = client::load(&order).await.map_err(|e| (StatusCode::BAD_REQUEST, e))?;
    let mut loads = shared.loads.lock().await;
    if loads.len() >= MAX_LOADS || loads.contains_key(&name) {
        return Err((StatusCode::CONFLICT, format!("{name} runs, or {MAX_LOADS} others do")));
    }
    loads.insert(name, load.start());
    Ok(Json(json!({})))
}

async fn report(State(shared): State<Shared>, Path(name): Path<String>) -> Answer {
    let loads = shared.loads.lock().await;
    Ok(Json(client::report(&loads.get(&name).ok_or_else(|| no_such(&name))?.snapshot())))
}

async fn lap(State(shared): State<Shared>, Path(name): Path<String>) -> Answer {
    let loads = shared.loads.lock().await;
    Ok(Json(client::report(&loads.get(&name).ok_or_else(|| no_such(&name))?.lap())))
}

async fn stop(State(shared): State<Shared>, Path(name): Path<String>) -> Answer {
    let load = shared.loads.lock().await.remove(&name).ok_or_else(|| no_such(&name))?;
    Ok(Json(client::report(&load.stop().await)))
}

async fn fail(State(shared): State<Shared>, Path(status): Path<u16>) -> Json<Value> {
    for backend in shared.backends.iter() {
        backend.fail(if status == 0 { Failing::Not } else { Failing::Status(status) });
    }
    Json(json!({}))
}

async fn served(State(shared): State<Shared>) -> Json<Value> {
    Json(json!({ "requests": shared.backends.iter().map(Backend::requests).sum::<u64>() }))
}

fn no_such(name: &str) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("no load is named {name}"))
}
