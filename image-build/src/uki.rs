//! A unified kernel image (UAPI group specification): systemd's stub with the kernel, its command line, the initramfs and the
//! release's name as sections, so that one signature and one measurement cover all of them.

use std::path::Path;

use object::LittleEndian;
use object::pe::{ImageNtHeaders64, ImageSectionHeader};
use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _};

use crate::authenticode::{ALIGNMENT, Offsets};
use crate::error::{ImageError, Reason, Result};

/// One section to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'static str,
    pub(crate) contents: &'a [u8],
}

const SECTION_HEADER_BYTES: usize = 40;

/// Initialised data that is read only.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// What the optional header says, by offset in it (PE format, "Optional Header").
const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SIZE_OF_IMAGE: usize = 56;

struct Layout {
    optional_header: usize,
    section_count: usize,
    /// Where the next section header goes, and where the headers must end.
    next_header: usize,
    headers_end: usize,
    file_alignment: u32,
    section_alignment: u32,
    /// Where the next section is mapped, relative to the image.
    next_address: u32,
}

/// The stub with these sections behind its own, unsigned.
///
/// # Errors
/// Where the stub is no executable, has no room for so many, or the image would be larger than 4 GiB.
pub(crate) fn assemble(stub_path: &Path, stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>> {
    let malformed =
        |words| ImageError::malformed(stub_path, "a stub for unified kernel images", Reason::Words(words));
    let mut layout = read_layout(stub)
        .map_err(|error| ImageError::malformed(stub_path, "a stub for unified kernel images", error))?;
    let too_large = || malformed("the image does not fit into 4 GiB");
    let mut image = stub.to_vec();
    let mut initialised = 0_u32;
    for section in sections {
        let end = layout.next_header + SECTION_HEADER_BYTES;
        if end > layout.headers_end {
            return Err(malformed("it has no room for another section"));
        }
        image.resize(image.len().next_multiple_of(layout.file_alignment as usize), 0);
        let len = u32::try_from(section.contents.len()).map_err(|_| too_large())?;
        let file_len = len.checked_next_multiple_of(layout.file_alignment).ok_or_else(too_large)?;
        let at = u32::try_from(image.len()).map_err(|_| too_large())?;
        let mut name = [0; 8];
        name[..section.name.len()].copy_from_slice(section.name.as_bytes());
        // Name, size and address in memory, size and offset in the file, nothing of an object file's, characteristics.
        let fields = [len, layout.next_address, file_len, at, 0, 0, 0, CHARACTERISTICS];
        let mut header = name.to_vec();
        fields.iter().for_each(|field| header.extend_from_slice(&field.to_le_bytes()));
        image[layout.next_header..end].copy_from_slice(&header);
        image.extend_from_slice(section.contents);
        image.resize(at as usize + file_len as usize, 0);
        layout.next_header = end;
        layout.section_count += 1;
        layout.next_address = layout
            .next_address
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(layout.section_alignment))
            .ok_or_else(too_large)?;
        initialised = initialised.checked_add(file_len).ok_or_else(too_large)?;
    }
    image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
    finish(&mut image, &layout, initialised);
    Ok(image)
}

fn finish(image: &mut [u8], layout: &Layout, initialised: u32) {
    let put =
        |image: &mut [u8], at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let base = layout.optional_header;
    let before = crate::authenticode::u32_at(image, base + SIZE_OF_INITIALIZED_DATA).unwrap_or_default();
    put(image, base + SIZE_OF_INITIALIZED_DATA, before.saturating_add(initialised));
    put(image, base + SIZE_OF_IMAGE, layout.next_address);
    // No firmware looks at the checksum; a stale one would be a lie.
    put(image, base + 64, 0);
    // The count stands in the file header, which ends where the optional one begins.
    let count = u16::try_from(layout.section_count).unwrap_or(u16::MAX).to_le_bytes();
    image[base - 18..base - 16].copy_from_slice(&count);
}

fn read_layout(stub: &[u8]) -> std::result::Result<Layout, Reason> {
    let words = Reason::Words("it has no whole PE32+ header");
    let Some(offsets) = Offsets::find(stub) else { return Err(words) };
    let mut at = (offsets.optional_header - 24) as u64;
    let (headers, _) = ImageNtHeaders64::parse(stub, &mut at)?;
    let sections = headers.sections(stub, at)?;
    let optional = headers.optional_header();
    let section_alignment = optional.section_alignment();
    let end = |section: &ImageSectionHeader| {
        section.virtual_address.get(LittleEndian).checked_add(section.virtual_size.get(LittleEndian))
    };
    let end = sections.iter().filter_map(end).max();
    let next_address = end.and_then(|end| end.checked_next_multiple_of(section_alignment));
    let section_count = sections.len();
    let next_header =
        usize::try_from(at).unwrap_or(usize::MAX).saturating_add(section_count * SECTION_HEADER_BYTES);
    let Some(next_address) =
        next_address.filter(|_| optional.file_alignment() > 0 && next_header < stub.len())
    else {
        return Err(words);
    };
    Ok(Layout {
        optional_header: offsets.optional_header,
        section_count,
        next_header,
        headers_end: (optional.size_of_headers() as usize).min(stub.len()),
        file_alignment: optional.file_alignment(),
        section_alignment,
        next_address,
    })
}

/// The contents of a section, without its padding.
pub(crate) fn section<'a>(image: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let offsets = Offsets::find(image)?;
    let mut at = (offsets.optional_header - 24) as u64;
    let (headers, _) = ImageNtHeaders64::parse(image, &mut at).ok()?;
    let sections = headers.sections(image, at).ok()?;
    let found = sections.iter().find(|section| section.raw_name() == name.as_bytes())?;
    let start = found.pointer_to_raw_data.get(LittleEndian) as usize;
    let len = found.virtual_size.get(LittleEndian).min(found.size_of_raw_data.get(LittleEndian)) as usize;
    image.get(start..start.checked_add(len)?)
}
