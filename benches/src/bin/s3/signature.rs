//! Signature version 4 in a header, the payload unsigned: what every server here takes.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub(crate) const PAYLOAD: &str = "UNSIGNED-PAYLOAD";
const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";

/// Signs requests of one client.
#[derive(Clone)]
pub(crate) struct Signer {
    access_key: String,
    secret: String,
    region: &'static str,
    host: String,
    /// Key of a day, and the day.
    day: (String, Vec<u8>),
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Signer {
    pub(crate) fn new((access_key, secret): (&str, &str), region: &'static str, host: &str) -> Self {
        let (access_key, secret, host) = (access_key.to_owned(), secret.to_owned(), host.to_owned());
        Self { access_key, secret, region, host, day: Default::default() }
    }

    /// Date and authorization of a request whose path and query need no encoding.
    pub(crate) fn sign(&mut self, method: &str, path: &str, query: &str) -> (String, String) {
        let date = date();
        let day = date[..8].to_owned();
        if self.day.0 != day {
            let key = [day.as_str(), self.region, "s3", "aws4_request"]
                .iter()
                .fold(format!("AWS4{}", self.secret).into_bytes(), |key, part| hmac(&key, part.as_bytes()));
            self.day = (day.clone(), key);
        }
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{PAYLOAD}\nx-amz-date:{date}\n\n{SIGNED}\n{PAYLOAD}",
            self.host
        );
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let text =
            format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
        let signature = hex(&hmac(&self.day.1, text.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED}, Signature={signature}",
            self.access_key
        );
        (date, authorization)
    }
}

/// Now, as signatures have it.
fn date() -> String {
    const SHAPE: &[time::format_description::BorrowedFormatItem<'_>] =
        time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    time::OffsetDateTime::now_utc().format(SHAPE).expect("a date that is always there")
}
