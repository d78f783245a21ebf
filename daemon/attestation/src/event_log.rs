//! The firmware's log of what it extended registers with (TCG PC Client Platform Firmware Profile, section 10; the crypto-agile
//! form). Nobody signs it: what it says counts only for registers whose signed contents come out when it is replayed.

use std::collections::BTreeMap;

use crate::register::{Digest, QUOTED, Register, Registers, WIPES, digest, extended};
use crate::wire::Malformed;
use crate::wire::constant::ALG_SHA256;

/// Longest log that is looked at. One of a server has 20 to 80 KiB.
pub const EVENT_LOG_BYTES_MAX: usize = 256 * 1024;

/// Algorithms that a log's head may name; there are five.
const ALGORITHMS_MAX: u32 = 16;

const EV_NO_ACTION: u32 = 0x0000_0003;
const EV_SEPARATOR: u32 = 0x0000_0004;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;

/// A log, replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    registers: BTreeMap<u8, Digest>,
    secure_boot: SecureBoot,
    events: usize,
}

/// What was measured of the firmware's variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SecureBoot {
    Unsaid,
    Said(bool),
    /// The firmware is done with its variables: what comes after is somebody else's word.
    Closed(Option<bool>),
    /// Said twice, or after the end.
    Contradicted,
}

/// What a log says about the machine's start, as far as the TPM's signature bears it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareState {
    /// Whether the firmware checked what it started; `None` where the log does not say, or not credibly.
    pub secure_boot: Option<bool>,
    /// Quoted registers that do not come out when the log is replayed.
    pub unexplained: Vec<Register>,
    /// Events in the log.
    pub events: usize,
}

impl EventLog {
    /// Reads a log, as the kernel shows it (binary_bios_measurements), and replays it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = LittleEndian(bytes);
        if bytes.len() > EVENT_LOG_BYTES_MAX {
            return Err(NO_LOG);
        }
        let sizes = reader.head()?;
        let mut log = Self { registers: BTreeMap::new(), secure_boot: SecureBoot::Unsaid, events: 0 };
        while !reader.0.is_empty() {
            log.take(&reader.event(&sizes)?);
        }
        Ok(log)
    }

    fn take(&mut self, event: &Event<'_>) {
        self.events += 1;
        let register = self.registers.entry(event.register).or_insert([0; 32]);
        if event.kind == EV_NO_ACTION {
            // The locality from which the TPM was started is where register 0 begins.
            if let (0, Some([locality])) = (event.register, event.data.strip_prefix(b"StartupLocality\0")) {
                register[31] = *locality;
            }
            return;
        }
        *register = extended(*register, event.digest);
        if event.register != Register::SECURE_BOOT.number() {
            return;
        }
        self.secure_boot = match (self.secure_boot, event.kind) {
            (SecureBoot::Unsaid, EV_SEPARATOR) => SecureBoot::Closed(None),
            (SecureBoot::Said(on), EV_SEPARATOR) => SecureBoot::Closed(Some(on)),
            (known, EV_EFI_VARIABLE_DRIVER_CONFIG) => match (known, secure_boot_variable(event)) {
                (SecureBoot::Unsaid, Some(on)) => SecureBoot::Said(on),
                (SecureBoot::Said(_), Some(_)) | (SecureBoot::Closed(_), _) => SecureBoot::Contradicted,
                (known, _) => known,
            },
            (known, _) => known,
        };
    }

    /// What of it the signed registers bear out.
    pub fn judged_by(&self, signed: &Registers) -> FirmwareState {
        let replayed =
            |register: &Register| self.registers.get(&register.number()).copied().unwrap_or([0; 32]);
        let unexplained: Vec<_> = QUOTED
            .into_iter()
            .filter(|register| *register != WIPES && signed.of(*register) != Some(replayed(register)))
            .collect();
        let credible = !unexplained.contains(&Register::SECURE_BOOT);
        let secure_boot = match self.secure_boot {
            SecureBoot::Closed(on) if credible => on,
            _ => None,
        };
        FirmwareState { secure_boot, unexplained, events: self.events }
    }
}

