//! The mixed load: clients that know of each of their requests whether it was answered, and their models.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use harness::random::Random;

use crate::blocks::{BlockModel, Region};
use crate::objects::{Body, ObjectModel};
use crate::pattern::{self, Tag, UNIT_BYTES, ZEROS};

/// 512-byte units of a 4 KiB sector.
const SECTOR_UNITS: u64 = 8;

/// Why a request has no good answer.
#[derive(Debug)]
pub enum Interruption {
    /// The node went away under it: it may have been carried out or not.
    Unanswered(String),
    /// It was answered with what no promise allows.
    Wrong(String),
}

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(why) => write!(f, "unanswered: {why}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// A block device as its client sees it.
pub trait Blocks {
    /// Fills `out` from `at`.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), Interruption>;
    /// Writes; `durable` asks for it to be so before the answer.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn write(&mut self, at: u64, data: &[u8], durable: bool) -> Result<(), Interruption>;
    /// Writes zeroes.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn write_zeroes(&mut self, at: u64, len: u64, durable: bool) -> Result<(), Interruption>;
    /// Gives whole sectors back.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn trim(&mut self, at: u64, len: u64) -> Result<(), Interruption>;
    /// Makes durable what was answered.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn flush(&mut self) -> Result<(), Interruption>;
}

/// An object store as its client sees it.
pub trait Objects {
    /// Stores an object.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn put(&mut self, key: &str, body: &[u8]) -> Result<(), Interruption>;
    /// Stores an object in parts.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn put_in_parts(&mut self, key: &str, parts: &[&[u8]]) -> Result<(), Interruption>;
    /// Reads an object.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Interruption>;
    /// Removes an object.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn delete(&mut self, key: &str) -> Result<(), Interruption>;
    /// The keys with a prefix.
    ///
    /// # Errors
    /// See [`Interruption`].
    fn list(&mut self, prefix: &str) -> Result<BTreeSet<String>, Interruption>;
}

/// What all clients together were promised.
#[derive(Debug)]
pub struct Promises {
    blocks: Vec<Mutex<BlockModel>>,
    objects: Vec<Mutex<ObjectModel>>,
}

/// Every critical section leaves its model whole, so one that panicked has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Promises {
    /// For `clients` of each head; the block clients share `disk_bytes` of a volume, with borders inside sectors.
    pub fn new(clients: u64, disk_bytes: u64) -> Self {
        let units = disk_bytes / UNIT_BYTES as u64;
        let border = |client: u64| match client {
            0 => 0,
            _ if client == clients => units,
            _ => units * client / clients / SECTOR_UNITS * SECTOR_UNITS + 3,
        };
        let region = |client| Region { first: border(client), units: border(client + 1) - border(client) };
        Self {
            blocks: (0..clients).map(|client| Mutex::new(BlockModel::new(region(client)))).collect(),
            objects: (0..clients).map(|_| Mutex::new(ObjectModel::default())).collect(),
        }
    }

    /// Clients of each head.
    pub fn clients(&self) -> usize {
        self.blocks.len()
    }

    /// Compares everything with what a node has after a crash. What is found is durable from here on.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_recovered(
        &self,
        blocks: &mut dyn Blocks,
        objects: &mut dyn Objects,
    ) -> Result<(), Interruption> {
        self.check_recovered_blocks(blocks)?;
        self.check_recovered_objects(objects)
    }

    /// The block clients' half of [`Self::check_recovered`].
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_recovered_blocks(&self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        for (client, model) in self.blocks.iter().enumerate() {
            let mut model = lock(model);
            let region = model.region();
            let mut content = vec![0; usize::try_from(region.byte_len()).expect("a region fits memory")];
            blocks.read(region.byte_offset(), &mut content)?;
            let checked = model.check_recovered(&content);
            checked.map_err(|found| Interruption::Wrong(format!("block client {client}: {found}")))?;
        }
        Ok(())
    }

    /// The object clients' half of [`Self::check_recovered`].
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_recovered_objects(&self, objects: &mut dyn Objects) -> Result<(), Interruption> {
        for (client, model) in self.objects.iter().enumerate() {
            let mut model = lock(model);
            for key in model.keys() {
                let found = objects.get(&key)?;
                let checked = model.check_recovered(&key, found.as_deref());
                checked.map_err(|found| Interruption::Wrong(found.to_string()))?;
            }
            check_listing(&model, objects, client)?;
        }
        Ok(())
    }
}

