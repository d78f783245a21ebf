//! New epochs of a volume's key: what is written under which, what is left, and how a replica follows. The random workloads and
//! the power cuts have them among their operations.

use pool::{
    Change, ENCRYPTED_BLOCKS_DUE, EpochUse, Limits, Pool, PoolError, PoolErrorKind, PoolVolume, Rewritten,
    VolumeSpec,
};
use units::{ByteLen, DomainId, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::model::{EPOCH, check_of, read, resealed, sealed, sealed_under, spec, verify_metadata};
use crate::workload::{EXTENT, reopen, small_pool};

const NEXT: VolumeEpoch = VolumeEpoch(EPOCH.0 + 1);
const SECTORS: u64 = 64;

fn begin(pool: &Pool, id: VolumeId, epoch: VolumeEpoch) -> Result<(), PoolError> {
    pool.begin_epoch(id, epoch, check_of(domain(), epoch))
}

fn domain() -> DomainId {
    spec(1, SECTORS).domain
}

fn move_all(volume: &PoolVolume) {
    let epoch = volume.epoch();
    while let Some((first, count)) = volume.next_outdated(Lba(0), SectorCount(24)).unwrap() {
        let moved = volume.rewrite(first, count, epoch, |_, under, data| resealed(&data, under, epoch));
        assert_eq!(moved.unwrap(), count);
    }
    // What the first finds to be hidden for good, the second frees.
    volume.flush().unwrap();
    volume.flush().unwrap();
}

fn in_use(pool: &Pool) -> Vec<VolumeEpoch> {
    pool.epochs_in_use(domain()).unwrap().into_iter().collect()
}

#[test]
fn writes_are_under_the_new_epoch_and_what_was_there_stays_until_it_is_moved() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=40)).unwrap();
    volume.unmap(Lba(6), SectorCount(2)).unwrap();
    let expected = read(&volume, 0, SECTORS).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    let info = volume.info();
    assert_eq!((info.epoch, info.check), (NEXT, check_of(domain(), NEXT)));
    assert_eq!(read(&volume, 0, SECTORS).unwrap(), expected, "under the epoch of each");
    assert_eq!((volume.outdated().unwrap(), in_use(&pool)), (SectorCount(38), vec![EPOCH, NEXT]));
    let old = volume.write(Lba(0), EPOCH, sealed([1]));
    assert!(matches!(old, Err(PoolError::WrongEpoch { expected: NEXT, given: EPOCH })));
    let old = volume.take_sequences(EPOCH, SectorCount(1 << 30));
    assert!(matches!(old, Err(PoolError::WrongEpoch { .. })));
    let backwards = begin(&pool, volume.id(), EPOCH).unwrap_err();
    assert!(matches!(backwards, PoolError::OldEpoch { present: NEXT, .. }), "{backwards}");
    let other_key = pool.begin_epoch(volume.id(), NEXT, [0; 16]).unwrap_err();
    assert!(matches!(other_key, PoolError::OldEpoch { .. }), "{other_key}");

    // A hole over what is under the old one hides it; a write moves what it writes.
    volume.unmap(Lba(20), SectorCount(2)).unwrap();
    volume.write(Lba(0), NEXT, sealed_under(NEXT, [1, 2])).unwrap();
    assert_eq!(volume.outdated().unwrap(), SectorCount(34));
    let expected = read(&volume, 0, SECTORS).unwrap();
    volume.flush().unwrap();
    drop((volume, pool));
    let pool = reopen(&device.power_cut(3));
    let volume = pool.volume(spec(1, 1).id).unwrap();
    assert_eq!((volume.epoch(), volume.outdated().unwrap()), (NEXT, SectorCount(34)));
    move_all(&volume);
    assert_eq!((in_use(&pool), volume.outdated().unwrap()), (vec![NEXT], SectorCount(0)));
    assert_eq!(read(&volume, 0, SECTORS).unwrap(), expected);
    verify_metadata(&pool).unwrap();
    assert_eq!(pool.info().allocated, ByteLen(3 * EXTENT), "nothing is kept twice");
}

#[test]
fn what_keeps_an_epoch_is_named_and_gone_with_it() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=16)).unwrap();
    let snapshot = VolumeId([9; 16]);
    pool.create_snapshot(volume.id(), snapshot, 1).unwrap();
    let clone = pool.clone_snapshot(snapshot, VolumeId([10; 16]), Limits::default()).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    move_all(&volume);
    let shown_by = |epoch: VolumeEpoch| -> Vec<VolumeId> {
        let uses = pool.epochs(domain());
        let of: Vec<&EpochUse> = uses.iter().filter(|of| of.epoch == epoch).collect();
        of.iter().flat_map(|of| of.shown_by.iter().copied()).collect()
    };
    assert_eq!((shown_by(EPOCH), shown_by(NEXT)), (vec![snapshot, clone.id()], vec![volume.id()]));
    // A clone has its own epoch, and rotates by itself: under the epoch before until then.
    assert_eq!(clone.epoch(), EPOCH);
    pool.delete_snapshot(snapshot).unwrap();
    assert_eq!(shown_by(EPOCH), [clone.id()]);
    begin(&pool, clone.id(), NEXT).unwrap();
    move_all(&clone);
    assert_eq!(in_use(&pool), [NEXT]);
    // One that is made later begins under the newest that there is, though its snapshot was of the one before.
    pool.create_snapshot(volume.id(), snapshot, 1).unwrap();
    begin(&pool, volume.id(), VolumeEpoch(NEXT.0 + 1)).unwrap();
    let late = pool.clone_snapshot(snapshot, VolumeId([11; 16]), Limits::default()).unwrap();
    assert_eq!(late.epoch(), VolumeEpoch(NEXT.0 + 1));
    assert_eq!(read(&late, 0, 16).unwrap(), read(&volume, 0, 16).unwrap());
}

