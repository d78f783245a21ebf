//! `nightlatch-smart`: asks each disk how it fares, leaves what it answered, ends.
//!
//! Asking takes the rights to send a disk any command (CAP_SYS_ADMIN for NVMe, CAP_SYS_RAWIO for ATA). The node holds keys and has
//! given all rights up; so this program has them, for a moment, and knows no key. It reads no sector, opens no socket, and what
//! it leaves is a page of numbers a disk (`hardware/health/CAPTURE.md`).
//!
//! Invariants:
//! - Only commands that read are sent: Get Log Page; SMART READ DATA, READ THRESHOLDS, RETURN STATUS.
//! - A capture is replaced as a whole. A disk that does not answer keeps its last, which grows old, and that is found; a disk that
//!   is gone takes its capture with it.

#![expect(unsafe_code, reason = "the ioctls by which disks are asked")]

mod ata;
mod captures;
mod nvme;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use health::{Bus, Capture, Disk, Page, SelfVerdict, Tree};
use nix::time::{ClockId, clock_gettime};
use units::BootInstant;

const USAGE: &str = "\
Asks each disk of this machine how it fares (SMART), and leaves what it answered for nightlatchd.

Usage: nightlatch-smart [--sys DIR] [--dev DIR] [--output DIR]

  --sys DIR      where the kernel shows disks (/sys)
  --dev DIR      where their devices are (/dev)
  --output DIR   where captures go (/run/nightlatch-smart); it must exist

It takes CAP_SYS_ADMIN and CAP_SYS_RAWIO. nightlatch-smart.timer runs it every ten minutes.
";

/// Where to look, and where to leave what was found.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    sys: PathBuf,
    dev: PathBuf,
    output: PathBuf,
}

impl Places {
    /// From the command line; `None` where help is asked for.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut places =
            Self { sys: "/sys".into(), dev: "/dev".into(), output: "/run/nightlatch-smart".into() };
        while let Some(argument) = arguments.next() {
            let place = match argument.as_str() {
                "--sys" => &mut places.sys,
                "--dev" => &mut places.dev,
                "--output" => &mut places.output,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("`{argument}` is not known; see nightlatch-smart --help")),
            };
            *place = arguments.next().ok_or_else(|| format!("{argument} wants a directory"))?.into();
        }
        Ok(Some(places))
    }
}

fn main() -> ExitCode {
    let places = match Places::parse(std::env::args().skip(1)) {
        Ok(Some(places)) => places,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(what) => {
            eprintln!("nightlatch-smart: {what}");
            return ExitCode::from(2);
        }
    };
    match ask_all(&places) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let output = places.output.display();
            eprintln!(
                "nightlatch-smart: {output}: {error}; make the directory, or name another with --output"
            );
            ExitCode::FAILURE
        }
    }
}

/// Asks every disk. One that does not answer is said, and keeps nobody from being asked.
fn ask_all(places: &Places) -> io::Result<()> {
    let disks = health::disks(&Tree::new(&places.sys));
    for disk in &disks {
        match ask(disk, &places.dev) {
            Ok(Some(capture)) => captures::leave(&places.output, &disk.name, &capture)?,
            Ok(None) => {}
            Err(error) => eprintln!("nightlatch-smart: {}: {error}", disk.name),
        }
    }
    captures::keep_only(&places.output, &disks)
}

/// What a disk answers; nothing of those that speak neither language.
fn ask(disk: &Disk, dev: &Path) -> io::Result<Option<Capture>> {
    let open = || open_device(&dev.join(&disk.name));
    let (verdict, page) = match disk.bus {
        Bus::Nvme => (SelfVerdict::Unknown, Page::Nvme(nvme::smart(&open()?)?)),
        Bus::Ata => {
            let file = open()?;
            let (data, thresholds) = (ata::read_data(&file)?, ata::read_thresholds(&file)?);
            (ata::verdict(&file), Page::Ata { data, thresholds })
        }
        Bus::Scsi | Bus::Virtio | Bus::Other => return Ok(None),
    };
    Ok(Some(Capture { taken: now()?, verdict, page }))
}

/// Neither written to nor waited for.
fn open_device(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn now() -> io::Result<BootInstant> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
    Ok(BootInstant(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Places>, String> {
        Places::parse(words.iter().map(ToString::to_string))
    }

    #[test]
    fn arguments_are_directories_by_name_and_nothing_else() {
        let places = parse(&["--sys", "/s", "--output", "/o"]).unwrap().unwrap();
        assert_eq!(places, Places { sys: "/s".into(), dev: "/dev".into(), output: "/o".into() });
        assert_eq!(parse(&["--help"]), Ok(None));
        for wrong in [&["--sys"][..], &["/sys"], &["--sys", "/s", "-x"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    /// A device that takes no such command is an error of that disk, not of the program.
    #[test]
    fn a_file_in_a_disks_place_answers_nothing_and_its_old_capture_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["sys/block/nvme0n1/device", "sys/block/sda/device", "dev", "output"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::write(at("sys/block/sda/device/vendor"), "ATA\n").unwrap();
        for path in ["dev/nvme0n1", "dev/sda"] {
            std::fs::write(at(path), "").unwrap();
        }
        std::fs::write(at("output/sda.smart"), "old").unwrap();
        std::fs::write(at("output/sdz.smart"), "gone").unwrap();
        std::fs::write(at("output/other"), "not ours").unwrap();
        let places = Places { sys: at("sys"), dev: at("dev"), output: at("output") };
        ask_all(&places).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(at("output"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other", "sda.smart"]);
        assert!(ask_all(&Places { output: at("nowhere"), ..places }).is_err());
    }
}
