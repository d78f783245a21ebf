//! Our server in a process of its own: a pool in a file, a volume with a lent key, the object store and the S3 head over it, on
//! a runtime made as the node makes its own.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use device::{Device, FileDevice, OpenOptions};
use keyring::Integrity;
use keyring::simulated::Keyholder;
use objects::Store;
use pool::{CreateOptions, Pool, VolumeKind, VolumeSpec};
use s3_server::S3Server;
use sealing::Volume;
use tokio::net::TcpListener;
use units::{ByteLen, DomainId, VolumeEpoch, VolumeId};

use crate::servers::{Ready, USER};

/// First argument of the process that serves.
pub(crate) const SERVE: &str = "serve";

const POOL_BYTES: u64 = 12 << 30;

/// Serves until killed; `ready.json` in `folder` says where, and with which access key.
pub(crate) fn serve(folder: &Path) -> Result<()> {
    let options = OpenOptions { create_len: Some(ByteLen(POOL_BYTES)), ..OpenOptions::default() };
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(&folder.join("pool.img"), options)?);
    let pool = Pool::create(device, CreateOptions::default())?;
    let (id, domain, epoch) = (VolumeId([7; 16]), DomainId([9; 16]), VolumeEpoch(1));
    let keyholder = Keyholder::new(domain, epoch).promising(Integrity::Tagged);
    let sectors = ByteLen(POOL_BYTES).whole_sectors();
    let check = keyholder.check();
    pool.create_volume(VolumeSpec { id, sectors, domain, epoch, check, kind: VolumeKind::Objects })?;
    let keyring = keyring::simulated::keyring();
    let key = keyholder.push(&keyring)?.handle;
    let store = Store::open(Volume::open(pool.volume(id)?, keyring, key))?;
    let user = store.create_user(USER)?;
    let server = S3Server::new(crate::servers::REGION);
    server.set_store(Some(store));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let access = (user.id.clone(), user.secret.expose().to_owned());
        Ready { port: listener.local_addr()?.port(), access }.write(folder)?;
        server.serve(listener, None).await;
        Ok(())
    })
}
