//! The SMART / Health Information log page of NVMe (NVM Express Base Specification 2.0, figure 207; log identifier 02h).
//!
//! All numbers are little-endian. Temperatures are in kelvin, of which 0 means that there is no such sensor.

/// Length of the page.
pub const NVME_PAGE_BYTES: usize = 512;

/// Absolute zero, as firmware rounds it.
const KELVIN_AT_ZERO_CELSIUS: i64 = 273;

// Where the fields are.
const CRITICAL_WARNING: usize = 0;
const COMPOSITE_TEMPERATURE: usize = 1;
const AVAILABLE_SPARE: usize = 3;
const AVAILABLE_SPARE_THRESHOLD: usize = 4;
const PERCENTAGE_USED: usize = 5;
const ENDURANCE_GROUP_WARNING: usize = 6;
const DATA_UNITS_READ: usize = 32;
const DATA_UNITS_WRITTEN: usize = 48;
const HOST_READ_COMMANDS: usize = 64;
const HOST_WRITE_COMMANDS: usize = 80;
const CONTROLLER_BUSY_MINUTES: usize = 96;
const POWER_CYCLES: usize = 112;
const POWER_ON_HOURS: usize = 128;
const UNSAFE_SHUTDOWNS: usize = 144;
const MEDIA_ERRORS: usize = 160;
const ERROR_LOG_ENTRIES: usize = 176;
const WARNING_TEMPERATURE_MINUTES: usize = 192;
const CRITICAL_TEMPERATURE_MINUTES: usize = 196;
const TEMPERATURE_SENSORS: usize = 200;
const THERMAL_1_TRANSITIONS: usize = 216;
const THERMAL_2_TRANSITIONS: usize = 220;
const THERMAL_1_SECONDS: usize = 224;
const THERMAL_2_SECONDS: usize = 228;

const SENSORS: usize = 8;

const _: () = assert!(TEMPERATURE_SENSORS + 2 * SENSORS == THERMAL_1_TRANSITIONS);
const _: () = assert!(THERMAL_2_SECONDS + 4 <= NVME_PAGE_BYTES);

/// Why bytes are no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvmeError {
    /// It has another length.
    #[error("a SMART page of NVMe has {NVME_PAGE_BYTES} bytes, this has {0}")]
    Length(usize),
}

/// What an NVMe disk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeSmart {
    /// Bits of what is critical: 0 spare, 1 temperature, 2 reliability, 3 read-only, 4 backup of volatile memory, 5 persistent
    /// memory region.
    pub critical_warning: u8,
    /// The whole disk's temperature, in degrees Celsius.
    pub celsius: Option<i64>,
    /// Spare that is left, in percent of what there was.
    pub spare_percent: u8,
    /// Below this much spare the disk warns.
    pub spare_threshold_percent: u8,
    /// Endurance used, in percent of what the maker expects; may pass 100, and 255 stands for more.
    pub used_percent: u8,
    /// Bits of critical warnings of endurance groups.
    pub endurance_group_warning: u8,
    /// Read, in units of 512,000 bytes.
    pub data_units_read: u128,
    /// Written, in units of 512,000 bytes.
    pub data_units_written: u128,
    /// Commands that read.
    pub host_read_commands: u128,
    /// Commands that wrote.
    pub host_write_commands: u128,
    /// Time with commands under way, in minutes.
    pub controller_busy_minutes: u128,
    /// Times it was switched on.
    pub power_cycles: u128,
    /// Hours it was on.
    pub power_on_hours: u128,
    /// Times its power went without a word.
    pub unsafe_shutdowns: u128,
    /// Times data could not be given back as written.
    pub media_errors: u128,
    /// Entries of the error log since the disk was made.
    pub error_log_entries: u128,
    /// Minutes above the warning temperature.
    pub warning_temperature_minutes: u32,
    /// Minutes above the critical temperature.
    pub critical_temperature_minutes: u32,
    /// Each sensor's temperature, in degrees Celsius.
    pub sensors_celsius: [Option<i64>; SENSORS],
    /// Times it slowed down a little for heat.
    pub thermal_1_transitions: u32,
    /// Times it slowed down much for heat.
    pub thermal_2_transitions: u32,
    /// Seconds that it was slowed down a little.
    pub thermal_1_seconds: u32,
    /// Seconds that it was slowed down much.
    pub thermal_2_seconds: u32,
}

