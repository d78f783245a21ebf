//! From a profile to artefacts: root, hash tree, initramfs, images, bill of materials, manifest.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::artefacts::{
    Artefact, BootImage, DISK_IMAGE, FORMAT, INITRD, KERNEL, MANIFEST, Manifest, NETWORK_IMAGE, ROOT,
    RootHash, SBOM, TREE,
};
use crate::authenticode;
use crate::cpio::Archive;
use crate::elf;
use crate::error::{ImageError, Result, make_dir, read, write};
use crate::lock::{Package, Use};
use crate::measure::{boot_services_measurement, image_measurement};
use crate::modules::{self, Modules, Selection};
use crate::profile::{CommandLine, Profile};
use crate::programs::Programs;
use crate::sbom;
use crate::store::{Store, run};
use crate::uki::{self, Section};
use crate::verity::{self, BLOCK_BYTES, Salt};

/// The time of everything in an image. No file's time means anything there.
pub(crate) const EPOCH_S: u64 = 1;

/// Where programs and libraries of Debian's are, in packages and in an image.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The firmware's part of an image is read over the network, and held in memory twice while it starts.
const IMAGE_BYTES_MAX: u64 = 40 << 20;

/// What an image is made from.
#[derive(Debug)]
pub struct BuildRequest<'a> {
    /// The folder with profiles and command line.
    pub sources: &'a Path,
    /// The workspace whose crates are listed in the bill of materials.
    pub workspace: &'a Path,
    /// The profile's name.
    pub profile: &'a str,
    /// Our programs.
    pub programs: &'a Programs,
    /// Packages.
    pub store: &'a Store,
    /// The release of Nightlatch.
    pub release: &'a str,
    /// Counts images.
    pub sequence: u64,
}

/// A tree of files in the making, as paths below `/`.
#[derive(Debug, Default)]
struct Files {
    files: BTreeMap<PathBuf, (Vec<u8>, u32)>,
    folders: Vec<PathBuf>,
    links: BTreeMap<PathBuf, String>,
    /// In an initramfs only.
    devices: BTreeMap<PathBuf, (u32, u32)>,
}

impl Files {
    fn add(&mut self, at: impl AsRef<Path>, contents: impl Into<Vec<u8>>, permissions: u32) {
        self.files.insert(at.as_ref().to_owned(), (contents.into(), permissions));
    }

    fn modules(&mut self, selection: Selection) {
        for (name, text) in selection.indexes() {
            self.add(Path::new(modules::FOLDER).join(name), text, 0o644);
        }
        for (name, contents) in selection.files {
            self.add(Path::new(modules::FOLDER).join(name), contents, 0o644);
        }
    }

    fn write_to(&self, folder: &Path) -> Result {
        let permit = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .map_err(ImageError::file("set permissions of", path))
        };
        permit(folder, 0o755)?;
        for path in &self.folders {
            make_dir(&folder.join(path))?;
        }
        for (path, (contents, permissions)) in &self.files {
            let path = folder.join(path);
            path.parent().map_or(Ok(()), make_dir)?;
            write(&path, contents)?;
            permit(&path, *permissions)?;
        }
        for (path, target) in &self.links {
            let path = folder.join(path);
            path.parent().map_or(Ok(()), make_dir)?;
            std::os::unix::fs::symlink(target, &path).map_err(ImageError::file("link", &path))?;
        }
        Ok(())
    }

    fn into_archive(self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        let place = Path::new("the initramfs");
        let add = |result: std::io::Result<()>| result.map_err(ImageError::file("write", place));
        for path in &self.folders {
            add(archive.folder(path))?;
        }
        for (path, (contents, permissions)) in &self.files {
            add(archive.file(path, contents, *permissions))?;
        }
        for (path, target) in &self.links {
            add(archive.link(path, target))?;
        }
        for (path, device) in &self.devices {
            add(archive.device(path, *device))?;
        }
        Ok(archive.finish())
    }
}

/// The unpacked packages of one build.
struct Packages {
    kernel: PathBuf,
    stub: PathBuf,
    libraries: Vec<PathBuf>,
    busybox: PathBuf,
}

