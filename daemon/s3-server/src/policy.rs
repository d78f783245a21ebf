//! What a request must be before the protocol code looks at it.
//!
//! The protocol code checks signatures; it does not ask what a signature covers, nor how long a presigned URL is good for.
//! It carries out what it knows and ignores headers that it was not told of. This module closes these gaps:
//!
//! - every `x-amz-*` header must be one that this server honours, so that nothing a client relies on (another encryption,
//!   a lock, an owner check) is silently left out;
//! - every `x-amz-*` header must be covered by the signature, so that who holds a presigned URL can't turn it into another
//!   request (a PUT into a copy, say);
//! - a presigned URL is good for seven days at most;
//! - the region must be this server's;
//! - signature version 2 is taken only where the operator says so: in headers, in presigned URLs (see `signature_v2`) and in forms
//!   (`access`).

use http::request::Parts;
use http::{HeaderName, Method, Uri};
use mime::Mime;
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::convert::unix_seconds;
use crate::error::{invalid, not_implemented};
use crate::limits::{CLOCK_SKEW_SECONDS_MAX, PRESIGNED_SECONDS_MAX};
use crate::signature_v2;

/// `x-amz-*` headers that are honoured, or that ask for nothing.
const HEADERS: &[&str] = &[
    "x-amz-acl",
    "x-amz-bucket-object-lock-enabled",
    "x-amz-bucket-region",
    "x-amz-bypass-governance-retention",
    "x-amz-checksum-algorithm",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-mode",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-checksum-type",
    "x-amz-content-sha256",
    "x-amz-copy-source",
    "x-amz-copy-source-if-match",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-none-match",
    "x-amz-copy-source-if-unmodified-since",
    "x-amz-copy-source-range",
    "x-amz-copy-source-server-side-encryption-customer-algorithm",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key-md5",
    "x-amz-date",
    "x-amz-decoded-content-length",
    "x-amz-expected-bucket-owner",
    "x-amz-fetch-owner",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write",
    "x-amz-grant-write-acp",
    "x-amz-max-keys",
    "x-amz-max-parts",
    "x-amz-max-uploads",
    "x-amz-if-match-last-modified-time",
    "x-amz-if-match-size",
    "x-amz-metadata-directive",
    "x-amz-mp-object-size",
    "x-amz-object-attributes",
    "x-amz-object-lock-legal-hold",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-object-ownership",
    "x-amz-optional-object-attributes",
    "x-amz-part-number-marker",
    "x-amz-request-id",
    "x-amz-request-payer",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-sdk-request",
    "x-amz-sdk-invocation-id",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-md5",
    "x-amz-source-expected-bucket-owner",
    "x-amz-storage-class",
    "x-amz-tagging",
    "x-amz-tagging-directive",
    "x-amz-trailer",
    "x-amz-user-agent",
    "x-amz-version-id",
];

/// Headers that need no signature: they describe the client or are checked against the body.
const UNSIGNED_HEADERS: [&str; 4] =
    ["x-amz-content-sha256", "x-amz-user-agent", "x-amz-sdk-request", "x-amz-sdk-invocation-id"];

const USER_METADATA: &str = "x-amz-meta-";

/// What this server wants of a signature.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) region: String,
    /// Whether version 2 is taken.
    pub(crate) signature_v2: bool,
}

/// How a request is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signed {
    /// Not at all.
    Anonymous,
    /// Version 2, in the header.
    V2 {
        /// Access key id.
        access_key: String,
    },
    /// In a field of a form, if at all.
    Form,
    /// Version 4, in the header or as a presigned URL.
    V4,
    /// Version 2, presigned.
    PresignedV2 {
        /// Access key id.
        access_key: String,
        /// What the URL claims.
        signature: String,
        /// Second since 1970 after which it is void.
        expires: String,
    },
}