const NO_LOG: Malformed = Malformed { what: "event log" };

struct Event<'a> {
    register: u8,
    kind: u32,
    digest: Digest,
    data: &'a [u8],
}

/// The firmware writes little-endian, unlike the TPM.
struct LittleEndian<'a>(&'a [u8]);

impl<'a> LittleEndian<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(NO_LOG)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(NO_LOG)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| NO_LOG)?;
        self.bytes(length)
    }

    /// The first event, in the form of old: which algorithms the others have digests of, and how long these are.
    fn head(&mut self) -> Result<BTreeMap<u16, usize>, Malformed> {
        let (_register, kind, _digest) = (self.u32()?, self.u32()?, self.bytes(20)?);
        let mut head = LittleEndian(self.sized()?);
        if kind != EV_NO_ACTION || head.bytes(16)? != b"Spec ID Event03\0" {
            return Err(NO_LOG);
        }
        let _class_versions_and_size = head.bytes(8)?;
        let count = head.u32()?;
        if count > ALGORITHMS_MAX {
            return Err(NO_LOG);
        }
        (0..count).map(|_| Ok((head.u16()?, usize::from(head.u16()?)))).collect()
    }

    fn event(&mut self, sizes: &BTreeMap<u16, usize>) -> Result<Event<'a>, Malformed> {
        let register = u8::try_from(self.u32()?).map_err(|_| NO_LOG)?;
        let register = Register::new(register).ok_or(NO_LOG)?.number();
        let kind = self.u32()?;
        let count = self.u32()?;
        if count > ALGORITHMS_MAX {
            return Err(NO_LOG);
        }
        let mut digest = None;
        for _ in 0..count {
            let algorithm = self.u16()?;
            let bytes = self.bytes(*sizes.get(&algorithm).ok_or(NO_LOG)?)?;
            if algorithm == ALG_SHA256 {
                digest = bytes.try_into().ok();
            }
        }
        let data = self.sized()?;
        Ok(Event { register, kind, digest: digest.ok_or(NO_LOG)?, data })
    }
}

/// EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];

/// What an event says of Secure Boot, if it is about that and is what was measured.
fn secure_boot_variable(event: &Event<'_>) -> Option<bool> {
    let (name, value) = variable(event.data)?;
    (name == "SecureBoot" && event.digest == digest(event.data)).then_some(value == [1])
}

