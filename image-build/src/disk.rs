//! A disk that boots: a file system for firmware, two slots for roots with their trees, and the node's own few files.
//!
//! ```text
//!   1 MiB   EFI system    FAT: EFI/BOOT/BOOTX64.EFI, and beside it the configuration as credentials
//!           root, tree    slot A: `root-` and `tree-` with the beginning of the root's hash
//!           root, tree    slot B: empty, for the next image
//!           state         ext4: /var/lib/nightlatch
//! ```
//!
//! The image finds its root by that name and believes it for its hash. What configures the node lies beside the image, where
//! the stub measures it into PCR 12 before the kernel starts.

use std::fs::OpenOptions;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, TimeProvider};
use sha2::{Digest, Sha256};

use crate::artefacts::{DISK_IMAGE, Manifest, ROOT, SIGNED, TREE};
use crate::build::{EPOCH_S, uuid, uuid_text};
use crate::error::{ImageError, Result, read};
use crate::gpt::{Kind, Partition, lay_out};
use crate::store::{Store, run};
use crate::verify::Verified;

/// Two images and what an update brings.
const FIRMWARE_BYTES: u64 = 128 << 20;
/// The largest root; the first has a tenth.
const ROOT_BYTES: u64 = 256 << 20;
/// A hash tree takes one part in 127 of what it covers.
const TREE_BYTES: u64 = 4 << 20;
/// Keys, marks and ready.json: kilobytes, and the journal of the file system.
const STATE_BYTES: u64 = 64 << 20;

/// The user of nightlatchd in an image.
const NODE_USER: u32 = 990;

/// As much of the root's hash as stands in the name of its partition.
const NAME_DIGITS: usize = 24;

/// Where firmware looks on a disk that nobody has told it about.
const BOOT_FILE: &str = "BOOTX64.EFI";

/// What configures one node: files by name, which the image finds in `/run/credentials`.
#[derive(Clone, Default)]
pub struct Configuration {
    /// Name and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Configuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.files.iter().map(|(name, _)| name)).finish()
    }
}

/// A disk to be.
#[derive(Debug)]
pub struct DiskRequest<'a> {
    /// The folder of artefacts.
    pub folder: &'a Path,
    /// What was found out about it.
    pub verified: &'a Verified,
    /// The node's configuration; without one the image says on its console that it has none.
    pub configuration: &'a Configuration,
    /// For mke2fs.
    pub store: &'a Store,
}

/// Every file has the same time.
#[derive(Debug)]
struct NoTime;

impl TimeProvider for NoTime {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime {
            date: self.get_current_date(),
            time: fatfs::Time { hour: 0, min: 0, sec: 0, millis: 0 },
        }
    }
}

/// Writes the disk to `out`, a new file. Holes stay holes.
///
/// # Errors
/// Where something does not fit, or `out` is there already.
pub fn make_disk(request: &DiskRequest<'_>, out: &Path) -> Result<()> {
    let manifest = &request.verified.manifest;
    let (root, tree) = (manifest.read(request.folder, ROOT)?, manifest.read(request.folder, TREE)?);
    let firmware = firmware_partition(request)?;
    let state = state_partition(manifest, request.store)?;
    let name = |prefix: &str| {
        format!("{prefix}-{}", &manifest.root.hash[..NAME_DIGITS.min(manifest.root.hash.len())])
    };
    let partition = |number: u8, kind, name: String, bytes| Partition {
        kind,
        name,
        guid: u128::from_be_bytes(derived(manifest, &format!("partition {number}"))),
        bytes,
    };
    let partitions = [
        partition(1, Kind::EfiSystem, "nightlatch-boot".to_owned(), FIRMWARE_BYTES),
        partition(2, Kind::Root, name("root"), ROOT_BYTES),
        partition(3, Kind::RootTree, name("tree"), TREE_BYTES),
        partition(4, Kind::Root, "root-empty".to_owned(), ROOT_BYTES),
        partition(5, Kind::RootTree, "tree-empty".to_owned(), TREE_BYTES),
        partition(6, Kind::State, "nightlatch-state".to_owned(), STATE_BYTES),
    ];
    for ((what, contents), limit) in
        [("the root", &root), ("its tree", &tree)].into_iter().zip([ROOT_BYTES, TREE_BYTES])
    {
        let bytes = contents.len() as u64;
        if bytes > limit {
            return Err(ImageError::TooLarge { what: what.to_owned(), bytes, limit });
        }
    }
    let table = lay_out(u128::from_be_bytes(derived(manifest, "disk")), &partitions)?;
    let error = |action| ImageError::file(action, out);
    let mut file = OpenOptions::new().write(true).create_new(true).open(out).map_err(error("make"))?;
    file.set_len(table.disk_bytes).map_err(error("make"))?;
    let tail = table.disk_bytes - table.tail.len() as u64;
    let parts = [
        (0, &table.head),
        (table.starts[0], &firmware),
        (table.starts[1], &root),
        (table.starts[2], &tree),
        (table.starts[5], &state),
        (tail, &table.tail),
    ];
    for (at, contents) in parts {
        write_sparse(&mut file, at, contents).map_err(error("write"))?;
    }
    Ok(())
}

