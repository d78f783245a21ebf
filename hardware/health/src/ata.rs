//! SMART of ATA: the data and threshold pages of SMART READ DATA and SMART READ THRESHOLDS (ATA8-ACS; obsolete in newer
//! standards, and what disks go on answering).
//!
//! Thirty attributes of twelve bytes begin at byte 2: number, two bytes of flags, value, worst value, six bytes of the
//! maker's own, and one that is reserved. Thresholds have number and threshold at the same places. Byte 511 makes all bytes
//! add up to 0.
//!
//! What the six bytes mean is each maker's matter. Only those attributes are read that all makers count alike.

/// Length of either page.
pub const ATA_PAGE_BYTES: usize = 512;

const FIRST: usize = 2;
const ATTRIBUTE_BYTES: usize = 12;
const ATTRIBUTES: usize = 30;
const VALUE: usize = 3;
const RAW: usize = 5;
const THRESHOLD: usize = 1;

/// Falling below its threshold means failure soon, not age.
const PREFAIL: u8 = 1;

const _: () = assert!(FIRST + ATTRIBUTES * ATTRIBUTE_BYTES <= ATA_PAGE_BYTES - 1);

/// Values that stand for none (ATA8-ACS: 00h, FEh and FFh are not used for values).
const NO_VALUES: [u8; 3] = [0x00, 0xFE, 0xFF];

/// Numbers of attributes that are read.
pub(crate) mod number {
    pub(crate) const REALLOCATED: u8 = 5;
    pub(crate) const POWER_ON_HOURS: u8 = 9;
    pub(crate) const POWER_CYCLES: u8 = 12;
    pub(crate) const UNCORRECTABLE: u8 = 187;
    pub(crate) const TEMPERATURE: u8 = 194;
    pub(crate) const AIRFLOW_TEMPERATURE: u8 = 190;
    pub(crate) const PENDING: u8 = 197;
    /// Of SSDs, by maker: life that is left, in the value.
    pub(crate) const LIFE_LEFT: [u8; 4] = [231, 233, 177, 202];
}

/// Why bytes are no pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtaError {
    /// One has another length.
    #[error("a SMART page of ATA has {ATA_PAGE_BYTES} bytes, this has {0}")]
    Length(usize),
    /// Its bytes do not add up.
    #[error("a SMART page of ATA does not add up: the disk or the way to it garbled it")]
    Checksum,
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Which.
    pub number: u8,
    /// Below its threshold it predicts a failure.
    pub prefail: bool,
    /// 1 to 253; higher is better.
    pub value: Option<u8>,
    /// At or below this it has failed; `None` where it never fails.
    pub threshold: Option<u8>,
    /// The maker's own, 48 bits.
    pub raw: u64,
}

impl Attribute {
    /// Whether the value has come down to the threshold.
    pub fn has_failed(&self) -> bool {
        self.value.zip(self.threshold).is_some_and(|(value, threshold)| value <= threshold)
    }
}

/// What an ATA disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtaSmart {
    /// In the page's order.
    pub attributes: Vec<Attribute>,
}

impl AtaSmart {
    /// Reads both pages.
    ///
    /// # Errors
    /// Where one has another length or does not add up.
    pub fn parse(data: &[u8], thresholds: &[u8]) -> Result<Self, AtaError> {
        let (data, thresholds) = (page(data)?, page(thresholds)?);
        let threshold_of = |wanted: u8| {
            let entry = entries(thresholds).find(|entry| entry[0] == wanted)?;
            (!NO_VALUES.contains(&entry[THRESHOLD])).then_some(entry[THRESHOLD])
        };
        let attributes = entries(data).filter(|entry| entry[0] != 0).map(|entry| Attribute {
            number: entry[0],
            prefail: entry[1] & PREFAIL != 0,
            value: (!NO_VALUES.contains(&entry[VALUE])).then_some(entry[VALUE]),
            threshold: threshold_of(entry[0]),
            raw: entry[RAW..RAW + 6].iter().rev().fold(0, |raw, byte| raw << 8 | u64::from(*byte)),
        });
        Ok(Self { attributes: attributes.collect() })
    }

    /// An attribute by its number.
    pub fn attribute(&self, number: u8) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.number == number)
    }

    /// Attributes that predict a failure.
    pub fn failing(&self) -> impl Iterator<Item = &Attribute> {
        self.attributes.iter().filter(|attribute| attribute.prefail && attribute.has_failed())
    }

    /// Degrees Celsius: the lowest byte, above which makers keep extremes.
    pub fn celsius(&self) -> Option<i64> {
        let attribute =
            self.attribute(number::TEMPERATURE).or_else(|| self.attribute(number::AIRFLOW_TEMPERATURE))?;
        Some(i64::from(attribute.raw.to_le_bytes()[0])).filter(|celsius| *celsius != 0)
    }

    /// A counter whose upper two bytes some makers use otherwise.
    pub(crate) fn counter(&self, number: u8) -> Option<u64> {
        self.attribute(number).map(|attribute| attribute.raw & 0xFFFF_FFFF)
    }

    /// Endurance used, in percent, of disks that say so.
    pub fn used_percent(&self) -> Option<u8> {
        let left = number::LIFE_LEFT.into_iter().find_map(|number| self.attribute(number)?.value)?;
        Some(100_u8.saturating_sub(left))
    }
}

fn page(bytes: &[u8]) -> Result<&[u8], AtaError> {
    if bytes.len() != ATA_PAGE_BYTES {
        return Err(AtaError::Length(bytes.len()));
    }
    match bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) {
        0 => Ok(bytes),
        _ => Err(AtaError::Checksum),
    }
}

fn entries(page: &[u8]) -> impl Iterator<Item = &[u8]> {
    page[FIRST..].chunks_exact(ATTRIBUTE_BYTES).take(ATTRIBUTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_do_not_add_up_and_those_of_other_lengths_are_refused() {
        let good = [0; ATA_PAGE_BYTES];
        assert_eq!(AtaSmart::parse(&good, &good).unwrap().attributes, []);
        assert_eq!(AtaSmart::parse(&good[1..], &good), Err(AtaError::Length(511)));
        assert_eq!(AtaSmart::parse(&good, &[]), Err(AtaError::Length(0)));
        for byte in 0..ATA_PAGE_BYTES {
            let mut garbled = good;
            garbled[byte] = 1;
            assert_eq!(AtaSmart::parse(&good, &garbled), Err(AtaError::Checksum), "{byte}");
        }
    }

    #[test]
    fn values_that_stand_for_none_neither_fail_nor_make_others_fail() {
        let attribute = |value, threshold| Attribute { number: 5, prefail: true, value, threshold, raw: 0 };
        assert!(attribute(Some(10), Some(10)).has_failed() && attribute(Some(9), Some(10)).has_failed());
        for sound in [attribute(Some(11), Some(10)), attribute(Some(1), None), attribute(None, Some(10))] {
            assert!(!sound.has_failed(), "{sound:?}");
        }
    }
}