/// Refuses what this server does not do, and what is not or not sufficiently signed. `now`: seconds since 1970.
pub(crate) fn check(head: &Parts, rules: &Rules, now: i64) -> S3Result<Signed> {
    check_content_type(head)?;
    check_query(head)?;
    check_headers(head)?;
    if is_form(head) {
        // Its signature is a field of the form and covers the form's policy.
        return Ok(Signed::Form);
    }
    check_signature(head, rules, now)
}

/// Whether a browser posts a form: exactly where the protocol code reads one. It parses the type of the content with the same
/// library, and what it would see differently is refused by [`check_content_type`]. A request that only one of the two took for a form
/// would be held to no limit, or to no signature.
pub(crate) fn is_form(head: &Parts) -> bool {
    let kind = head.headers.get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.parse::<Mime>().ok());
    let is_form_data = |kind: &Mime| kind.type_() == mime::MULTIPART && kind.subtype() == mime::FORM_DATA;
    head.method == Method::POST && kind.as_ref().is_some_and(is_form_data)
}

/// There is one type of the content at most, and anybody reads the same in it.
fn check_content_type(head: &Parts) -> S3Result<()> {
    let mut kinds = head.headers.get_all(http::header::CONTENT_TYPE).iter();
    let readable = kinds.next().is_none_or(|kind| kind.to_str().is_ok());
    if readable && kinds.next().is_none() {
        return Ok(());
    }
    Err(invalid("Content-Type is to be given once, in visible ASCII"))
}

/// Everything in a query decodes: what we could not read, and so did not hold against a policy, the protocol code would read in its own
/// way.
fn check_query(head: &Parts) -> S3Result<()> {
    let pairs = head.uri.query().unwrap_or_default().split('&');
    let mut texts = pairs.flat_map(|pair| pair.split('='));
    match texts.all(|text| percent_decode(text).is_some()) {
        true => Ok(()),
        false => {
            Err(S3Error::with_message(S3ErrorCode::InvalidURI, "the query is not percent-encoded UTF-8"))
        }
    }
}

/// Nobody chooses the headers of an answer without a signature (S3).
fn check_anonymous(head: &Parts) -> S3Result<()> {
    let pairs = head.uri.query().unwrap_or_default().split('&');
    let mut names = pairs.filter_map(|pair| percent_decode(pair.split('=').next()?));
    if !names.any(|name| name.starts_with("response-")) {
        return Ok(());
    }
    let message = "the headers of an answer can be chosen by signed requests only";
    Err(S3Error::with_message(S3ErrorCode::InvalidRequest, message))
}

fn amz_headers(head: &Parts) -> impl Iterator<Item = &HeaderName> {
    head.headers.keys().filter(|name| name.as_str().starts_with("x-amz-"))
}

/// What a presigned URL may carry in its query and is read from headers only: left out in silence it would be promised and
/// not there.
const NOT_IN_A_QUERY: [&str; 5] = [
    "x-amz-object-lock-",
    "x-amz-bypass-",
    "x-amz-copy-source",
    "x-amz-server-side-encryption-customer-",
    "x-amz-server-side-encryption-aws-kms-",
];

fn check_headers(head: &Parts) -> S3Result<()> {
    let unknown = amz_headers(head).find(|name| {
        let name = name.as_str();
        !name.starts_with(USER_METADATA) && !HEADERS.contains(&name)
    });
    if head.headers.get("content-md5").is_some_and(http::HeaderValue::is_empty) {
        return Err(S3Error::with_message(S3ErrorCode::InvalidDigest, "Content-MD5 is empty"));
    }
    let asks_for_ours = head.headers.contains_key("x-amz-server-side-encryption");
    if asks_for_ours && head.headers.contains_key("x-amz-server-side-encryption-customer-algorithm") {
        return Err(invalid("encryption by the server and a customer's key do not go together"));
    }
    if asks_for_ours && matches!(head.method, Method::GET | Method::HEAD) {
        return Err(invalid("x-amz-server-side-encryption is asked for when an object is written"));
    }
    let hoisted = head.uri.query().unwrap_or_default().split('&').find(|pair| {
        let name = percent_decode(pair.split_once('=').map_or(*pair, |(name, _)| name)).unwrap_or_default();
        let name = name.to_ascii_lowercase();
        NOT_IN_A_QUERY.iter().any(|prefix| name.starts_with(prefix))
    });
    if hoisted.is_some() {
        return Err(not_implemented(
            "a lock, a source or the key to encrypt with in the query is not taken: send it as a signed header"
                .to_owned(),
        ));
    }
    match unknown {
        Some(name) => {
            Err(not_implemented(format!("the header {name} asks for something that is not implemented")))
        }
        None => Ok(()),
    }
}

