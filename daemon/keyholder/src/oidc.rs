//! People who log in at an OpenID provider instead of having a certificate. OIDC.md has the whole way.
//!
//! Invariants:
//! - A token counts only with the key that it was asked for with: its nonce is that key's hash, so a stolen one is worth nothing.
//! - A token is believed for what the provider signed (OpenID Connect Core 1.0, 3.1.3.7), with a public key that the provider publishes;
//!   which role that makes of a person, the policy says.
//! - The provider is asked for its keys before the book is locked, and seldom.

use std::sync::PoisonError;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use config::OidcConfig;
use identity::{GuestKey, IdentityError, PeerName};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::api::OidcProvider;
use crate::outgoing::Outgoing;

/// Longest token: claims of a few hundred groups.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// How far apart the provider's clock and this one may be.
const SKEW_S: u64 = 60;

/// A token is brought at once. What is older was lying about.
const AGE_S_MAX: u64 = 300;

/// The provider's keys are read again after this, and at a token of a key that is not known.
const KEYS_KEPT: Duration = Duration::from_secs(3_600);

/// Between two readings: whoever brings tokens of unknown keys makes nobody ask the provider all the time.
const KEYS_SPACING: Duration = Duration::from_secs(5);

/// Signatures by a key that the provider publishes. None by a shared secret, and none at all, counts.
const ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why a token does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OidcError {
    /// There is no provider.
    #[error(
        "this keyholder knows no OpenID provider; use a certificate, or have an [oidc] table put into its configuration"
    )]
    NoProvider,
    /// The provider's keys could not be had.
    #[error("the OpenID provider could not be asked for its keys, {0}; try again, or use a certificate")]
    Provider(String),
    /// The token is none of this provider's for this program, or not any more.
    #[error("the token does not count: {0}; log in again with `nightlatch login --oidc`")]
    Token(String),
    /// It was asked for with another key.
    #[error(
        "the token was asked for by somebody else, or with another key; log in again with `nightlatch login --oidc`"
    )]
    OtherKey,
    /// It came before.
    #[error("the token was used before; log in again with `nightlatch login --oidc`")]
    Used,
    /// It names nobody.
    #[error(
        "the token's {claim} is no name (1 to 64 letters, digits, `.`, `-` or `_`); name another claim as `name_claim` in the \
         keyholder's configuration"
    )]
    NoName {
        /// Which claim.
        claim: String,
    },
}

/// What a token says that counts.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    pub(crate) name: PeerName,
    /// Everything that the provider says.
    pub(crate) all: Map<String, Value>,
    /// Hash of the token, by which it is known when it comes again.
    pub(crate) token: [u8; 32],
    /// Until then it would count.
    pub(crate) expires_unix_s: u64,
}

/// The provider.
#[derive(Debug)]
pub struct Provider {
    config: OidcConfig,
    outgoing: Outgoing,
    keys: std::sync::Mutex<Keys>,
    /// Held while the provider is asked: by one at a time, and by nobody who finds his key among those that are known.
    asking: Mutex<()>,
}

#[derive(Debug, Default)]
struct Keys {
    set: Option<(JwkSet, Instant)>,
    /// When the provider was asked last, whatever came of it.
    asked: Option<Instant>,
    /// Why it has not answered then.
    failure: Option<OidcError>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: Url,
}

/// The nonce that a token for this key has.
pub fn nonce(guest: &GuestKey) -> String {
    BASE64.encode(guest.spki_sha256)
}

impl Provider {
    /// Reads its authorities.
    pub fn load(config: &OidcConfig) -> Result<Self, IdentityError> {
        let outgoing = Outgoing::for_url(&config.issuer, &config.ca)?;
        Ok(Self {
            config: config.clone(),
            outgoing,
            keys: std::sync::Mutex::default(),
            asking: Mutex::new(()),
        })
    }

    /// What a command line has to know to log in there.
    pub(crate) fn public(&self) -> OidcProvider {
        OidcProvider {
            issuer: self.issuer().to_owned(),
            client_id: self.config.client_id.clone(),
            scopes: self.config.scopes.clone(),
        }
    }

    /// Without the slash that a bare host's address ends with: tokens have it as it was given, and providers give it without.
    fn issuer(&self) -> &str {
        self.config.issuer.as_str().trim_end_matches('/')
    }

