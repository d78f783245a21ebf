//! The secrets of TLS sessions, from the key log that a client writes (`SSLKEYLOGFILE`).

use anyhow::{Context, Result, ensure};
use hkdf::Hkdf;
use sha2::Sha384;

use crate::needles::Needles;

/// What the secrets are called among the findings.
pub const TLS_SECRET: &str = "TLS secret";

/// Bytes of a secret of a session with SHA-384: TLS_AES_256_GCM_SHA384, which everything here speaks first.
pub const SECRET_BYTES: usize = 48;

/// The labels of secrets that protect application data, whose keys are looked for too.
const TRAFFIC: [&str; 2] = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"];

/// Adds every secret of a key log, and the keys and round keys that application data is encrypted with. Says how many
/// sessions there were.
///
/// # Errors
/// Where a line is no line of a key log, or of another kind of session.
pub fn add_key_log(needles: &mut Needles, log: &str) -> Result<usize> {
    let mut sessions = 0;
    for line in log.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let label = words.next().context("an empty line")?;
        let secret = words.nth(1).with_context(|| format!("no secret in the line of {label}"))?;
        let secret = hex::decode(secret).with_context(|| format!("the secret of {label}"))?;
        ensure!(secret.len() == SECRET_BYTES, "{label} has {} bytes: not the suite expected", secret.len());
        needles.add_secret(TLS_SECRET, &secret);
        if TRAFFIC.contains(&label) {
            needles.add_aes_key(TLS_SECRET, &traffic_key(&secret)?);
        }
        sessions += usize::from(label == TRAFFIC[0]);
    }
    Ok(sessions)
}

fn traffic_key(secret: &[u8]) -> Result<[u8; 32]> {
    expand_label(secret, "key")
}

/// `HKDF-Expand-Label(secret, label, "", N)`, RFC 8446, section 7.3.
///
/// # Errors
/// Where the secret is too short.
pub fn expand_label<const N: usize>(secret: &[u8], label: &str) -> Result<[u8; N]> {
    let label = format!("tls13 {label}");
    let mut info = u16::try_from(N)?.to_be_bytes().to_vec();
    info.push(u8::try_from(label.len())?);
    info.extend_from_slice(label.as_bytes());
    info.push(0);
    let mut out = [0; N];
    let prk =
        Hkdf::<Sha384>::from_prk(secret).map_err(|error| anyhow::anyhow!("a traffic secret: {error}"))?;
    prk.expand(&info, &mut out).map_err(|error| anyhow::anyhow!("a traffic key: {error}"))?;
    Ok(out)
}
