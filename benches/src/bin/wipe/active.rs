//! More keys in use than lie ready: what a promotion costs, what many active volumes do, how long it takes to wipe them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::{Figure, folder, median};
use device::{Device, FileDevice, OpenOptions};
use keyring::simulated::Keyholder;
use keyring::{Clock, HOT_KEYS, Kernel, Keyring, LENT_KEYS_MAX, WipeCause};
use locked_memory::Policy;
use pool::{CreateOptions, Pool, VolumeKind, VolumeSpec};
use sealing::{Durability, Volume};
use units::{BootInstant, ByteOffset, DomainId, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId};

/// Volumes that are active at once, at most.
const VOLUMES: usize = 1000;

/// Sectors of each that are read.
const SECTORS: u64 = 16;

const SLICE: Duration = Duration::from_millis(500);

/// Turns of each number of volumes.
const TURNS: usize = 5;

/// Wipes of a full keyring.
const WIPES: usize = 5;

pub(crate) fn measure() -> Result<Vec<Figure>> {
    let mut figures = reads()?;
    figures.extend(wipes()?);
    Ok(figures)
}

fn fresh_keyring() -> Result<Arc<Keyring>> {
    let keyring = Keyring::new(Policy::AllowMlock, Clock::Boot, Kernel::fastest())?;
    keyring.set_deadline(BootInstant(u64::MAX));
    Ok(keyring)
}

fn id(number: usize) -> [u8; 16] {
    let mut id = [0x17; 16];
    id[..8].copy_from_slice(&(number as u64).to_le_bytes());
    id
}

/// Random reads of 4 KiB over ever more volumes, in turns.
#[expect(clippy::cast_precision_loss, reason = "counts of one bench run stay far below 2^52")]
fn reads() -> Result<Vec<Figure>> {
    let keyring = fresh_keyring()?;
    let volumes = volumes(&keyring)?;
    let counts = [1, HOT_KEYS, 100, VOLUMES];
    let mut rates = counts.map(|_| Vec::new());
    let mut costs = Vec::new();
    for _ in 0..TURNS {
        let mut one = 0.0;
        for (count, rates) in counts.into_iter().zip(&mut rates) {
            let before = keyring.status().promotions;
            let (reads, took) = read_all(&volumes[..count])?;
            let promotions = keyring.status().promotions - before;
            let each_us = took.as_secs_f64() * 1e6 / reads as f64;
            match count {
                1 => one = each_us,
                VOLUMES => costs.push((each_us - one) * reads as f64 / promotions as f64),
                _ => {}
            }
            rates.push(reads as f64 / took.as_secs_f64());
        }
    }
    let mut figures: Vec<Figure> = counts
        .into_iter()
        .zip(rates)
        .map(|(count, rates)| {
            Figure::new("reads of 4 KiB, one thread", &format!("{count} volumes"), median(rates), "1/s")
        })
        .collect();
    figures.push(Figure::new("cost of a promotion", "1000 volumes", median(costs), "us"));
    Ok(figures)
}

/// Volumes with data in them, on a file that fits in memory.
fn volumes(keyring: &Arc<Keyring>) -> Result<Vec<Volume>> {
    std::fs::create_dir_all(folder())?;
    let path = folder().join("wipe-pool");
    let file = std::fs::File::create(&path)?;
    file.set_len(16 << 30)?;
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(&path, OpenOptions::default())?);
    // It lives as long as the volumes hold it.
    std::fs::remove_file(&path)?;
    let pool = Pool::create(device, CreateOptions::default())?;
    (0..VOLUMES)
        .map(|number| {
            let (domain, epoch) = (DomainId(id(number)), VolumeEpoch(1));
            let keyholder = Keyholder::new(domain, epoch);
            let spec = VolumeSpec {
                id: VolumeId(id(number)),
                sectors: SectorCount(SECTORS),
                domain,
                epoch,
                check: keyholder.check(),
                kind: VolumeKind::Block,
            };
            let created = pool.create_volume(spec)?;
            let key = keyholder.push(keyring)?.handle;
            let volume = Volume::open(created, Arc::clone(keyring), key);
            let bytes = usize::try_from(SECTORS).unwrap_or(0) * SECTOR_BYTES;
            volume.write(ByteOffset(0), &vec![7; bytes], Durability::Buffered)?;
            Ok(volume)
        })
        .collect()
}

/// Reads random sectors of `volumes` for a slice.
fn read_all(volumes: &[Volume]) -> Result<(u64, Duration)> {
    let mut sector = vec![0; SECTOR_BYTES];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut reads, start) = (0, Instant::now());
    while start.elapsed() < SLICE {
        for _ in 0..64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let volume = usize::try_from(random >> 16).unwrap_or(0) % volumes.len();
            let at = ByteOffset(random % SECTORS * SECTOR_BYTES as u64);
            volumes[volume].read(at, &mut sector)?;
            reads += 1;
        }
    }
    Ok((reads, start.elapsed()))
}

/// The first stage with 1,000 and with as many keys as can be lent, called for in this thread.
fn wipes() -> Result<Vec<Figure>> {
    let keyring = fresh_keyring()?;
    let mut figures = Vec::new();
    for count in [VOLUMES, LENT_KEYS_MAX] {
        let mut times = Vec::new();
        for _ in 0..WIPES {
            keyring.set_deadline(BootInstant(u64::MAX));
            let recipient = keyring.fresh_envelope_key()?;
            for number in 0..count {
                let keyholder = Keyholder::new(DomainId(id(number)), VolumeEpoch(1));
                let envelope = keyholder.seal_to(&recipient, b"info", b"aad");
                keyholder.admit(&keyring, &envelope)?;
            }
            let report = keyring.wipe(WipeCause::Admin);
            anyhow::ensure!(report.keys == count, "{} of {count} keys were lent", report.keys);
            #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a bench")]
            times.push(report.nanos as f64 / 1e3);
        }
        figures.push(Figure::new("first stage alone, median", &format!("{count} keys"), median(times), "us"));
    }
    Ok(figures)
}
