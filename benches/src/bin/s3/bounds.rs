//! What no server here can pass: the disk, its flushes, and a core's MD5, which is an entity tag.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::{Figure, median, rate};
use md5::{Digest, Md5};

use crate::cells::{Cell, Operation};

const PIECE: usize = 1 << 20;
const DISK_BYTES: usize = 256 << 20;

pub(crate) struct Bounds {
    flush_us: f64,
    write_mib: f64,
    md5_mib: f64,
    cores: f64,
}

impl Bounds {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    pub(crate) fn measure(folder: &Path) -> Result<Self> {
        let path = folder.join("bounds");
        let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        let piece = vec![0x5a; PIECE];
        let began = Instant::now();
        for _ in 0..DISK_BYTES / PIECE {
            file.write_all(&piece)?;
        }
        file.sync_data()?;
        let write_mib = (DISK_BYTES / PIECE) as f64 / began.elapsed().as_secs_f64();
        file.seek(SeekFrom::Start(0))?;
        let mut flushes = Vec::new();
        for number in 0..200_u64 {
            let began = Instant::now();
            file.write_all_at(&piece[..4096], number * 4096)?;
            file.sync_data()?;
            flushes.push(began.elapsed().as_secs_f64() * 1e6);
        }
        std::fs::remove_file(&path)?;
        let md5_mib = rate(Duration::from_secs(1), || {
            std::hint::black_box(Md5::digest(&piece));
            Ok(1)
        })?;
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        Ok(Self { flush_us: median(flushes), write_mib, md5_mib, cores })
    }

    pub(crate) fn figures(&self) -> Vec<Figure> {
        vec![
            Figure::new("write and flush of 4 KiB", "disk", self.flush_us, "us"),
            Figure::new("write", "disk", self.write_mib, "MiB/s"),
            Figure::new("MD5", "core", self.md5_mib, "MiB/s"),
        ]
    }

    /// Bounds of a cell, in its unit.
    pub(crate) fn of(&self, cell: &Cell) -> Vec<f64> {
        if cell.operation == Operation::Put && cell.bytes > 4096 {
            vec![self.write_mib, self.md5_mib * self.cores]
        } else {
            Vec::new()
        }
    }
}
