//! The kernel's modules: those that a profile names with those that they need, and how devices ask for them.
//!
//! An image has no modprobe. `init` reads three files that are made here, each a line an entry: `order` (a module and, behind a
//! colon, what has to be loaded before it), `start` (what is loaded in any case), `aliases` (a device's pattern and the module).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;

use crate::elf;
use crate::error::{ImageError, Reason, Result, read, read_text};

/// Where an image keeps modules and the files about them.
pub(crate) const FOLDER: &str = "usr/lib/modules";

/// An unpacked module is at most some megabytes.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// The modules of one kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    /// The kernel's version, as its own folder says it.
    pub(crate) version: String,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// What of them goes into one file system.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// By file name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    order: BTreeMap<String, Vec<String>>,
    start: Vec<String>,
    aliases: BTreeSet<(String, String)>,
}

/// The kernel writes its own names with underscores, people and files with both.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(file: &str) -> Option<String> {
    let name = file.rsplit('/').next()?;
    name.contains(".ko").then(|| canonical(name.split(".ko").next().unwrap_or(name)))
}

impl Modules {
    /// Looks at the unpacked package of a kernel.
    pub(crate) fn find(package: &Path) -> Result<Self> {
        let parent = package.join("usr/lib/modules");
        let entries = std::fs::read_dir(&parent).map_err(ImageError::file("read", &parent))?;
        let folder = entries.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.is_dir());
        let folder = folder.ok_or_else(|| {
            ImageError::malformed(&parent, "a kernel's folder of modules", Reason::Words("it is empty"))
        })?;
        let version = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut files = BTreeMap::new();
        walk(&folder, &mut files)?;
        let built_in = read_text(&folder.join("modules.builtin"))?.lines().filter_map(name_of).collect();
        Ok(Self { version, files, built_in })
    }

    /// Adds `names` with what they need. Those of `start` are loaded in any case, in their order.
    pub(crate) fn select(&self, start: &[String], on_demand: &[String]) -> Result<Selection> {
        let mut selection = Selection::default();
        for name in start {
            self.add(&mut selection, name, &mut Vec::new())?;
            if !self.built_in.contains(&canonical(name)) {
                selection.start.push(canonical(name));
            }
        }
        on_demand.iter().try_for_each(|name| self.add(&mut selection, name, &mut Vec::new()))?;
        Ok(selection)
    }

    fn add(&self, selection: &mut Selection, name: &str, needed_by: &mut Vec<String>) -> Result {
        let name = canonical(name);
        if selection.order.contains_key(&name) || self.built_in.contains(&name) || needed_by.contains(&name) {
            return Ok(());
        }
        let file = self.files.get(&name).ok_or_else(|| ImageError::Missing {
            what: "kernel module",
            name: name.clone(),
            next: "correct the profile, or see what the kernel's package calls it",
        })?;
        let packed = read(file)?;
        let mut module = Vec::new();
        XzReader::new(packed.as_slice(), true)
            .take(MODULE_BYTES_MAX)
            .read_to_end(&mut module)
            .map_err(ImageError::file("unpack", file))?;
        let information = elf::module_information(file, &module)?;
        let texts = |key: &'static str| {
            information.iter().filter(move |(found, _)| found == key).map(|(_, value)| value.as_str())
        };
        let depends: Vec<String> = texts("depends")
            .flat_map(|value| value.split(','))
            .filter(|name| !name.is_empty())
            .map(canonical)
            .collect();
        needed_by.push(name.clone());
        depends.iter().try_for_each(|needed| self.add(selection, needed, needed_by))?;
        needed_by.pop();
        selection.aliases.extend(texts("alias").map(|pattern| (pattern.to_owned(), name.clone())));
        // Loaded first: what the needed ones need.
        let mut before: Vec<String> = Vec::new();
        for needed in depends.iter().filter(|needed| !self.built_in.contains(*needed)) {
            let theirs = selection.order.get(needed).cloned().unwrap_or_default();
            for module in theirs.into_iter().chain([needed.clone()]) {
                if !before.contains(&module) {
                    before.push(module);
                }
            }
        }
        selection.files.insert(format!("{name}.ko.xz"), packed);
        selection.order.insert(name, before);
        Ok(())
    }
}

impl Selection {
    /// The files about the modules, by name.
    pub(crate) fn indexes(&self) -> [(&'static str, String); 3] {
        let order = self.order.iter().fold(String::new(), |mut text, (name, before)| {
            let _ = writeln!(text, "{name}: {}", before.join(" "));
            text
        });
        let start = self.start.iter().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "{name}");
            text
        });
        let aliases = self.aliases.iter().fold(String::new(), |mut text, (pattern, name)| {
            let _ = writeln!(text, "{pattern} {name}");
            text
        });
        [("order", order), ("start", start), ("aliases", aliases)]
    }
}

fn walk(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result {
    let entries = std::fs::read_dir(folder).map_err(ImageError::file("read", folder))?;
    for entry in entries {
        let path = entry.map_err(ImageError::file("read", folder))?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if let Some(name) = path.to_str().filter(|path| path.ends_with(".ko.xz")).and_then(name_of) {
            files.insert(name, path);
        }
    }
    Ok(())
}
