//! A running server with a user and a bucket.

use std::net::SocketAddr;
use std::sync::Arc;

use objects::simulated::SimulatedVolume;
use objects::{BucketOptions, NamedKeys, NewAccessKey, Store};
use prometheus_client::registry::Registry;
use s3_server::{S3Options, S3Server};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use units::ByteLen;

pub(crate) const BUCKET: &str = "bucket";
pub(crate) const REGION: &str = "eu-central-1";

pub(crate) struct Running {
    pub(crate) server: S3Server,
    pub(crate) store: Arc<Store>,
    pub(crate) volume: SimulatedVolume,
    pub(crate) named_keys: Arc<NamedKeys>,
    pub(crate) address: SocketAddr,
    pub(crate) key: NewAccessKey,
    pub(crate) metrics: Registry,
    pub(crate) accepting: JoinHandle<()>,
}

/// What a server of the tests is made with, where a test says nothing else.
pub(crate) fn options() -> S3Options {
    S3Options { region: REGION.to_owned(), ..S3Options::default() }
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::start_with(options()).await
    }

    pub(crate) async fn start_with(options: S3Options) -> Self {
        let server = S3Server::with_options(options).unwrap();
        let volume = SimulatedVolume::new(ByteLen(1 << 40));
        let opened = volume.clone();
        let named_keys = Arc::new(NamedKeys::default());
        let lent = Arc::clone(&named_keys);
        let (store, key) = tokio::task::spawn_blocking(move || {
            let store = Store::open_with_keys(opened, lent).unwrap();
            store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
            let key = store.create_user("tester").unwrap();
            (store, key)
        })
        .await
        .unwrap();
        let mut metrics = Registry::default();
        server.register(&mut metrics);
        server.set_store(Some(Arc::clone(&store)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server.clone();
        let accepting = tokio::spawn(async move { serving.serve(listener, None).await });
        Self { server, store, volume, named_keys, address, key, metrics, accepting }
    }

    /// What a node does when its keys are wiped.
    pub(crate) async fn seal(&self) {
        self.volume.wipe_key();
        self.server.set_store(None);
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    }

    /// What a node does when the key is pushed again.
    pub(crate) async fn unseal(&mut self) {
        self.volume = self.volume.unlocked_again();
        let volume = self.volume.clone();
        let lent = Arc::clone(&self.named_keys);
        let open = move || Store::open_with_keys(volume, lent).unwrap();
        self.store = tokio::task::spawn_blocking(open).await.unwrap();
        self.server.set_store(Some(Arc::clone(&self.store)));
    }

    pub(crate) fn metrics_text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        text
    }
}
