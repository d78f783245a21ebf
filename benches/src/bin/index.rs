//! The object index's engine beside the one that it replaced in the choosing: redb and sled.
//!
//! Rows are of the size of an object's index entry. A put counts when it is durable; batches of 1, 32 and 256 are
//! what group commit makes of 1, some and many clients. Both engines write to files on the same disk, with their
//! default caches.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::{Figure, ROUNDS, folder, median, publish, rate};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

/// Rows that are there before gets and scans are measured.
const ROWS: u64 = 200_000;

/// Bytes of a row's value; with its key, about what an object's entry takes.
const VALUE_BYTES: usize = 224;

/// Puts made durable at once.
const BATCHES: [u64; 3] = [1, 32, 256];

/// How long one subject's turn at one case lasts.
const TURN: Duration = Duration::from_millis(800);

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

/// What an engine must do to take part.
trait Engine {
    fn name(&self) -> &'static str;
    /// Puts rows and returns when they are durable.
    fn put(&self, rows: &mut dyn Iterator<Item = u64>) -> Result<()>;
    /// Reads one row.
    fn get(&self, row: u64) -> Result<()>;
    /// Reads every row in key order; how many there were.
    fn scan(&self) -> Result<u64>;
}

/// Rows scatter over the key space as bucket and object names do.
fn key(row: u64) -> [u8; 36] {
    let mut key = [b'k'; 36];
    let scattered = row.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    key[20..].copy_from_slice(format!("{scattered:016x}").as_bytes());
    key
}

fn value(row: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0_u8; VALUE_BYTES];
    for (index, chunk) in (0_u64..).zip(value.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&(row ^ index).wrapping_mul(0xD6E8_FEB8_6659_FD93).to_le_bytes());
    }
    value
}

struct Redb(Database);

impl Engine for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn put(&self, rows: &mut dyn Iterator<Item = u64>) -> Result<()> {
        let mut write = self.0.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut table = write.open_table(TABLE)?;
            for row in rows {
                table.insert(key(row).as_slice(), value(row).as_slice())?;
            }
        }
        Ok(write.commit()?)
    }

    fn get(&self, row: u64) -> Result<()> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        let found = table.get(key(row).as_slice())?.context("a row that was put is gone")?;
        anyhow::ensure!(found.value().len() == VALUE_BYTES, "a row came back short");
        Ok(())
    }

    fn scan(&self) -> Result<u64> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        let mut rows = 0;
        for row in table.iter()? {
            rows += u64::from(row?.1.value().len() == VALUE_BYTES);
        }
        Ok(rows)
    }
}

struct Sled(sled::Db);

impl Engine for Sled {
    fn name(&self) -> &'static str {
        "sled"
    }

    fn put(&self, rows: &mut dyn Iterator<Item = u64>) -> Result<()> {
        let mut batch = sled::Batch::default();
        for row in rows {
            batch.insert(key(row).as_slice(), value(row).as_slice());
        }
        self.0.apply_batch(batch)?;
        self.0.flush()?;
        Ok(())
    }

    fn get(&self, row: u64) -> Result<()> {
        let found = self.0.get(key(row))?.context("a row that was put is gone")?;
        anyhow::ensure!(found.len() == VALUE_BYTES, "a row came back short");
        Ok(())
    }

    fn scan(&self) -> Result<u64> {
        let mut rows = 0;
        for row in self.0.iter() {
            rows += u64::from(row?.1.len() == VALUE_BYTES);
        }
        Ok(rows)
    }
}

fn engines(at: &Path) -> Result<Vec<Box<dyn Engine>>> {
    let redb = Database::create(at.join("rows.redb"))?;
    let sled = sled::Config::new().path(at.join("rows.sled")).flush_every_ms(None).open()?;
    Ok(vec![Box::new(Redb(redb)), Box::new(Sled(sled))])
}

/// Every subject's median over the rounds, taken in turns.
fn turns(
    engines: &[Box<dyn Engine>],
    mut turn: impl FnMut(usize, &dyn Engine) -> Result<f64>,
) -> Result<Vec<(&'static str, f64)>> {
    let mut values = vec![Vec::new(); engines.len()];
    for _ in 0..ROUNDS {
        for (index, engine) in engines.iter().enumerate() {
            values[index].push(turn(index, engine.as_ref())?);
        }
    }
    Ok(engines.iter().zip(values).map(|(engine, values)| (engine.name(), median(values))).collect())
}

fn main() -> Result<()> {
    std::fs::create_dir_all(folder())?;
    let scratch = tempfile::tempdir_in(folder())?;
    let engines = engines(scratch.path())?;
    let mut figures = Vec::new();
    for engine in &engines {
        for first in (0..ROWS).step_by(10_000) {
            engine.put(&mut (first..first + 10_000))?;
        }
    }
    let mut row = 0_u64;
    let gets = turns(&engines, |_, engine| {
        rate(TURN, || {
            for _ in 0..100 {
                row = (row + 7919) % ROWS;
                engine.get(row)?;
            }
            Ok(100)
        })
    })?;
    figures.extend(gets.into_iter().map(|(name, value)| Figure::new("gets", name, value, "rows/s")));
    let scans = turns(&engines, |_, engine| rate(TURN, || engine.scan()))?;
    figures.extend(scans.into_iter().map(|(name, value)| Figure::new("scan", name, value, "rows/s")));
    let mut next = vec![ROWS; engines.len()];
    for batch in BATCHES {
        let puts = turns(&engines, |index, engine| {
            rate(TURN, || {
                let first = next[index];
                next[index] += batch;
                engine.put(&mut (first..first + batch))?;
                Ok(batch)
            })
        })?;
        let case = format!("durable puts, batches of {batch}");
        figures.extend(puts.into_iter().map(|(name, value)| Figure::new(&case, name, value, "rows/s")));
    }
    publish("index", &figures)
}
