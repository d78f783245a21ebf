//! One line of the log, put together while its request is carried out.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::request::Parts;
use http::uri::PathAndQuery;
use time::OffsetDateTime;
use time::macros::format_description;

use super::{AccessLog, Target};
use crate::access::Peer;
use crate::authority::Authority;
use crate::convert::owner_name;
use crate::limits::LOG_FIELD_BYTES_MAX;
use crate::metrics::{Finished, Metrics};
use crate::policy::{percent_decode, query_of};

/// Parameters of a query that are as good as a signature.
const SECRET_PARAMETERS: [&str; 3] = ["X-Amz-Signature", "Signature", "X-Amz-Security-Token"];

/// A request to a bucket that asks for lines; its own is written when it is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    log: Arc<AccessLog>,
    metrics: Arc<Metrics>,
    authority: Arc<Authority>,
    target: Target,
    at: OffsetDateTime,
    peer: Peer,
    method: Method,
    key: String,
    request: String,
    referrer: String,
    user_agent: String,
    host: String,
    signature: (&'static str, &'static str),
    asked_version: Option<String>,
    /// Bytes of the object that a client sends.
    sends: Option<u64>,
    pub(crate) answer: Answer,
}

/// What is known once the answer begins.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) request_id: String,
    pub(crate) user: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) version: Option<String>,
    /// Size of the object that is sent, or about which something is said.
    pub(crate) object_bytes: Option<u64>,
    /// From the last byte of the request to the head of the answer.
    pub(crate) turnaround: Duration,
}

impl Entry {
    /// `None` where the bucket asks for nothing. `key`: of the object that the request is about.
    pub(crate) fn begin(
        (log, metrics): (&Arc<AccessLog>, &Arc<Metrics>),
        authority: Arc<Authority>,
        (head, key): (&Parts, String),
        peer: Peer,
    ) -> Option<Box<Self>> {
        let target = authority.logging.clone()?;
        let text = |name: &str| {
            let value = head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
            value.map(Cow::into_owned).unwrap_or_default()
        };
        let length = |name: &str| head.headers.get(name)?.to_str().ok()?.parse().ok();
        let host = match text("host") {
            host if host.is_empty() => head.uri.authority().map(ToString::to_string).unwrap_or_default(),
            host => host,
        };
        Some(Box::new(Self {
            log: Arc::clone(log),
            metrics: Arc::clone(metrics),
            authority,
            target,
            at: OffsetDateTime::now_utc(),
            peer,
            method: head.method.clone(),
            key,
            request: format!("{} {} {:?}", head.method, without_secrets(head), head.version),
            referrer: without_secrets_in(&text("referer")),
            user_agent: text("user-agent"),
            host,
            signature: signature(head),
            asked_version: query_of(&head.uri, "versionId"),
            sends: length("x-amz-decoded-content-length").or_else(|| length("content-length")),
            answer: Answer::default(),
        }))
    }

    /// The request ended: its line is complete.
    pub(crate) fn finish(self, finished: &Finished) {
        if !self.log.push(&self.authority.bucket, &self.target, &self.line(finished)) {
            self.metrics.log_lines_lost.inc();
        }
    }

    fn line(&self, finished: &Finished) -> String {
        let Answer { request_id, user, error, version, object_bytes, turnaround } = &self.answer;
        let time = format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
        let operation = operation(finished.operation, &self.method, !self.key.is_empty());
        let is_write = matches!(operation.as_str(), "REST.PUT.OBJECT" | "REST.PUT.PART");
        let object_bytes = if is_write { self.sends } else { *object_bytes };
        let cipher = self.peer.tls.map_or("-".to_owned(), |tls| format!("TLS_{}", tls.cipher));
        let number = |value: u64| value.to_string();
        let ms = |value: Duration| value.as_millis().to_string();
        let fields = [
            field(owner_name(&self.authority.bucket.owner)),
            field(&self.authority.bucket.name),
            format!("[{}]", self.at.format(time).unwrap_or_default()),
            self.peer.address.to_canonical().to_string(),
            user.as_deref().map_or("-".to_owned(), field),
            field(request_id),
            operation,
            // Twice, as Amazon does: the first decoding gives what could be sent in a URL.
            match self.key.as_str() {
                "" => "-".to_owned(),
                key => field(&field(key)),
            },
            quoted(&self.request),
            finished.status.to_string(),
            error.as_deref().map_or("-".to_owned(), field),
            if finished.sent == 0 { "-".to_owned() } else { number(finished.sent) },
            object_bytes.map_or("-".to_owned(), number),
            ms(finished.elapsed()),
            ms(*turnaround),
            quoted(&self.referrer),
            quoted(&self.user_agent),
            version.as_deref().or(self.asked_version.as_deref()).map_or("-".to_owned(), field),
            "-".to_owned(),
            self.signature.0.to_owned(),
            cipher,
            self.signature.1.to_owned(),
            field(&self.host),
            self.peer.tls.map_or("-", |tls| tls.version).to_owned(),
            "-".to_owned(),
            "-".to_owned(),
        ];
        fields.join(" ") + "\n"
    }
}

