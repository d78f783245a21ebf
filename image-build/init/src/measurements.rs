//! What firmware and stub have measured, as the TPM holds it: shown on the console, so that whoever approves this machine can compare
//! it with the image's manifest.

use std::fs;
use std::path::Path;

use crate::console::say;

const BANK: &str = "/sys/class/tpm/tpm0/pcr-sha256";

/// Register, and what it covers.
const SHOWN: &[(u8, &str)] = &[
    (4, "what firmware started"),
    (7, "Secure Boot's keys"),
    (11, "this image"),
    (12, "this machine's configuration"),
];

pub(crate) fn show() {
    if !Path::new(BANK).is_dir() {
        say("there is no TPM: nobody can prove to the keyholder what runs here");
        return;
    }
    for (register, what) in SHOWN {
        if let Ok(value) = fs::read_to_string(Path::new(BANK).join(register.to_string())) {
            say(&format!("PCR {register} {} ({what})", value.trim().to_lowercase()));
        }
    }
}
