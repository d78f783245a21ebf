//! Files by HTTP: GET and HEAD of what is offered, and nothing else.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri, header};
use identity::ServeLimits;
use tokio::net::TcpListener;

use super::offer::Offer;

async fn answer(State(offer): State<Arc<Offer>>, uri: Uri) -> Response {
    match offer.find(uri.path()) {
        // Firmware takes a file for an executable by its kind.
        Some(file) => ([(header::CONTENT_TYPE, "application/efi")], file).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn serve(listener: TcpListener, offer: Arc<Offer>) {
    let router = Router::new().fallback(axum::routing::get(answer)).with_state(offer);
    identity::serve_http(listener, router, ServeLimits::default(), std::future::pending()).await;
}
