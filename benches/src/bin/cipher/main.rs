//! AES-256-XTS beside its rivals, on one core: `make bench-cipher`.
//!
//! Every turn of a subject stands next to a turn of the bound, a loop of nothing but `vaesenc`, and counts as a share of
//! it: a change of clock or a busy neighbour hits both. A figure is the median over the rounds. The smaller buffer stays
//! in the second-level cache; the larger comes from memory. A subject takes the whole buffer in a call where its
//! interface allows that, and a sector at a time where it does not.
//!
//! Which physical pages a buffer gets decides how well it fits that cache, and with one buffer a whole run is lucky or not
//! (opening: 53 to 60 % of the bound from run to run). So the rounds go over several places, each with its own keys, buffers
//! and subjects, all held at once.
#![expect(unsafe_code, reason = "calls rivals that are written in C and assembler")]

mod bound;
mod chart;
mod evp;
mod ours;
mod rivals;

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::{Figure, folder, median, publish};
use device::SectorBuf;
use units::{SECTOR_BYTES as PAGE_BYTES, SectorCount};

/// Bytes that stay in the second-level cache.
const CACHED_BYTES: usize = 256 * 1024;
/// Bytes that do not stay in any.
const MEMORY_BYTES: usize = 512 << 20;
/// Sector sizes; 4096 is the one in use.
const SECTOR_BYTES: [usize; 3] = [512, 4096, 16 * 1024];
/// Places in memory that the rounds take turns at.
const PLACES: usize = 17;
/// Rounds in which every subject has one turn, as many at each place. Odd, so that the median is a measured value.
const ROUNDS: usize = 9 * PLACES;
/// How long a turn lasts, at least. Far less than a scheduler's slice, so that on a machine with neighbours most turns are
/// not interrupted, and the median is of those.
const TURN: Duration = Duration::from_micros(150);
/// Shares of the bound that the prototypes reached, where this bench holds a kernel to it.
const PROTOTYPES_GIB: [(&str, f64); 3] = [("vaes256", 10.6), ("vaes256-avx2", 8.5), ("aes-ni", 4.5)];

/// What a subject does to a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Encrypt,
    Decrypt,
    /// Encrypt and make what protects every sector: a record, or a GCM tag.
    Seal,
    /// Check that and decrypt.
    Open,
    /// Anything that has no direction.
    Pass,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Seal => "seal",
            Self::Open => "open",
            Self::Pass => "pass",
        }
    }
}

type Work<'a> = Box<dyn FnMut(&mut [u8], usize) + 'a>;

/// One line of the result.
pub(crate) struct Subject<'a> {
    pub(crate) name: String,
    pub(crate) task: Task,
    pub(crate) work: Work<'a>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(name: &str, task: Task, work: impl FnMut(&mut [u8], usize) + 'a) -> Self {
        Self { name: name.to_owned(), task, work: Box::new(work) }
    }
}

/// What was measured of one subject at one case.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) task: Task,
    pub(crate) sector: usize,
    pub(crate) gib: f64,
    /// Of the bound.
    pub(crate) share: f64,
}

/// Subjects and what they work on.
struct Place<'a> {
    subjects: Vec<Subject<'a>>,
    buffer: SectorBuf,
}

fn main() -> Result<()> {
    let keys: Vec<ours::Keys> =
        std::iter::repeat_with(ours::Keys::new).take(PLACES).collect::<Result<_>>()?;
    rivals::agree(&keys[0])?;
    let place = |keys| -> Result<Place<'_>> {
        let mut subjects = ours::Keys::subjects(keys);
        subjects.extend(rivals::subjects()?);
        Ok(Place { subjects, buffer: filled(CACHED_BYTES) })
    };
    let mut results = Vec::new();
    for sector in SECTOR_BYTES {
        let mut places: Vec<Place<'_>> = keys.iter().map(place).collect::<Result<_>>()?;
        results.extend(measure(&mut places, sector, ROUNDS)?);
    }
    let mut figures = figures(&results)?;
    let mut subjects = keys[0].fastest();
    subjects.extend(rivals::subjects()?);
    subjects
        .retain(|subject| !matches!(subject.name.as_str(), "xts-mode" | "aes crate" | "SHA-256" | "BLAKE3"));
    for result in measure(&mut [Place { subjects, buffer: filled(MEMORY_BYTES) }], 4096, 3)? {
        figures.push(Figure::new(
            &format!("{}, 512 MiB", result.task.name()),
            &result.name,
            result.gib,
            "GiB/s",
        ));
    }
    publish("cipher", &figures)?;
    let path = folder().join("cipher.svg");
    std::fs::write(&path, chart::draw(&results)).with_context(|| format!("writing {}", path.display()))?;
    println!("the chart is {}", path.display());
    Ok(())
}

