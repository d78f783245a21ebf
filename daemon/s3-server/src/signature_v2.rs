//! Signatures of version 2: presigned URLs, for objects, and the headers of requests to whole buckets.
//!
//! Clients still make them by default (boto3 for us-east-1). Version 2 signs only part of a query, and the protocol code
//! compares its signatures byte by byte; so a URL must name an object, may have no parameter that the signature leaves
//! open, and is verified here in constant time before the protocol code sees it.
//!
//! Amazon S3 Developer Guide (API version 2006-03-01), "Signing and authenticating REST requests", "Query string request
//! authentication alternative".

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::request::Parts;
use s3s::S3Result;
use sha1::Sha1;

use crate::error::not_implemented;
use crate::policy::{percent_decode, query};

/// Parameters that the signature covers and that an object request may have, in order.
const SIGNED: [&str; 9] = [
    "partNumber",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "uploadId",
    "versionId",
];

/// Parameters that the signature in a header covers where the request is about a whole bucket, in order.
const OF_BUCKETS: [&str; 21] = [
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "policy",
    "replication",
    "requestPayment",
    "tagging",
    "uploads",
    "versioning",
    "versions",
    "website",
];

/// Parameters of the signature itself.
const OWN: [&str; 3] = ["AWSAccessKeyId", "Expires", "Signature"];

/// Refuses URLs that are not for an object, or with parameters that the signature would leave open.
pub(crate) fn check_query(head: &Parts) -> S3Result<()> {
    let names_object =
        head.uri.path().trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
    let query = head.uri.query().unwrap_or_default();
    let open = query
        .split('&')
        .map(|pair| pair.split('=').next().unwrap_or_default())
        .find(|name| !OWN.contains(name) && !SIGNED.contains(name));
    match open {
        _ if !names_object => Err(not_implemented(
            "presigned URLs of signature version 2 are for objects only: sign with version 4".to_owned(),
        )),
        Some(name) => Err(not_implemented(format!(
            "the parameter {name} in a presigned URL of signature version 2 is not implemented: sign with version 4"
        ))),
        None => Ok(()),
    }
}

/// What the signature of a presigned URL is made over.
fn string_to_sign(head: &Parts, expires: &str) -> Option<String> {
    let mut text = signed_headers(head, expires)?;
    text.push_str(head.uri.path());
    push_parameters(&mut text, head, &SIGNED);
    Some(text)
}

/// Method, headers and `date`, which is when a presigned URL ends or when a request was made.
fn signed_headers(head: &Parts, date: &str) -> Option<String> {
    let header = |name: &str| head.headers.get(name).map_or(Some(""), |value| value.to_str().ok());
    let mut text =
        format!("{}\n{}\n{}\n{date}\n", head.method, header("content-md5")?, header("content-type")?);
    let mut names: Vec<&str> =
        head.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-amz-")).collect();
    names.sort_unstable();
    for name in names {
        let values: Option<Vec<&str>> =
            head.headers.get_all(name).iter().map(|value| value.to_str().ok().map(str::trim)).collect();
        text.push_str(&format!("{name}:{}\n", values?.join(",")));
    }
    Some(text)
}

/// The path under which a client signed a request that is about a whole bucket, named in the path: `/bucket`, as it asks, or
/// `/bucket/`. Amazon takes both, some clients sign only the second, and the protocol code compares with what was asked.
///
/// # Errors
/// Where `secret` makes the claimed signature for neither.
pub(crate) fn signed_bucket_path(head: &Parts, secret: &str) -> S3Result<String> {
    let path = head.uri.path();
    let paths = [path.to_owned(), format!("{path}/")];
    let fits = |path: &String| {
        let text = header_string_to_sign(head, path)?;
        let claimed = head.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
        let claimed = STANDARD.decode(claimed.rsplit_once(':')?.1.trim()).ok()?;
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).ok()?;
        mac.update(text.as_bytes());
        mac.verify_slice(&claimed).ok()
    };
    paths.into_iter().find(|path| fits(path).is_some()).ok_or_else(mismatch)
}

