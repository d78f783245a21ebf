//! The root: found by the name of its partition, or carried by the image itself, and believed for its hash alone.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use verified_root::RootHash;

use crate::console::say;
use crate::devices;
use crate::drivers::Drivers;
use crate::failure::Failure;
use crate::machine::{INERT, attach};

/// Where an image that came over the network carries its root.
const CARRIED: [&str; 2] = ["/root.erofs", "/root.verity"];

/// As many digits of the hash are in a partition's name.
const NAME_DIGITS: usize = 24;

/// A slow controller has shown its disks by then.
const DISK_PATIENCE: Duration = Duration::from_secs(60);
const SAID_EVERY: Duration = Duration::from_secs(5);
const TURN: Duration = Duration::from_millis(100);

const NEW_ROOT: &str = "/sysroot";

/// Where the node's configuration is, readable by the node alone.
pub(crate) const CREDENTIALS: &str = "/run/credentials";

/// Where the stub leaves what it found beside the image, after it was measured.
const BROUGHT: [&str; 2] = ["/.extra/global_credentials", "/.extra/credentials"];

/// Maps the verified root; its device comes back. All of it has been read, and is what the image says.
pub(crate) fn find_and_map(drivers: &mut Drivers) -> Result<PathBuf, Failure> {
    let path = "/etc/nightlatch/root";
    let text = fs::read_to_string(path).map_err(Failure::system(format!("read {path}")))?;
    let root: RootHash = text.parse().map_err(|error| Failure::Root(format!("{path} holds {error}")))?;
    let [data, tree] = find(&root, drivers)?;
    let device = verified_root::map("root", &data, &tree, &root)
        .map_err(Failure::system("map the root through its hash tree"))?;
    let refused = |error: std::io::Error| {
        Failure::Root(format!(
            "the root on {} is not the one that this image was built with ({error}): it was changed, or its disk is \
             damaged. Nothing of it was used. Write the image to the disk again",
            data.display()
        ))
    };
    verified_root::read_whole(&device).map_err(refused)?;
    Ok(device)
}

fn find(root: &RootHash, drivers: &mut Drivers) -> Result<[PathBuf; 2], Failure> {
    if Path::new(CARRIED[0]).is_file() {
        let attached = CARRIED.map(|file| verified_root::attach_file(Path::new(file)));
        let [data, tree] =
            attached.map(|device| device.map_err(Failure::system("open the root in this image")));
        return Ok([data?, tree?]);
    }
    let names = ["root", "tree"].map(|prefix| format!("{prefix}-{}", root.prefix(NAME_DIGITS)));
    let (begun, mut said) = (Instant::now(), Duration::ZERO);
    loop {
        drivers.look_around();
        if let [Some(data), Some(tree)] = names.each_ref().map(|name| devices::partition(name)) {
            return Ok([data, tree]);
        }
        if begun.elapsed() > DISK_PATIENCE {
            return Err(Failure::Root(format!(
                "there is no disk with the partitions {} and {}: this image and what is on the disk are not of one build",
                names[0], names[1]
            )));
        }
        if begun.elapsed() > said + SAID_EVERY {
            said = begun.elapsed();
            say(&format!("waiting for the disk with the partition {}", names[0]));
        }
        std::thread::sleep(TURN);
    }
}

/// Makes the mapped device the root of everything. What was in the initramfs is freed.
pub(crate) fn enter(device: &Path) -> Result<(), Failure> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    attach("erofs", &device.to_string_lossy(), NEW_ROOT, flags, "")?;
    let inside = |name: &str| format!("{NEW_ROOT}{name}");
    attach("tmpfs", "run", &inside("/run"), INERT, "mode=0755,size=64m")?;
    attach("tmpfs", "tmp", &inside("/tmp"), INERT, "mode=0700,size=16m")?;
    bring_credentials(&inside(CREDENTIALS))?;
    let none = None::<&str>;
    for name in ["/dev", "/proc", "/sys"] {
        mount(Some(name), inside(name).as_str(), none, MsFlags::MS_MOVE, none)
            .map_err(Failure::system(format!("move {name} into the root")))?;
    }
    free(Path::new("/"));
    let entered = nix::unistd::chdir(NEW_ROOT)
        .and_then(|()| mount(Some("."), "/", none, MsFlags::MS_MOVE, none))
        .and_then(|()| nix::unistd::chroot("."))
        .and_then(|()| nix::unistd::chdir("/"));
    entered.map_err(Failure::system("enter the root"))
}

fn bring_credentials(into: &str) -> Result<(), Failure> {
    let failed = || Failure::system(format!("write below {into}"));
    crate::machine::make_folder(Path::new(into)).map_err(failed())?;
    for entry in BROUGHT.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let path = entry.path();
        let is_credential = path.extension().is_some_and(|extension| extension == "cred");
        if let Some(name) = path.file_stem().filter(|_| is_credential) {
            let to = Path::new(into).join(name);
            fs::copy(&path, &to).map_err(failed())?;
            crate::machine::own(&to, 0o400).map_err(failed())?;
        }
    }
    Ok(())
}

/// Removes everything of the initramfs's own file system. What is open or mapped lives on as long as it is.
fn free(folder: &Path) {
    let Ok(own) = fs::metadata(folder).map(|folder| folder.st_dev()) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.st_dev() != own => {}
            Ok(found) if found.is_dir() => {
                free(&path);
                let _ = fs::remove_dir(&path);
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
}
