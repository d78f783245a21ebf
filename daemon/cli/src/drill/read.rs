//! Reading what a drill opened: every allocated block, every object, by the protocols that clients use.

use std::path::Path;
use std::time::Duration;

use admin::api::{Bucket, CreateUser, CreatedAccessKey, VolumeAccess};
use indicatif::ProgressBar;
use keyholder::api::{DrilledVolume, VolumeKind};
use lease::limits::NAMED_KEY_BYTES;
use md5::{Digest, Md5};
use nbd_server::client::{Client, ClientError, Endpoint};
use units::VolumeId;

use crate::connect::Ask;
use crate::drill::file_system::{self, Found};
use crate::drill::site::{Opened, REGION, Site};
use crate::failure::{Done, Failure};
use crate::loopback::at;
use crate::output::Output;
use crate::s3::{Listed, S3, has_url};

/// Read at once.
const PIECE: u64 = 4 << 20;

/// Looked at for allocation at once: the most that one request of the protocol may name.
const SPAN: u64 = 1 << 30;

/// What `--quick` reads of each volume and of each bucket.
const QUICK_BYTES: u64 = 64 << 20;

/// A busy machine is no failed drill.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The drill's S3 user, on the copy.
const USER: &str = "nightlatch-drill";

/// What was read of a volume.
#[derive(Default)]
struct Read {
    bytes: u64,
    objects: Option<u64>,
    file_system: Option<String>,
}

/// Reads one volume. What goes wrong with it is in the answer.
pub(super) async fn volume(site: &Site, opened: Opened, quick: bool, output: Output) -> Done<DrilledVolume> {
    let label = opened.volume.label;
    let mut read = Read::default();
    let error = match (opened.failure, opened.volume.kind) {
        (Some(failure), _) => Some(failure),
        (None, VolumeKind::Block) => {
            let bar = output.progress(opened.volume.size_bytes, &label);
            open_to_all(site, opened.volume.volume).await?;
            let result = blocks(&site.nbd_socket(), &label, quick, bar.clone(), &mut read).await;
            bar.finish();
            match result {
                Ok(()) => file_system(site, &label, &mut read).await,
                Err(error) => Some(error.to_string()),
            }
        }
        // A named key holds nothing: what it encrypts is read with the store's volume.
        (None, VolumeKind::Objects) if opened.volume.size_bytes == NAMED_KEY_BYTES => None,
        (None, VolumeKind::Objects) => {
            let bar = output.progress(0, &label);
            read.objects = Some(0);
            let result = objects(site, quick, &bar, &mut read).await;
            bar.finish();
            result.err().map(|error| error.to_string())
        }
    };
    let Read { bytes: bytes_read, objects: objects_read, file_system } = read;
    Ok(DrilledVolume { label, bytes_read, objects_read, file_system, error })
}

/// Lets the drill read a disk of its own node, which knows of no client that may: its head is a socket in the drill's directory.
async fn open_to_all(site: &Site, volume: VolumeId) -> Done {
    let node = site.node_client(Ask::Operate).await?;
    let _: VolumeAccess =
        node.post(&format!("/v1/volumes/{volume}/access"), &VolumeAccess::default()).await?;
    Ok(())
}

/// Has a disk's file system checked: what is wrong with it, if anything.
async fn file_system(site: &Site, label: &str, read: &mut Read) -> Option<String> {
    let (socket, dir, of) = (site.nbd_socket(), site.dir().to_path_buf(), label.to_owned());
    let checked = tokio::task::spawn_blocking(move || file_system::check(&socket, &of, &dir)).await;
    match checked {
        Ok(Ok(Found::None)) => None,
        Ok(Ok(Found::Sound(how) | Found::Unchecked(how))) => {
            read.file_system = Some(how);
            None
        }
        Ok(Ok(Found::Broken(how))) => Some(how),
        // It was read; that it could not be checked here is no fault of its.
        Ok(Err(failure)) => {
            read.file_system = Some(format!("not checked: {failure}"));
            None
        }
        Err(error) => Some(format!("the check of its file system failed: {error}")),
    }
}

