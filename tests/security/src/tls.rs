//! The secrets of TLS sessions, from the key log that a client writes (`SSLKEYLOGFILE`).

use anyhow::{Context, Result, ensure};
use hkdf::Hkdf;
use sha2::Sha384;

use crate::needles::Needles;

/// What the secrets are called among the findings.
pub const TLS_SECRET: &str = "TLS secret";

/// Bytes of a secret of a session with SHA-384: TLS_AES_256_GCM_SHA384, which everything here speaks first.
const SECRET_BYTES: usize = 48;

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

/// `HKDF-Expand-Label(secret, "key", "", 32)`, RFC 8446, section 7.3.
fn traffic_key(secret: &[u8]) -> Result<[u8; 32]> {
    const LABEL: &[u8] = b"tls13 key";
    let mut info = vec![0, 32, 9];
    info.extend_from_slice(LABEL);
    info.push(0);
    let mut key = [0; 32];
    let prk =
        Hkdf::<Sha384>::from_prk(secret).map_err(|error| anyhow::anyhow!("a traffic secret: {error}"))?;
    prk.expand(&info, &mut key).map_err(|error| anyhow::anyhow!("a traffic key: {error}"))?;
    Ok(key)
}