/// What the node encrypts in: memory that direct I/O takes, so on a page. Every subject gets the same.
pub(crate) fn filled(bytes: usize) -> SectorBuf {
    let mut buffer = SectorBuf::zeroed(SectorCount(bytes.div_ceil(PAGE_BYTES) as u64));
    buffer.as_mut_bytes().fill(0x5A);
    buffer
}

fn measure(places: &mut [Place<'_>], sector: usize, rounds: usize) -> Result<Vec<Measured>> {
    let mut samples = vec![(Vec::new(), Vec::new()); places[0].subjects.len()];
    for round in 0..rounds {
        let at = round % places.len();
        let Place { subjects, buffer } = &mut places[at];
        for (subject, (gibs, shares)) in subjects.iter_mut().zip(&mut samples) {
            // Untimed: for the caches, and for a clock that heavier instructions slow down and lighter ones speed up.
            turn(buffer.as_mut_bytes(), sector, &mut subject.work);
            let before = bound::gib_per_second();
            let gib = turn(buffer.as_mut_bytes(), sector, &mut subject.work);
            let bound = f64::midpoint(before, bound::gib_per_second());
            ensure!(bound > 0.0, "the bound could not be measured");
            gibs.push(gib);
            shares.push(gib / bound);
        }
    }
    let named = places[0].subjects.iter().zip(samples);
    Ok(named
        .map(|(subject, (gibs, shares))| Measured {
            name: subject.name.clone(),
            task: subject.task,
            sector,
            gib: median(gibs),
            share: median(shares),
        })
        .collect())
}

fn turn(buffer: &mut [u8], sector: usize, work: &mut Work<'_>) -> f64 {
    let start = Instant::now();
    let mut bytes = 0.0;
    while start.elapsed() < TURN {
        work(black_box(buffer), sector);
        #[expect(clippy::cast_precision_loss, reason = "a buffer is far smaller than 2^52")]
        let done = buffer.len() as f64;
        bytes += done;
    }
    bytes / start.elapsed().as_secs_f64() / f64::from(1 << 30)
}

fn figures(results: &[Measured]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for result in results {
        let case = format!("{}, {} B sectors", result.task.name(), result.sector);
        let prototype = PROTOTYPES_GIB.iter().find(|(name, _)| {
            *name == result.name
                && result.sector == 4096
                && matches!(result.task, Task::Encrypt | Task::Decrypt)
        });
        let figure = Figure::new(&case, &result.name, result.gib, "GiB/s");
        figures.push(match prototype {
            Some((_, target)) => figure.at_least(*target),
            None => figure,
        });
        let figure = Figure::new(&case, &result.name, 100.0 * result.share, "% of bound");
        figures.push(match share_target(result) {
            Some(target) => figure.at_least(100.0 * target),
            None => figure,
        });
    }
    for sector in SECTOR_BYTES {
        let factor = match sector {
            512 => 2.0,
            4096 => 1.18,
            _ => 1.05,
        };
        for task in [Task::Encrypt, Task::Decrypt] {
            let ours = share(results, task, sector, |name| name == ours::FASTEST)?;
            let theirs = share(results, task, sector, |name| {
                name.starts_with("AWS-LC") || name.starts_with("OpenSSL")
            })?;
            let case = format!("{}, {sector} B sectors", task.name());
            figures.push(Figure::new(&case, "to AWS-LC, OpenSSL", ours / theirs, "times").at_least(factor));
            // What a kernel of nothing but AES rounds would reach: no target above it can be met on this machine.
            figures.push(Figure::new(&case, "the bound to them", 1.0 / theirs, "times"));
        }
        for task in [Task::Seal, Task::Open] {
            let ours = share(results, task, sector, |name| name == ours::FASTEST)?;
            let theirs = share(results, task, sector, |name| name == rivals::GCM)?;
            let case = format!("{}, {sector} B sectors", task.name());
            let figure = Figure::new(&case, "to AES-256-GCM", ours / theirs, "times");
            figures.push(if sector == 4096 { figure.at_least(1.3) } else { figure });
        }
    }
    Ok(figures)
}

fn share_target(result: &Measured) -> Option<f64> {
    if result.name != ours::FASTEST {
        return None;
    }
    match (result.task, result.sector) {
        (Task::Encrypt | Task::Decrypt, 512) => Some(0.86),
        (Task::Encrypt | Task::Decrypt, _) => Some(0.92),
        (Task::Seal | Task::Open, 4096) => Some(0.55),
        _ => None,
    }
}

/// The largest share of those subjects.
fn share(results: &[Measured], task: Task, sector: usize, wanted: impl Fn(&str) -> bool) -> Result<f64> {
    let of_case = results.iter().filter(|result| result.task == task && result.sector == sector);
    let shares = of_case.filter(|result| wanted(&result.name)).map(|result| result.share);
    shares.max_by(f64::total_cmp).context("a subject of a target was not measured")
}