/// Builds the image into `out`, an empty or missing folder, unsigned.
///
/// # Errors
/// Where a package cannot be had, the profile names what is not there, or something does not fit.
pub fn build(request: &BuildRequest<'_>, out: &Path) -> Result<Manifest> {
    let occupied = out.is_dir() && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        let error = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(ImageError::file("build into", out)(error));
    }
    make_dir(out)?;
    let profile = Profile::load(request.sources, request.profile)?;
    let packages = Packages::unpack(request.store)?;
    let modules = Modules::find(&packages.kernel)?;
    let identity = Identity { request, profile: &profile };

    let root = make_root(&identity, &packages, &modules, out)?;
    let initramfs = make_initramfs(&identity, &packages, &modules, &root)?;
    let kernel = packages.kernel.join("boot").join(format!("vmlinuz-{}", modules.version));
    let kernel = read(&kernel)?;
    let command_line = command_line(request.sources, &profile)?;
    let release_text = identity.os_release();
    let image = |initrd: &[u8]| {
        let sections = [
            Section { name: ".osrel", contents: release_text.as_bytes() },
            Section { name: ".cmdline", contents: command_line.as_bytes() },
            Section { name: ".uname", contents: modules.version.as_bytes() },
            Section { name: ".initrd", contents: initrd },
            Section { name: ".linux", contents: &kernel },
        ];
        uki::assemble(&packages.stub, &read(&packages.stub)?, &sections)
    };
    let with_root = [initramfs.as_slice(), &carry(out)?].concat();
    write(&out.join(KERNEL), &kernel)?;
    write(&out.join(INITRD), &with_root)?;
    write(&out.join(SBOM), &sbom::bill(request, &profile)?)?;
    let mut images = Vec::new();
    for (name, initrd) in [(DISK_IMAGE, &initramfs), (NETWORK_IMAGE, &with_root)] {
        images.push(write_image(&out.join(name), name, &image(initrd)?)?);
    }
    let names = [ROOT, TREE, KERNEL, INITRD, DISK_IMAGE, NETWORK_IMAGE, SBOM];
    let artefacts = names.iter().map(|name| Artefact::of(out, name)).collect::<Result<Vec<_>>>()?;
    let manifest = Manifest {
        format: FORMAT,
        profile: profile.name.clone(),
        release: request.release.to_owned(),
        sequence: request.sequence,
        kernel: modules.version.clone(),
        command_line,
        root,
        images,
        artefacts,
    };
    let path = out.join(MANIFEST);
    let mut text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| ImageError::malformed(&path, "a manifest", error))?;
    text.push(b'\n');
    write(&path, &text)?;
    Ok(manifest)
}

/// How many modules an image of this profile has, with those that the named ones need.
///
/// # Errors
/// Where the profile names one that the locked kernel has not.
pub fn module_count(store: &Store, profile: &Profile) -> Result<usize> {
    let modules = Modules::find(&store.unpacked(store.lock().kernel()?)?)?;
    let lists = &profile.modules;
    let initramfs = modules.select(&lists.start, &lists.disks)?;
    let root = modules.select(&lists.system, &lists.devices)?;
    Ok(initramfs.files.len() + root.files.len())
}

/// What an image says about itself.
struct Identity<'a> {
    request: &'a BuildRequest<'a>,
    profile: &'a Profile,
}

impl Identity<'_> {
    fn os_release(&self) -> String {
        let (release, profile, sequence) = (self.request.release, &self.profile.name, self.request.sequence);
        format!(
            "ID=nightlatch\nNAME=Nightlatch\nPRETTY_NAME=\"Nightlatch {release} ({profile})\"\nVERSION_ID={release}\n\
             IMAGE_ID=nightlatch-{profile}\nIMAGE_VERSION={sequence}\n"
        )
    }
}

impl Packages {
    fn unpack(store: &Store) -> Result<Self> {
        let lock = store.lock();
        let unpacked = |name: &str| store.unpacked(lock.find(name)?);
        Ok(Self {
            kernel: store.unpacked(lock.kernel()?)?,
            stub: unpacked("systemd-boot-efi")?.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
            libraries: vec![unpacked("libc6")?, unpacked("libgcc-s1")?],
            busybox: unpacked("busybox-static")?.join("usr/bin/busybox"),
        })
    }

    /// The packages of which something is in the image.
    pub(crate) fn named(store: &Store, profile: &Profile) -> Vec<Package> {
        let lock = store.lock();
        let others =
            lock.of(Use::Image).filter(|package| profile.debug_shell || package.name != "busybox-static");
        lock.of(Use::Kernel).chain(others).cloned().collect()
    }

    /// Puts a program into `files`, with the loader and libraries that it needs, from the locked packages.
    fn add_program(&self, files: &mut Files, at: &str, program: &Path) -> Result {
        let bytes = read(program)?;
        let mut wanted = Vec::new();
        let needs = elf::needs(program, &bytes)?;
        if let Some(loader) = &needs.loader {
            let name = loader.rsplit('/').next().unwrap_or(loader);
            files.links.insert(loader.trim_start_matches('/').into(), format!("/{LIBRARIES}/{name}"));
            wanted.push(name.to_owned());
        }
        wanted.extend(needs.libraries);
        while let Some(name) = wanted.pop() {
            let at = Path::new(LIBRARIES).join(&name);
            if files.files.contains_key(&at) {
                continue;
            }
            let found = self.libraries.iter().map(|package| package.join(&at)).find(|path| path.exists());
            let found = found.ok_or_else(|| ImageError::Missing {
                what: "locked library",
                name: name.clone(),
                next: "link the program with less, or add the library's package to image-build/lock.sh",
            })?;
            let library = read(&found)?;
            wanted.extend(elf::needs(&found, &library)?.libraries);
            files.add(at, library, 0o755);
        }
        files.add(at, bytes, 0o755);
        Ok(())
    }
}

