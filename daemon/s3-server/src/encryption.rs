//! What a new object is encrypted under beneath the volume's own encryption: nothing, or a key with a name (SSE-KMS). A customer's
//! key (SSE-C) is read in `customer_key`.

use s3s::dto::{ServerSideEncryption, ServerSideEncryptionConfiguration};
use s3s::{S3Result, s3_error};

use crate::error::invalid;

pub(crate) const KMS: &str = ServerSideEncryption::AWS_KMS;

/// What a request says about encryption by the server.
#[derive(Debug)]
pub(crate) struct AskedEncryption {
    pub(crate) algorithm: Option<ServerSideEncryption>,
    pub(crate) key: Option<String>,
    /// Whether a customer's key is given.
    pub(crate) is_customers: bool,
}

/// Takes the fields of a protocol type that [`AskedEncryption`] has, and says which named key is meant, if any.
macro_rules! asked_named_key {
    ($from:expr, $given:expr, $admission:expr) => {
        $crate::encryption::AskedEncryption {
            algorithm: $from.server_side_encryption.take(),
            key: $from.ssekms_key_id.take(),
            is_customers: $given.is_some(),
        }
        .named_key($admission.authority.default_key.as_deref())?
    };
}

pub(crate) use asked_named_key;

impl AskedEncryption {
    /// The named key that is meant; the bucket's where the request says nothing.
    pub(crate) fn named_key(self, of_bucket: Option<&str>) -> S3Result<Option<String>> {
        let algorithm = self.algorithm.as_ref().map(ServerSideEncryption::as_str);
        if self.key.is_some() && algorithm != Some(KMS) {
            return Err(invalid("a key is named with x-amz-server-side-encryption: aws:kms only"));
        }
        match algorithm {
            None if self.is_customers => Ok(None),
            None => Ok(of_bucket.map(str::to_owned)),
            Some(ServerSideEncryption::AES256) => Ok(None),
            Some(KMS) => {
                let named = self.key.filter(|key| !key.is_empty()).or_else(|| of_bucket.map(str::to_owned));
                named.map(Some).ok_or_else(|| {
                    invalid("aws:kms needs the name of a key, in x-amz-server-side-encryption-aws-kms-key-id")
                })
            }
            Some(ServerSideEncryption::AWS_KMS_DSSE) => {
                Err(s3_error!(NotImplemented, "objects are encrypted under one named key, not two"))
            }
            Some(_) => Err(invalid("the server encrypts with AES256 or aws:kms")),
        }
    }
}

/// The named key that a bucket's default encryption names; checks what can't be meant.
pub(crate) fn default_key(configuration: &ServerSideEncryptionConfiguration) -> S3Result<Option<String>> {
    let [rule] = configuration.rules.as_slice() else {
        return Err(s3_error!(MalformedXML, "an encryption configuration has one rule"));
    };
    let Some(default) = &rule.apply_server_side_encryption_by_default else { return Ok(None) };
    let asked = AskedEncryption {
        algorithm: Some(default.sse_algorithm.clone()),
        key: default.kms_master_key_id.clone(),
        is_customers: false,
    };
    asked.named_key(None)
}

#[cfg(test)]
mod tests {
    use s3s::S3ErrorCode;

    use super::*;

    fn ask(
        algorithm: Option<&str>,
        key: Option<&str>,
        of_bucket: Option<&str>,
    ) -> Result<Option<String>, S3ErrorCode> {
        let asked = AskedEncryption {
            algorithm: algorithm.map(|name| ServerSideEncryption::from(name.to_owned())),
            key: key.map(str::to_owned),
            is_customers: false,
        };
        asked.named_key(of_bucket).map_err(|error| error.code().clone())
    }

    #[test]
    fn a_named_key_is_meant_where_it_is_asked_for_or_the_buckets() {
        let named = |name: &str| Ok(Some(name.to_owned()));
        assert_eq!(ask(None, None, None), Ok(None));
        assert_eq!(ask(None, None, Some("b")), named("b"));
        assert_eq!(ask(Some("AES256"), None, Some("b")), Ok(None), "said otherwise");
        assert_eq!(ask(Some("aws:kms"), Some("k"), Some("b")), named("k"));
        assert_eq!(ask(Some("aws:kms"), None, Some("b")), named("b"));
        for (algorithm, key) in [
            (Some("aws:kms"), None),
            (Some("aws:kms"), Some("")),
            (None, Some("k")),
            (Some("AES256"), Some("k")),
            (Some("aes:kms"), None),
        ] {
            assert_eq!(ask(algorithm, key, None), Err(S3ErrorCode::InvalidArgument), "{algorithm:?} {key:?}");
        }
        assert_eq!(ask(Some("aws:kms:dsse"), None, None), Err(S3ErrorCode::NotImplemented));
        let customers = AskedEncryption { algorithm: None, key: None, is_customers: true };
        assert!(customers.named_key(Some("b")).is_ok_and(|key| key.is_none()));
    }
}
