//! What a disk answered when it was asked, as a file: `CAPTURE.md` describes it.
//!
//! Asking takes rights that a node gives up before it holds a key, so another program asks and leaves these files.

use units::BootInstant;

use crate::ata::ATA_PAGE_BYTES;
use crate::nvme::NVME_PAGE_BYTES;

const MAGIC: [u8; 8] = *b"NLSMART\0";
const VERSION: u16 = 1;

// Where the fields are.
const VERSION_AT: usize = 8;
const KIND_AT: usize = 10;
const VERDICT_AT: usize = 11;
const RESERVED_AT: usize = 12;
const TAKEN_AT: usize = 16;
const PAGES_AT: usize = 24;

const KIND_NVME: u8 = 1;
const KIND_ATA: u8 = 2;

/// Longest capture of any kind.
pub const CAPTURE_BYTES_MAX: usize = PAGES_AT + 2 * ATA_PAGE_BYTES;

/// Why bytes are no capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// It begins otherwise.
    #[error("it is no capture of a disk's SMART pages")]
    NoCapture,
    /// It was made by a newer program.
    #[error(
        "it is a capture of version {0}, of which this program knows {VERSION}; install the same version of both"
    )]
    Newer(u16),
    /// It holds pages of a kind that there is not, or bytes that mean nothing.
    #[error("it is garbled; it is written again with the next reading")]
    Garbled,
}

/// What the disk itself concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfVerdict {
    /// It was not asked, or did not say.
    Unknown,
    /// No threshold is passed.
    Passed,
    /// A threshold is passed.
    Failing,
}

impl SelfVerdict {
    const fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Passed => 1,
            Self::Failing => 2,
        }
    }
}

/// The pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// The log page.
    Nvme(Box<[u8; NVME_PAGE_BYTES]>),
    /// Data and thresholds.
    Ata {
        /// SMART READ DATA.
        data: Box<[u8; ATA_PAGE_BYTES]>,
        /// SMART READ THRESHOLDS.
        thresholds: Box<[u8; ATA_PAGE_BYTES]>,
    },
}

/// What a disk answered, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// On this boot's clock.
    pub taken: BootInstant,
    /// What the disk concludes.
    pub verdict: SelfVerdict,
    /// What it said.
    pub page: Page,
}

/// A capture's file name, by the disk's.
pub fn capture_name(disk: &str) -> String {
    format!("{disk}.smart")
}

impl Capture {
    /// As it stands in a file.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, pages): (u8, [&[u8]; 2]) = match &self.page {
            Page::Nvme(page) => (KIND_NVME, [&**page, &[]]),
            Page::Ata { data, thresholds } => (KIND_ATA, [&**data, &**thresholds]),
        };
        let mut bytes = Vec::with_capacity(CAPTURE_BYTES_MAX);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([kind, self.verdict.code()]);
        bytes.extend([0; TAKEN_AT - RESERVED_AT]);
        bytes.extend(self.taken.0.to_le_bytes());
        bytes.extend(pages.concat());
        bytes
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// Where they are no capture, or one of a newer version.
    pub fn parse(bytes: &[u8]) -> Result<Self, CaptureError> {
        if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(CaptureError::NoCapture);
        }
        let field = |at: usize, len: usize| bytes.get(at..at + len).ok_or(CaptureError::Garbled);
        let version = u16::from_le_bytes(array(field(VERSION_AT, 2)?)?);
        if version > VERSION {
            return Err(CaptureError::Newer(version));
        }
        if version != VERSION || field(RESERVED_AT, 4)? != [0; 4] {
            return Err(CaptureError::Garbled);
        }
        let verdict = match field(VERDICT_AT, 1)?[0] {
            0 => SelfVerdict::Unknown,
            1 => SelfVerdict::Passed,
            2 => SelfVerdict::Failing,
            _ => return Err(CaptureError::Garbled),
        };
        let taken = BootInstant(u64::from_le_bytes(array(field(TAKEN_AT, 8)?)?));
        let pages = bytes.get(PAGES_AT..).ok_or(CaptureError::Garbled)?;
        let page = match field(KIND_AT, 1)?[0] {
            KIND_NVME => Page::Nvme(Box::new(array(pages)?)),
            KIND_ATA => {
                let (data, thresholds) =
                    pages.split_at_checked(ATA_PAGE_BYTES).ok_or(CaptureError::Garbled)?;
                Page::Ata { data: Box::new(array(data)?), thresholds: Box::new(array(thresholds)?) }
            }
            _ => return Err(CaptureError::Garbled),
        };
        Ok(Self { taken, verdict, page })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], CaptureError> {
    bytes.try_into().map_err(|_| CaptureError::Garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_version_is_told_from_a_garbled_file() {
        let page = Page::Nvme(Box::new([7; NVME_PAGE_BYTES]));
        let capture = Capture { taken: BootInstant(9), verdict: SelfVerdict::Passed, page };
        let bytes = capture.encode();
        assert_eq!(Capture::parse(&bytes), Ok(capture));
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            Capture::parse(&bytes)
        };
        assert_eq!(changed(VERSION_AT, 2), Err(CaptureError::Newer(2)));
        assert_eq!(changed(VERSION_AT, 0), Err(CaptureError::Garbled));
        assert_eq!(changed(KIND_AT, 3), Err(CaptureError::Garbled));
        assert_eq!(changed(VERDICT_AT, 3), Err(CaptureError::Garbled));
        assert_eq!(changed(RESERVED_AT, 1), Err(CaptureError::Garbled));
        assert_eq!(changed(0, b'X'), Err(CaptureError::NoCapture));
        for len in 0..bytes.len() {
            assert!(Capture::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert_eq!(Capture::parse(&[bytes, vec![0]].concat()), Err(CaptureError::Garbled));
    }
}
