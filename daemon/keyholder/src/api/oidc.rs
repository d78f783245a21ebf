//! Logging in at an OpenID provider.

use identity::Role;
use serde::{Deserialize, Serialize};

use super::Login;

/// Where people may log in who have no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OidcProvider {
    /// The provider's issuer.
    pub issuer: String,
    /// What it knows Nightlatch's command line as.
    pub client_id: String,
    /// What to ask for beside `openid`.
    pub scopes: Vec<String>,
}

/// What an OpenID provider gave, for a login. Its nonce is the base64url of the SHA-256 of the public key that the connection was made with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcLogin {
    /// The ID token.
    pub id_token: String,
    /// In which role; the first that the policy gives where absent.
    pub role: Option<Role>,
}

impl std::fmt::Debug for OidcLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OidcLogin")
    }
}

/// A login by an OpenID provider, good with the key that it was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OidcLoggedIn {
    /// The login.
    pub login: Login,
    /// The role.
    pub role: Role,
    /// The person's name.
    pub name: String,
    /// Whether the provider asked for a second factor that the policy takes.
    pub second_factor: bool,
}
