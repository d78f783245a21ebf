//! Requests that bring an object from one server to another: pieces that say what they are of, uploads in parts that can be gone
//! on with.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, header};
use hyper::body::Incoming;
use rusty_s3::actions::{
    AbortMultipartUpload, CompleteMultipartUpload, CompleteMultipartUploadResponse, CreateMultipartUpload,
    ListParts, S3Action, UploadPart,
};

use super::{LIST_BYTES_MAX, Refusal, S3, Sent, URL_LIFETIME, check_key, failed, whole};
use crate::failure::{Done, Failure};

/// Headers of an object that a copy has too, besides the metadata of its user.
const KEPT: [header::HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::EXPIRES,
];

const USER_METADATA: &str = "x-amz-meta-";

/// Name of the metadata with the entity tag that a copy's source had: it tells a copy of what is there now from one of what was there
/// before, which length, time and the copy's own tag do not.
const SOURCE_ETAG: &str = "x-amz-meta-mirrored-etag";

/// Names and values of a user's metadata, in all (S3).
const USER_METADATA_BYTES_MAX: usize = 2048;

/// An object's bytes, or some of them, and what is kept with them.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) content: Bytes,
    pub(crate) etag: String,
    pub(crate) kept: Vec<(String, String)>,
    /// How many tags it has.
    pub(crate) tags: u32,
}

/// A part that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: u16,
    pub(crate) bytes: u64,
    pub(crate) etag: String,
}