/// How a request is signed, as the log calls it: version and place.
fn signature(head: &Parts) -> (&'static str, &'static str) {
    let header = head.headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
    match header {
        Some(header) if header.starts_with(b"AWS4") => ("SigV4", "AuthHeader"),
        Some(header) if header.starts_with(b"AWS ") => ("SigV2", "AuthHeader"),
        _ if query_of(&head.uri, "X-Amz-Signature").is_some() => ("SigV4", "QueryString"),
        _ if query_of(&head.uri, "Signature").is_some() => ("SigV2", "QueryString"),
        _ => ("-", "-"),
    }
}

/// What a request asked for, without what would let others ask for it.
fn without_secrets(head: &Parts) -> String {
    without_secrets_in(head.uri.path_and_query().map_or("", PathAndQuery::as_str))
}

/// A URL or the end of one, without what would let others ask for it.
fn without_secrets_in(url: &str) -> String {
    let Some((path, rest)) = url.split_once('?') else { return url.to_owned() };
    let (query, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}=-"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}{fragment}", pairs.collect::<Vec<_>>().join("&"))
}

/// Whether a parameter is one that is not written down, however much of its name is percent-encoded.
fn is_secret(name: &str) -> bool {
    let name = percent_decode(name);
    name.is_none_or(|name| SECRET_PARAMETERS.iter().any(|secret| secret.eq_ignore_ascii_case(&name)))
}

/// A text with everything percent-encoded that ends a field or a line, or is not visible ASCII; cut where it is too long.
fn encoded(text: &str, is_plain: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if out.len() >= LOG_FIELD_BYTES_MAX {
            break;
        }
        if byte.is_ascii_graphic() && is_plain(byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn field(text: &str) -> String {
    encoded(text, |byte| !matches!(byte, b'"' | b'%'))
}

fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "\"-\"".to_owned();
    }
    // Spaces are part of it; what is encoded already stays as it is.
    let parts: Vec<_> = text.split(' ').map(|part| encoded(part, |byte| byte != b'"')).collect();
    let mut joined = parts.join(" ");
    // ASCII throughout: any place is the end of a character.
    joined.truncate(LOG_FIELD_BYTES_MAX);
    format!("\"{joined}\"")
}

/// The log's name of an operation: protocol, method, resource.
fn operation(name: &str, method: &Method, has_key: bool) -> String {
    let resource = match name {
        "CopyObject" => return "REST.COPY.OBJECT".to_owned(),
        "UploadPartCopy" => return "REST.COPY.PART".to_owned(),
        _ if method == Method::OPTIONS => return "REST.OPTIONS.PREFLIGHT".to_owned(),
        "DeleteObjects" => "MULTI_OBJECT_DELETE",
        "UploadPart" => "PART",
        "CreateMultipartUpload" | "ListMultipartUploads" => "UPLOADS",
        "CompleteMultipartUpload" | "AbortMultipartUpload" | "ListParts" => "UPLOAD",
        "ListObjectVersions" => "BUCKETVERSIONS",
        "GetBucketLocation" => "LOCATION",
        "GetBucketPolicyStatus" => "BUCKETPOLICYSTATUS",
        _ => RESOURCES
            .iter()
            .find(|(part, _)| name.contains(part))
            .map_or(if has_key { "OBJECT" } else { "BUCKET" }, |(_, resource)| *resource),
    };
    format!("REST.{method}.{resource}")
}