#[test]
fn moving_on_a_full_pool_says_so_and_goes_on_when_there_is_room() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 30 * 16)).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    let other = pool.create_volume(spec(2, 30 * 16)).unwrap();
    volume.write(Lba(0), NEXT, sealed_under(NEXT, 1..=32)).unwrap();
    begin(&pool, volume.id(), VolumeEpoch(NEXT.0 + 1)).unwrap();
    let full = (0..).find(|extent| other.write(Lba(extent * 16), EPOCH, sealed([1])).is_err()).unwrap();
    pool.flush().unwrap();
    let epoch = volume.epoch();
    let none = volume.rewrite(Lba(0), SectorCount(16), epoch, |_, under, data| resealed(&data, under, epoch));
    assert_eq!(none.unwrap_err().kind(), PoolErrorKind::NoSpace);
    assert_eq!(volume.outdated().unwrap(), SectorCount(32), "nothing is lost");
    other.unmap(Lba((full - 1) * 16), SectorCount(16)).unwrap();
    pool.flush().unwrap();
    pool.flush().unwrap();
    // One extent of room is enough for all, for what was moved gives back its place.
    while let Some((first, count)) = volume.next_outdated(Lba(0), SectorCount(16)).unwrap() {
        volume.rewrite(first, count, epoch, |_, under, data| resealed(&data, under, epoch)).unwrap();
        pool.flush().unwrap();
        pool.flush().unwrap();
    }
    assert_eq!(in_use(&pool), [epoch]);
    verify_metadata(&pool).unwrap();
}

#[test]
fn a_new_key_has_its_own_count_and_the_old_count_goes_on_where_that_key_is_used() {
    const PER_SECTOR: u64 = 256;
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    let snapshot = VolumeId([9; 16]);
    pool.create_snapshot(volume.id(), snapshot, 1).unwrap();
    let clone = pool.clone_snapshot(snapshot, VolumeId([10; 16]), Limits::default()).unwrap();
    volume.take_sequences(EPOCH, SectorCount(ENCRYPTED_BLOCKS_DUE / PER_SECTOR)).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    assert!(volume.info().encrypted_blocks < ENCRYPTED_BLOCKS_DUE / 2, "a new key");
    assert!(clone.info().encrypted_blocks >= ENCRYPTED_BLOCKS_DUE, "the clone's is the old one");
    volume.take_sequences(NEXT, SectorCount(1)).unwrap();
    drop((volume, clone, pool));
    let pool = reopen(&device.power_cut(7));
    let blocks = |id: VolumeId| pool.volume(id).unwrap().info().encrypted_blocks;
    assert!(blocks(spec(1, 1).id) < ENCRYPTED_BLOCKS_DUE / 2 && blocks(spec(1, 1).id) >= PER_SECTOR);
    assert!(blocks(VolumeId([10; 16])) >= ENCRYPTED_BLOCKS_DUE);
}

#[test]
fn a_clone_takes_no_epoch_from_a_replica() {
    let (_, pool) = small_pool();
    let (_, there) = small_pool();
    let id = |number: u8| VolumeId([number; 16]);
    // Another node says that a volume of the domain is under the next epoch.
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    pool.create_snapshot(volume.id(), id(21), 1).unwrap();
    let manifest = pool.manifest(id(21), None).unwrap();
    let mut from = there.begin_receiving(&manifest).unwrap();
    while from.0 < manifest.sectors.0 {
        let portion = pool.send(&manifest, from, SectorCount(10)).unwrap();
        from = there.receive(volume.id(), id(21), &portion.bytes).unwrap();
    }
    there.end_receiving(&manifest).unwrap();
    let own = there.create_volume(VolumeSpec { id: id(30), ..spec(1, SECTORS) }).unwrap();
    there.create_snapshot(own.id(), id(31), 1).unwrap();
    let clone = there.clone_snapshot(id(31), id(32), Limits::default()).unwrap();
    assert_eq!((clone.epoch(), clone.info().check), (EPOCH, spec(1, 1).check));
    // A clone of the replica's own is under what that is.
    let of_replica = there.clone_snapshot(id(21), id(33), Limits::default()).unwrap();
    assert_eq!(of_replica.epoch(), NEXT);
}

