//! What was once on the device and is there again: found when the key comes back, or when it is read. And what a power cut
//! leaves is never taken for it.

use std::sync::Arc;

use device::{SimulatedDevice, Survivors};
use pool::{CreateOptions, OpenOptions, Pool, PoolVolume, StateHead, Verdict, Witness};
use sha2::{Digest, Sha256};
use units::{ByteLen, Fence, Lba, SectorCount};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::{self, EXTENT, create_options};

/// Stands in for whoever has the key of a domain.
struct Key(u8);

impl Key {
    fn word(&self, state: &StateHead) -> [u8; 16] {
        let hash = Sha256::new_with_prefix([self.0]).chain_update(state.count.to_le_bytes());
        hash.chain_update(state.chain).finalize()[..16].try_into().unwrap()
    }
}

impl Witness for Key {
    fn vouch(&self, state: &StateHead) -> Option<[u8; 16]> {
        Some(self.word(state))
    }
}

const SECTORS: u64 = 320;
/// Longer than elsewhere, so that the log of a test goes round when the test says so.
const LOG: u64 = 4 * workload::LOG;
const DEVICE: ByteLen = ByteLen(workload::DEVICE.0 + LOG);
/// In sectors of the device: table, digests and the first page of records of the first group.
const TABLE: u64 = ((2 << 20) + LOG) / 4096;
const DIGESTS: u64 = TABLE + EXTENT / 4096;
const RECORDS: u64 = DIGESTS + EXTENT / 4096;
const DATA: u64 = RECORDS + EXTENT / 4096;

struct Opened {
    pool: Arc<Pool>,
    volume: Arc<PoolVolume>,
}

fn open(device: &Arc<SimulatedDevice>) -> Opened {
    let options = OpenOptions { record_cache: ByteLen(4096), ..OpenOptions::default() };
    let pool = Pool::open_with(device.clone(), options).unwrap();
    let volume = pool.volume(spec(1, SECTORS).id).unwrap();
    Opened { pool, volume }
}

impl Opened {
    fn judge(&self, told: StateHead) -> Verdict {
        self.volume.judge_state(Some(told), |state, mac| Key(1).word(state) == *mac)
    }

    fn unlock(&self) {
        self.volume.set_witness(Arc::new(Key(1))).unwrap();
    }

    fn write(&self, first: u64, tags: std::ops::Range<u64>) {
        self.volume.write(Lba(first), EPOCH, sealed(tags)).unwrap();
        self.volume.flush().unwrap();
    }

    /// Takes the log round, with the key's word for it if there is one.
    fn wind(&self) {
        let highest = self.volume.info().fence.0;
        for fence in highest + 1..highest + 80 {
            self.pool.raise_fence(self.volume.id(), Fence(fence)).unwrap();
        }
    }

    fn tell(&self) -> StateHead {
        self.pool.tell_state().unwrap()
    }
}

/// A pool with a full volume under its key, all of it in its places, and one of another domain.
fn full() -> (Arc<SimulatedDevice>, Opened) {
    let device = SimulatedDevice::new(DEVICE);
    let options = CreateOptions { log_len: Some(ByteLen(LOG)), ..create_options() };
    let pool = Pool::create(device.clone(), options).unwrap();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    pool.create_volume(spec(2, SECTORS)).unwrap();
    let opened = Opened { pool, volume };
    opened.unlock();
    opened.write(0, 0..SECTORS);
    opened.wind();
    (device, opened)
}

/// A copy in which what lay in these sectors lies there again.
fn with_again(now: &SimulatedDevice, then: &SimulatedDevice, sectors: &[u64]) -> Arc<SimulatedDevice> {
    let device = now.durable_copy();
    for number in sectors {
        let before = then.content().into_iter().find(|(sector, _)| sector == number);
        device.edit(*number, |bytes| match before {
            Some((_, before)) => bytes.copy_from_slice(&before),
            None => bytes.fill(0),
        });
    }
    device
}