    /// What the token says, if it counts for whoever has this key.
    pub(crate) async fn claims(&self, token: &str, guest: &GuestKey) -> Result<Claims, OidcError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(OidcError::Token(format!("it is longer than {TOKEN_BYTES_MAX} bytes")));
        }
        let header = decode_header(token).map_err(|error| OidcError::Token(error.to_string()))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(OidcError::Token(format!("it is signed with {:?}", header.alg)));
        }
        let key = self.key(header.kid.as_deref()).await?;
        let all = self.verified(token, header.alg, &key)?;
        self.judge(token, all, guest, crate::clock::unix_s())
    }

    fn verified(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: &Jwk,
    ) -> Result<Map<String, Value>, OidcError> {
        let refused = |error: jsonwebtoken::errors::Error| OidcError::Token(error.to_string());
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_audience(&[&self.config.client_id]);
        validation.set_issuer(&[self.issuer().to_owned(), format!("{}/", self.issuer())]);
        validation.leeway = SKEW_S;
        validation.validate_nbf = true;
        let key = DecodingKey::from_jwk(key).map_err(refused)?;
        Ok(decode::<Map<String, Value>>(token, &key, &validation).map_err(refused)?.claims)
    }

    /// What a signature alone does not say.
    fn judge(
        &self,
        token: &str,
        all: Map<String, Value>,
        guest: &GuestKey,
        now_unix_s: u64,
    ) -> Result<Claims, OidcError> {
        let number = |claim: &str| all.get(claim).and_then(Value::as_u64);
        let text = |claim: &str| all.get(claim).and_then(Value::as_str);
        // Of several audiences the token has to say which one asked for it.
        let several = all.get("aud").and_then(Value::as_array).is_some_and(|audiences| audiences.len() > 1);
        let client = self.config.client_id.as_str();
        if (several && text("azp").is_none()) || text("azp").is_some_and(|asked| asked != client) {
            return Err(OidcError::Token("another program asked for it".to_owned()));
        }
        let issued = number("iat").ok_or_else(|| OidcError::Token("it has no `iat`".to_owned()))?;
        if now_unix_s.saturating_sub(issued) > AGE_S_MAX || issued > now_unix_s.saturating_add(SKEW_S) {
            return Err(OidcError::Token("it is not of now; compare the clocks".to_owned()));
        }
        if text("nonce") != Some(nonce(guest).as_str()) {
            return Err(OidcError::OtherKey);
        }
        let claim = self.config.name_claim.clone();
        let name = text(&claim).and_then(|name| name.parse().ok());
        let name = name.ok_or(OidcError::NoName { claim })?;
        let expires_unix_s = number("exp").unwrap_or(0).saturating_add(SKEW_S);
        Ok(Claims { name, token: Sha256::digest(token).into(), expires_unix_s, all })
    }

    /// The provider's key of this id, or its only one.
    async fn key(&self, id: Option<&str>) -> Result<Jwk, OidcError> {
        if let Some(known) = self.known_key(id) {
            return Ok(known);
        }
        let _asking = self.asking.lock().await;
        // Somebody else may have asked meanwhile, for this key or in vain.
        if let Some(known) = self.known_key(id) {
            return Ok(known);
        }
        let unknown = || OidcError::Token("the provider has no such key".to_owned());
        {
            let mut keys = self.lock_keys();
            if keys.asked.is_some_and(|asked| asked.elapsed() < KEYS_SPACING) {
                return Err(keys.failure.clone().unwrap_or_else(unknown));
            }
            // Whoever asks may hang up before there is an answer.
            keys.asked = Some(Instant::now());
            keys.failure = Some(OidcError::Provider("it was asked a moment ago".to_owned()));
        }
        let read = self.read_keys().await;
        {
            let mut keys = self.lock_keys();
            keys.asked = Some(Instant::now());
            keys.failure = read.as_ref().err().cloned();
            keys.set = read.map(|set| (set, Instant::now())).ok().or(keys.set.take());
            if let Some(failure) = &keys.failure {
                return Err(failure.clone());
            }
        }
        self.known_key(id).ok_or_else(unknown)
    }

    fn known_key(&self, id: Option<&str>) -> Option<Jwk> {
        let keys = self.lock_keys();
        let (set, _) = keys.set.as_ref().filter(|(_, read)| read.elapsed() < KEYS_KEPT)?;
        match id {
            Some(id) => set.find(id).cloned(),
            None if set.keys.len() == 1 => set.keys.first().cloned(),
            None => None,
        }
    }

    fn lock_keys(&self) -> std::sync::MutexGuard<'_, Keys> {
        // Each change is a few assignments.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// OpenID Connect Discovery 1.0, section 4, and the set that it names (RFC 7517).
    async fn read_keys(&self) -> Result<JwkSet, OidcError> {
        let wrong = |what: String| OidcError::Provider(what);
        let address = format!("{}/.well-known/openid-configuration", self.issuer());
        let address: Url = address.parse().map_err(|error| wrong(format!("{error}")))?;
        let discovery: Discovery = self.read(&address).await?;
        if discovery.issuer.trim_end_matches('/') != self.issuer() {
            return Err(wrong(format!("its own word is that it is {}", discovery.issuer)));
        }
        self.read(&discovery.jwks_uri).await
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, url: &Url) -> Result<T, OidcError> {
        let failed = |why: String| OidcError::Provider(format!("at {url}: {why}"));
        let request = Request::get("/").header("accept", "application/json").body(Body::empty());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let (status, body) =
            self.outgoing.send(url, request).await.map_err(|error| failed(error.to_string()))?;
        if status != 200 {
            return Err(failed(format!("it answered {status}")));
        }
        serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;
    const GUEST: GuestKey = GuestKey { spki_sha256: [7; 32] };

    fn provider() -> Provider {
        let config = "issuer = \"http://127.0.0.1:1/\"\nclient_id = \"nightlatch\"\n";
        Provider::load(&toml::from_str(config).unwrap()).unwrap()
    }

    /// A provider that takes requests and answers none.
    #[tokio::test]
    async fn a_provider_that_does_not_answer_is_asked_once_for_all_and_holds_up_nobody_whose_key_is_known() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config =
            format!("issuer = \"http://{}/\"\nclient_id = \"nightlatch\"\n", silent.local_addr().unwrap());
        let provider = Provider::load(&toml::from_str(&config).unwrap()).unwrap();
        let known = serde_json::json!({ "keys": [{ "kty": "oct", "k": "AA", "kid": "known" }] });
        provider.lock_keys().set = Some((serde_json::from_value(known).unwrap(), Instant::now()));
        let begun = Instant::now();
        let unknown = futures::future::join_all((0..20).map(|_| provider.key(Some("unknown"))));
        let meanwhile = async {
            let _asked = silent.accept().await.unwrap();
            assert!(provider.key(Some("known")).await.is_ok());
            assert!(begun.elapsed() < Duration::from_secs(2), "it waited for those who ask");
            // Until the one who asks gives up.
            silent.accept().await.map(drop)
        };
        tokio::select! {
            refused = unknown => assert!(refused.iter().all(|one| matches!(one, Err(OidcError::Provider(_))))),
            _ = meanwhile => panic!("it was asked again"),
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "each waited for an answer of its own");
    }

    fn claims() -> Value {
        serde_json::json!({
            "iss": "http://127.0.0.1:1", "sub": "anna", "aud": "nightlatch", "iat": NOW, "exp": NOW + 3_600, "nonce": nonce(&GUEST),
        })
    }

    fn judged(change: Value) -> Result<Claims, OidcError> {
        let mut all = claims().as_object().unwrap().clone();
        for (claim, value) in change.as_object().unwrap() {
            match value {
                Value::Null => all.remove(claim),
                value => all.insert(claim.clone(), value.clone()),
            };
        }
        provider().judge("token", all, &GUEST, NOW + 10)
    }

    #[test]
    fn a_token_counts_for_the_key_that_asked_for_it_now_and_for_this_program() {
        let good = judged(serde_json::json!({})).unwrap();
        assert_eq!((good.name.as_str(), good.expires_unix_s), ("anna", NOW + 3_600 + SKEW_S));
        assert!(judged(serde_json::json!({ "aud": ["nightlatch", "other"], "azp": "nightlatch" })).is_ok());
        for (change, wrong) in [
            (serde_json::json!({ "nonce": null }), "another key"),
            (serde_json::json!({ "nonce": nonce(&GuestKey { spki_sha256: [8; 32] }) }), "another key"),
            (serde_json::json!({ "aud": ["nightlatch", "other"] }), "another program"),
            (serde_json::json!({ "azp": "other" }), "another program"),
            (serde_json::json!({ "iat": NOW - AGE_S_MAX }), "not of now"),
            (serde_json::json!({ "iat": NOW + 10 + SKEW_S + 1 }), "not of now"),
            (serde_json::json!({ "iat": null }), "iat"),
            (serde_json::json!({ "sub": "auth0|123" }), "name_claim"),
            (serde_json::json!({ "sub": "../operator" }), "name_claim"),
            (serde_json::json!({ "sub": 7 }), "name_claim"),
        ] {
            let said = judged(change.clone()).unwrap_err().to_string();
            assert!(said.contains(wrong), "{change}: {said}");
        }
    }

    #[test]
    fn what_nobody_signed_or_a_shared_secret_did_is_refused_before_anybody_is_asked() {
        let encode = |json: Value| BASE64.encode(json.to_string());
        for algorithm in ["none", "HS256"] {
            let header = encode(serde_json::json!({ "alg": algorithm, "typ": "JWT" }));
            let token = format!("{header}.{}.{}", encode(claims()), BASE64.encode("signature"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let refused = runtime.block_on(provider().claims(&token, &GUEST)).unwrap_err();
            assert!(matches!(refused, OidcError::Token(_)), "{algorithm}: {refused}");
        }
    }
}