fn check_listing(model: &ObjectModel, objects: &mut dyn Objects, client: usize) -> Result<(), Interruption> {
    let listed = objects.list(&prefix(client))?;
    if listed == model.listed() {
        return Ok(());
    }
    let differing: Vec<_> = listed.symmetric_difference(&model.listed()).cloned().collect();
    Err(Interruption::Wrong(format!("the listing of object client {client} differs by {differing:?}")))
}

fn prefix(client: usize) -> String {
    format!("client-{client}/")
}

/// A client of the block device.
#[derive(Debug)]
pub struct BlockClient<'a> {
    promises: &'a Promises,
    client: usize,
    random: Random,
}

/// Somewhere in a region.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    count: u64,
}

impl<'a> BlockClient<'a> {
    /// The client with this number.
    pub fn new(promises: &'a Promises, client: usize, random: Random) -> Self {
        Self { promises, client, random }
    }

    fn model(&self) -> MutexGuard<'a, BlockModel> {
        lock(&self.promises.blocks[self.client])
    }

    /// One request, checked as far as a running node can be.
    ///
    /// # Errors
    /// Where it was not answered, or not as promised.
    pub fn step(&mut self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        match self.random.below(20) {
            0..=10 => self.write(blocks),
            11..=12 => self.flush(blocks),
            13 => self.zero(blocks),
            14 => self.trim(blocks),
            _ => self.read(blocks),
        }
    }

    /// Mostly small, mostly in a few hot places, at any 512-byte border.
    fn span(&mut self, count_max: u64) -> Span {
        let units = self.model().region().units;
        let count_max = if self.random.once_in(3) { count_max } else { 2 * SECTOR_UNITS };
        let count = self.random.between(1, count_max.min(units));
        let within = if self.random.once_in(4) { units } else { units.min(16 * count_max) };
        let hot = self.random.below(units / within) * within;
        let first = (hot + self.random.below(within)).min(units - count);
        Span { first, count }
    }

    fn write(&mut self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        let Span { first, count } = self.span(128);
        let durable = self.random.once_in(8);
        let tag = self.random.bits() | 1;
        let start = self.model().region().first + first;
        let mut data = vec![0; usize::try_from(count).expect("a span is small") * UNIT_BYTES];
        for (position, unit) in (start..).zip(data.chunks_exact_mut(UNIT_BYTES)) {
            pattern::fill(unit, tag, position);
        }
        self.model().begin(first, count, tag);
        blocks.write(start * UNIT_BYTES as u64, &data, durable)?;
        self.acknowledge(first, count, durable);
        Ok(())
    }

    fn zero(&mut self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        let Span { first, count } = self.span(256);
        let durable = self.random.once_in(8);
        let start = self.model().region().first + first;
        self.model().begin(first, count, ZEROS);
        blocks.write_zeroes(start * UNIT_BYTES as u64, count * UNIT_BYTES as u64, durable)?;
        self.acknowledge(first, count, durable);
        Ok(())
    }

    fn acknowledge(&self, first: u64, count: u64, durable: bool) {
        let mut model = self.model();
        if durable { model.acknowledged_durable(first, count) } else { model.acknowledge() }
    }

    /// Trims whole sectors: a trim of a part of one is advice that nobody has to take.
    fn trim(&mut self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        let Span { first, count } = self.span(256);
        let offset = self.model().region().first;
        let sector_start = (offset + first).next_multiple_of(SECTOR_UNITS);
        let sector_end = (offset + first + count) / SECTOR_UNITS * SECTOR_UNITS;
        if sector_end <= sector_start {
            return Ok(());
        }
        self.model().begin(sector_start - offset, sector_end - sector_start, ZEROS);
        blocks.trim(sector_start * UNIT_BYTES as u64, (sector_end - sector_start) * UNIT_BYTES as u64)?;
        self.model().acknowledge();
        Ok(())
    }

    /// A flush covers what was answered to any client before it was sent.
    fn flush(&mut self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        let marks: Vec<u64> = self.promises.blocks.iter().map(|model| lock(model).mark()).collect();
        blocks.flush()?;
        for (model, mark) in self.promises.blocks.iter().zip(marks) {
            lock(model).flushed(mark);
        }
        Ok(())
    }

    fn read(&mut self, blocks: &mut dyn Blocks) -> Result<(), Interruption> {
        let Span { first, count } = self.span(128);
        let start = self.model().region().first + first;
        let mut out = vec![0; usize::try_from(count).expect("a span is small") * UNIT_BYTES];
        blocks.read(start * UNIT_BYTES as u64, &mut out)?;
        let checked = self.model().check_read(first, &out);
        checked
            .map_err(|found| Interruption::Wrong(format!("block client {}, reading: {found}", self.client)))
    }
}