/// The decoded value of a query parameter that is there once.
pub(crate) fn query(head: &Parts, name: &str) -> Option<String> {
    query_of(&head.uri, name)
}

/// See [`query`].
pub(crate) fn query_of(uri: &Uri, name: &str) -> Option<String> {
    let mut found = parameters(uri, name);
    let value = found.next()?;
    if found.next().is_some() { None } else { percent_decode(value) }
}

/// The encoded values of a parameter, by whatever encoding of its name: the protocol code, too, compares names decoded.
fn parameters<'a>(uri: &'a Uri, name: &'a str) -> impl Iterator<Item = &'a str> {
    uri.query().unwrap_or_default().split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name || percent_decode(key).is_some_and(|key| key == name)).then_some(value)
    })
}

/// `None` if it does not decode to text.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = tail;
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

pub(crate) fn denied(message: &'static str) -> S3Error {
    S3Error::with_message(S3ErrorCode::AccessDenied, message)
}

fn check_signature(head: &Parts, rules: &Rules, now: i64) -> S3Result<Signed> {
    let region = rules.region.as_str();
    let malformed = || {
        S3Error::with_message(
            S3ErrorCode::AuthorizationQueryParametersError,
            "the presigned URL can't be read",
        )
    };
    let authorization = head.headers.get(http::header::AUTHORIZATION).filter(|header| !header.is_empty());
    let has = |name| parameters(&head.uri, name).next().is_some();
    let (presigned, presigned_v2) = (has("X-Amz-Signature"), has("Signature"));
    // Which one the protocol code would believe is nothing to rely on.
    if [presigned, presigned_v2, authorization.is_some()].into_iter().filter(|there| *there).count() > 1 {
        return Err(invalid("a request is signed in one way: in its query or in its Authorization header"));
    }
    if presigned {
        let expires: i64 =
            query(head, "X-Amz-Expires").and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        if !(1..=PRESIGNED_SECONDS_MAX).contains(&expires) {
            return Err(S3Error::with_message(
                S3ErrorCode::AuthorizationQueryParametersError,
                "X-Amz-Expires must be between 1 second and 7 days",
            ));
        }
        let signed = query(head, "X-Amz-SignedHeaders").ok_or_else(malformed)?;
        let credential = query(head, "X-Amz-Credential").ok_or_else(malformed)?;
        check_coverage(head, &signed)?;
        return check_region(&credential, region).map(|()| Signed::V4);
    }
    if presigned_v2 {
        if !rules.signature_v2 {
            return Err(old_signature());
        }
        let signature = query(head, "Signature").ok_or_else(malformed)?;
        let access_key = query(head, "AWSAccessKeyId").ok_or_else(malformed)?;
        let expires = query(head, "Expires").ok_or_else(malformed)?;
        let until: i64 = expires.parse().map_err(|_| malformed())?;
        if until > now.saturating_add(PRESIGNED_SECONDS_MAX) {
            return Err(denied("a presigned URL is good for 7 days at most"));
        }
        signature_v2::check_query(head)?;
        return Ok(Signed::PresignedV2 { access_key, signature, expires });
    }
    let Some(header) = authorization else { return check_anonymous(head).map(|()| Signed::Anonymous) };
    let header = header.to_str().map_err(|_| denied("the Authorization header can't be read"))?;
    let Some(fields) = header.strip_prefix("AWS4-HMAC-SHA256") else {
        if let Some(claim) = header.strip_prefix("AWS ") {
            let access_key = check_claim_v2(claim)?.to_owned();
            if rules.signature_v2 {
                return check_date_v2(head, now).map(|()| Signed::V2 { access_key });
            }
        }
        return Err(old_signature());
    };
    let field = |name: &str| fields.split(',').find_map(|field| field.trim().strip_prefix(name));
    let unreadable = || {
        S3Error::with_message(
            S3ErrorCode::AuthorizationHeaderMalformed,
            "the Authorization header can't be read",
        )
    };
    check_coverage(head, field("SignedHeaders=").ok_or_else(unreadable)?)?;
    check_region(field("Credential=").ok_or_else(unreadable)?, region).map(|()| Signed::V4)
}

