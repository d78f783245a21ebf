//! Entries in the forms that other systems take in: CEF (ArcSight Common Event Format, version 0) and syslog (RFC 5424, framed
//! for TLS by RFC 5425). JSON lines are the trail's own form.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::entry::Entry;

/// Where entries come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The machine or keyholder, as syslog's HOSTNAME.
    pub host: String,
    /// The program, as syslog's APP-NAME.
    pub program: String,
    /// Its version.
    pub version: String,
}

/// Security and authorization messages, private (RFC 5424, table 1).
const FACILITY: u8 = 10;

/// How much an event matters, by syslog's levels (RFC 5424, table 2): 2 critical, 4 warning, 5 notice, 6 informational.
pub fn level(event: &str) -> u8 {
    match event {
        "audit-chain-broken" | "audit-truncated" | "break-glass" | "node-compromised" => 2,
        "lockdown"
        | "latched-by-wipe"
        | "grant-refused"
        | "share-refused"
        | "refused"
        | "login-refused"
        | "session-refused"
        | "key-refused"
        | "source-refused"
        | "refused-more"
        | "node-vanished"
        | "lease-records-lost"
        | "node-trail-broken"
        | "node-trail-unavailable"
        | "audit-line-torn"
        | "audit-begun-anew" => 4,
        "grant" | "receipt" | "segment" | "wiped-further" | "node-trail" => 6,
        _ => 5,
    }
}

fn timestamp(unix_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "-".to_owned())
}

/// One message of RFC 5424: the chain in structured data, the entry's line as the message.
pub fn syslog(entry: &Entry, line: &str, origin: &Origin) -> String {
    let priority = FACILITY * 8 + level(&entry.event);
    let name = |text: &str, length| {
        let kept: String = text.chars().filter(char::is_ascii_graphic).take(length).collect();
        if kept.is_empty() { "-".to_owned() } else { kept }
    };
    // 32473 is the number that IANA keeps for documents (RFC 5612): this project has none of its own.
    format!(
        "<{priority}>1 {} {} {} - {} [nightlatch@32473 seq=\"{}\" hash=\"{}\"] {line}",
        timestamp(entry.at.unix_ms),
        name(&origin.host, 255),
        name(&origin.program, 48),
        name(&entry.event, 32),
        entry.seq,
        entry.hash,
    )
}

/// A message as it travels over TLS: its length in octets, a space, itself (RFC 5425, 4.3).
pub fn frame(message: &str) -> String {
    format!("{} {message}", message.len())
}

/// One line of CEF.
pub fn cef(entry: &Entry, origin: &Origin) -> String {
    let severity = match level(&entry.event) {
        2 => 10,
        4 => 7,
        5 => 4,
        _ => 2,
    };
    let mut line = format!(
        "CEF:0|Nightlatch|{}|{}|{}|{}|{severity}|rt={} dvchost={} externalId={}",
        header(&origin.program),
        header(&origin.version),
        header(&entry.event),
        header(&entry.event.replace('-', " ")),
        entry.at.unix_ms,
        extension(&origin.host),
        entry.seq,
    );
    let mut push = |key: &str, value: &str| {
        line.push(' ');
        line.push_str(key);
        line.push('=');
        line.push_str(&extension(value));
    };
    if let Some(actor) = entry.actor() {
        push("suser", actor);
    }
    push("cs1Label", "hash");
    push("cs1", &entry.hash.to_string());
    for (name, value) in &entry.fields {
        if ["v", "seq", "unix_ms", "event", "by"].contains(&name.as_str()) {
            continue;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // Keys of extensions are letters and digits.
        let key: String = name.split('_').map(capitalised).collect();
        push(&format!("nl{key}"), &text);
    }
    line
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn header(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn extension(text: &str) -> String {
    text.replace('\\', "\\\\").replace('=', "\\=").replace('\n', "\\n").replace('\r', "\\r")
}

#[cfg(test)]
mod tests {
    use units::BootId;

    use super::*;
    use crate::chain::Hash;
    use crate::entry::{Moment, body, line};

    fn entry() -> (Entry, String) {
        let at = Moment { unix_ms: 1_700_000_000_123, boot: BootId([1; 16]), boot_ns: 5 };
        let fields = [("by", "operator/a".into()), ("why", "a=b|c\\d\ne".into()), ("node_id", 7.into())];
        let text = line(&body(3, at, "grant-refused", fields), Hash([2; 32]), Hash([3; 32]), &[4; 64]);
        let text = text.trim_end().to_owned();
        (Entry::parse(&text).unwrap(), text)
    }

    fn origin() -> Origin {
        Origin { host: "compute-1".into(), program: "nightlatch-keyholder".into(), version: "0.1|x".into() }
    }

    #[test]
    fn cef_escapes_what_would_end_a_field() {
        let (entry, _) = entry();
        let line = cef(&entry, &origin());
        assert!(line.starts_with(
            "CEF:0|Nightlatch|nightlatch-keyholder|0.1\\|x|grant-refused|grant refused|7|rt=1700000000123 "
        ));
        assert!(line.contains(" suser=operator/a "), "{line}");
        assert!(line.contains(" nlWhy=a\\=b|c\\\\d\\ne"), "{line}");
        assert!(line.contains(" nlNodeId=7"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn a_syslog_message_has_the_fields_of_the_standard_and_is_framed_by_its_octets() {
        let (entry, text) = entry();
        let message = syslog(&entry, &text, &origin());
        let begin = "<84>1 2023-11-14T22:13:20.123Z compute-1 nightlatch-keyholder - grant-refused [nightlatch@32473 seq=\"3\" ";
        assert!(message.starts_with(begin), "{message}");
        assert!(message.ends_with(&text));
        let framed = frame("aä");
        assert_eq!(framed, "3 aä");
    }
}
