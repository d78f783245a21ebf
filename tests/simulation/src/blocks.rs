//! One block client's part of a volume: what each 512 bytes of it may hold.

use std::fmt;

use crate::pattern::{self, Tag, UNIT_BYTES, ZEROS};

/// A range of 512-byte units in the volume that one client writes and no other.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First unit, counted from the start of the volume.
    pub first: u64,
    pub units: u64,
}

impl Region {
    /// First byte in the volume.
    pub fn byte_offset(self) -> u64 {
        self.first * UNIT_BYTES as u64
    }

    /// Length in bytes.
    pub fn byte_len(self) -> u64 {
        self.units * UNIT_BYTES as u64
    }
}

/// What the model says a unit may hold, oldest first: the first was made durable, each later one was written since.
#[derive(Clone, Debug)]
struct Unit(Vec<Written>);

#[derive(Clone, Copy, Debug)]
struct Written {
    order: u64,
    tag: Tag,
}

/// A unit that holds what it must not.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Byte offset in the volume.
    pub at: u64,
    /// The write it holds, `None` for bytes that nobody wrote there.
    pub found: Option<Tag>,
    /// The writes it may hold.
    pub allowed: Vec<Tag>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} holds ", self.at)?;
        match self.found {
            Some(ZEROS) => f.write_str("zeros")?,
            Some(tag) => write!(f, "write {tag}")?,
            None => f.write_str("what nobody wrote there")?,
        }
        write!(f, ", allowed are {:?}", self.allowed)
    }
}

/// The model of one client's region.
#[derive(Clone, Debug)]
pub struct BlockModel {
    region: Region,
    units: Vec<Unit>,
    /// Changes begun so far; the last may not be acknowledged.
    begun: u64,
    acknowledged: u64,
    /// Units with more than one candidate.
    unsettled: Vec<usize>,
}

impl BlockModel {
    /// A region of zeros.
    pub fn new(region: Region) -> Self {
        let zero = Unit(vec![Written { order: 0, tag: ZEROS }]);
        let count = usize::try_from(region.units).expect("a region fits memory");
        Self { region, units: vec![zero; count], begun: 0, acknowledged: 0, unsettled: Vec::new() }
    }

    /// The client's region.
    pub fn region(&self) -> Region {
        self.region
    }

    /// A change is about to be sent: `count` units from `first` (counted from the region's start) may now hold `tag`.
    pub fn begin(&mut self, first: u64, count: u64, tag: Tag) {
        self.begun += 1;
        let order = self.begun;
        for index in self.indices(first, count) {
            self.units[index].0.push(Written { order, tag });
            self.unsettled.push(index);
        }
    }

    /// The change that was begun last was answered with success.
    pub fn acknowledge(&mut self) {
        self.acknowledged = self.begun;
    }

    /// Changes acknowledged so far: what a flush that starts now will cover.
    pub fn mark(&self) -> u64 {
        self.acknowledged
    }

    /// A flush that started at `mark` was answered with success: nothing older than what was acknowledged then may be
    /// seen again.
    pub fn flushed(&mut self, mark: u64) {
        let units = &mut self.units;
        self.unsettled.retain(|index| {
            let written = &mut units[*index].0;
            if let Some(last) = written.iter().rposition(|candidate| candidate.order <= mark) {
                written.drain(..last);
            }
            written.len() > 1
        });
    }

    /// The change that was begun last was acknowledged as durable by itself (FUA). Earlier ones are no more
    /// durable for it where it did not overwrite them.
    pub fn acknowledged_durable(&mut self, first: u64, count: u64) {
        self.acknowledge();
        for index in self.indices(first, count) {
            let written = &mut self.units[index].0;
            written.drain(..written.len() - 1);
        }
    }

    /// Compares a read from a running node: only what was written last may be there.
    ///
    /// # Errors
    /// The first unit that differs.
    pub fn check_read(&self, first: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        self.check(first, bytes, |unit| &unit.0[unit.0.len() - 1..]).map(|_| ())
    }

