//! Which store is served, if any. Everything in flight belongs to one serving and ends with it.

use std::sync::{Arc, Mutex, PoisonError};

use objects::Store;
use s3s::{S3Error, S3Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::error;
use crate::known::Known;

/// One store from the push of its key to the wipe.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    pub(crate) store: Arc<Store>,
    /// Cancelled when the store is taken away.
    pub(crate) sealed: CancellationToken,
    /// What decides about its requests.
    pub(crate) known: Arc<Known>,
    /// What was asked of buckets that want to know.
    pub(crate) log: Arc<AccessLog>,
}

impl Serving {
    pub(crate) fn of(store: Arc<Store>) -> Self {
        Self { store, sealed: CancellationToken::new(), known: Arc::default(), log: Arc::default() }
    }

    /// Runs `work` where it may wait for a device.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<R, S3Error> + Send + 'static,
    ) -> S3Result<R> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            // The panic has been reported by its hook.
            Err(_) => {
                Err(S3Error::with_message(s3s::S3ErrorCode::InternalError, "the node gave up on the request"))
            }
        }
    }
}

/// Holds the serving; shared by all connections.
#[derive(Debug)]
pub(crate) struct Slot {
    serving: Mutex<Option<Serving>>,
    /// Counts how often a store was taken away.
    seals: watch::Sender<u64>,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self { serving: Mutex::new(None), seals: watch::Sender::new(0) }
    }

    pub(crate) fn set(&self, store: Option<Arc<Store>>) {
        let next = store.map(Serving::of);
        let mut slot = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *slot, next);
        drop(slot);
        if let Some(before) = before {
            before.sealed.cancel();
            self.seals.send_modify(|seals| *seals += 1);
        }
    }

    pub(crate) fn serving(&self) -> S3Result<Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(error::sealed)
    }

    pub(crate) fn seals(&self) -> watch::Receiver<u64> {
        self.seals.subscribe()
    }
}
