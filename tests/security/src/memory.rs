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
    /// Mappings whose pages the kernel shows to nobody: secret memory.
    pub unreadable: Vec<String>,
}

impl Scan {
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
/// is this one, or where next to nothing could be read.
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
        if mapping.is_worth_reading() {
            read_mapping(&memory, &mapping, needles, &mut buffer, &mut scan)
                .with_context(|| format!("reading {line}"))?;
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
        let read = match memory.read_at(&mut buffer[..wanted], at) {
            Ok(0) => break,
            Ok(read) => read,
            // Secret memory gives EIO; a mapping that went away since `maps` was read does too, and holds nothing.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EFAULT)) => {
                scan.unreadable.push(mapping.rest.clone());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
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
