//! Packages on this machine: fetched once, checked by the lock, unpacked side by side.
//!
//! A package's folder is named by its hash, and appears in one step when everything is in it: several builds can share a store.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use lzma_rust2::XzReader;
use sha2::{Digest, Sha256};

use crate::error::{ImageError, Reason, Result, make_dir, read, write};
use crate::lock::{Lock, Package, Use};

/// A folder of packages.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    lock: Lock,
}

const ARCHIVE_MAGIC: &[u8] = b"!<arch>\n";
const MEMBER_HEADER_BYTES: usize = 60;

/// The largest package there is, the kernel, has 110 MB.
const PACKAGE_BYTES_MAX: u64 = 512 << 20;

impl Store {
    /// The store in `folder`, which is made where it is missing, for the packages of `lock`.
    pub fn new(folder: &Path, lock: Lock) -> Self {
        Self { folder: folder.to_owned(), lock }
    }

    /// Its lock.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The folder with a package's files.
    ///
    /// # Errors
    /// Where it cannot be fetched, is not what the lock says, or cannot be unpacked.
    pub fn unpacked(&self, package: &Package) -> Result<PathBuf> {
        let folder = self.folder.join("unpacked").join(&package.sha256);
        if folder.is_dir() {
            return Ok(folder);
        }
        let archive = self.fetched(package)?;
        let parent = self.folder.join("unpacked");
        make_dir(&parent)?;
        let new = tempfile::tempdir_in(&parent).map_err(ImageError::file("make a folder in", &parent))?;
        unpack(&archive, &read(&archive)?, new.path())?;
        match std::fs::rename(new.path(), &folder) {
            // Another build was quicker.
            Err(_) if folder.is_dir() => {}
            result => result.map_err(ImageError::file("make", &folder))?,
        }
        Ok(folder)
    }

    fn fetched(&self, package: &Package) -> Result<PathBuf> {
        let file = self.folder.join("packages").join(format!("{}.deb", package.sha256));
        if !file.is_file() {
            make_dir(&self.folder.join("packages"))?;
            let bytes = fetch(&package.url)?;
            check(package, &bytes)?;
            let new = file.with_extension(format!("new-{}", std::process::id()));
            write(&new, &bytes)?;
            std::fs::rename(&new, &file).map_err(ImageError::file("make", &file))?;
        } else if let Err(error) = check(package, &read(&file)?) {
            // It is fetched again the next time.
            let _ = std::fs::remove_file(&file);
            return Err(error);
        }
        Ok(file)
    }

    /// A program of the tools' packages, which runs with the C library that is locked beside it.
    ///
    /// # Errors
    /// As [`Self::unpacked`], or where no tool has this program.
    pub fn tool(&self, program: &str) -> Result<Command> {
        let roots =
            self.lock.of(Use::Tool).map(|package| self.unpacked(package)).collect::<Result<Vec<_>>>()?;
        let find = |folders: &[&str], name: &str| {
            let candidates =
                roots.iter().flat_map(|root| folders.iter().map(move |folder| root.join(folder).join(name)));
            candidates.into_iter().find(|path| path.is_file())
        };
        let missing = |name: &str| ImageError::Missing {
            what: "locked program",
            name: name.to_owned(),
            next: "add its package to image-build/lock.sh and run that",
        };
        let executable = find(&["usr/bin", "usr/sbin", "bin", "sbin"], program);
        let executable = executable.ok_or_else(|| missing(program))?;
        let loader = find(&["usr/lib/x86_64-linux-gnu"], "ld-linux-x86-64.so.2");
        let loader = loader.ok_or_else(|| missing("ld-linux-x86-64.so.2"))?;
        let libraries = roots.iter().map(|root| root.join("usr/lib/x86_64-linux-gnu"));
        let libraries: Vec<String> = libraries.map(|path| path.display().to_string()).collect();
        let mut command = Command::new(loader);
        command.arg("--library-path").arg(libraries.join(":")).arg(executable);
        // Nothing of this machine's settings shapes what is made.
        command.env_clear().env("SOURCE_DATE_EPOCH", crate::build::EPOCH_S.to_string()).env("TZ", "UTC");
        Ok(command)
    }
}

/// Runs a command to its end; what it says becomes the error.
pub(crate) fn run(command: &mut Command, name: &str) -> Result<Vec<u8>> {
    let output = command.output().map_err(|error| ImageError::Tool {
        program: name.to_owned(),
        said: format!("it could not be started: {error}"),
    })?;
    if !output.status.success() {
        let said =
            [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        return Err(ImageError::Tool { program: name.to_owned(), said: said.join(" ").trim().to_owned() });
    }
    Ok(output.stdout)
}

fn fetch(url: &str) -> Result<Vec<u8>> {
    let failed = |source| ImageError::Fetch { url: url.to_owned(), source: Box::new(source) };
    let mut response = ureq::get(url).call().map_err(failed)?;
    response.body_mut().with_config().limit(PACKAGE_BYTES_MAX).read_to_vec().map_err(failed)
}

fn check(package: &Package, bytes: &[u8]) -> Result {
    let found = hex::encode(Sha256::digest(bytes));
    if found == package.sha256 {
        return Ok(());
    }
    Err(ImageError::Mismatch {
        what: format!("the package {} {}", package.name, package.version),
        record: "image-build/packages.lock",
        expected: package.sha256.clone(),
        found,
        next: "it is not used; try again, and if it stays so look at who answers for the archive",
    })
}

/// A `.deb`: an `ar` archive of three members, the last of which is a compressed `tar` archive of the files (deb(5)).
fn unpack(path: &Path, deb: &[u8], into: &Path) -> Result {
    let malformed = |words| ImageError::malformed(path, "a Debian package", Reason::Words(words));
    let mut rest = deb.strip_prefix(ARCHIVE_MAGIC).ok_or_else(|| malformed("it is no ar archive"))?;
    loop {
        let (header, body) =
            rest.split_at_checked(MEMBER_HEADER_BYTES).ok_or_else(|| malformed("it has no data"))?;
        let text =
            |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).unwrap_or_default().trim();
        let len: usize = text(48..58).parse().map_err(|_| malformed("a member has no length"))?;
        let name = text(0..16).trim_end_matches('/').to_owned();
        let body_and_rest = body.split_at_checked(len).ok_or_else(|| malformed("a member is cut off"))?;
        if name.starts_with("data.tar") {
            if name != "data.tar.xz" {
                return Err(malformed("its data are not packed with xz"));
            }
            let files = XzReader::new(Cursor::new(body_and_rest.0), true);
            return unpack_files(files, into);
        }
        // Members begin at even offsets.
        rest = body_and_rest.1.get(len % 2..).unwrap_or_default();
    }
}

fn unpack_files(files: impl Read, into: &Path) -> Result {
    let mut archive = tar::Archive::new(files);
    archive.set_preserve_mtime(false);
    archive.unpack(into).map_err(ImageError::file("unpack a package into", into))
}