    /// Compares the whole region after a crash, and takes what it holds as durable from here on.
    ///
    /// # Errors
    /// The first unit that holds what it must not.
    pub fn check_recovered(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let found = self.check(0, bytes, |unit| &unit.0)?;
        for (unit, tag) in self.units.iter_mut().zip(found) {
            unit.0.clear();
            unit.0.push(Written { order: 0, tag });
        }
        self.unsettled.clear();
        self.acknowledged = self.begun;
        Ok(())
    }

    fn check<'a>(
        &'a self,
        first: u64,
        bytes: &[u8],
        allowed: impl Fn(&'a Unit) -> &'a [Written],
    ) -> Result<Vec<Tag>, Mismatch> {
        let mut tags = Vec::new();
        let count = (bytes.len() / UNIT_BYTES) as u64;
        for (index, unit) in self.indices(first, count).zip(bytes.chunks_exact(UNIT_BYTES)) {
            let position = self.region.first + index as u64;
            let found = pattern::identify(unit, position);
            let allowed = allowed(&self.units[index]);
            match found {
                Some(tag) if allowed.iter().any(|candidate| candidate.tag == tag) => tags.push(tag),
                _ => {
                    let allowed = allowed.iter().map(|candidate| candidate.tag).collect();
                    return Err(Mismatch { at: position * UNIT_BYTES as u64, found, allowed });
                }
            }
        }
        Ok(tags)
    }

    fn indices(&self, first: u64, count: u64) -> std::ops::Range<usize> {
        assert!(first + count <= self.region.units, "a client leaves its region");
        let index = |unit: u64| usize::try_from(unit).expect("a region fits memory");
        index(first)..index(first + count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: Region = Region { first: 10, units: 4 };

    fn content(tags: [Tag; 4]) -> Vec<u8> {
        let mut bytes = vec![0; 4 * UNIT_BYTES];
        for ((position, tag), unit) in (10..).zip(tags).zip(bytes.chunks_exact_mut(UNIT_BYTES)) {
            pattern::fill(unit, tag, position);
        }
        bytes
    }

    fn written() -> BlockModel {
        let mut model = BlockModel::new(REGION);
        model.begin(0, 3, 1);
        model.acknowledge();
        let mark = model.mark();
        model.begin(1, 1, 2);
        model.acknowledge();
        model.flushed(mark);
        model.begin(2, 2, 3);
        model
    }

    #[test]
    fn what_was_flushed_must_be_there_and_what_came_later_may() {
        for allowed in [[1, 1, 1, 0], [1, 2, 1, 0], [1, 2, 3, 3], [1, 1, 1, 3]] {
            written().check_recovered(&content(allowed)).unwrap();
        }
        for lost in [[0, 1, 1, 0], [1, 0, 1, 0], [1, 3, 1, 0], [1, 1, 1, 2]] {
            assert!(written().check_recovered(&content(lost)).is_err(), "{lost:?}");
        }
    }

    #[test]
    fn what_was_found_after_a_crash_must_stay() {
        let mut model = written();
        model.check_recovered(&content([1, 2, 1, 3])).unwrap();
        assert!(model.check_recovered(&content([1, 1, 1, 3])).is_err());
        model.check_recovered(&content([1, 2, 1, 3])).unwrap();
    }

    #[test]
    fn a_durable_write_settles_its_own_units_only() {
        let mut model = BlockModel::new(REGION);
        model.begin(0, 2, 1);
        model.acknowledge();
        model.begin(1, 1, 2);
        model.acknowledged_durable(1, 1);
        model.clone().check_recovered(&content([0, 2, 0, 0])).unwrap();
        assert!(model.check_recovered(&content([1, 1, 0, 0])).is_err());
    }

    #[test]
    fn a_running_node_shows_the_last_write() {
        let model = written();
        model.check_read(0, &content([1, 2, 3, 3])).unwrap();
        assert!(model.check_read(0, &content([1, 1, 3, 3])).is_err());
    }
}