/// A variable of the firmware's own: name and value (UEFI_VARIABLE_DATA).
fn variable(data: &[u8]) -> Option<(String, &[u8])> {
    let mut reader = LittleEndian(data);
    if reader.bytes(16).ok()? != GLOBAL {
        return None;
    }
    let units = usize::try_from(reader.u64().ok()?).ok()?;
    let length = usize::try_from(reader.u64().ok()?).ok()?;
    let name = reader.bytes(units.checked_mul(2)?).ok()?;
    let name: Vec<u16> = name.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    let value = reader.bytes(length).ok()?;
    reader.0.is_empty().then(|| (String::from_utf16_lossy(&name), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<u8> {
        let mut log = Vec::new();
        let head = [
            b"Spec ID Event03\0".as_slice(),
            &[0, 0, 0, 0, 0, 2, 0, 2],
            &2_u32.to_le_bytes(),
            &[4, 0, 20, 0, 11, 0, 32, 0, 0],
        ]
        .concat();
        log.extend([0; 4]);
        log.extend(EV_NO_ACTION.to_le_bytes());
        log.extend([0; 20]);
        log.extend(u32::try_from(head.len()).unwrap().to_le_bytes());
        log.extend(head);
        log
    }

    fn event(register: u32, kind: u32, digest: Digest, data: &[u8]) -> Vec<u8> {
        let mut event = Vec::new();
        event.extend(register.to_le_bytes());
        event.extend(kind.to_le_bytes());
        event.extend(2_u32.to_le_bytes());
        event.extend([4, 0]);
        event.extend([9; 20]);
        event.extend([11, 0]);
        event.extend(digest);
        event.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        event.extend(data);
        event
    }

    fn secure_boot(on: u8) -> Vec<u8> {
        let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
        [&GLOBAL[..], &10_u64.to_le_bytes(), &1_u64.to_le_bytes(), &name, &[on]].concat()
    }

    fn registers(changed: &[(Register, Digest)]) -> Registers {
        Registers(QUOTED.map(|register| {
            changed.iter().find(|(one, _)| *one == register).map_or([0; 32], |(_, contents)| *contents)
        }))
    }

    #[test]
    fn what_the_log_says_counts_where_the_registers_bear_it_out() {
        let on = secure_boot(1);
        let bytes = [
            log(),
            event(0, EV_NO_ACTION, [0; 32], b"StartupLocality\0\x03"),
            event(0, 8, [1; 32], b"firmware"),
            event(7, EV_EFI_VARIABLE_DRIVER_CONFIG, digest(&on), &on),
            event(7, EV_SEPARATOR, [2; 32], &[0; 4]),
        ]
        .concat();
        let log = EventLog::parse(&bytes).unwrap();
        let mut from_locality_3 = [0; 32];
        from_locality_3[31] = 3;
        let good = registers(&[
            (Register::FIRMWARE, extended(from_locality_3, [1; 32])),
            (Register::SECURE_BOOT, extended(extended([0; 32], digest(&on)), [2; 32])),
        ]);
        assert_eq!(
            log.judged_by(&good),
            FirmwareState { secure_boot: Some(true), unexplained: Vec::new(), events: 4 }
        );
        let other = registers(&[(Register::FIRMWARE, extended(from_locality_3, [1; 32]))]);
        let judged = log.judged_by(&other);
        assert_eq!((judged.secure_boot, judged.unexplained), (None, vec![Register::SECURE_BOOT]));
    }

    #[test]
    fn a_variable_whose_digest_is_another_says_nothing() {
        let (on, off) = (secure_boot(1), secure_boot(0));
        let said = |events: &[(u32, &[u8], &[u8])]| {
            let one = |(kind, measured, data): &(u32, &[u8], &[u8])| event(7, *kind, digest(measured), data);
            let bytes: Vec<u8> = log().into_iter().chain(events.iter().flat_map(one)).collect();
            let value =
                events.iter().fold([0; 32], |value, (_, measured, _)| extended(value, digest(measured)));
            EventLog::parse(&bytes)
                .unwrap()
                .judged_by(&registers(&[(Register::SECURE_BOOT, value)]))
                .secure_boot
        };
        const CONFIG: u32 = EV_EFI_VARIABLE_DRIVER_CONFIG;
        let end: (u32, &[u8], &[u8]) = (EV_SEPARATOR, &[0; 4], &[0; 4]);
        assert_eq!(said(&[(CONFIG, &off, &off), end]), Some(false));
        assert_eq!(said(&[(CONFIG, &off, &on), end]), None, "measured was something else");
        assert_eq!(
            said(&[(CONFIG, &off, &off), end, (CONFIG, &on, &on)]),
            None,
            "somebody's, after the firmware's"
        );
        assert_eq!(said(&[(CONFIG, &off, &off), (CONFIG, &on, &on), end]), None);
        let theirs = [&[0; 16], &on[16..]].concat();
        assert_eq!(said(&[(CONFIG, &theirs, &theirs), end]), None, "a variable of another vendor's");
    }

    #[test]
    fn a_log_cut_anywhere_but_between_events_is_none() {
        let (head, one) = (log(), event(4, 8, [1; 32], b"abc"));
        let whole = [head.clone(), one].concat();
        for end in 0..whole.len() {
            assert_eq!(EventLog::parse(&whole[..end]).is_ok(), end == head.len(), "cut at {end}");
        }
        let stranger = [head.clone(), event(24, 8, [1; 32], b"")].concat();
        assert_eq!(EventLog::parse(&stranger), Err(NO_LOG), "there is no register 24");
        let long = [head, vec![0; EVENT_LOG_BYTES_MAX]].concat();
        assert_eq!(EventLog::parse(&long), Err(NO_LOG));
    }
}
