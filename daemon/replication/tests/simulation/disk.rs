//! A node's disk: what is here is durable. It does what `pool` does with replicas, on a volume of a few sectors, and trusts the machine
//! where the pool would not: a commit of half an epoch is carried out.

use replication::{
    EpochKey, EpochName, Generation, Histories, Local, Manifest, Portion, Reason, Role, Unreadable,
    VolumeKind,
};
use units::{DomainId, Fence, Lba, SectorCount, VolumeEpoch, VolumeId};

pub(crate) const VOLUME: VolumeId = VolumeId([0xd1; 16]);
pub(crate) const SECTORS: usize = 24;
/// Bytes of a sector in a portion: whether it changed, and to what.
const SECTOR_BYTES: usize = 9;

pub(crate) type Content = [u64; SECTORS];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) id: VolumeId,
    pub(crate) content: Content,
    pub(crate) is_locked: bool,
}

/// A node that keys were granted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    pub(crate) fence: Fence,
    pub(crate) generation: Generation,
    pub(crate) next_number: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) is_there: bool,
    pub(crate) writer: Option<Writer>,
    pub(crate) live: Content,
    /// Oldest first.
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) receiving: Option<(VolumeId, u64)>,
    pub(crate) histories: Histories,
    pub(crate) is_full: bool,
    /// Most snapshots, where there is a limit.
    pub(crate) slots: Option<usize>,
    /// A sector that cannot be read.
    pub(crate) unreadable: Option<usize>,
    /// So many reads fail.
    pub(crate) failing_reads: u64,
}

impl Disk {
    pub(crate) fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }

    pub(crate) fn find(&self, id: VolumeId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    fn own_fence(&self) -> Fence {
        self.writer.map_or(Fence(0), |writer| writer.fence)
    }

    pub(crate) fn look(&self, fence: Fence, generation: Generation) -> Result<Local, Reason> {
        self.histories.check_writer(VOLUME, self.own_fence(), (fence, generation))?;
        let role = match (self.is_there, self.writer) {
            (false, _) => Role::Absent,
            (true, None) => Role::Replica,
            (true, Some(_)) => Role::Writer,
        };
        let receiving = self.receiving.map(|(snapshot, _)| snapshot);
        Ok(Local { role, newest: self.newest().map(|newest| newest.id), receiving })
    }

    /// The first half of a beginning: who begins is written down.
    pub(crate) fn record(&mut self, key: &EpochKey) -> Result<(), Reason> {
        self.histories.judge(VOLUME, self.own_fence(), key)?;
        self.histories.accept(VOLUME, *key);
        Ok(())
    }

    /// The second half.
    pub(crate) fn begin(&mut self, manifest: &Manifest) -> Result<Lba, Reason> {
        if self.find(manifest.snapshot).is_some() {
            return Ok(Lba(manifest.sectors.0));
        }
        if self.writer.is_some() {
            return Err(Reason::NotAReplica);
        }
        if self.newest().map(|newest| newest.id) != manifest.since {
            return Err(Reason::Diverged);
        }
        match self.receiving {
            Some((snapshot, next)) if snapshot == manifest.snapshot => return Ok(Lba(next)),
            _ => {}
        }
        self.is_there = true;
        self.live = self.newest().map_or([0; SECTORS], |newest| newest.content);
        self.receiving = Some((manifest.snapshot, 0));
        Ok(Lba(0))
    }

    pub(crate) fn take(&mut self, key: &EpochKey, portion: &[u8]) -> Result<Lba, Reason> {
        if !self.histories.is_current(VOLUME, key) {
            return Err(Reason::LowerFence);
        }
        let Some((snapshot, next)) = self.receiving else { return Err(Reason::Failed) };
        if snapshot != key.snapshot {
            return Err(Reason::Failed);
        }
        if self.is_full {
            return Err(Reason::NoSpace);
        }
        let (first, sectors) = portion.split_first().ok_or(Reason::Damaged)?;
        let first = u64::from(*first);
        if first > next {
            return Err(Reason::Damaged);
        }
        let mut at = first;
        for sector in sectors.chunks(SECTOR_BYTES) {
            if sector[0] == 1 {
                self.live[usize::try_from(at).unwrap()] = u64::from_le_bytes(sector[1..].try_into().unwrap());
            }
            at += 1;
        }
        let next = next.max(at);
        self.receiving = Some((snapshot, next));
        Ok(Lba(next))
    }

    pub(crate) fn commit(&mut self, key: &EpochKey) -> Result<(), Reason> {
        if !self.histories.is_current(VOLUME, key) {
            return Err(Reason::LowerFence);
        }
        if self.find(key.snapshot).is_some() {
            return Ok(());
        }
        if self.receiving.map(|(snapshot, _)| snapshot) != Some(key.snapshot) {
            return Err(Reason::Failed);
        }
        if self.slots.is_some_and(|slots| self.snapshots.len() >= slots) {
            return Err(Reason::NoSpace);
        }
        self.snapshots.push(Snapshot { id: key.snapshot, content: self.live, is_locked: false });
        self.receiving = None;
        Ok(())
    }

    /// Deletes epochs that may go; never the newest, never one that is locked, never a person's.
    pub(crate) fn prune(&mut self, goes: impl Fn(VolumeId) -> bool) {
        let newest = self.newest().map(|newest| newest.id);
        self.snapshots.retain(|snapshot| {
            let is_epoch = EpochName::read(snapshot.id).is_some();
            !is_epoch || snapshot.is_locked || Some(snapshot.id) == newest || !goes(snapshot.id)
        });
    }

    fn read(&mut self) -> Result<(), Unreadable> {
        match self.failing_reads.checked_sub(1) {
            Some(left) => {
                self.failing_reads = left;
                Err(Unreadable::Failed)
            }
            None => Ok(()),
        }
    }

    pub(crate) fn manifest(
        &mut self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
    ) -> Result<Manifest, Unreadable> {
        self.read()?;
        self.find(snapshot).ok_or(Unreadable::Gone)?;
        since.map(|since| self.find(since).ok_or(Unreadable::Gone)).transpose()?;
        Ok(Manifest {
            volume: VOLUME,
            snapshot,
            since,
            created_s: 0,
            sectors: SectorCount(SECTORS as u64),
            domain: DomainId([3; 16]),
            epoch: VolumeEpoch(1),
            check: [4; 16],
            kind: VolumeKind::Block,
            blocks: 0,
        })
    }

    pub(crate) fn send(
        &mut self,
        manifest: &Manifest,
        from: Lba,
        most: usize,
    ) -> Result<Portion, Unreadable> {
        self.read()?;
        let content = self.find(manifest.snapshot).ok_or(Unreadable::Gone)?.content;
        let since = match manifest.since {
            Some(since) => self.find(since).ok_or(Unreadable::Gone)?.content,
            None => [0; SECTORS],
        };
        let first = usize::try_from(from.0).unwrap();
        let end = SECTORS.min(first + most);
        let mut bytes = vec![u8::try_from(first).unwrap()];
        for sector in first..end {
            if self.unreadable == Some(sector) && content[sector] != since[sector] {
                return Err(Unreadable::Damaged);
            }
            bytes.push(u8::from(content[sector] != since[sector]));
            bytes.extend(content[sector].to_le_bytes());
        }
        Ok(Portion { bytes, next: Lba(end as u64) })
    }
}
