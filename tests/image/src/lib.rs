//! An image for tests: built once from the programs beside the test, and shared by all that boot it.

pub mod node;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use harness::client::{client, run};
use harness::process::program;
use image_build::{BuildRequest, Lock, Manifest, Programs, ReleaseKey, SOURCES, Store};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// The workspace.
///
/// # Panics
/// Never: this crate lies in it.
pub fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().nth(2).expect("this crate lies two folders below the workspace root").to_owned()
}

/// Packages, as a person's own builds keep them.
///
/// # Panics
/// Where the tree has no lock.
pub fn store() -> Store {
    let lock = Lock::load(&workspace().join(SOURCES).join("packages.lock")).expect("the tree's lock");
    Store::new(&workspace().join("target/image/store"), lock)
}

/// Our programs as an image has them: without debugging information. They lie in `folder`.
///
/// # Panics
/// Where they are not built.
pub fn programs(folder: &Path) -> Programs {
    for name in ["nightlatchd", "nightlatch-init"] {
        run(client("strip").arg("-o").arg(folder.join(name)).arg(program(name))).expect_success();
    }
    Programs::in_folder(folder)
}

/// Builds `profile` into `out`.
///
/// # Panics
/// Where that fails.
pub fn build(profile: &str, sequence: u64, programs: &Programs, out: &Path) -> Manifest {
    let workspace = workspace();
    let request = BuildRequest {
        sources: &workspace.join(SOURCES),
        workspace: &workspace,
        profile,
        programs,
        store: &store(),
        release: "0.0.0-test",
        sequence,
    };
    image_build::build(&request, out).unwrap_or_else(|error| panic!("{error}"))
}

/// A signed image, and the key that signed it.
#[derive(Debug)]
pub struct Image {
    /// The artefacts.
    pub folder: PathBuf,
    /// The release key's file; its public half lies beside it.
    pub key: PathBuf,
}

/// The image of the `qemu` profile, signed for Secure Boot too: built by whichever test comes first.
///
/// # Panics
/// Where it cannot be built.
pub fn shared() -> Image {
    let folder = workspace().join("target/image/test");
    fs::create_dir_all(&folder).expect("the build's folder");
    let lock = File::create(folder.join("lock")).expect("a lock");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("a lock on a file");
    let staging = tempfile::tempdir_in(&folder).expect("a temporary directory");
    let programs = programs(staging.path());
    let name = fingerprint(&programs);
    let place = folder.join(&name);
    let image = |place: &Path| Image { folder: place.join("artefacts"), key: place.join("release.key") };
    if place.is_dir() {
        return image(&place);
    }
    // Images of earlier builds of the programs.
    for entry in fs::read_dir(&folder).expect("our own").flatten() {
        let is_other = entry.path().is_dir() && entry.path() != staging.path();
        if is_other {
            fs::remove_dir_all(entry.path()).expect("our own");
        }
    }
    let new = tempfile::tempdir_in(&folder).expect("a temporary directory");
    let made = image(new.path());
    build("qemu", 1, &programs, &made.folder);
    let (key, _) = ReleaseKey::create(&made.key).expect("a release key");
    let [secure_boot, certificate] = guest::appliance::example_secure_boot_key();
    // The example key's passphrase is its name's last word.
    let plain = new.path().join("secure-boot.key");
    let mut openssl = client("openssl");
    openssl.args(["rsa", "-passin", "pass:snakeoil", "-in"]).arg(secure_boot).arg("-out").arg(&plain);
    run(&mut openssl).expect_success();
    let secure_boot = image_build::SecureBootKey { key: plain, certificate };
    image_build::sign(&made.folder, &key, Some((&secure_boot, &store())))
        .unwrap_or_else(|error| panic!("{error}"));
    fs::rename(new.keep(), &place).expect("our own");
    image(&place)
}

/// What the image depends on: the programs, the sources of images, and the code that builds them.
fn fingerprint(programs: &Programs) -> String {
    let sources = workspace().join(SOURCES);
    let mut files = vec![programs.node.clone(), programs.init.clone()];
    files.extend(["packages.lock", "command-line.toml", "profiles/qemu.toml"].map(|name| sources.join(name)));
    let code = fs::read_dir(sources.join("src")).expect("the sources");
    files.extend(code.map(|entry| entry.expect("an entry").path()));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())));
    }
    hex::encode(&hash.finalize()[..8])
}

/// The same image as if it had never been signed for Secure Boot, in `folder`.
///
/// # Panics
/// Where it cannot be copied.
pub fn without_signatures(image: &Image, folder: &Path) -> Image {
    let copy = folder.join("without-signatures");
    let mut command = std::process::Command::new("cp");
    run(command.args(["--recursive", "--reflink=auto"]).arg(&image.folder).arg(&copy)).expect_success();
    fs::remove_dir_all(copy.join("signed")).expect("our own");
    Image { folder: copy, key: image.key.clone() }
}
