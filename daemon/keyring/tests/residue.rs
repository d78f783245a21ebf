//! What a wipe leaves in a process, seen from outside of it.
//!
//! A child takes more keys than the arena holds at once, encrypts and decrypts with all of them on several threads, and
//! wipes. The parent, who knows the keys, reads every readable byte of the child and looks for the PRKs, the volume keys, the
//! tweak keys, the tag keys and the round keys of both directions, in 8-byte windows and in both byte orders. The child's
//! arena is ordinary locked memory here, so that the scanner sees it too: before the wipe it must find the hot keys, and
//! in the arena only. Those that wait outside of it are sealed.
//!
//! A second key lies planted in the child's heap all the time: the scanner proves itself on it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use aes_xts::{Binding, Direction, Record, SCHEDULE_WORDS, Sectors, TAG_WORDS, TagSchedule, XtsSchedule};
use keyring::simulated::{Keyholder, keyring_in};
use keyring::{HOT_KEYS, KeyHandle, Keyring, WipeCause};
use lease::envelope::PublicEnvelopeKey;
use locked_memory::{ARENA_BYTES, Policy};
use units::{DomainId, Lba, SECTOR_BYTES, VolumeEpoch};

const WINDOW: usize = 8;
/// More than the hot set holds.
const KEYS: usize = HOT_KEYS + 8;
const CHILD_VARIABLE: &str = "NIGHTLATCH_RESIDUE_CHILD";
/// Marks the child's answers among what the test harness prints.
const ANSWER: &str = "residue-child ";

fn schedule_words(key: &[u8; 64]) -> Box<[AtomicU64; SCHEDULE_WORDS]> {
    let words = Box::new(std::array::from_fn(|_| AtomicU64::new(0)));
    XtsSchedule::over(&words).expand(key).unwrap();
    words
}

fn bytes_of(words: &[AtomicU64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect()
}

fn keyholder(prk: [u8; 32]) -> Keyholder {
    Keyholder::with_prk(DomainId([5; 16]), VolumeEpoch(1), prk)
}

// ---- the child ----

/// The child of the tests below, which run this very program again; by itself it has nothing to do.
#[test]
fn residue_child() {
    let Ok(planted) = std::env::var(CHILD_VARIABLE) else { return };
    let planted_key: [u8; 64] = hex::decode(planted).unwrap().try_into().unwrap();
    let planted_schedule = schedule_words(&planted_key);
    let keyring = keyring_in(Policy::MlockForInspection);
    let recipient = keyring.fresh_envelope_key().unwrap();
    answer(&hex::encode(recipient.as_bytes()));

    let handles: Vec<_> = (0..KEYS)
        .map(|_| {
            let envelope = hex::decode(question()).unwrap();
            let check: [u8; 16] = hex::decode(question()).unwrap().try_into().unwrap();
            let grant = keyring::SealedGrant {
                domain: DomainId([5; 16]),
                epoch: VolumeEpoch(1),
                check,
                info: b"info",
                aad: b"aad",
                envelope: &envelope,
            };
            keyring.admit(&grant).unwrap().handle
        })
        .collect();
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let (keyring, handles) = (keyring.clone(), handles.clone());
            let (ready, parked) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
            let work = thread::spawn(move || {
                let mut sectors = vec![0xab; 16 * SECTOR_BYTES];
                for (round, handle) in (0u64..).zip(handles) {
                    let first = u128::from(Lba(thread * 1000 + round).0);
                    for direction in [Direction::Encrypt, Direction::Decrypt] {
                        let run = Sectors { first, bytes: SECTOR_BYTES };
                        let done =
                            keyring.with_key(handle, |key| key.cipher.apply(direction, run, &mut sectors));
                        done.unwrap().unwrap();
                    }
                    seal_and_open(&keyring, handle, &mut sectors);
                }
                assert!(sectors.iter().all(|byte| *byte == 0xab));
                ready.0.send(()).unwrap();
                // Stays, so that its stack stays mapped and is scanned.
                let _ended = parked.1.recv();
            });
            ready.1.recv().unwrap();
            (work, parked.0)
        })
        .collect();
    answer("encrypted");
    assert_eq!(question(), "wipe");
    let report = keyring.wipe(WipeCause::PowerLoss);
    answer(&format!("wiped {} key(s) in {} ns", report.keys, report.nanos));
    assert_eq!(question(), "end");
    for (work, parked) in threads {
        drop(parked);
        work.join().unwrap();
    }
    drop((planted_schedule, planted_key));
}

/// Encrypts and decrypts once more, tags included.
fn seal_and_open(keyring: &Keyring, handle: KeyHandle, sectors: &mut [u8]) {
    let run = Sectors { first: 7, bytes: SECTOR_BYTES };
    let binding = Binding { domain: [5; 16], epoch: 1, sequences: &[3; 16] };
    let (mut made, mut found) = ([Record::default(); 16], [Record::default(); 16]);
    keyring
        .with_key(handle, |key| key.cipher.seal(key.tags, run, binding, sectors, &mut made))
        .unwrap()
        .unwrap();
    let sealed = sectors.to_vec();
    let opened = keyring
        .with_key(handle, |key| key.cipher.open(key.tags, run, binding, (&sealed, sectors), &mut found));
    opened.unwrap().unwrap();
    assert!(made.iter().zip(&found).all(|(made, found)| found.tag.verify(made.tag.bytes()).is_ok()));
}

fn answer(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{ANSWER}{text}").unwrap();
    out.flush().unwrap();
}

