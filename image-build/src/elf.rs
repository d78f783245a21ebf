//! What an executable is loaded with, and what a kernel module says about itself.

use std::path::Path;

use object::elf;
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _};

use crate::error::{ImageError, Reason, Result};

/// The loader that the program names, and the libraries that it names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) loader: Option<String>,
    pub(crate) libraries: Vec<String>,
}

/// Reads what `bytes`, a program or library from `path`, is loaded with.
pub(crate) fn needs(path: &Path, bytes: &[u8]) -> Result<Needs> {
    read_needs(bytes)
        .map_err(|error| ImageError::malformed(path, "a program for this processor", Reason::Object(error)))
}

fn read_needs(bytes: &[u8]) -> object::Result<Needs> {
    let header = elf::FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, bytes)?;
    let mut needs = Needs::default();
    for segment in segments {
        if let Some(loader) = segment.interpreter(endian, bytes)? {
            needs.loader = Some(String::from_utf8_lossy(loader).into_owned());
        }
    }
    let sections = header.sections(endian, bytes)?;
    if let Some((entries, strings)) = sections.dynamic(endian, bytes)? {
        let strings = sections.strings(endian, bytes, strings)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
            needs.libraries.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
        }
    }
    Ok(needs)
}

/// The `key=value` texts in a module.
pub(crate) fn module_information(path: &Path, bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let malformed = |error| ImageError::malformed(path, "a kernel module", Reason::Object(error));
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(malformed)?;
    let Some(section) = file.section_by_name(".modinfo") else { return Ok(Vec::new()) };
    let texts = section.data().map_err(malformed)?;
    let pairs = texts.split(|byte| *byte == 0).filter_map(|text| {
        let (key, value) = std::str::from_utf8(text).ok()?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    });
    Ok(pairs.collect())
}