impl NvmeSmart {
    /// Reads a page.
    ///
    /// # Errors
    /// Where it has another length; every page of the right length means something.
    pub fn parse(page: &[u8]) -> Result<Self, NvmeError> {
        let page: &[u8; NVME_PAGE_BYTES] = page.try_into().map_err(|_| NvmeError::Length(page.len()))?;
        Ok(Self {
            critical_warning: page[CRITICAL_WARNING],
            celsius: celsius(u16_at(page, COMPOSITE_TEMPERATURE)),
            spare_percent: page[AVAILABLE_SPARE],
            spare_threshold_percent: page[AVAILABLE_SPARE_THRESHOLD],
            used_percent: page[PERCENTAGE_USED],
            endurance_group_warning: page[ENDURANCE_GROUP_WARNING],
            data_units_read: u128_at(page, DATA_UNITS_READ),
            data_units_written: u128_at(page, DATA_UNITS_WRITTEN),
            host_read_commands: u128_at(page, HOST_READ_COMMANDS),
            host_write_commands: u128_at(page, HOST_WRITE_COMMANDS),
            controller_busy_minutes: u128_at(page, CONTROLLER_BUSY_MINUTES),
            power_cycles: u128_at(page, POWER_CYCLES),
            power_on_hours: u128_at(page, POWER_ON_HOURS),
            unsafe_shutdowns: u128_at(page, UNSAFE_SHUTDOWNS),
            media_errors: u128_at(page, MEDIA_ERRORS),
            error_log_entries: u128_at(page, ERROR_LOG_ENTRIES),
            warning_temperature_minutes: u32_at(page, WARNING_TEMPERATURE_MINUTES),
            critical_temperature_minutes: u32_at(page, CRITICAL_TEMPERATURE_MINUTES),
            sensors_celsius: std::array::from_fn(|sensor| {
                celsius(u16_at(page, TEMPERATURE_SENSORS + 2 * sensor))
            }),
            thermal_1_transitions: u32_at(page, THERMAL_1_TRANSITIONS),
            thermal_2_transitions: u32_at(page, THERMAL_2_TRANSITIONS),
            thermal_1_seconds: u32_at(page, THERMAL_1_SECONDS),
            thermal_2_seconds: u32_at(page, THERMAL_2_SECONDS),
        })
    }
}

fn celsius(kelvin: u16) -> Option<i64> {
    (kelvin != 0).then(|| i64::from(kelvin) - KELVIN_AT_ZERO_CELSIUS)
}

/// Fields are at constants that were checked to lie inside the page.
fn at<const N: usize>(page: &[u8; NVME_PAGE_BYTES], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| page[offset + index])
}

fn u16_at(page: &[u8; NVME_PAGE_BYTES], offset: usize) -> u16 {
    u16::from_le_bytes(at(page, offset))
}

fn u32_at(page: &[u8; NVME_PAGE_BYTES], offset: usize) -> u32 {
    u32::from_le_bytes(at(page, offset))
}

fn u128_at(page: &[u8; NVME_PAGE_BYTES], offset: usize) -> u128 {
    u128::from_le_bytes(at(page, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of the page belongs to the field that the specification gives it to, or to none.
    #[test]
    fn each_byte_changes_the_field_it_belongs_to_and_no_other() {
        let nothing = NvmeSmart::parse(&[0; NVME_PAGE_BYTES]).unwrap();
        let reserved = |offset: usize| (7..32).contains(&offset) || offset >= 232;
        for offset in 0..NVME_PAGE_BYTES {
            let mut page = [0; NVME_PAGE_BYTES];
            page[offset] = 1;
            let changed = NvmeSmart::parse(&page).unwrap();
            assert_eq!(changed == nothing, reserved(offset), "byte {offset}");
            assert_eq!(
                fields_that_differ(&changed, &nothing),
                usize::from(!reserved(offset)),
                "byte {offset}"
            );
        }
    }

    fn fields_that_differ(one: &NvmeSmart, other: &NvmeSmart) -> usize {
        let fields = |smart: &NvmeSmart| {
            let text = format!("{smart:?}");
            let sensors = smart.sensors_celsius.map(|sensor| format!("{sensor:?}"));
            let (before, rest) = text.split_once("sensors_celsius: [").unwrap();
            let (_, after) = rest.split_once(']').unwrap();
            let named = |text: &str| text.split(", ").map(str::to_owned).collect::<Vec<_>>();
            [named(before), sensors.to_vec(), named(after)].concat()
        };
        fields(one).iter().zip(fields(other)).filter(|(one, other)| *one != other).count()
    }

    #[test]
    fn a_page_of_another_length_is_refused() {
        for bytes in [0, 1, NVME_PAGE_BYTES - 1, NVME_PAGE_BYTES + 1, 4096] {
            assert_eq!(NvmeSmart::parse(&vec![0; bytes]), Err(NvmeError::Length(bytes)));
        }
    }
}