/// Signed with something else than version 4, where nothing else is taken.
pub(crate) fn old_signature() -> S3Error {
    S3Error::with_message(
        S3ErrorCode::InvalidRequest,
        "this authorization mechanism is not supported: sign with version 4, AWS4-HMAC-SHA256",
    )
}

/// Version 2: access key id, colon, signature; gives the id.
fn check_claim_v2(claim: &str) -> S3Result<&str> {
    match claim.trim().split_once(':') {
        Some((id, signature)) if !id.is_empty() && !signature.is_empty() => Ok(id),
        _ => Err(invalid("the Authorization header must be AWS, access key id, colon, signature")),
    }
}

/// Version 2 signs the date and says nothing of how long it is good for: as long as the clocks may differ.
fn check_date_v2(head: &Parts, now: i64) -> S3Result<()> {
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let date =
        text("x-amz-date").or_else(|| text("date")).ok_or_else(|| denied("the request has no date"))?;
    let date = Timestamp::parse(TimestampFormat::HttpDate, date)
        .map_err(|_| denied("the date of the request can't be read"))?;
    let seconds = unix_seconds(&date);
    if seconds < 0 {
        return Err(denied("the date of the request can't be read"));
    }
    if seconds.abs_diff(now) > CLOCK_SKEW_SECONDS_MAX.into() {
        return Err(S3Error::with_message(
            S3ErrorCode::RequestTimeTooSkewed,
            "the date of the request is too far from this server's time",
        ));
    }
    Ok(())
}

/// Whether the signature covers the host and everything that says what the request means.
fn check_coverage(head: &Parts, signed: &str) -> S3Result<()> {
    let covers = |name: &str| signed.split(';').any(|signed| signed == name);
    if !covers("host") {
        return Err(denied("the signature must cover the host header"));
    }
    let open =
        amz_headers(head).any(|name| !UNSIGNED_HEADERS.contains(&name.as_str()) && !covers(name.as_str()));
    if open {
        return Err(denied("there are x-amz headers that the signature does not cover"));
    }
    Ok(())
}

/// `credential`: access key id / date / region / service / aws4_request, the id without a slash in it.
fn check_region(credential: &str, region: &str) -> S3Result<()> {
    check_region_name(credential.rsplit('/').nth(2).unwrap_or_default(), region)
}