/// What the signature in a header is made over.
fn header_string_to_sign(head: &Parts, path: &str) -> Option<String> {
    let date = match head.headers.contains_key("x-amz-date") {
        true => "",
        false => head.headers.get(http::header::DATE).map_or(Some(""), |date| date.to_str().ok())?,
    };
    let mut text = signed_headers(head, date)?;
    text.push_str(path);
    push_parameters(&mut text, head, &OF_BUCKETS);
    Some(text)
}

fn push_parameters(text: &mut String, head: &Parts, names: &[&str]) {
    let mut separator = '?';
    for name in names {
        if let Some(value) = query(head, name) {
            text.push(separator);
            text.push_str(name);
            if !value.is_empty() {
                text.push('=');
                text.push_str(&value);
            }
            separator = '&';
        }
    }
}

fn mismatch() -> s3s::S3Error {
    s3s::S3Error::with_message(s3s::S3ErrorCode::SignatureDoesNotMatch, "the signature does not match")
}

/// Whether `signature` is the one that `secret` makes for the request.
pub(crate) fn verifies(head: &Parts, expires: &str, signature: &str, secret: &str) -> S3Result<()> {
    let text = string_to_sign(head, expires).ok_or_else(mismatch)?;
    // Some clients encode the signature twice.
    let signature = percent_decode(&signature.replace('+', "%2B")).ok_or_else(mismatch)?;
    let claimed = STANDARD.decode(signature).map_err(|_| mismatch())?;
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).map_err(|_| mismatch())?;
    mac.update(text.as_bytes());
    mac.verify_slice(&claimed).map_err(|_| mismatch())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Secret, string to sign and URL of the Developer Guide's example; its signature made with `openssl dgst -sha1 -hmac`,
    /// because the printed one belongs to an older secret.
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const EXAMPLE: &str = "/awsexamplebucket1/photos/puppy.jpg?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Expires=1175139620\
                           &Signature=1No4mq5ETf02z8aet9voy6gui6E%3D";

    fn head(method: &str, uri: &str) -> Parts {
        http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts().0
    }

    fn check(head: &Parts) -> bool {
        let (expires, signature) = (query(head, "Expires").unwrap(), query(head, "Signature").unwrap());
        verifies(head, &expires, &signature, SECRET).is_ok()
    }

    #[test]
    fn the_guides_example_verifies_and_nothing_else_does() {
        assert!(check(&head("GET", EXAMPLE)));
        assert!(!check(&head("PUT", EXAMPLE)));
        assert!(!check(&head("GET", &EXAMPLE.replace("puppy", "kitten"))));
        assert!(!check(&head("GET", &EXAMPLE.replace("1175139620", "1175139621"))));
        assert!(!check(&head("GET", &EXAMPLE.replace("Signature=", "Signature=A"))));
        assert!(!check(&head("GET", &format!("{EXAMPLE}&versionId=x"))));
        let mut with_header = head("GET", EXAMPLE);
        with_header.headers.insert("x-amz-copy-source", "/other/secret".parse().unwrap());
        assert!(!check(&with_header));
    }

    #[test]
    fn a_bucket_is_signed_with_a_slash_or_without() {
        let signed = |path: &str| {
            let mut head = head("PUT", "/bucket?acl");
            head.headers.insert("date", "Tue, 27 Mar 2007 19:36:42 +0000".parse().unwrap());
            let text = format!("PUT\n\n\nTue, 27 Mar 2007 19:36:42 +0000\n{path}?acl");
            let mut mac = Hmac::<Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
            mac.update(text.as_bytes());
            let signature = STANDARD.encode(mac.finalize().into_bytes());
            head.headers.insert("authorization", format!("AWS id:{signature}").parse().unwrap());
            signed_bucket_path(&head, SECRET).ok()
        };
        assert_eq!(signed("/bucket").as_deref(), Some("/bucket"));
        assert_eq!(signed("/bucket/").as_deref(), Some("/bucket/"));
        assert_eq!(signed("/other"), None);
    }

    #[test]
    fn only_objects_and_only_signed_parameters_are_taken() {
        assert!(check_query(&head("GET", EXAMPLE)).is_ok());
        for bad in
            ["/bucket?Expires=1", "/bucket/?Expires=1", "/?Expires=1", "/b/k?Expires=1&x-amz-acl=public-read"]
        {
            assert!(check_query(&head("GET", bad)).is_err(), "{bad}");
        }
    }
}