fn derived(manifest: &Manifest, what: &str) -> [u8; 16] {
    let digest =
        Sha256::new().chain_update(what).chain_update([0]).chain_update(&manifest.root.hash).finalize();
    uuid(&digest.into())
}

fn write_sparse(file: &mut std::fs::File, at: u64, contents: &[u8]) -> std::io::Result<()> {
    const CHUNK_BYTES: usize = 64 << 10;
    for (number, chunk) in contents.chunks(CHUNK_BYTES).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(at + (number * CHUNK_BYTES) as u64))?;
            file.write_all(chunk)?;
        }
    }
    Ok(())
}

fn firmware_partition(request: &DiskRequest<'_>) -> Result<Vec<u8>> {
    let manifest = &request.verified.manifest;
    // The signed one, where there is one: it has been compared with the other.
    let image = match request.verified.signed_for_secure_boot.iter().any(|name| name == DISK_IMAGE) {
        true => read(&request.folder.join(SIGNED).join(DISK_IMAGE))?,
        false => manifest.read(request.folder, DISK_IMAGE)?,
    };
    let fill = || -> std::io::Result<Vec<u8>> {
        let mut disk = Cursor::new(vec![0; usize::try_from(FIRMWARE_BYTES).unwrap_or(usize::MAX)]);
        let serial = u32::from_be_bytes(derived(manifest, "firmware")[..4].try_into().unwrap_or_default());
        let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).volume_id(serial);
        fatfs::format_volume(&mut disk, options.volume_label(*b"NIGHTLATCH "))?;
        {
            static TIME: NoTime = NoTime;
            let system = FileSystem::new(&mut disk, FsOptions::new().time_provider(&TIME))?;
            let boot = system.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
            boot.create_file(BOOT_FILE)?.write_all(&image)?;
            let credentials = boot.create_dir(&format!("{BOOT_FILE}.extra.d"))?;
            for (name, contents) in &request.configuration.files {
                credentials.create_file(&format!("{name}.cred"))?.write_all(contents)?;
            }
        }
        Ok(disk.into_inner())
    };
    fill().map_err(ImageError::file("fill the partition for firmware in", &PathBuf::from("memory")))
}

fn state_partition(manifest: &Manifest, store: &Store) -> Result<Vec<u8>> {
    let file =
        tempfile::NamedTempFile::new().map_err(ImageError::file("make a file in", &std::env::temp_dir()))?;
    file.as_file().set_len(STATE_BYTES).map_err(ImageError::file("make", file.path()))?;
    let id = uuid_text(&derived(manifest, "state"));
    let extended = format!(
        "hash_seed={id},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner={NODE_USER}:{NODE_USER},root_perms=0700"
    );
    let mut command = store.tool("mke2fs")?;
    command.env("MKE2FS_CONFIG", "/dev/null").env("E2FSPROGS_FAKE_TIME", EPOCH_S.to_string());
    command
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "state", "-U", &id, "-E", &extended]);
    run(command.arg(file.path()), "mke2fs")?;
    read(file.path())
}
