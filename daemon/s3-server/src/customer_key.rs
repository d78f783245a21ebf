//! The headers by which a customer gives a key of their own (SSE-C).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use objects::CustomerKey;
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::error::invalid;

const AES256: &str = "AES256";

/// What a request says about a key.
#[derive(Default)]
pub(crate) struct AskedKey {
    pub(crate) algorithm: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) md5: Option<String>,
}

/// Takes the fields of a protocol type that [`AskedKey`] has.
macro_rules! asked_key {
    ($from:expr) => {
        $crate::customer_key::AskedKey {
            algorithm: $from.sse_customer_algorithm.take(),
            key: $from.sse_customer_key.take(),
            md5: $from.sse_customer_key_md5.take(),
        }
        .read()?
    };
}

/// Fills the encryption headers of a response: the customer's key, the named one, or what is done to everything.
macro_rules! set_encryption_headers {
    ($to:expr, $key:expr, $named:expr) => {
        match ($key, $named) {
            (Some(md5), _) => {
                $to.sse_customer_algorithm = Some("AES256".to_owned());
                $to.sse_customer_key_md5 = Some(md5);
            }
            (None, named) => $crate::backend::set_server_encryption!($to, named),
        }
    };
}

pub(crate) use {asked_key, set_encryption_headers};

/// A key, and its MD5 as the response repeats it.
pub(crate) struct GivenKey {
    pub(crate) key: CustomerKey,
    pub(crate) md5: String,
}

/// The key itself, for the store.
pub(crate) fn key_of(given: Option<&GivenKey>) -> Option<CustomerKey> {
    given.map(|given| given.key.clone())
}

/// The key's MD5, for the response.
pub(crate) fn md5_of(given: Option<GivenKey>) -> Option<String> {
    given.map(|given| given.md5)
}

impl AskedKey {
    pub(crate) fn read(self) -> S3Result<Option<GivenKey>> {
        let (algorithm, key, md5) = match (self.algorithm, self.key, self.md5) {
            (None, None, None) => return Ok(None),
            (Some(algorithm), Some(key), Some(md5)) => (algorithm, key, md5),
            _ => return Err(invalid("a customer's key needs its algorithm, the key and the key's MD5")),
        };
        if algorithm != AES256 {
            return Err(S3Error::with_message(
                S3ErrorCode::InvalidEncryptionAlgorithmError,
                "AES256 is the only algorithm for a customer's key",
            ));
        }
        let bytes = STANDARD.decode(key).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let bytes = bytes.ok_or(invalid("a customer's key has 256 bits, in base64"))?;
        if STANDARD.encode(Md5::digest(bytes)) != md5 {
            return Err(invalid("the MD5 is not that of the customer's key"));
        }
        Ok(Some(GivenKey { key: CustomerKey::new(&bytes), md5 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(algorithm: &str, key: &[u8], md5: &str) -> Result<bool, S3ErrorCode> {
        let asked = AskedKey {
            algorithm: Some(algorithm.to_owned()),
            key: Some(STANDARD.encode(key)),
            md5: Some(md5.to_owned()),
        };
        asked.read().map(|given| given.is_some()).map_err(|error| error.code().clone())
    }

    #[test]
    fn a_key_is_taken_only_whole_and_with_its_md5() {
        let md5 = STANDARD.encode(Md5::digest([7; 32]));
        assert_eq!(ask("AES256", &[7; 32], &md5), Ok(true));
        assert_eq!(ask("aes256", &[7; 32], &md5), Err(S3ErrorCode::InvalidEncryptionAlgorithmError));
        assert_eq!(ask("AES256", &[7; 31], &md5), Err(S3ErrorCode::InvalidArgument));
        assert_eq!(ask("AES256", &[8; 32], &md5), Err(S3ErrorCode::InvalidArgument));
        assert!(AskedKey::default().read().is_ok_and(|given| given.is_none()));
        assert!(AskedKey { algorithm: Some("AES256".to_owned()), ..AskedKey::default() }.read().is_err());
    }
}