/// Whether a signature is for this server's region.
pub(crate) fn check_region_name(named: &str, region: &str) -> S3Result<()> {
    if named == region {
        return Ok(());
    }
    let mut error = S3Error::with_message(
        S3ErrorCode::AuthorizationHeaderMalformed,
        format!("the region '{named}' is wrong; expecting '{region}'"),
    );
    error.set_status_code(http::StatusCode::BAD_REQUEST);
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const CREDENTIAL: &str = "NLKEY/20270115/us-east-1/s3/aws4_request";

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method("PUT").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn authorization(signed: &str) -> String {
        format!("AWS4-HMAC-SHA256 Credential={CREDENTIAL}, SignedHeaders={signed}, Signature=00")
    }

    fn rules(region: &str) -> Rules {
        Rules { region: region.to_owned(), signature_v2: false }
    }

    fn check_at(uri: &str, headers: &[(&str, &str)]) -> Result<Signed, S3ErrorCode> {
        check(&head(uri, headers), &rules("us-east-1"), NOW).map_err(|error| error.code().clone())
    }

    fn presigned(expires: &str, signed: &str) -> String {
        let credential = CREDENTIAL.replace('/', "%2F");
        format!(
            "/b/k?X-Amz-Credential={credential}&X-Amz-Expires={expires}&X-Amz-SignedHeaders={signed}&X-Amz-Signature=00"
        )
    }

    #[test]
    fn what_is_not_signed_is_refused() {
        assert_eq!(check_at("/b/k", &[]), Ok(Signed::Anonymous));
        assert_eq!(check_at("/b/k", &[("authorization", "AWS NLKEY:00")]), Err(S3ErrorCode::InvalidRequest));
        assert_eq!(
            check_at("/b/k", &[("authorization", "Basic bm86bm8=")]),
            Err(S3ErrorCode::InvalidRequest)
        );
    }

    #[test]
    fn version_2_is_taken_in_headers_only_where_it_was_allowed_and_is_fresh() {
        let old = Rules { signature_v2: true, ..rules("us-east-1") };
        let ask = |rules: &Rules, authorization: &str, date: &str| {
            let headers = [("authorization", authorization), ("date", date)];
            check(&head("/b/k", &headers), rules, NOW).map_err(|error| error.code().clone())
        };
        let today = "Fri, 15 Jan 2027 08:00:00 GMT";
        assert_eq!(ask(&old, "AWS NLKEY:00", today), Ok(Signed::V2 { access_key: "NLKEY".to_owned() }));
        assert_eq!(ask(&rules("us-east-1"), "AWS NLKEY:00", today), Err(S3ErrorCode::InvalidRequest));
        for date in ["", "yesterday", "Thu, 01 Jan 1950 00:00:00 GMT"] {
            assert_eq!(ask(&old, "AWS NLKEY:00", date), Err(S3ErrorCode::AccessDenied), "{date}");
        }
        let late = ask(&old, "AWS NLKEY:00", "Fri, 15 Jan 2027 08:15:01 GMT");
        assert_eq!(late, Err(S3ErrorCode::RequestTimeTooSkewed));
        for claim in ["AWS HAHAHA", "AWS :", "AWS id:"] {
            assert_eq!(ask(&old, claim, today), Err(S3ErrorCode::InvalidArgument), "{claim}");
        }
    }

    #[test]
    fn a_query_that_does_not_decode_is_refused() {
        for bad in ["/b?prefix=%ff", "/b?prefix=%zz", "/b?%ff=x", "/b?a&versionId=%c3", "/b?prefix=%e2%82"] {
            assert_eq!(check_at(bad, &[]), Err(S3ErrorCode::InvalidURI), "{bad}");
        }
        assert_eq!(check_at("/b?prefix=%C3%A9+a=b&list-type=2", &[]), Ok(Signed::Anonymous));
    }

    #[test]
    fn nobody_chooses_the_headers_of_an_answer_without_a_signature() {
        for asked in
            ["response-content-type=text/html", "%72esponse-content-disposition=x", "a&response-expires="]
        {
            let uri = format!("/b/k?{asked}");
            assert_eq!(check_at(&uri, &[]), Err(S3ErrorCode::InvalidRequest), "{uri}");
            let signed = ("authorization", &*authorization("host"));
            assert_eq!(check_at(&uri, &[signed]), Ok(Signed::V4), "{uri}");
        }
    }

    #[test]
    fn a_form_is_what_the_protocol_code_takes_for_one() {
        let post = |kinds: &[&[u8]]| {
            let mut head = head("/b?delete", &[("x-amz-bypass-governance-retention", "true")]);
            head.method = Method::POST;
            for kind in kinds {
                let kind = http::HeaderValue::from_bytes(kind).unwrap();
                head.headers.append(http::header::CONTENT_TYPE, kind);
            }
            let signed = authorization("host");
            head.headers.insert(http::header::AUTHORIZATION, signed.parse().unwrap());
            (is_form(&head), check(&head, &rules("us-east-1"), NOW).map_err(|error| error.code().clone()))
        };
        for kind in
            ["multipart/form-data; boundary=x", "Multipart/Form-Data;boundary=\"x\"", "multipart/form-data"]
        {
            assert_eq!(post(&[kind.as_bytes()]), (true, Ok(Signed::Form)), "{kind}");
        }
        // No form for the protocol code: what the signature leaves open is refused.
        for kind in
            ["multipart/form-datax", "multipart/form-data-x; boundary=x", "multipart/form-data; =", "x"]
        {
            assert_eq!(post(&[kind.as_bytes()]), (false, Err(S3ErrorCode::AccessDenied)), "{kind}");
        }
        let form: &[u8] = b"multipart/form-data; boundary=x";
        for kinds in [&[form, form], &[form, b"text/plain"], &[b"\xff", form]] {
            assert_eq!(post(kinds).1, Err(S3ErrorCode::InvalidArgument), "{kinds:?}");
        }
        let hidden = "multipart/form-data; boundary=x; a=\"é\"".as_bytes();
        assert_eq!(post(&[hidden]).1, Err(S3ErrorCode::InvalidArgument));
    }

    #[test]
    fn a_header_that_changes_the_request_must_be_signed() {
        let open = authorization("host;x-amz-date");
        let date = ("x-amz-date", "20270115T000000Z");
        assert_eq!(check_at("/b/k", &[("authorization", &open), date]), Ok(Signed::V4));
        let copy = ("x-amz-copy-source", "/other/secret");
        assert_eq!(check_at("/b/k", &[("authorization", &open), date, copy]), Err(S3ErrorCode::AccessDenied));
        assert_eq!(check_at(&presigned("60", "host"), &[copy]), Err(S3ErrorCode::AccessDenied));
        assert_eq!(check_at(&presigned("60", "host%3Bx-amz-copy-source"), &[copy]), Ok(Signed::V4));
        assert_eq!(check_at(&presigned("60", "range"), &[]), Err(S3ErrorCode::AccessDenied));
        let unhosted = authorization("x-amz-date");
        assert_eq!(check_at("/b/k", &[("authorization", &unhosted), date]), Err(S3ErrorCode::AccessDenied));
    }

    #[test]
    fn presigned_urls_are_good_for_seven_days_at_most() {
        let refused = Err(S3ErrorCode::AuthorizationQueryParametersError);
        assert_eq!(check_at(&presigned("604800", "host"), &[]), Ok(Signed::V4));
        for expires in ["604801", "0", "-1", "x", "99999999999999999999"] {
            assert_eq!(check_at(&presigned(expires, "host"), &[]), refused, "{expires}");
        }
        let v2 = |expires: i64| format!("/b/k?AWSAccessKeyId=a%2Bb&Signature=c%3D&Expires={expires}");
        assert_eq!(
            check_at(&v2(NOW + 60), &[]),
            Err(S3ErrorCode::InvalidRequest),
            "only where it is allowed"
        );
        let old = Rules { signature_v2: true, ..rules("us-east-1") };
        let check_v2 = |uri: &str| check(&head(uri, &[]), &old, NOW).map_err(|error| error.code().clone());
        let found = check_v2(&v2(NOW + PRESIGNED_SECONDS_MAX)).unwrap();
        let expected = Signed::PresignedV2 {
            access_key: "a+b".to_owned(),
            signature: "c=".to_owned(),
            expires: (NOW + PRESIGNED_SECONDS_MAX).to_string(),
        };
        assert_eq!(found, expected);
        assert_eq!(check_v2(&v2(NOW + PRESIGNED_SECONDS_MAX + 1)), Err(S3ErrorCode::AccessDenied));
    }

    #[test]
    fn another_spelling_or_a_second_signature_does_not_get_past_a_check() {
        let copy = ("x-amz-copy-source", "/other/secret");
        let spelled = presigned("60", "host").replace("X-Amz-Signature", "X-Amz-Signatur%65");
        assert_eq!(check_at(&spelled, &[]), Ok(Signed::V4));
        assert_eq!(check_at(&spelled, &[copy]), Err(S3ErrorCode::AccessDenied));
        let longer = presigned("604801", "host").replace("X-Amz-Signature", "%58-Amz-Signature");
        assert_eq!(check_at(&longer, &[]), Err(S3ErrorCode::AuthorizationQueryParametersError));
        assert_eq!(check_at("/b/k?%53ignature=a", &[]), Err(S3ErrorCode::InvalidRequest));
        let v4 = ("authorization", &*authorization("host"));
        for (uri, headers) in [
            (presigned("60", "host") + "&Signature=x&AWSAccessKeyId=y&Expires=1900000000", vec![]),
            (presigned("60", "host"), vec![("authorization", "AWS id:signature")]),
            (presigned("60", "host"), vec![v4]),
            ("/b/k?Signature=x".to_owned(), vec![v4]),
        ] {
            assert_eq!(check_at(&uri, &headers), Err(S3ErrorCode::InvalidArgument), "{uri}");
        }
    }

    #[test]
    fn the_region_must_be_this_servers() {
        let signed = ("authorization", &*authorization("host"));
        let elsewhere = check(&head("/b/k", &[signed]), &rules("eu-central-1"), NOW).unwrap_err();
        assert_eq!(elsewhere.code(), &S3ErrorCode::AuthorizationHeaderMalformed);
        assert!(elsewhere.message().unwrap().contains("expecting 'eu-central-1'"));
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_name() {
        for name in [
            "x-amz-server-side-encryption-context",
            "x-amz-object-lock-everything",
            "x-amz-grant-everything",
            "x-amz-security-token",
        ] {
            let headers = [("authorization", &*authorization(&format!("host;{name}"))), (name, "x")];
            let error = check(&head("/b/k", &headers), &rules("us-east-1"), NOW).unwrap_err();
            assert_eq!(error.code(), &S3ErrorCode::NotImplemented);
            assert!(error.message().unwrap().contains(name));
        }
    }

    #[test]
    fn encryption_is_asked_for_once_and_by_writes() {
        let sse = ("x-amz-server-side-encryption", "AES256");
        let customer = ("x-amz-server-side-encryption-customer-algorithm", "AES256");
        let both = format!("host;{};{}", sse.0, customer.0);
        let ask = |method: &str, headers: &[(&str, &str)]| {
            let mut head = head("/b/k", headers);
            head.method = method.parse().unwrap();
            check(&head, &rules("us-east-1"), NOW).map_err(|error| error.code().clone())
        };
        let signed = ("authorization", &*authorization(&both));
        assert_eq!(ask("PUT", &[signed, sse]), Ok(Signed::V4));
        assert_eq!(ask("GET", &[signed, customer]), Ok(Signed::V4));
        assert_eq!(ask("PUT", &[signed, sse, customer]), Err(S3ErrorCode::InvalidArgument));
        assert_eq!(ask("HEAD", &[signed, sse]), Err(S3ErrorCode::InvalidArgument));
    }

    #[test]
    fn percent_decoding_never_panics() {
        assert_eq!(percent_decode("a%2Fb+c").unwrap(), "a/b c");
        for bad in ["%", "%2", "%zz", "%ff", "%+1"] {
            let _ = percent_decode(bad);
        }
        assert_eq!(percent_decode("%ff"), None);
    }
}