#[test]
fn what_was_told_is_found_again_after_closing_and_after_losing_power() {
    let (device, opened) = full();
    opened.write(5, 1000..1010);
    let told = opened.tell();
    assert_eq!(opened.judge(told), Verdict::First, "nothing was known when it was made");
    assert_eq!(opened.judge(told), Verdict::Continues);
    assert_eq!(opened.volume.judge_state(None, |_, _| false), Verdict::First);
    opened.write(15, 1010..1020);
    drop(opened);
    for device in [device.reopened(), device.power_cut(3)] {
        let opened = open(&device);
        assert_eq!(opened.judge(told), Verdict::Continues);
        // Without the right key, the words for what came since are none.
        let without = opened.volume.judge_state(Some(told), |state, mac| Key(9).word(state) == *mac);
        assert_eq!(without, Verdict::Unvouched { batches: 1 });
    }
}

#[test]
fn a_device_that_was_wound_back_is_older() {
    let (device, opened) = full();
    for rounds in 0..3 {
        let then = device.durable_copy();
        opened.write(5, 1000..1010);
        (0..rounds).for_each(|_| opened.wind());
        let told = opened.tell();
        assert_eq!(open(&then).judge(told), Verdict::Older);
    }
}

#[test]
fn a_log_that_was_cut_short_is_older() {
    let (device, opened) = full();
    let before = device.durable_copy();
    opened.write(5, 1000..1001);
    let told = opened.tell();
    drop(opened);
    let log: Vec<u64> = ((2 << 20) / 4096..TABLE).collect();
    assert_eq!(open(&with_again(&device, &before, &log)).judge(told), Verdict::Older);
}

#[test]
fn another_history_is_not_taken_for_a_later_state() {
    let (device, opened) = full();
    let other = device.durable_copy();
    opened.write(5, 1000..1001);
    let told = opened.tell();
    // Whoever else writes to a copy may have it as long as they like, and even the key's word.
    let elsewhere = open(&other);
    elsewhere.unlock();
    elsewhere.write(5, 2000..2001);
    elsewhere.write(6, 2001..2002);
    assert_eq!(elsewhere.judge(told), Verdict::Other);
    drop(elsewhere);
    assert_eq!(open(&other.reopened()).judge(told), Verdict::Other);
}

#[test]
fn what_changed_without_the_key_is_counted_and_what_is_others_is_not() {
    let (device, opened) = full();
    let told = opened.tell();
    drop(opened);
    let sealed_node = open(&device);
    let id = |number| spec(number, 1).id;
    sealed_node.pool.create_snapshot(id(2), id(12), 0).unwrap();
    // A grant that was not taken raises the fence all the same.
    sealed_node.pool.raise_fence(id(1), Fence(5000)).unwrap();
    drop(sealed_node);
    let device = device.reopened();
    assert_eq!(open(&device).judge(told), Verdict::Continues);
    let device = device.reopened();
    let sealed_node = open(&device);
    sealed_node.pool.create_snapshot(id(1), id(11), 0).unwrap();
    sealed_node.pool.delete_snapshot(id(11)).unwrap();
    assert_eq!(sealed_node.judge(told), Verdict::Continues, "this very program did it");
    drop(sealed_node);
    let opened = open(&device.reopened());
    assert!(matches!(opened.judge(told), Verdict::Unvouched { batches: 1.. }), "{:?}", opened.judge(told));
    // Once somebody has taken it for good, it is.
    opened.unlock();
    let told = opened.tell();
    assert_eq!(opened.judge(told), Verdict::Continues);
}

#[test]
fn a_log_that_has_gone_round_without_the_key_is_connected_to_nothing() {
    let (device, opened) = full();
    let told = opened.tell();
    drop(opened);
    for with_key in [false, true] {
        let device = device.durable_copy();
        let opened = open(&device);
        if with_key {
            opened.unlock();
        }
        opened.wind();
        drop(opened);
        let expected = if with_key { Verdict::Continues } else { Verdict::Unconnected };
        assert_eq!(open(&device.reopened()).judge(told), expected);
    }
}

