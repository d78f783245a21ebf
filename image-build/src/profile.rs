//! An image as data: which modules, which words on the kernel's command line, which extras. `profiles/*.toml`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::error::{ImageError, Reason, Result, read_text};

/// A word of the kernel's command line, and why it is there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Word {
    /// As the kernel reads it.
    pub text: String,
    /// Why.
    pub reason: String,
}

/// The words of every image: `command-line.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandLine {
    /// In order.
    #[serde(rename = "word")]
    pub words: Vec<Word>,
}

impl CommandLine {
    /// Reads it from the folder of sources.
    ///
    /// # Errors
    /// Where it cannot be read, or is none.
    pub fn load(sources: &Path) -> Result<Self> {
        let path = sources.join("command-line.toml");
        toml::from_str(&read_text(&path)?)
            .map_err(|error| ImageError::malformed(&path, "a command line", error))
    }
}

/// Which kernel modules an image has, by name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModuleLists {
    /// In the initramfs, loaded first, in this order.
    pub start: Vec<String>,
    /// In the initramfs, loaded where a device asks for one: what the root may lie on.
    pub disks: Vec<String>,
    /// In the root, loaded always, in this order.
    pub system: Vec<String>,
    /// In the root, loaded where a device asks for one.
    pub devices: Vec<String>,
}

/// An image to be.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// As its file is called.
    pub name: String,
    /// For whom it is.
    pub description: String,
    /// The profile whose modules, words and extras this one has too.
    #[serde(default)]
    extends: Option<String>,
    /// The modules.
    #[serde(default)]
    pub modules: ModuleLists,
    /// Words of this profile behind those of every image.
    #[serde(default)]
    pub words: Vec<Word>,
    /// A shell on the console, for whoever sits at it. Never in an image that holds somebody's keys.
    #[serde(default)]
    pub debug_shell: bool,
}

impl Profile {
    /// The names of all profiles in the folder of sources.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn names(sources: &Path) -> Result<Vec<String>> {
        let folder = sources.join("profiles");
        let entries = std::fs::read_dir(&folder).map_err(ImageError::file("read", &folder))?;
        let names = entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_profile = path.extension().is_some_and(|extension| extension == "toml");
            is_profile.then(|| Some(path.file_stem()?.to_str()?.to_owned())).flatten()
        });
        Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Reads the profile `name` from the folder of sources, with what it extends.
    ///
    /// # Errors
    /// Where there is none, it is no profile, or extends itself.
    pub fn load(sources: &Path, name: &str) -> Result<Self> {
        Self::load_after(sources, name, &mut Vec::new())
    }

    fn load_after(sources: &Path, name: &str, extending: &mut Vec<String>) -> Result<Self> {
        let path = sources.join("profiles").join(format!("{name}.toml"));
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_name || !path.is_file() {
            let next = "`ls image-build/profiles` shows which there are";
            return Err(ImageError::Missing { what: "profile", name: name.to_owned(), next });
        }
        let malformed = |reason: Reason| ImageError::malformed(&path, "a profile", reason);
        let mut profile: Self =
            toml::from_str(&read_text(&path)?).map_err(|error| malformed(error.into()))?;
        if profile.name != name {
            return Err(malformed(Reason::Words("its name is not that of its file")));
        }
        extending.push(name.to_owned());
        if let Some(parent) = profile.extends.take() {
            if extending.contains(&parent) {
                return Err(malformed(Reason::Words("it extends itself")));
            }
            let parent = Self::load_after(sources, &parent, extending)?;
            let lists = [
                (&mut profile.modules.start, parent.modules.start),
                (&mut profile.modules.disks, parent.modules.disks),
                (&mut profile.modules.system, parent.modules.system),
                (&mut profile.modules.devices, parent.modules.devices),
            ];
            for (own, mut inherited) in lists {
                inherited.append(own);
                *own = inherited;
            }
            profile.words = [parent.words, std::mem::take(&mut profile.words)].concat();
            profile.debug_shell |= parent.debug_shell;
        }
        Ok(profile)
    }
}
