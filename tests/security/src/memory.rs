//! Reads every mapping of another process through `/proc`, as a privileged neighbour could.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::needles::{Label, Needles, WINDOW_BYTES};

/// Bytes read at once; consecutive reads overlap by a window less one byte.
const READ_BYTES: usize = 1 << 20;

/// Mappings of secret memory that a node has: the arena, the key stack and the promotion stack.
pub const OF_A_NODE: usize = 3;

/// Mappings of secret memory that a keyholder has: the arena and the key stack.
pub const OF_A_KEYHOLDER: usize = 2;

/// A place where a secret's window was found.
#[derive(Clone, Debug)]
pub struct Finding {
    pub label: Label,
    pub address: u64,
    /// The mapping's line in `/proc/PID/maps`, from its permissions on.
    pub mapping: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Label { secret, form, offset } = &self.label;
        write!(f, "{secret} ({form}, byte {offset}) at {:#x} in [{}]", self.address, self.mapping)
    }
}

/// What one pass over a process saw.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    pub findings: Vec<Finding>,
    pub bytes_read: u64,
    /// Mappings whose pages the kernel shows to nobody. All are secret memory; a scan that could not read anything else fails.
    pub secret: Vec<String>,
}

impl Scan {
    /// That nothing was found, that something was looked at, and that no more was out of sight than there should be.
    ///
    /// # Panics
    /// Otherwise.
    pub fn assert_clean(&self, when: &str, secret_mappings: usize) {
        println!(
            "{when}: {} MiB read, {} windows, {:?}",
            self.bytes_read >> 20,
            self.findings.len(),
            self.secret
        );
        assert!(self.bytes_read > 1 << 20, "{when}: only {} bytes were read", self.bytes_read);
        assert_eq!(
            self.secret.len(),
            secret_mappings,
            "{when}: mappings of secret memory: {:?}",
            self.secret
        );
        assert!(self.findings.is_empty(), "{when}: {}", self.describe(30));
    }

    /// A line a secret, form and mapping, with how often and where first; at most `most` of them.
    pub fn describe(&self, most: usize) -> String {
        let mut groups: BTreeMap<(&str, &str, &str), (usize, &Finding)> = BTreeMap::new();
        for finding in &self.findings {
            let key = (finding.label.secret.as_str(), finding.label.form.as_str(), finding.mapping.as_str());
            groups.entry(key).or_insert((0, finding)).0 += 1;
        }
        let lines: Vec<String> =
            groups.values().take(most).map(|(count, first)| format!("{count} x, first {first}")).collect();
        format!("{} window(s) found\n  {}", self.findings.len(), lines.join("\n  "))
    }
}

/// Looks for `needles` in everything that process `pid` has mapped and that can be read.
///
/// # Errors
/// Where `/proc/PID` denies access (run as root, or as the process's own user with ptrace allowed), where the process
/// is this one, or where a mapping that is no secret memory could not be read to its end.
pub fn scan(pid: u32, needles: &Needles) -> Result<Scan> {
    ensure!(pid != std::process::id(), "the scanner holds the needles: it cannot scan itself");
    ensure!(!needles.is_empty(), "nothing to look for");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("reading the mappings of process {pid}: run the tests as root"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))
        .with_context(|| format!("opening the memory of process {pid}: run the tests as root"))?;
    let mut scan = Scan::default();
    let mut buffer = vec![0_u8; READ_BYTES];
    for line in maps.lines() {
        let mapping = Mapping::parse(line).with_context(|| format!("a line of maps: `{line}`"))?;
        if !mapping.is_worth_reading() {
            continue;
        }
        match read_mapping(&memory, &mapping, needles, &mut buffer, &mut scan) {
            Ok(()) => {}
            Err(error) if mapping.is_secret() && error.raw_os_error() == Some(libc::EIO) => {
                scan.secret.push(mapping.rest);
            }
            // A process that runs on gives memory back; what is not mapped any more holds nothing.
            Err(_) if !is_mapped(pid, line)? => {}
            Err(error) => return Err(error).with_context(|| format!("reading {line}")),
        }
    }
    ensure!(scan.bytes_read > 0, "not one byte of process {pid} could be read: the scan proves nothing");
    Ok(scan)
}

struct Mapping {
    start: u64,
    end: u64,
    /// Permissions, offset, device, inode and path.
    rest: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        Some(Self { start, end, rest: rest.to_owned() })
    }

    /// Guard pages hold nothing, and the kernel's own pages are the same in every process.
    fn is_worth_reading(&self) -> bool {
        self.rest.starts_with('r') && !self.rest.contains("[vvar") && !self.rest.ends_with("[vsyscall]")
    }

    fn is_secret(&self) -> bool {
        self.rest.contains("/secretmem")
    }
}

/// Whether a line of `maps` still stands there.
fn is_mapped(pid: u32, line: &str) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("reading the mappings of process {pid} again"))?;
    Ok(maps.lines().any(|now| now == line))
}

fn read_mapping(
    memory: &File,
    mapping: &Mapping,
    needles: &Needles,
    buffer: &mut [u8],
    scan: &mut Scan,
) -> io::Result<()> {
    let mut at = mapping.start;
    while at < mapping.end {
        let wanted = usize::try_from(mapping.end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = memory.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        needles.search(&buffer[..read], |position, label| {
            scan.findings.push(Finding {
                label: label.clone(),
                address: at + position as u64,
                mapping: mapping.rest.clone(),
            });
        });
        scan.bytes_read += read as u64;
        let end_reached = read < wanted || at + read as u64 >= mapping.end;
        // The next read starts a little earlier, so that no window falls between two reads.
        at += if end_reached { read } else { read - (WINDOW_BYTES - 1) } as u64;
    }
    Ok(())
}