/// Reads what is allocated of a block volume; holes are passed over.
async fn blocks(socket: &Path, label: &str, quick: bool, bar: ProgressBar, read: &mut Read) -> Done {
    let endpoint = Endpoint::unix(socket).with_timeout(TIMEOUT);
    let label = label.to_owned();
    let limit = if quick { QUICK_BYTES } else { u64::MAX };
    let work = move || -> Result<u64, ClientError> {
        let mut client = Client::connect(&endpoint, &label)?;
        let len = client.info().len_bytes;
        let (mut at, mut done) = (0, 0);
        let mut piece = vec![0; usize::try_from(PIECE).unwrap_or(usize::MAX)];
        while at < len && done < limit {
            for extent in client.block_status(at, SPAN.min(len - at))? {
                let end = (at + extent.len_bytes).min(len);
                while !extent.hole && at < end && done < limit {
                    let count = PIECE.min(end - at);
                    let room = usize::try_from(count).unwrap_or(usize::MAX);
                    client.read(at, &mut piece[..room])?;
                    at += count;
                    done += count;
                    bar.set_position(at);
                }
                at = end;
            }
            bar.set_position(at);
        }
        client.disconnect()?;
        Ok(done)
    };
    read.bytes = match tokio::task::spawn_blocking(work).await {
        Ok(result) => {
            result.map_err(|error| Failure::local(format!("NBD: {error}"), "see the node's log"))?
        }
        Err(error) => return Err(Failure::local(format!("the NBD client failed: {error}"), "")),
    };
    Ok(())
}

/// Reads the objects of every bucket.
async fn objects(site: &Site, quick: bool, bar: &ProgressBar, read: &mut Read) -> Done {
    let node = site.node_client(Ask::Operate).await?;
    let buckets: Vec<Bucket> = node.get("/v1/buckets").await?;
    let key: CreatedAccessKey = node.post("/v1/users", &CreateUser::new(USER)).await?;
    // Of keys that a URL cannot name, which a request for them would make others of: how many, and the first.
    let mut unnamed: Option<(usize, String)> = None;
    for bucket in buckets {
        let s3 = S3::new(at(site.s3_port()), None, &bucket.name, REGION, &key)?;
        let limit = if quick { read.bytes.saturating_add(QUICK_BYTES) } else { u64::MAX };
        let mut next = None;
        loop {
            let (page, more) = s3.list(next).await?;
            bar.inc_length(page.iter().map(|listed| listed.bytes).sum());
            for listed in &page {
                if !has_url(&listed.key) {
                    let first = format!("s3://{}/{}", bucket.name, listed.key);
                    unnamed.get_or_insert((0, first)).0 += 1;
                } else if read.bytes < limit {
                    object(&s3, &bucket.name, listed, bar, read).await?;
                }
            }
            next = more;
            if next.is_none() || read.bytes >= limit {
                break;
            }
        }
    }
    match unnamed {
        None => Ok(()),
        Some((count, first)) => Err(Failure::local(
            format!(
                "{count} objects have keys that no URL names and were not read, the first of them {first}"
            ),
            "all others were read; give these other names",
        )),
    }
}

/// Reads one object: as long as its list entry says, and of its checksum where the ETag is one.
async fn object(s3: &S3, bucket: &str, listed: &Listed, bar: &ProgressBar, read: &mut Read) -> Done {
    let (mut len, mut md5) = (0_u64, Md5::new());
    s3.get(&listed.key, |data| {
        len += data.len() as u64;
        md5.update(data);
        bar.inc(data.len() as u64);
    })
    .await??;
    let differs = |what: &str| {
        let message = format!("s3://{bucket}/{} has another {what} than it was stored with", listed.key);
        Err(Failure::local(message, "the copy, or the disk it was made of, is damaged"))
    };
    if len != listed.bytes {
        return differs("length");
    }
    // An object of several parts has a dash in its ETag and no MD5 of the whole.
    if !listed.etag.contains('-') && hex::encode(md5.finalize()) != listed.etag {
        return differs("checksum");
    }
    read.bytes += len;
    *read.objects.get_or_insert(0) += 1;
    Ok(())
}