/// Keys of one object client: few, so that most puts overwrite.
const KEYS: u64 = 12;

/// Least length of every part but the last (S3).
const PART_BYTES_MIN: usize = 5 << 20;

/// A client of the object store.
#[derive(Debug)]
pub struct ObjectClient<'a> {
    promises: &'a Promises,
    client: usize,
    random: Random,
}

impl<'a> ObjectClient<'a> {
    /// The client with this number.
    pub fn new(promises: &'a Promises, client: usize, random: Random) -> Self {
        Self { promises, client, random }
    }

    fn model(&self) -> MutexGuard<'a, ObjectModel> {
        lock(&self.promises.objects[self.client])
    }

    /// One request, checked as far as a running node can be.
    ///
    /// # Errors
    /// Where it was not answered, or not as promised.
    pub fn step(&mut self, objects: &mut dyn Objects) -> Result<(), Interruption> {
        let key = format!("{}{}", prefix(self.client), self.random.below(KEYS));
        match self.random.below(40) {
            0..=21 => self.put(objects, &key),
            22 => self.put_in_parts(objects, &key),
            23..=27 => self.delete(objects, &key),
            28 => check_listing(&self.model(), objects, self.client),
            _ => self.get(objects, &key),
        }
    }

    /// From nothing to a few hundred KiB: in the index, in one run, in several.
    fn len(&mut self) -> usize {
        let len = match self.random.below(10) {
            0..=2 => self.random.below(300),
            3..=7 => self.random.below(20_000),
            8 => 4096 * self.random.below(8),
            _ => self.random.below(400_000),
        };
        usize::try_from(len).expect("a body fits memory")
    }

    fn put(&mut self, objects: &mut dyn Objects, key: &str) -> Result<(), Interruption> {
        let body = Body { tag: self.tag(), len: self.len() };
        self.model().begin(key, Some(body));
        objects.put(key, &body.bytes())?;
        self.model().acknowledge(key);
        Ok(())
    }

    fn tag(&mut self) -> Tag {
        self.random.bits() | 1
    }

    fn put_in_parts(&mut self, objects: &mut dyn Objects, key: &str) -> Result<(), Interruption> {
        let last = self.len();
        let first = if self.random.once_in(8) { PART_BYTES_MIN } else { 0 };
        let body = Body { tag: self.tag(), len: first + last };
        let bytes = body.bytes();
        let parts: Vec<&[u8]> =
            if first == 0 { vec![&bytes] } else { vec![&bytes[..first], &bytes[first..]] };
        self.model().begin(key, Some(body));
        objects.put_in_parts(key, &parts)?;
        self.model().acknowledge(key);
        Ok(())
    }

    fn delete(&mut self, objects: &mut dyn Objects, key: &str) -> Result<(), Interruption> {
        self.model().begin(key, None);
        objects.delete(key)?;
        self.model().acknowledge(key);
        Ok(())
    }

    fn get(&mut self, objects: &mut dyn Objects, key: &str) -> Result<(), Interruption> {
        let expected = self.model().current(key).map(Body::bytes);
        let found = objects.get(key)?;
        if found == expected {
            return Ok(());
        }
        let lengths = (found.map(|body| body.len()), expected.map(|body| body.len()));
        Err(Interruption::Wrong(format!(
            "object {key} reads as another one: found and expected are {lengths:?}"
        )))
    }
}
