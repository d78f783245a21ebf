//! The `[[s3.webhooks]]` tables: where notifications of buckets may go. A bucket's owner names one of them and never an address.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::tls::resolve;

/// Most webhooks of a node: each has a thread.
const WEBHOOKS_MAX: usize = 16;

/// Longest name.
const NAME_BYTES_MAX: usize = 64;

/// Longest URL.
const URL_BYTES_MAX: usize = 2048;

/// How long a notification may wait for its webhook.
const GIVE_UP_AFTER_S: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 3600;

/// Where distributions keep the issuers that everybody believes.
const SYSTEM_ISSUERS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// One `[[s3.webhooks]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3WebhookConfig {
    /// What buckets' configurations call it: `arn:aws:sns:::NAME` or `arn:aws:sqs:::NAME`.
    pub name: String,
    /// Where messages are posted; without TLS on loopback addresses only.
    pub url: WebhookUrl,
    /// A file with the secret that messages are signed with (`whsec_` and base64, mode 0600).
    pub secret_file: PathBuf,
    /// Issuers of the receiver's certificate (PEM).
    #[serde(default = "system_issuers")]
    pub ca: PathBuf,
    /// Seconds after which a message that is not taken becomes a dead letter.
    #[serde(default = "give_up_after_s_default")]
    pub give_up_after_s: u64,
}

fn system_issuers() -> PathBuf {
    SYSTEM_ISSUERS.into()
}

fn give_up_after_s_default() -> u64 {
    24 * 3600
}

impl S3WebhookConfig {
    pub(crate) fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.secret_file, dir);
        resolve(&mut self.ca, dir);
    }
}

pub(crate) fn validate(webhooks: &[S3WebhookConfig]) -> Result<(), Invalid> {
    if webhooks.len() > WEBHOOKS_MAX {
        return Err(Invalid::new(
            "s3.webhooks",
            format!("{} webhooks are named; a node has at most {WEBHOOKS_MAX}", webhooks.len()),
            "let one receiver hand on what it is sent",
        ));
    }
    for (index, webhook) in webhooks.iter().enumerate() {
        let key = |field: &str| format!("s3.webhooks[{index}].{field}");
        let name = &webhook.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain);
        if !is_name || webhooks[..index].iter().any(|other| other.name == *name) {
            return Err(Invalid::new(
                key("name"),
                format!("`{name}` is no name for a webhook, or another has it"),
                format!("use 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"),
            ));
        }
        if !webhook.url.has_tls && !webhook.url.is_loopback() {
            return Err(Invalid::new(
                key("url"),
                format!("{} would carry the names of objects in clear", webhook.url),
                "use https://, or a receiver on 127.0.0.1 or [::1]",
            ));
        }
        if !GIVE_UP_AFTER_S.contains(&webhook.give_up_after_s) {
            return Err(Invalid::new(
                key("give_up_after_s"),
                format!("{} s is out of range", webhook.give_up_after_s),
                format!("give {} to {} s", GIVE_UP_AFTER_S.start(), GIVE_UP_AFTER_S.end()),
            ));
        }
    }
    Ok(())
}

/// Where to post: `https://host[:port]/path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebhookUrl {
    /// Whether the connection is encrypted.
    pub has_tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query, from the slash on.
    pub path: String,
}

/// Why a URL is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a URL of the form https://HOST[:PORT]/PATH")]
pub struct InvalidWebhookUrl(String);

impl WebhookUrl {
    /// Host and port as the `Host` header and a dialler take them.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.has_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl FromStr for WebhookUrl {
    type Err = InvalidWebhookUrl;

    fn from_str(text: &str) -> Result<Self, InvalidWebhookUrl> {
        let invalid = || InvalidWebhookUrl(text.to_owned());
        let (has_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(invalid()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(invalid)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(invalid)?)
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let is_host = host.contains(':') || (!host.is_empty() && host.chars().all(in_name));
        let in_path = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !is_host || !in_path || text.len() > URL_BYTES_MAX {
            return Err(invalid());
        }
        let port = match port {
            "" => {
                if has_tls {
                    443
                } else {
                    80
                }
            }
            port => port.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?,
        };
        let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        Ok(Self { has_tls, host: host.to_owned(), port, path })
    }
}

impl TryFrom<String> for WebhookUrl {
    type Error = InvalidWebhookUrl;

    fn try_from(text: String) -> Result<Self, InvalidWebhookUrl> {
        text.parse()
    }
}

impl From<WebhookUrl> for String {
    fn from(url: WebhookUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_read_back_as_written_and_others_are_none() {
        for (text, expected) in [
            ("https://hooks.example.com/s3?a=b", "https://hooks.example.com:443/s3?a=b"),
            ("https://hooks.example.com", "https://hooks.example.com:443/"),
            ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"),
            ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
            ("https://[2001:db8::1]/x", "https://[2001:db8::1]:443/x"),
        ] {
            let url: WebhookUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), expected);
            assert_eq!(expected.parse::<WebhookUrl>().unwrap(), url);
        }
        for bad in [
            "",
            "hooks.example.com",
            "ftp://a/",
            "https://",
            "https:///x",
            "https://a:0/",
            "https://a:65536/",
            "https://user@a/",
            "https://a/b c",
            "https://a/\r\nx: y",
            "https://a/#x",
            "https://[::1",
            "https://[::1]8/",
            "https://[x]/",
        ] {
            assert!(bad.parse::<WebhookUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_goes_out_in_clear_stays_on_the_machine() {
        let webhook = |url: &str| S3WebhookConfig {
            name: "hook".to_owned(),
            url: url.parse().unwrap(),
            secret_file: "s".into(),
            ca: system_issuers(),
            give_up_after_s: give_up_after_s_default(),
        };
        assert!(validate(&[webhook("http://127.0.0.1/"),]).is_ok());
        assert!(validate(&[webhook("https://example.com/")]).is_ok());
        assert!(validate(&[webhook("http://example.com/")]).is_err());
        assert!(
            validate(&[webhook("http://[::1]/"), webhook("https://a/")]).is_err(),
            "one name, two webhooks"
        );
    }
}
