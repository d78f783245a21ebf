//! A guest's root: an initial root file system made of what the test names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::{client, run};

/// An archive in the making. Folders come by themselves before what lies in them; what is added twice counts once.
#[derive(Clone, Debug, Default)]
pub struct Archive(image_build::Archive);

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with these contents and permissions.
    ///
    /// # Panics
    /// Where the path has no place in an archive, or the file is larger than 4 GiB.
    pub fn file(&mut self, at: &Path, contents: &[u8], permissions: u32) {
        self.0.file(at, contents, permissions).expect("a place in an archive");
    }

    /// An empty folder.
    ///
    /// # Panics
    /// Where the path has no place in an archive.
    pub fn folder(&mut self, at: &Path) {
        self.0.folder(at).expect("a place in an archive");
    }

    /// A file, or a folder with all below it, as it is outside, at the same path or another.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn copy(&mut self, from: &Path, at: &Path) {
        let found = fs::metadata(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        if found.is_dir() {
            self.folder(at);
            for entry in fs::read_dir(from).expect("a readable folder") {
                let entry = entry.expect("an entry");
                self.copy(&entry.path(), &at.join(entry.file_name()));
            }
        } else if found.is_file() {
            let contents = fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            self.file(at, &contents, found.permissions().mode() & 0o7777);
        }
        // Sockets and devices of outside mean nothing inside.
    }

    /// A program without its debugging information, and the libraries that it is loaded with.
    ///
    /// # Panics
    /// Where it cannot be read, or a library is not found.
    pub fn program(&mut self, program: &Path, at: &Path) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let stripped = folder.path().join("program");
        run(client("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program)).expect_success();
        self.file(at, &fs::read(stripped).expect("our own"), 0o755);
        for library in libraries(program) {
            self.copy(&library, &library);
        }
    }

    /// The archive.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}

/// What the loader maps beside a program, the loader itself included.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd comes with the C library");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("not found"), "{}\n{text}", program.display());
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
