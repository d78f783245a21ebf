//! Carries a request out on a volume. Runs on a thread that may wait for a device.

use sealing::{Durability, ErrorKind, Presence, Volume, VolumeError, ZeroMode};
use units::{ByteLen, ByteOffset};

use crate::exports::LiveExport;
use crate::limits::{STATUS_BYTES_MAX, STATUS_DESCRIPTORS_MAX, STATUS_WINDOW_BYTES};
use crate::reply::{Outcome, StatusRun};
use crate::request::{Range, Refusal, Request};
use crate::wire::Errno;

/// Carries out `request`; `payload` is the data of a write and empty otherwise.
pub(crate) fn execute(export: &LiveExport, request: Request, payload: &[u8]) -> Result<Outcome, VolumeError> {
    let volume = &export.volume;
    match request {
        Request::Read { range } => {
            // At most PAYLOAD_BYTES_MAX, which fits.
            let mut data = export.buffers.take(usize::try_from(range.len.0).unwrap_or(0));
            if range.len.0 > 0 {
                volume.read(range.offset, data.as_mut_bytes())?;
            }
            return Ok(Outcome::Data(data));
        }
        Request::BlockStatus { range, one } => {
            let descriptors_max = if one { 1 } else { STATUS_DESCRIPTORS_MAX };
            return block_status(volume, range, descriptors_max).map(Outcome::Status);
        }
        Request::Flush => volume.flush()?,
        // Clear data is cached nowhere, so there is nothing to read ahead into.
        Request::Cache { .. } => (),
        Request::Write { range, .. } | Request::Trim { range, .. } | Request::WriteZeroes { range, .. }
            if range.len == ByteLen(0) => {}
        Request::Write { range, durable } => volume.write(range.offset, payload, durability(durable))?,
        Request::Trim { range, durable } => volume.trim(range.offset, range.len, durability(durable))?,
        Request::WriteZeroes { range, keep_allocated, durable } => {
            let mode = if keep_allocated { ZeroMode::KeepAllocated } else { ZeroMode::MayUnmap };
            volume.write_zeroes(range.offset, range.len, mode, durability(durable))?;
        }
    }
    Ok(Outcome::Done)
}

/// What a client is told of a failure; `None` where it is told nothing because the key is gone.
pub(crate) fn refusal_of(error: &VolumeError, request: Request) -> Option<Refusal> {
    let (errno, message) = match (error.kind(), request) {
        (ErrorKind::KeyGone, _) => return None,
        (ErrorKind::OutOfRange, Request::Write { .. } | Request::WriteZeroes { .. }) => {
            (Errno::NoSpace, "past the end of the volume, which has been resized")
        }
        (ErrorKind::OutOfRange, _) => (Errno::Invalid, "past the end of the volume, which has been resized"),
        (ErrorKind::NoSpace, _) => (Errno::NoSpace, "the pool is full: delete or trim something, or grow it"),
        (ErrorKind::Io, _) => (Errno::Io, "the storage node's device failed the request; see its log"),
        (ErrorKind::Failed, _) => {
            (Errno::Io, "the pool has failed and stays so until it is opened again; see the node's status")
        }
    };
    Some(Refusal { errno, message })
}

fn durability(durable: bool) -> Durability {
    if durable { Durability::Durable } else { Durability::Buffered }
}

/// Runs of equal state from the start of `range`, at most `descriptors_max`, perhaps not to its end.
fn block_status(
    volume: &Volume,
    range: Range,
    descriptors_max: usize,
) -> Result<Vec<StatusRun>, VolumeError> {
    let mut runs: Vec<StatusRun> = Vec::new();
    let mut covered: u64 = 0;
    let wanted = range.len.0.min(STATUS_BYTES_MAX);
    'windows: while covered < wanted {
        let window = ByteLen((wanted - covered).min(STATUS_WINDOW_BYTES));
        let at = ByteOffset(range.offset.0 + covered);
        for (ByteLen(len), presence) in volume.status(at, window)? {
            let hole = presence == Presence::Hole;
            let full = runs.len() == descriptors_max;
            match runs.last_mut() {
                Some(run) if run.hole == hole => run.len_bytes += len,
                _ if full => break 'windows,
                _ => runs.push(StatusRun { len_bytes: len, hole }),
            }
        }
        covered += window.0;
    }
    Ok(runs)
}
