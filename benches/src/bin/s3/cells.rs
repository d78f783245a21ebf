//! What the client does.

/// A kind of request, or a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Overwrites objects in turn, from a ring of keys.
    Put,
    /// Reads objects in turn.
    Get,
    /// Two reads and a write.
    Mixed,
    /// A page of 1,000 keys.
    List,
    /// Removes objects that the client itself wrote just before, outside the time that counts.
    Delete,
}

/// One workload.
pub(crate) struct Cell {
    pub(crate) name: &'static str,
    pub(crate) operation: Operation,
    pub(crate) bytes: usize,
    pub(crate) clients: usize,
    /// Ratio to the best rival; none where no target is set.
    pub(crate) factor: Option<f64>,
}

impl Cell {
    fn is_bulk(&self) -> bool {
        self.bytes > 4096 && matches!(self.operation, Operation::Put | Operation::Get | Operation::Mixed)
    }

    pub(crate) fn unit(&self) -> &'static str {
        if self.is_bulk() { "MiB/s" } else { "1/s" }
    }

    /// A rate of requests in the cell's unit.
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    pub(crate) fn shown(&self, requests_per_second: f64) -> f64 {
        if self.is_bulk() {
            requests_per_second * self.bytes as f64 / 1_048_576.0
        } else {
            requests_per_second
        }
    }

    /// Keys that reads, and overwrites, go round.
    pub(crate) fn ring(&self) -> usize {
        match self.bytes {
            0..=4096 => 2_000,
            0..=1_048_576 => 64,
            _ => 4,
        }
    }
}

const KIB_4: usize = 4096;
const MIB_1: usize = 1 << 20;
const MIB_64: usize = 64 << 20;

const fn cell(
    name: &'static str,
    operation: Operation,
    bytes: usize,
    clients: usize,
    factor: Option<f64>,
) -> Cell {
    Cell { name, operation, bytes, clients, factor }
}

use Operation::{Delete, Get, List, Mixed, Put};

pub(crate) const CELLS: [Cell; 25] = [
    cell("PUT 4K x1", Put, KIB_4, 1, None),
    cell("PUT 4K x8", Put, KIB_4, 8, None),
    cell("PUT 4K x32", Put, KIB_4, 32, Some(1.5)),
    cell("GET 4K x1", Get, KIB_4, 1, Some(3.0)),
    cell("GET 4K x8", Get, KIB_4, 8, Some(3.0)),
    cell("GET 4K x32", Get, KIB_4, 32, Some(3.0)),
    cell("mixed 4K x8", Mixed, KIB_4, 8, None),
    cell("mixed 4K x32", Mixed, KIB_4, 32, None),
    cell("PUT 1M x1", Put, MIB_1, 1, Some(1.5)),
    cell("PUT 1M x8", Put, MIB_1, 8, Some(1.5)),
    cell("PUT 1M x32", Put, MIB_1, 32, Some(1.5)),
    cell("GET 1M x1", Get, MIB_1, 1, Some(2.0)),
    cell("GET 1M x8", Get, MIB_1, 8, Some(2.0)),
    cell("GET 1M x32", Get, MIB_1, 32, Some(2.0)),
    cell("mixed 1M x8", Mixed, MIB_1, 8, None),
    cell("PUT 64M x1", Put, MIB_64, 1, Some(1.5)),
    cell("PUT 64M x8", Put, MIB_64, 8, Some(1.5)),
    cell("GET 64M x1", Get, MIB_64, 1, Some(1.5)),
    cell("GET 64M x8", Get, MIB_64, 8, Some(1.5)),
    cell("GET 64M x32", Get, MIB_64, 32, Some(1.5)),
    cell("LIST 1000 x1", List, KIB_4, 1, None),
    cell("LIST 1000 x8", List, KIB_4, 8, None),
    cell("DELETE x1", Delete, KIB_4, 1, None),
    cell("DELETE x8", Delete, KIB_4, 8, None),
    cell("DELETE x32", Delete, KIB_4, 32, None),
];
