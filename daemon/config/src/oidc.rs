//! The `[oidc]` table of a keyholder: the OpenID provider that people may log in at instead of having a certificate.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::Invalid;
use crate::tls::resolve;
use crate::webhook::{is_on_this_machine, system_authorities};

/// Longest client id and claim name.
const NAME_BYTES_MAX: usize = 256;

/// An OpenID provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// Its issuer, as its tokens have it: `https://…`, or `http://` on a loopback address.
    pub issuer: Url,
    /// What it knows Nightlatch's command line as: a native client without a secret, with PKCE, redirected to
    /// `http://127.0.0.1/callback` on any port.
    pub client_id: String,
    /// The claim that a person's name is taken from. It must never be given to another person.
    #[serde(default = "subject")]
    pub name_claim: String,
    /// What is asked for beside `openid`, for the claims that the policy wants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Who vouches for the provider's certificate (PEM).
    #[serde(default = "system_authorities")]
    pub ca: PathBuf,
}

fn subject() -> String {
    "sub".to_owned()
}

impl OidcConfig {
    pub(crate) fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.ca, dir);
    }

    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        let is_secure = self.issuer.scheme() == "https";
        let is_local = self.issuer.scheme() == "http" && is_on_this_machine(&self.issuer);
        if !(is_secure || is_local) || self.issuer.query().is_some() || self.issuer.fragment().is_some() {
            return Err(Invalid::new(
                "oidc.issuer",
                "an issuer is an https:// address without query and fragment",
                "give it as the provider's own tokens have it (`iss`); http:// is for loopback addresses",
            ));
        }
        for (key, text) in [("oidc.client_id", &self.client_id), ("oidc.name_claim", &self.name_claim)] {
            if text.is_empty() || text.len() > NAME_BYTES_MAX {
                return Err(Invalid::new(key, "it has 1 to 256 bytes", "give it as the provider has it"));
            }
        }
        let is_scope =
            |scope: &String| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic());
        if self.scopes.len() > 16 || !self.scopes.iter().all(is_scope) {
            return Err(Invalid::new(
                "oidc.scopes",
                "scopes are at most 16 words",
                "give each as a text of its own, as in [\"profile\", \"groups\"]",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oidc(issuer: &str) -> OidcConfig {
        toml::from_str(&format!("issuer = {issuer:?}\nclient_id = \"nightlatch\"\n")).unwrap()
    }

    #[test]
    fn an_issuer_is_reached_over_tls_or_on_this_machine() {
        for issuer in
            ["https://login.example.com", "https://login.example.com/realms/a", "http://127.0.0.1:1/"]
        {
            assert!(oidc(issuer).validate().is_ok(), "{issuer}");
        }
        for issuer in
            ["http://login.example.com", "https://login.example.com/?a", "https://login.example.com/#a"]
        {
            assert_eq!(oidc(issuer).validate().unwrap_err().key, "oidc.issuer", "{issuer}");
        }
        let good = oidc("https://login.example.com");
        assert_eq!((good.name_claim.as_str(), good.scopes.len()), ("sub", 0));
        assert!(OidcConfig { client_id: String::new(), ..good.clone() }.validate().is_err());
        assert!(OidcConfig { scopes: vec!["a b".to_owned()], ..good }.validate().is_err());
    }
}
