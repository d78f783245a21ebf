//! Carries a request out on a volume. Runs on a thread that may wait for a device.

use sealing::{Durability, ErrorKind, Presence, VolumeError, ZeroMode};
use units::{ByteLen, ByteOffset};

use crate::context::Context;
use crate::exports::LiveExport;
use crate::limits::{
    STATUS_BYTES_MAX, STATUS_DESCRIPTORS_MAX, STATUS_RUNS_FEW, STATUS_RUNS_MAX, STATUS_WINDOW_BYTES_MAX,
    STATUS_WINDOW_BYTES_MIN,
};
use crate::reply::{Outcome, Status, StatusRun};
use crate::request::{Range, Refusal, Request};
use crate::wire::{Errno, allocation, dirty};

/// Carries out `request`; `payload` is the data of a write and empty otherwise.
pub(crate) fn execute(
    export: &LiveExport,
    request: &Request,
    payload: &[u8],
) -> Result<Outcome, VolumeError> {
    let volume = &export.volume;
    match *request {
        Request::Read { range } => {
            // At most PAYLOAD_BYTES_MAX, which fits.
            let mut data = export.buffers.take(usize::try_from(range.len.0).unwrap_or(0));
            if range.len.0 > 0 {
                volume.read(range.offset, data.as_mut_bytes())?;
            }
            return Ok(Outcome::Data(data));
        }
        Request::BlockStatus { range, one, ref contexts } => {
            let descriptors_max = if one { 1 } else { STATUS_DESCRIPTORS_MAX / contexts.len().max(1) };
            let runs_max = STATUS_RUNS_MAX / contexts.len().max(1);
            let status = |&(id, context): &(u32, Context)| {
                let states = |at, len| states(export, context, at, len);
                let runs = block_status(range, (descriptors_max, runs_max), states)?;
                Ok(Status { id, runs })
            };
            return contexts.iter().map(status).collect::<Result<_, _>>().map(Outcome::Status);
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
pub(crate) fn refusal_of(error: &VolumeError, request: &Request) -> Option<Refusal> {
    let (errno, message) = match (error.kind(), request) {
        (ErrorKind::KeyGone, _) => return None,
        (ErrorKind::OutOfRange, Request::Write { .. } | Request::WriteZeroes { .. }) => {
            (Errno::NoSpace, "past the end of the volume, which has been resized")
        }
        (ErrorKind::OutOfRange, _) => (Errno::Invalid, "past the end of the volume, which has been resized"),
        (ErrorKind::NoSuchSnapshot, _) => {
            (Errno::Invalid, "the snapshot of that context has been deleted: compare with another")
        }
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

/// Runs of equal state from the start of `range`, at most `descriptors_max`, put together from hardly more than `runs_max`; perhaps not
/// to its end. `states` says what there is, step by step.
fn block_status<E>(
    range: Range,
    (descriptors_max, runs_max): (usize, usize),
    mut states: impl FnMut(ByteOffset, ByteLen) -> Result<Vec<(ByteLen, u32)>, E>,
) -> Result<Vec<StatusRun>, E> {
    let mut runs: Vec<StatusRun> = Vec::new();
    let mut covered: u64 = 0;
    let mut looked_at = 0;
    let mut step = STATUS_WINDOW_BYTES_MIN;
    let wanted = range.len.0.min(STATUS_BYTES_MAX);
    'windows: while covered < wanted && looked_at < runs_max {
        let window = ByteLen((wanted - covered).min(step));
        let found = states(ByteOffset(range.offset.0 + covered), window)?;
        looked_at += found.len();
        step = match found.len() <= STATUS_RUNS_FEW {
            true => (step * 2).min(STATUS_WINDOW_BYTES_MAX),
            false => STATUS_WINDOW_BYTES_MIN,
        };
        for (ByteLen(len_bytes), flags) in found {
            let full = runs.len() == descriptors_max;
            match runs.last_mut() {
                Some(run) if run.flags == flags => run.len_bytes += len_bytes,
                _ if full => break 'windows,
                _ => runs.push(StatusRun { len_bytes, flags }),
            }
        }
        covered += window.0;
    }
    Ok(runs)
}

/// What the volume says of a range, in the context's own flags.
fn states(
    export: &LiveExport,
    context: Context,
    at: ByteOffset,
    len: ByteLen,
) -> Result<Vec<(ByteLen, u32)>, VolumeError> {
    let flags_of = |set: bool, flags: u32| if set { flags } else { 0 };
    match context {
        Context::Allocation => {
            let runs = export.volume.status(at, len)?.into_iter();
            let flags = |presence| flags_of(presence == Presence::Hole, allocation::HOLE | allocation::ZERO);
            Ok(runs.map(|(len, presence)| (len, flags(presence))).collect())
        }
        Context::Dirty(since) => {
            let runs = export.volume.changes_since(&export.snapshots, since, at, len)?.into_iter();
            Ok(runs.map(|(len, changed)| (len, flags_of(changed, dirty::DIRTY))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const SECTOR: u64 = 4096;

    /// What a status of `len` bytes is, in steps that `states` answers; with how many runs it was put together from.
    fn status(
        len: u64,
        descriptors_max: usize,
        states: impl Fn(u64, u64) -> Vec<(ByteLen, u32)>,
    ) -> (Vec<StatusRun>, usize) {
        let mut looked_at = 0;
        let range = Range { offset: ByteOffset(0), len: ByteLen(len) };
        let runs = block_status(range, (descriptors_max, STATUS_RUNS_MAX), |at, len| {
            let found = states(at.0, len.0);
            looked_at += found.len();
            Ok::<_, VolumeError>(found)
        });
        (runs.unwrap(), looked_at)
    }

    /// The most that a step gives.
    const STEP_RUNS: usize = (STATUS_WINDOW_BYTES_MAX / SECTOR) as usize;

    #[test]
    fn a_volume_in_pieces_costs_no_more_than_the_limit_whatever_the_pieces_say() {
        let sectors = |len: u64, flags: fn(u64) -> u32| {
            (0..len / SECTOR).map(|sector| (ByteLen(SECTOR), flags(sector))).collect::<Vec<_>>()
        };
        // All of the same state: one descriptor, however long it takes to find out.
        let (runs, looked_at) =
            status(STATUS_BYTES_MAX, STATUS_DESCRIPTORS_MAX, |_, len| sectors(len, |_| 0));
        assert_eq!(runs.len(), 1);
        assert!(looked_at < STATUS_RUNS_MAX + STEP_RUNS, "{looked_at}");
        assert_eq!(runs[0].len_bytes, looked_at as u64 * SECTOR, "it says of what it looked at");
        // Alternating: the descriptors are the limit.
        let alternating = |_, len| sectors(len, |sector| u32::try_from(sector % 2).unwrap());
        let (runs, looked_at) = status(STATUS_BYTES_MAX, STATUS_DESCRIPTORS_MAX, alternating);
        assert_eq!(runs.len(), STATUS_DESCRIPTORS_MAX);
        assert!(looked_at <= 2 * STATUS_DESCRIPTORS_MAX, "{looked_at}");
    }

    #[test]
    fn a_volume_in_one_piece_is_looked_at_to_its_end_in_few_steps() {
        let steps = std::cell::Cell::new(0);
        let (runs, _) = status(STATUS_BYTES_MAX, STATUS_DESCRIPTORS_MAX, |_, len| {
            steps.set(steps.get() + 1);
            vec![(ByteLen(len), 3)]
        });
        assert_eq!((runs.len(), runs[0].len_bytes), (1, STATUS_BYTES_MAX));
        assert!(steps.get() <= STATUS_BYTES_MAX / GIB + 5, "{}", steps.get());
    }
}
