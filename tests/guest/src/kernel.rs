//! The distribution's kernel and its modules, as `make clients` unpacks them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use harness::client::{client, run};

use crate::archive::Archive;

/// Where modules lie in a guest.
const MODULES: &str = "/lib/modules";

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `vmlinuz`.
    pub image: PathBuf,
    modules: PathBuf,
    /// Each module's file below the folder, with the files of those it needs.
    dependencies: Vec<(String, Vec<String>)>,
    built_in: String,
}

/// The folder of what is unpacked for guests.
pub fn tools() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.ancestors().nth(2).expect("this crate lies two folders below the workspace root");
    root.join("target/tools/guest")
}

fn only_entry(folder: &Path, prefix: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}: run `make clients`", folder.display()));
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {prefix} in {}: run `make clients`", folder.display()))
}

impl Kernel {
    /// Finds it.
    ///
    /// # Panics
    /// Where `make clients` has not unpacked one.
    pub fn find() -> Self {
        let root = tools();
        let image = only_entry(&root.join("boot"), "vmlinuz-");
        let modules = only_entry(&root.join("lib/modules"), "");
        // Packages leave the index to the installation.
        let version = modules.file_name().expect("a version").to_string_lossy().into_owned();
        if !modules.join("modules.dep").is_file() {
            run(client("depmod").arg("--basedir").arg(&root).arg(version)).expect_success();
        }
        let read = |name: &str| std::fs::read_to_string(modules.join(name)).expect("an index of modules");
        let split = |line: &str| -> Option<(String, Vec<String>)> {
            let (module, needed) = line.split_once(':')?;
            Some((module.to_owned(), needed.split_whitespace().map(str::to_owned).collect()))
        };
        let dependencies = read("modules.dep").lines().filter_map(split).collect();
        let built_in = read("modules.builtin");
        Self { image, modules, dependencies, built_in }
    }

    /// Puts `module` and those that it needs into the archive, and their guest's paths into `order`, in the order in which
    /// they have to be loaded. One that is part of the kernel needs nothing.
    ///
    /// # Panics
    /// Where the kernel has no such module.
    pub fn add_module(&self, archive: &mut Archive, order: &mut Vec<PathBuf>, module: &str) {
        let is_named = |file: &str| {
            let name = file.rsplit('/').next().unwrap_or(file).split(".ko").next().unwrap_or_default();
            file.contains(".ko") && name.replace('-', "_") == module.replace('-', "_")
        };
        if self.built_in.lines().any(is_named) {
            return;
        }
        let found = self.dependencies.iter().find(|(file, _)| is_named(file));
        let (file, needed) = found.unwrap_or_else(|| panic!("this kernel has no module {module}"));
        // The index names the last needed first.
        let mut seen: BTreeSet<PathBuf> = order.iter().cloned().collect();
        for file in needed.iter().rev().chain([file]) {
            let at = Path::new(MODULES).join(file.split(".ko").next().unwrap_or(file)).with_extension("ko");
            if seen.insert(at.clone()) {
                archive.file(&at, &self.read_module(file), 0o644);
                order.push(at);
            }
        }
    }

    fn read_module(&self, file: &str) -> Vec<u8> {
        let path = self.modules.join(file);
        let packer = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => return std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        };
        let output = client(packer).args(["--decompress", "--stdout"]).arg(&path).output();
        let output = output.unwrap_or_else(|error| panic!("{packer}: {error}"));
        assert!(output.status.success(), "{}", path.display());
        output.stdout
    }
}
