//! A core of a live process, taken from outside by a debugger: with what the process excluded from cores, or without.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::client::{client, run};

/// Which mappings a core holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Those that a core has by itself.
    Ordinary,
    /// All of them, excluded ones too: the debugger ignores the process's filter and MADV_DONTDUMP.
    Everything,
}

/// Takes a core of `pid` into `folder`. The process is stopped meanwhile, and goes on.
///
/// # Panics
/// Where there is no debugger, it may not attach (run the tests as root), or it could not read something that is no secret
/// memory.
pub fn take(pid: u32, extent: Extent, folder: &Path) -> PathBuf {
    let file = folder.join(format!("core-{extent:?}"));
    let (filter, excluded) = match extent {
        Extent::Ordinary => ("on", "off"),
        Extent::Everything => ("off", "on"),
    };
    let mut gdb = client("gdb");
    // Symbols of a program with debugging information take longer to read than its memory.
    gdb.args(["--nx", "--batch", "--readnever"]);
    for command in [
        format!("set use-coredump-filter {filter}"),
        format!("set dump-excluded-mappings {excluded}"),
        format!("attach {pid}"),
        format!("gcore {}", file.display()),
        "detach".to_owned(),
    ] {
        gdb.args(["-ex", &command]);
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root reads maps");
    let answer = run(&mut gdb);
    assert!(file.is_file(), "no core was made\n{}", answer.describe());
    let said = answer.stdout.lines().chain(answer.stderr.lines());
    for unread in said.filter(|line| line.contains("Memory read failed")) {
        let address = unread.rsplit_once("0x").map(|(_, rest)| rest.trim_end_matches('.'));
        let address = address.and_then(|text| u64::from_str_radix(text, 16).ok()).expect("an address");
        let mapping = maps.lines().find(|line| holds(line, address)).unwrap_or("no mapping of before");
        // The kernel's own pages are the same in every process.
        let may_lack = ["/secretmem", "[vsyscall]", "[vvar"].iter().any(|name| mapping.contains(name));
        assert!(may_lack, "the core lacks what was in {mapping}: {unread}");
    }
    file
}

/// What a core holds of memory that the process could write: everything that it ever computed is in there.
///
/// # Errors
/// Where the file is no core of a 64-bit little-endian program.
pub fn writable(core: &Path) -> Result<Vec<Vec<u8>>> {
    /// Of elf.h: a segment that was mapped, and that could be written.
    const PT_LOAD: u64 = 1;
    const PF_W: u64 = 2;
    /// A program header, and where the file's header says that they are and how many.
    const HEADER_BYTES: u64 = 56;
    let file = File::open(core).with_context(|| format!("opening {}", core.display()))?;
    let number = |at: u64, bytes: usize| -> Result<u64> {
        let mut number = [0; 8];
        file.read_exact_at(&mut number[..bytes], at)?;
        Ok(u64::from_le_bytes(number))
    };
    ensure!(number(0, 6)? == u64::from_le_bytes(*b"\x7fELF\x02\x01\0\0"), "no core of a 64-bit program");
    let (headers, count) = (number(32, 8)?, number(56, 2)?);
    let mut segments = Vec::new();
    for header in (0..count).map(|index| headers + index * HEADER_BYTES) {
        if number(header, 4)? == PT_LOAD && number(header + 4, 4)? & PF_W != 0 {
            let mut bytes = vec![0; usize::try_from(number(header + 32, 8)?)?];
            file.read_exact_at(&mut bytes, number(header + 8, 8)?)?;
            segments.push(bytes);
        }
    }
    ensure!(!segments.is_empty(), "a core without writable memory");
    Ok(segments)
}

/// Whether a line of `maps` is of the mapping that an address lies in.
fn holds(line: &str, address: u64) -> bool {
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let numbers = range.map(|(start, end)| [start, end].map(|text| u64::from_str_radix(text, 16)));
    matches!(numbers, Some([Ok(start), Ok(end)]) if (start..end).contains(&address))
}
