//! The `[[webhook]]` tables of a keyholder: who is told of what happens.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use identity::PeerName;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::error::Invalid;
use crate::tls::resolve;

/// How long a receiver may be away: under a second nothing is tried twice; over a week nobody wants to know any more.
const GIVE_UP_AFTER_S: RangeInclusive<u64> = 1..=604_800;

/// Receivers of one keyholder. Each has a task of its own.
pub const WEBHOOKS_MAX: usize = 16;

/// A receiver of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// What people call it.
    pub name: PeerName,
    /// Where it listens: `https://…`, or `http://` on a loopback address.
    pub url: Url,
    /// Which events: names, or the beginning of one followed by `*`.
    #[serde(default = "all")]
    pub events: Vec<String>,
    /// The file with the secret that signs them (mode 0600; `nightlatch webhook secret` writes one).
    pub secret: PathBuf,
    /// Who vouches for the receiver's certificate (PEM).
    #[serde(default = "system_authorities")]
    pub ca: PathBuf,
    /// How long an event is tried again before it is set aside.
    #[serde(default = "day")]
    pub give_up_after_s: u64,
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

fn day() -> u64 {
    86_400
}

/// Where Debian and its children keep the authorities of the web.
pub(crate) fn system_authorities() -> PathBuf {
    PathBuf::from("/etc/ssl/certs/ca-certificates.crt")
}

impl WebhookConfig {
    pub(crate) fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.secret, dir);
        resolve(&mut self.ca, dir);
    }
}

/// Whether it is a loopback address: a name may mean another one tomorrow.
pub(crate) fn is_on_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        Some(Host::Domain(_)) | None => false,
    }
}

/// Checks all of them, which are known by their names.
pub(crate) fn validate(webhooks: &[WebhookConfig]) -> Result<(), Invalid> {
    if webhooks.len() > WEBHOOKS_MAX {
        return Err(Invalid::new(
            "webhook",
            format!("there are {} webhooks", webhooks.len()),
            format!("keep {WEBHOOKS_MAX} at most; one receiver can pass events on to many"),
        ));
    }
    for (index, webhook) in webhooks.iter().enumerate() {
        let key = |name: &str| format!("webhook[{index}].{name}");
        if webhooks[..index].iter().any(|other| other.name == webhook.name) {
            return Err(Invalid::new(
                key("name"),
                format!("two webhooks are named {}", webhook.name),
                "give each a name of its own",
            ));
        }
        let is_secure = webhook.url.scheme() == "https";
        let stays_here = webhook.url.scheme() == "http" && is_on_this_machine(&webhook.url);
        if !is_secure && !stays_here {
            return Err(Invalid::new(
                key("url"),
                "events leave this machine over TLS only",
                "give an https:// address; http:// is for loopback addresses, as http://127.0.0.1:8080/",
            ));
        }
        if webhook.url.host().is_none()
            || !webhook.url.username().is_empty()
            || webhook.url.password().is_some()
        {
            return Err(Invalid::new(
                key("url"),
                "a webhook's address has a host, and no user or password in it",
                "the signature says who sends; give https://HOST/PATH",
            ));
        }
        if webhook.events.is_empty() {
            return Err(Invalid::new(
                key("events"),
                "a webhook without events is told nothing",
                "name some, or leave `events` out for all of them",
            ));
        }
        if !GIVE_UP_AFTER_S.contains(&webhook.give_up_after_s) {
            return Err(Invalid::new(
                key("give_up_after_s"),
                format!("{} s is out of range", webhook.give_up_after_s),
                format!(
                    "give {} to {} s; 86400, a day, suits most",
                    GIVE_UP_AFTER_S.start(),
                    GIVE_UP_AFTER_S.end()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(name: &str, url: &str) -> WebhookConfig {
        let text = format!("name = {name:?}\nurl = {url:?}\nsecret = \"key\"\n");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn events_leave_the_machine_over_tls_only_and_carry_no_password() {
        for url in ["https://hooks.example.com/a?b=c", "http://127.0.0.1:8080/", "http://[::1]:1/x"] {
            assert!(validate(&[webhook("a", url)]).is_ok(), "{url}");
        }
        for url in [
            "http://hooks.example.com/",
            "http://localhost/",
            "http://10.0.0.1/",
            "ftp://127.0.0.1/",
            "https://user@hooks.example.com/",
            "https://user:word@hooks.example.com/",
        ] {
            assert_eq!(validate(&[webhook("a", url)]).unwrap_err().key, "webhook[0].url", "{url}");
        }
    }

    #[test]
    fn each_has_a_name_of_its_own_something_to_tell_and_a_time_to_give_up() {
        let good = webhook("a", "https://hooks.example.com/");
        assert_eq!((good.events.as_slice(), good.give_up_after_s), (["*".to_owned()].as_slice(), 86_400));
        assert_eq!(validate(&[good.clone(), good.clone()]).unwrap_err().key, "webhook[1].name");
        let silent = WebhookConfig { events: Vec::new(), ..good.clone() };
        assert_eq!(validate(&[silent]).unwrap_err().key, "webhook[0].events");
        for give_up_after_s in [0, 604_801] {
            let hasty = WebhookConfig { give_up_after_s, ..good.clone() };
            assert_eq!(validate(&[hasty]).unwrap_err().key, "webhook[0].give_up_after_s");
        }
        let named = |number: usize| webhook(&format!("w{number}"), "https://hooks.example.com/");
        let many: Vec<_> = (0..=WEBHOOKS_MAX).map(named).collect();
        assert!(validate(&many[..WEBHOOKS_MAX]).is_ok());
        assert_eq!(validate(&many).unwrap_err().key, "webhook");
    }
}