#[test]
fn a_replica_follows_a_rotation_without_a_key() {
    let (_, pool) = small_pool();
    let (device, there) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    let send = |snapshot: VolumeId, since: Option<VolumeId>| -> Result<(), PoolError> {
        pool.create_snapshot(volume.id(), snapshot, 1).ok();
        let manifest = pool.manifest(snapshot, since)?;
        let mut from = there.begin_receiving(&manifest)?;
        while from.0 < manifest.sectors.0 {
            let portion = pool.send(&manifest, from, SectorCount(10))?;
            from = there.receive(volume.id(), snapshot, &portion.bytes)?;
        }
        there.end_receiving(&manifest).map(drop)
    };
    let id = |number: u8| VolumeId([number; 16]);
    volume.write(Lba(0), EPOCH, sealed(1..=20)).unwrap();
    send(id(21), None).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    volume.write(Lba(0), NEXT, sealed_under(NEXT, [50, 51])).unwrap();
    // What was written before it began and is not moved yet is under another epoch than the rest: it is not sent.
    volume.write(Lba(30), NEXT, sealed_under(NEXT, [52])).unwrap();
    begin(&pool, volume.id(), VolumeEpoch(NEXT.0 + 1)).unwrap();
    let epoch = volume.epoch();
    volume.write(Lba(31), epoch, sealed_under(epoch, [53])).unwrap();
    let mixed = send(id(22), Some(id(21))).unwrap_err();
    assert!(matches!(mixed, PoolError::TwoEpochs { .. }), "{mixed}");
    pool.delete_snapshot(id(22)).unwrap();
    move_all(&volume);
    send(id(23), Some(id(21))).unwrap();
    let arrived = there.snapshot(id(23)).unwrap();
    assert_eq!(read(&arrived, 0, SECTORS).unwrap(), read(&volume, 0, SECTORS).unwrap());
    assert_eq!((arrived.info().epoch, arrived.info().check), (epoch, check_of(domain(), epoch)));
    // The older one is as it was, under its own.
    let older = there.snapshot(id(21)).unwrap();
    assert_eq!(read(&older, 0, 20).unwrap(), (1..=20).map(|tag| Some([tag; 8])).collect::<Vec<_>>());
    // Given up in the middle and promoted, it is what its newest snapshot is, and is written under that one's epoch.
    let last = VolumeEpoch(epoch.0 + 1);
    begin(&pool, volume.id(), last).unwrap();
    move_all(&volume);
    pool.create_snapshot(volume.id(), id(24), 1).unwrap();
    let manifest = pool.manifest(id(24), Some(id(23))).unwrap();
    let from = there.begin_receiving(&manifest).unwrap();
    let portion = pool.send(&manifest, from, SectorCount(5)).unwrap();
    there.receive(volume.id(), id(24), &portion.bytes).unwrap();
    drop((arrived, older, there));
    let there = reopen(&device.reopened());
    assert_eq!(there.promote(volume.id()).unwrap(), id(23));
    let promoted = there.volume(volume.id()).unwrap();
    assert_eq!((promoted.epoch(), promoted.info().check), (epoch, check_of(domain(), epoch)));
    let expected = pool.snapshot(id(23)).unwrap();
    assert_eq!(read(&promoted, 0, SECTORS).unwrap(), read(&expected, 0, SECTORS).unwrap());
    promoted.write(Lba(0), epoch, sealed_under(epoch, [99])).unwrap();
    for _ in 0..2 {
        there.flush().unwrap();
    }
    verify_metadata(&there).unwrap();
}

/// What is sealed anew is a change that a replica has to have, and not one that somebody made.
#[test]
fn what_is_sealed_anew_is_sent_and_no_unusual_rewriting() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, &sealed(1..=40)).unwrap();
    pool.create_snapshot(volume.id(), VolumeId([9; 16]), 1).unwrap();
    begin(&pool, volume.id(), NEXT).unwrap();
    let before = volume.written();
    move_all(&volume);
    assert!(volume.written() > before, "whoever follows the volume sees that there is something");
    let snapshot = pool.snapshot(VolumeId([9; 16])).unwrap();
    let changes = volume.changes_since(Some(&snapshot), Lba(0), SectorCount(40)).unwrap();
    assert_eq!(changes, [(SectorCount(40), Change::Written)]);
    let rewritten = |sectors| Rewritten { of: SectorCount(40), sectors: SectorCount(sectors) };
    assert_eq!(volume.rewritten_since(&snapshot).unwrap(), rewritten(0));
    volume.unmap(Lba(3), SectorCount(2)).unwrap();
    assert_eq!(
        volume.rewritten_since(&snapshot).unwrap(),
        rewritten(2),
        "what was unmapped is seen all the same"
    );
    // From one snapshot under the new epoch to the next all is seen.
    pool.create_snapshot(volume.id(), VolumeId([8; 16]), 1).unwrap();
    volume.write(Lba(10), NEXT, &sealed_under(NEXT, 60..=67)).unwrap();
    let snapshot = pool.snapshot(VolumeId([8; 16])).unwrap();
    let rewritten = Rewritten { of: SectorCount(38), sectors: SectorCount(8) };
    assert_eq!(volume.rewritten_since(&snapshot).unwrap(), rewritten);
}
