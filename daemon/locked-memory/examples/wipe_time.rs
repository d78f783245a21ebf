//! How long zeroing and flushing the arena takes: `cargo run --release -p locked-memory --example wipe_time`.

use std::time::Instant;

use locked_memory::{Arena, LockedMemoryError, Policy};

const ROUNDS: usize = 10_000;

fn main() -> Result<(), LockedMemoryError> {
    let arena = Arena::new(Policy::AllowMlock)?;
    let mut nanos: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            arena.zero();
            start.elapsed().as_nanos()
        })
        .collect();
    nanos.sort_unstable();
    println!("arena of {} KiB in {}", locked_memory::ARENA_BYTES / 1024, arena.kind().name());
    for (name, rank) in [("p50", ROUNDS / 2), ("p99", ROUNDS * 99 / 100), ("p99.9", ROUNDS * 999 / 1000)] {
        println!("{name:>6} {:>8.1} us", nanos[rank] as f64 / 1000.0);
    }
    println!("{:>6} {:>8.1} us", "max", nanos[ROUNDS - 1] as f64 / 1000.0);
    Ok(())
}