/// Salt and identifiers come from the build's own inputs: the same inputs, the same image.
fn derived(identity: &Identity<'_>, what: &str) -> [u8; 32] {
    Sha256::new().chain_update(what).chain_update([0]).chain_update(identity.os_release()).finalize().into()
}

/// As a version 8 UUID (RFC 9562): bytes of our own.
pub(crate) fn uuid(digest: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = 0x80 | uuid[6] & 0x0F;
    uuid[8] = 0x80 | uuid[8] & 0x3F;
    uuid
}

pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let text = hex::encode(uuid);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

fn make_root(
    identity: &Identity<'_>,
    packages: &Packages,
    modules: &Modules,
    out: &Path,
) -> Result<RootHash> {
    let lists = &identity.profile.modules;
    let folders = ["dev", "proc", "run", "sys", "tmp", "var/lib/nightlatch"].map(PathBuf::from).to_vec();
    let mut files = Files { folders, ..Files::default() };
    files.add("etc/os-release", identity.os_release(), 0o644);
    // For what shows names; nobody logs in.
    files.add("etc/passwd", "root:x:0:0::/:/nonexistent\nnightlatch:x:990:990::/:/nonexistent\n", 0o644);
    files.add("etc/group", "root:x:0:\nnightlatch:x:990:\n", 0o644);
    files.modules(modules.select(&lists.system, &lists.devices)?);
    packages.add_program(&mut files, "usr/bin/nightlatchd", &identity.request.programs.node)?;
    if identity.profile.debug_shell {
        files.add("usr/bin/busybox", read(&packages.busybox)?, 0o755);
        files.add("etc/nightlatch/debug-shell", "/usr/bin/busybox sh\n", 0o644);
    }
    let staging = tempfile::tempdir().map_err(ImageError::file("make a folder in", &std::env::temp_dir()))?;
    files.write_to(staging.path())?;
    let path = out.join(ROOT);
    let mut command = identity.request.store.tool("mkfs.erofs")?;
    command.args(["--quiet", "-zlz4hc,9", "-C65536", "--workers=1", "--all-root"]);
    command.arg(format!("-T{EPOCH_S}")).arg("-U").arg(uuid_text(&uuid(&derived(identity, "root"))));
    run(command.arg(&path).arg(staging.path()), "mkfs.erofs")?;
    let mut root = read(&path)?;
    root.resize(root.len().next_multiple_of(BLOCK_BYTES), 0);
    let salt = Salt(derived(identity, "salt"));
    let tree = verity::build(&root, &salt, uuid(&derived(identity, "tree")));
    write(&path, &root)?;
    write(&out.join(TREE), &tree.bytes)?;
    Ok(RootHash {
        hash: hex::encode(tree.root),
        salt: hex::encode(salt.0),
        blocks: (root.len() / BLOCK_BYTES) as u64,
    })
}

fn make_initramfs(
    identity: &Identity<'_>,
    packages: &Packages,
    modules: &Modules,
    root: &RootHash,
) -> Result<Vec<u8>> {
    let lists = &identity.profile.modules;
    let folders = ["dev", "proc", "run", "sys", "sysroot"].map(PathBuf::from).to_vec();
    // A program's runtime wants open outputs, or something to open in their place, before it can mount anything.
    let devices = [("dev/null", (1, 3)), ("dev/console", (5, 1))].map(|(at, device)| (at.into(), device));
    let mut files = Files { folders, devices: devices.into(), ..Files::default() };
    files.add("etc/os-release", identity.os_release(), 0o644);
    files.add("etc/nightlatch/root", format!("{} {} {}\n", root.hash, root.salt, root.blocks), 0o644);
    files.modules(modules.select(&lists.start, &lists.disks)?);
    packages.add_program(&mut files, "init", &identity.request.programs.init)?;
    files.into_archive()
}

/// The root and its tree as a second archive, for an image that comes over the network.
fn carry(out: &Path) -> Result<Vec<u8>> {
    let mut files = Files::default();
    files.add(ROOT, read(&out.join(ROOT))?, 0o400);
    files.add(TREE, read(&out.join(TREE))?, 0o400);
    files.into_archive()
}

fn command_line(sources: &Path, profile: &Profile) -> Result<String> {
    let common = CommandLine::load(sources)?;
    let words: Vec<&str> = common.words.iter().chain(&profile.words).map(|word| word.text.as_str()).collect();
    Ok(words.join(" "))
}

fn write_image(path: &Path, name: &str, image: &[u8]) -> Result<BootImage> {
    if image.len() as u64 > IMAGE_BYTES_MAX {
        let bytes = image.len() as u64;
        return Err(ImageError::TooLarge { what: name.to_owned(), bytes, limit: IMAGE_BYTES_MAX });
    }
    write(path, image)?;
    Ok(BootImage {
        name: name.to_owned(),
        authenticode: hex::encode(authenticode::hash(path, image)?),
        pcr4: hex::encode(boot_services_measurement(path, image)?),
        pcr11: hex::encode(image_measurement(image)),
    })
}

pub(crate) fn packages_in(store: &Store, profile: &Profile) -> Vec<Package> {
    Packages::named(store, profile)
}