/// What the names of operations contain that are about something of a bucket or an object, and what the log calls that.
const RESOURCES: [(&str, &str); 15] = [
    ("Acl", "ACL"),
    ("ObjectTagging", "OBJECT_TAGGING"),
    ("BucketTagging", "TAGGING"),
    ("Versioning", "VERSIONING"),
    ("ObjectLockConfiguration", "OBJECT_LOCK_CONFIGURATION"),
    ("Retention", "OBJECT_LOCK_RETENTION"),
    ("LegalHold", "OBJECT_LOCK_LEGALHOLD"),
    ("ObjectAttributes", "OBJECT_ATTRIBUTES"),
    ("BucketPolicy", "BUCKETPOLICY"),
    ("PublicAccessBlock", "PUBLIC_ACCESS_BLOCK"),
    ("OwnershipControls", "OWNERSHIP_CONTROLS"),
    ("Cors", "CORS"),
    ("Encryption", "ENCRYPTION"),
    ("Lifecycle", "LIFECYCLE"),
    ("Logging", "LOGGING_STATUS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_the_names_that_the_log_knows() {
        let name = |operation_name, method, has_key| operation(operation_name, &method, has_key);
        assert_eq!(name("GetObject", Method::GET, true), "REST.GET.OBJECT");
        assert_eq!(name("HeadObject", Method::HEAD, true), "REST.HEAD.OBJECT");
        assert_eq!(name("ListObjectsV2", Method::GET, false), "REST.GET.BUCKET");
        assert_eq!(name("UploadPart", Method::PUT, true), "REST.PUT.PART");
        assert_eq!(name("CompleteMultipartUpload", Method::POST, true), "REST.POST.UPLOAD");
        assert_eq!(name("DeleteObjects", Method::POST, false), "REST.POST.MULTI_OBJECT_DELETE");
        assert_eq!(name("CopyObject", Method::PUT, true), "REST.COPY.OBJECT");
        assert_eq!(name("GetBucketLogging", Method::GET, false), "REST.GET.LOGGING_STATUS");
        assert_eq!(name("DeleteBucketLifecycle", Method::DELETE, false), "REST.DELETE.LIFECYCLE");
        assert_eq!(name("unknown", Method::GET, true), "REST.GET.OBJECT");
        assert_eq!(name("unknown", Method::OPTIONS, true), "REST.OPTIONS.PREFLIGHT");
    }

    #[test]
    fn nothing_that_a_client_sends_ends_a_field_or_a_line() {
        assert_eq!(field("a b\n\"%é"), "a%20b%0A%22%25%C3%A9");
        assert_eq!(quoted("agent/1 \"x\"\r\nnext"), "\"agent/1 %22x%22%0D%0Anext\"");
        assert_eq!(quoted(""), "\"-\"");
        assert!(field(&"k".repeat(3 * LOG_FIELD_BYTES_MAX)).len() <= LOG_FIELD_BYTES_MAX);
        assert!(quoted(&"k ".repeat(3 * LOG_FIELD_BYTES_MAX)).len() <= LOG_FIELD_BYTES_MAX + 2);
    }

    #[test]
    fn no_signature_is_written_down() {
        let uri = "/b/k?X-Amz-Signature=abc&x-amz-security-token=def&versionId=1&Signature=ghi";
        let head = http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        let expected = "/b/k?X-Amz-Signature=-&x-amz-security-token=-&versionId=1&Signature=-";
        assert_eq!(without_secrets(&head), expected);
        for (url, expected) in [
            (
                "https://s3.example.com/b/k?a=1&X-Amz-Signature=abc#top",
                "https://s3.example.com/b/k?a=1&X-Amz-Signature=-#top",
            ),
            ("https://h/?x-amz-signatur%65=abc&b", "https://h/?x-amz-signatur%65=-&b"),
            ("https://h/?bad%ff=abc", "https://h/?bad%ff=-"),
            ("https://h/p?", "https://h/p?"),
            ("https://h/p", "https://h/p"),
            ("", ""),
        ] {
            assert_eq!(without_secrets_in(url), expected);
        }
        assert_eq!(signature(&head), ("SigV4", "QueryString"));
    }
}