fn etag_of(headers: &HeaderMap) -> String {
    let etag = headers.get(header::ETAG).and_then(|value| value.to_str().ok());
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

/// What a copy keeps. A name or value that is no text would be another in the copy.
fn kept(headers: &HeaderMap) -> Done<Vec<(String, String)>> {
    let is_kept = |name: &header::HeaderName| {
        let name_text = name.as_str();
        KEPT.contains(name) || (name_text.starts_with(USER_METADATA) && name_text != SOURCE_ETAG)
    };
    let found = headers.iter().filter(|(name, _)| is_kept(name));
    found
        .map(|(name, value)| {
            let value = value.to_str().map_err(|_| {
                Failure::local(
                    format!("its header {name} is not plain text"),
                    "give the object other metadata at its source, or copy it by hand",
                )
            })?;
            Ok((name.as_str().to_owned(), value.to_owned()))
        })
        .collect()
}

impl Fetched {
    /// What a copy of it keeps, and what it is a copy of, where there is room to say so.
    pub(crate) fn kept_by_copy(&self) -> Vec<(String, String)> {
        let user = |(name, value): &(String, String)| {
            name.strip_prefix(USER_METADATA).map_or(0, |name| name.len() + value.len())
        };
        let mark = (SOURCE_ETAG.to_owned(), self.etag.clone());
        let bytes: usize = self.kept.iter().chain([&mark]).map(user).sum();
        let mut kept = self.kept.clone();
        kept.extend((bytes <= USER_METADATA_BYTES_MAX && !self.etag.is_empty()).then_some(mark));
        kept
    }
}

/// The message of an error, in an answer's body.
fn message(text: &str) -> Option<&str> {
    text.split_once("<Message>")?.1.split_once("</Message>").map(|(found, _)| found)
}

impl S3 {
    /// The bytes of an object, or of a range of it, if it still has this entity tag. At most `bytes_max` are taken.
    pub(crate) async fn fetch(
        &self,
        key: &str,
        etag: &str,
        range: Option<Range<u64>>,
        bytes_max: usize,
    ) -> Done<Result<Fetched, Refusal>> {
        check_key(key)?;
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let mut headers = Vec::new();
        if !etag.is_empty() {
            headers.push(("if-match".to_owned(), format!("\"{etag}\"")));
        }
        if let Some(range) = &range {
            headers.push(("range".to_owned(), format!("bytes={}-{}", range.start, range.end - 1)));
        }
        let answer = self.send(Method::GET, &url, Sent { body: None, headers }).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let (etag, kept) = (etag_of(answer.headers()), kept(answer.headers())?);
        let tags = answer.headers().get("x-amz-tagging-count");
        let tags = tags.and_then(|count| count.to_str().ok()?.parse().ok()).unwrap_or_default();
        let content = whole(answer, ("the object's body", bytes_max), self.patience).await?;
        match range {
            Some(range) if content.len() as u64 != range.end - range.start => {
                Err(failed("the object's body", "it has another length than was asked for"))
            }
            _ => Ok(Ok(Fetched { content, etag, kept, tags })),
        }
    }

    /// How long the first part of an object is; `None` where the server does not say.
    pub(crate) async fn first_part(&self, key: &str) -> Done<Result<Option<u64>, Refusal>> {
        check_key(key)?;
        let mut action = self.bucket.head_object(Some(&self.credentials), key);
        action.query_mut().insert("partNumber", "1");
        let answer = self.send(Method::HEAD, &action.sign(URL_LIFETIME), Sent::default()).await?;
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let is_a_part = answer.status().is_success() && answer.headers().contains_key("x-amz-mp-parts-count");
        Ok(Ok(length.filter(|_| is_a_part)))
    }

    /// The entity tag that the source of an object had, where that is a copy which says so.
    pub(crate) async fn source_etag(&self, key: &str) -> Done<Result<Option<String>, Refusal>> {
        check_key(key)?;
        let url = self.bucket.head_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::HEAD, &url, Sent::default()).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let mark = answer.headers().get(SOURCE_ETAG).and_then(|etag| etag.to_str().ok());
        Ok(Ok(mark.map(str::to_owned)))
    }

    /// Puts an object with what it is to have besides its bytes; the entity tag that it has then.
    pub(crate) async fn put_kept(
        &self,
        key: &str,
        content: Bytes,
        kept: &[(String, String)],
    ) -> Done<Result<String, Refusal>> {
        check_key(key)?;
        let mut action = self.bucket.put_object(Some(&self.credentials), key);
        for (name, value) in kept {
            action.headers_mut().insert(name.as_str(), value.as_str());
        }
        let url = action.sign(URL_LIFETIME);
        let mut sent = Sent::whole(content);
        sent.headers.extend_from_slice(kept);
        let answer = self.send(Method::PUT, &url, sent).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        Ok(Ok(etag_of(answer.headers())))
    }

    /// Begins an upload in parts.
    pub(crate) async fn begin_upload(
        &self,
        key: &str,
        kept: &[(String, String)],
    ) -> Done<Result<String, Refusal>> {
        check_key(key)?;
        let mut action = self.bucket.create_multipart_upload(Some(&self.credentials), key);
        for (name, value) in kept {
            action.headers_mut().insert(name.as_str(), value.as_str());
        }
        let url = action.sign(URL_LIFETIME);
        let answer = self.send(Method::POST, &url, Sent { body: None, headers: kept.to_vec() }).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let text = self.text_of(answer, "the upload").await?;
        let begun =
            CreateMultipartUpload::parse_response(&text).map_err(|error| failed("the upload", error))?;
        Ok(Ok(begun.upload_id().to_owned()))
    }

    /// The parts of an upload that have arrived.
    pub(crate) async fn parts(&self, key: &str, upload: &str) -> Done<Result<Vec<Part>, Refusal>> {
        let (mut parts, mut after) = (Vec::new(), None);
        loop {
            let mut action = ListParts::new(&self.bucket, Some(&self.credentials), key, upload);
            if let Some(after) = after {
                action.set_part_number_marker(after);
            }
            let answer = self.send(Method::GET, &action.sign(URL_LIFETIME), Sent::default()).await?;
            if !answer.status().is_success() {
                return Ok(Err(Self::refusal(answer).await));
            }
            let text = self.text_of(answer, "the list of parts").await?;
            let page =
                ListParts::parse_response(&text).map_err(|error| failed("the list of parts", error))?;
            parts.extend(page.parts.into_iter().map(|part| Part {
                number: part.number,
                bytes: part.size,
                etag: part.etag.trim_matches('"').to_owned(),
            }));
            after = page.next_part_number_marker;
            if after.is_none() {
                return Ok(Ok(parts));
            }
        }
    }

    /// Sends a part; its entity tag.
    pub(crate) async fn put_part(
        &self,
        key: &str,
        (upload, number): (&str, u16),
        content: Bytes,
    ) -> Done<Result<String, Refusal>> {
        let action = UploadPart::new(&self.bucket, Some(&self.credentials), key, number, upload);
        let answer = self.send(Method::PUT, &action.sign(URL_LIFETIME), Sent::whole(content)).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        Ok(Ok(etag_of(answer.headers())))
    }

    /// Makes the object of its parts, in their order from 1 on; its entity tag.
    pub(crate) async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        etags: &[String],
    ) -> Done<Result<String, Refusal>> {
        let etags = etags.iter().map(String::as_str);
        let action = CompleteMultipartUpload::new(&self.bucket, Some(&self.credentials), key, upload, etags);
        let url = action.sign(URL_LIFETIME);
        let sent = Sent::whole(action.body().into());
        let answer = self.send(Method::POST, &url, sent).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        // A server may answer before it knows, and say in the body that it failed.
        let text = self.text_of(answer, "the completion").await?;
        let made = CompleteMultipartUploadResponse::parse(&text);
        let made = made.map_err(|_| failed("the completion", message(&text).unwrap_or(&text)))?;
        Ok(Ok(made.etag().trim_matches('"').to_owned()))
    }

    async fn text_of(&self, answer: Response<Incoming>, what: &str) -> Done<String> {
        let body = whole(answer, (what, LIST_BYTES_MAX), self.patience).await?;
        String::from_utf8(body.into()).map_err(|error| failed(what, error))
    }

    /// Ends an upload without an object. One that is not there is none the less ended.
    pub(crate) async fn abort_upload(&self, key: &str, upload: &str) -> Done<Result<(), Refusal>> {
        let action = AbortMultipartUpload::new(&self.bucket, Some(&self.credentials), key, upload);
        let answer = self.send(Method::DELETE, &action.sign(URL_LIFETIME), Sent::default()).await?;
        match answer.status() {
            http::StatusCode::NOT_FOUND => Ok(Ok(())),
            status if status.is_success() => Ok(Ok(())),
            _ => Ok(Err(Self::refusal(answer).await)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_an_object_says_of_itself_and_nothing_of_its_server() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "image/jpeg"),
            ("x-amz-meta-place", "lake"),
            ("x-amz-request-id", "1"),
            ("server", "x"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let found = kept(&headers).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&("x-amz-meta-place".to_owned(), "lake".to_owned())));
        headers.insert(SOURCE_ETAG, "before".parse().unwrap());
        assert_eq!(super::kept(&headers).unwrap().len(), 2, "what it was a copy of itself");
        let copy = |etag: &str, kept: Vec<_>| {
            Fetched { content: Bytes::new(), etag: etag.to_owned(), kept, tags: 0 }.kept_by_copy()
        };
        assert_eq!(copy("now", found.clone())[2], (SOURCE_ETAG.to_owned(), "now".to_owned()));
        assert_eq!(copy("", found.clone()).len(), 2);
        let full = vec![("x-amz-meta-a".to_owned(), "y".repeat(2040))];
        assert_eq!(copy("now", full).len(), 1, "no room");
        headers.insert("x-amz-meta-odd", header::HeaderValue::from_bytes(&[0xe4]).unwrap());
        assert!(kept(&headers).is_err());
    }
}