fn question() -> String {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

// ---- the scanner ----

/// What to look for: every 8-byte window of the secrets and, in it, their bytes reversed.
struct Needles {
    windows: HashSet<[u8; WINDOW]>,
    /// Which first two bytes occur at all: rules out almost every position without hashing.
    first_bytes: Vec<bool>,
}

impl Needles {
    fn of(secrets: &[&[u8]]) -> Self {
        let mut windows = HashSet::new();
        for window in secrets.iter().flat_map(|secret| secret.windows(WINDOW)) {
            let mut window: [u8; WINDOW] = window.try_into().unwrap();
            windows.insert(window);
            window.reverse();
            windows.insert(window);
        }
        let mut first_bytes = vec![false; 1 << 16];
        for window in &windows {
            first_bytes[usize::from(u16::from_ne_bytes([window[0], window[1]]))] = true;
        }
        Self { windows, first_bytes }
    }

    /// A key of the cipher alone.
    fn of_key(key: &[u8; 64]) -> Self {
        Self::of(&[key, &bytes_of(schedule_words(key).as_slice())])
    }

    /// Everything that the grants turn into on a node.
    fn of_grants(grants: &[([u8; 32], Keyholder)]) -> Self {
        let secrets: Vec<Vec<u8>> = grants
            .iter()
            .flat_map(|(prk, keyholder)| {
                let xts = keyholder.xts_key();
                let (hash, prf) = keyholder.tag_keys();
                let words: Box<[AtomicU64; TAG_WORDS]> = Box::new(std::array::from_fn(|_| AtomicU64::new(0)));
                TagSchedule::over(&words).expand(&hash, &prf);
                [
                    prk.to_vec(),
                    bytes_of(schedule_words(&xts).as_slice()),
                    bytes_of(words.as_slice()),
                    [xts.as_slice(), &hash, &prf].concat(),
                ]
            })
            .collect();
        Self::of(&secrets.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    fn count_in(&self, bytes: &[u8]) -> usize {
        bytes
            .windows(WINDOW)
            .filter(|window| self.first_bytes[usize::from(u16::from_ne_bytes([window[0], window[1]]))])
            .filter(|window| self.windows.contains(*window))
            .count()
    }
}

/// Where something was found.
struct Hit {
    region: String,
    region_bytes: u64,
    windows: usize,
}

fn scan(process: u32, needles: &Needles) -> Vec<Hit> {
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut hits = Vec::new();
    let mut scanned = 0;
    for line in fs::read_to_string(format!("/proc/{process}/maps")).unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        if !rest.starts_with('r') || rest.contains("[v") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // All of it: nothing here is in secret memory.
        memory.read_exact_at(&mut bytes, start).unwrap_or_else(|error| panic!("{line}: {error}"));
        scanned += bytes.len();
        let windows = needles.count_in(&bytes);
        if windows > 0 {
            hits.push(Hit { region: line.to_owned(), region_bytes: end - start, windows });
        }
    }
    assert!(scanned > 1 << 20, "the scanner saw the process");
    hits
}

fn describe(hits: &[Hit]) -> String {
    hits.iter().map(|hit| format!("{} windows in {}\n", hit.windows, hit.region)).collect()
}

// ---- the parent ----

struct Node {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Node {
    fn start(planted: &[u8; 64]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "residue_child"])
            .env(CHILD_VARIABLE, hex::encode(planted))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (questions, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, questions, answers: BufReader::new(answers) }
    }

    fn ask(&mut self, text: &str) {
        writeln!(self.questions, "{text}").unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the child ended early");
            if let Some(text) = line.trim_end().strip_prefix(ANSWER) {
                return text.to_owned();
            }
        }
    }
}

#[test]
fn after_a_wipe_no_part_of_any_key_is_left_in_the_process() {
    let mut planted = [0; 64];
    getrandom::fill(&mut planted).unwrap();
    let grants: Vec<([u8; 32], Keyholder)> = (0..KEYS)
        .map(|_| {
            let mut prk = [0; 32];
            getrandom::fill(&mut prk).unwrap();
            (prk, keyholder(prk))
        })
        .collect();
    let needles = Needles::of_grants(&grants);
    let control = Needles::of_key(&planted);

    let mut node = Node::start(&planted);
    let process = node.process.id();
    let recipient = PublicEnvelopeKey::from_bytes(&hex::decode(node.answer()).unwrap()).unwrap();
    for (_, keyholder) in &grants {
        node.ask(&hex::encode(keyholder.seal_to(&recipient, b"info", b"aad")));
        node.ask(&hex::encode(keyholder.check()));
    }
    assert_eq!(node.answer(), "encrypted");

    let before = scan(process, &needles);
    assert_eq!(before.len(), 1, "in the arena and nowhere else:\n{}", describe(&before));
    assert_eq!(before[0].region_bytes, ARENA_BYTES as u64, "{}", describe(&before));
    assert!(before[0].windows > HOT_KEYS * 1000, "the hot keys whole:\n{}", describe(&before));

    node.ask("wipe");
    println!("{}", node.answer());
    let planted_hits: usize = scan(process, &control).iter().map(|hit| hit.windows).sum();
    assert!(planted_hits > 600, "the scanner finds a planted key: {planted_hits} windows");
    let after = scan(process, &needles);
    assert!(after.is_empty(), "left after the wipe:\n{}", describe(&after));

    node.ask("end");
    assert!(node.process.wait().unwrap().success());
}
