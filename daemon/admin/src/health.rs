//! What machines ask without a certificate: liveness, readiness, metrics. Nothing here names a volume, a bucket or a
//! user.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::control::{NodeControl, Readiness};

/// `/livez`, `/readyz` and `/metrics`. The first line of `/readyz` is `ok` or the code of what keeps clients from being served and
/// its text; a line each follows for what else somebody should know. `refresh` brings gauges up to date before they are read.
pub fn health_router<N: NodeControl>(
    node: Arc<N>,
    registry: Registry,
    refresh: impl Fn() + Send + Sync + 'static,
) -> Router {
    let metrics = Arc::new(Metrics { registry: Mutex::new(registry), refresh: Box::new(refresh) });
    Router::new()
        .route("/livez", get(livez::<N>))
        .route("/readyz", get(readyz::<N>))
        .with_state(node)
        .merge(Router::new().route("/metrics", get(render)).with_state(metrics))
}

struct Metrics {
    registry: Mutex<Registry>,
    refresh: Box<dyn Fn() + Send + Sync>,
}

async fn livez<N: NodeControl>(State(node): State<Arc<N>>) -> Response {
    if node.is_alive() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the node makes no progress; restart it\n").into_response()
    }
}

async fn readyz<N: NodeControl>(State(node): State<Arc<N>>) -> Response {
    let Readiness { refusal, notes } = node.readiness();
    let (status, mut text) = match refusal {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    };
    notes.iter().for_each(|note| text.push_str(&format!("note {note}\n")));
    (status, text).into_response()
}

async fn render(State(metrics): State<Arc<Metrics>>) -> Response {
    (metrics.refresh)();
    let mut text = String::new();
    let registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written\n").into_response(),
    }
}