#[test]
fn a_sector_put_back_with_its_record_is_an_error_to_read() {
    let (device, opened) = full();
    let then = device.durable_copy();
    opened.write(5, 1000..1001);
    opened.wind();
    let told = opened.tell();
    drop(opened);
    // Data and record were both true once.
    let opened = open(&with_again(&device, &then, &[DATA + 5, RECORDS]));
    assert_eq!(opened.judge(told), Verdict::Continues);
    let error = read(&opened.volume, 5, 1).unwrap_err();
    assert!(error.contains("is not the one that was last written there"), "{error}");
    assert_eq!(read(&opened.volume, 128, 1).unwrap(), [Some([128; 8])]);
    // And while it is open, once its page is read again.
    let device = device.reopened();
    let opened = open(&device);
    assert_eq!(read(&opened.volume, 5, 1).unwrap(), [Some([1000; 8])]);
    assert_eq!(read(&opened.volume, 200, 1).unwrap(), [Some([200; 8])], "the cache has room for one page");
    for (number, bytes) in
        then.content().into_iter().filter(|(number, _)| [DATA + 5, RECORDS].contains(number))
    {
        device.edit(number, |sector| sector.copy_from_slice(&bytes));
    }
    let error = read(&opened.volume, 5, 1).unwrap_err();
    assert!(error.contains("is not the one that was last written there"), "{error}");
}

#[test]
fn older_tables_and_digests_are_told_from_the_last_ones() {
    let (device, opened) = full();
    let then = device.durable_copy();
    opened.volume.unmap(Lba(0), SectorCount(5)).unwrap();
    opened.write(5, 1000..1001);
    opened.wind();
    let told = opened.tell();
    drop(opened);
    // Presence put back or taken away; and a sector put back whose digest goes with it.
    for sectors in [&[TABLE][..], &[DIGESTS, RECORDS, DATA + 5]] {
        let device = with_again(&device, &then, sectors);
        assert!(!Pool::check_device(&*device).unwrap().is_sound());
        let opened = open(&device);
        assert_eq!(opened.judge(told), Verdict::Altered);
        // And it does not become good by being used.
        opened.wind();
        drop(opened);
        assert_eq!(open(&device.reopened()).judge(told), Verdict::Altered);
    }
    // Nor by a superblock of then.
    let device = with_again(&device, &then, &[0, 16, TABLE, DIGESTS, RECORDS, DATA + 5]);
    let verdict = Pool::open(device.clone()).map(|_| open(&device.reopened()).judge(told));
    assert!(!matches!(verdict, Ok(Verdict::Continues)), "{verdict:?}");
}

/// Power is cut at every operation while the key is held: what was told is always found again, with the key's word for all
/// that came since.
#[test]
fn no_power_cut_looks_like_an_attack() {
    let mut cuts = 0;
    for log in [workload::LOG, 2 * workload::LOG] {
        let pristine = with_log(log);
        let script = |device: &Arc<SimulatedDevice>| -> Option<StateHead> {
            let options = OpenOptions { record_cache: ByteLen(4096), ..OpenOptions::default() };
            let pool = Pool::open_with(device.clone(), options).ok()?;
            let volume = pool.volume(spec(1, SECTORS).id).ok()?;
            volume.set_witness(Arc::new(Key(1))).ok()?;
            let mut told = pool.tell_state();
            for round in 0..60 {
                let first = round * 37 % (SECTORS - 20);
                let write = match round % 5 {
                    0 => volume.unmap(Lba(first), SectorCount(3)),
                    1 => volume.write(Lba(first), EPOCH, sealed(round..round + 18)),
                    _ => volume.write(Lba(first), EPOCH, sealed(round..round + 1)),
                };
                if write.and_then(|()| volume.flush()).is_err() {
                    break;
                }
                told = pool.tell_state();
            }
            told
        };
        let whole = pristine.durable_copy();
        script(&whole).unwrap();
        for cut in 0..whole.operations() {
            let device = pristine.durable_copy();
            device.cut_power_at(cut);
            let told = script(&device);
            for survivors in [Survivors::Nothing, Survivors::All, Survivors::Random(cut)] {
                let opened = open(&device.power_cut_leaving(survivors));
                if let Some(told) = told {
                    assert_eq!(opened.judge(told), Verdict::Continues, "cut {cut}");
                }
                for sector in 0..SECTORS {
                    read(&opened.volume, sector, 1)
                        .unwrap_or_else(|error| panic!("cut {cut}, sector {sector}: {error}"));
                }
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 1000);
}

fn with_log(log: u64) -> Arc<SimulatedDevice> {
    let device = SimulatedDevice::new(ByteLen(DEVICE.0 + log));
    let options = CreateOptions { log_len: Some(ByteLen(log)), ..create_options() };
    let pool = Pool::create(device.clone(), options).unwrap();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..SECTORS)).unwrap();
    volume.flush().unwrap();
    device
}
