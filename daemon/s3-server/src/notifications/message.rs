//! What a webhook is sent: an event as Amazon words it, signed as Standard Webhooks says (version 1, symmetric).
//!
//! https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use objects::{Event, WaitingEvent};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::TEST_EVENT;
use crate::convert::owner_name;

/// How many of the first of these go into one message.
pub(super) fn together(events: &[WaitingEvent]) -> usize {
    // A test has a shape of its own.
    let is_test = |(_, event): &&WaitingEvent| event.name == TEST_EVENT;
    match events.iter().take_while(|event| !is_test(event)).count() {
        0 => events.len().min(1),
        several => several,
    }
}

/// The body of the message about events that go together.
pub(super) fn body(events: &[WaitingEvent], region: &str) -> Vec<u8> {
    let message = match events {
        [(_, event)] if event.name == TEST_EVENT => json!({
            "Service": "Amazon S3",
            "Event": TEST_EVENT,
            "Time": time(event),
            "Bucket": event.bucket,
            "RequestId": event.request,
            "HostId": "",
        }),
        events => {
            let records: Vec<Value> = events.iter().map(|(_, event)| record(event, region)).collect();
            json!({ "Records": records })
        }
    };
    message.to_string().into_bytes()
}

/// The id of a message: the same for the same events.
pub(super) fn id(events: &[WaitingEvent]) -> String {
    let mut hash = Sha256::new();
    events.iter().for_each(|(_, event)| hash.update(event.id.to_be_bytes()));
    hash.finalize().iter().take(16).fold("msg_".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

fn time(event: &Event) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.at_ms) * 1_000_000);
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    at.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(format).unwrap_or_default()
}

fn record(event: &Event, region: &str) -> Value {
    let mut object = json!({
        "key": encoded(&event.key),
        "sequencer": format!("{:016X}", event.sequence),
    });
    if let Some(etag) = &event.etag {
        object["size"] = event.bytes.into();
        object["eTag"] = etag.to_string().into();
    }
    if let Some(version) = &event.version {
        object["versionId"] = version.clone().into();
    }
    json!({
        "eventVersion": "2.2",
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": time(event),
        "eventName": event.name,
        "userIdentity": { "principalId": owner_name(&event.user) },
        "requestParameters": { "sourceIPAddress": event.address },
        "responseElements": { "x-amz-request-id": event.request, "x-amz-id-2": "" },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": event.configuration,
            "bucket": {
                "name": event.bucket,
                "ownerIdentity": { "principalId": owner_name(&event.owner) },
                "arn": format!("arn:aws:s3:::{}", event.bucket),
            },
            "object": object,
        },
    })
}

/// A key as forms encode it, slashes left as they are (Amazon).
fn encoded(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b' ' => out.push('+'),
            byte if byte.is_ascii_alphanumeric() || b"-_.*/".contains(&byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The headers that go with a message: its id, when it is sent, and what proves both and the body.
pub(super) fn headers(secret: &[u8], id: &str, now: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let now = now.to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    for part in [id.as_bytes(), b".", now.as_bytes(), b".", body] {
        mac.update(part);
    }
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    vec![
        ("content-type", "application/json".to_owned()),
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", now),
        ("webhook-signature", signature),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the specification's own libraries are tested with.
    #[test]
    fn messages_are_signed_as_the_specification_says() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let headers =
            headers(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        let header = |name: &str| headers.iter().find(|(found, _)| *found == name).unwrap().1.clone();
        assert_eq!(header("webhook-timestamp"), "1614265330");
        assert_eq!(header("webhook-signature"), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn keys_are_encoded_as_amazon_does() {
        assert_eq!(encoded("a b/c+d%é.jpg"), "a+b/c%2Bd%25%C3%A9.jpg");
    }
}
