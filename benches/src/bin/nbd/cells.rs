//! What the client does.

/// One workload.
pub(crate) struct Cell {
    pub(crate) name: &'static str,
    /// fio's name.
    pub(crate) pattern: &'static str,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    /// A flush after every so many writes; 0 for none.
    pub(crate) flush_every: u32,
    pub(crate) sequential: bool,
}

impl Cell {
    pub(crate) fn unit(&self) -> &'static str {
        if self.sequential { "MB/s" } else { "1/s" }
    }

    /// A rate of requests in the cell's unit.
    pub(crate) fn shown(&self, requests_per_second: f64) -> f64 {
        if self.sequential {
            requests_per_second * f64::from(self.block_bytes) / 1e6
        } else {
            requests_per_second
        }
    }
}

const fn random(name: &'static str, pattern: &'static str, depth: u32) -> Cell {
    Cell { name, pattern, block_bytes: 4096, depth, flush_every: 0, sequential: false }
}

const fn sequential(name: &'static str, pattern: &'static str, block_bytes: u32) -> Cell {
    Cell { name, pattern, block_bytes, depth: 8, flush_every: 0, sequential: true }
}

pub(crate) const CELLS: [Cell; 10] = [
    random("randread 4k QD1", "randread", 1),
    random("randread 4k QD32", "randread", 32),
    random("randwrite 4k QD1", "randwrite", 1),
    random("randwrite 4k QD32", "randwrite", 32),
    sequential("read 64k", "read", 64 << 10),
    sequential("write 64k", "write", 64 << 10),
    sequential("read 1M", "read", 1 << 20),
    sequential("write 1M", "write", 1 << 20),
    Cell { flush_every: 1, ..random("write+flush 4k QD1", "randwrite", 1) },
    random("mixed 70/30 4k QD32", "randrw", 32),
];
