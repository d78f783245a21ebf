//! Tokens for programs: they stand in for their maker's login, for the endpoints that they were made for and no others.
//!
//! Invariants:
//! - A token is shown once and kept as a hash; it is worth something only with a certificate of the one who made it.
//! - It never makes a token, logs nobody in, approves nothing and changes nobody's second factor.
//! - It ends by itself, and at once when it is revoked.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Book;
use crate::access::{Proof, Rule, TABLE};
use crate::api::{CreateToken, CreatedToken, TokenEntry};
use crate::clock;
use crate::error::KeyholderError;
use crate::vault::VaultError;

/// What a token begins with, for people and scanners of secrets to see what it is.
pub(crate) const PREFIX: &str = "nlt_";

/// Longest life.
const DAYS_MAX: u32 = 365;

/// Tokens at once.
const TOKENS_MAX: usize = 256;

const NAME_BYTES_MAX: usize = 64;

/// Where a second factor is a person's own, or another person's word is wanted.
const PEOPLE_ONLY: &[&str] = &[
    "/v1/people",
    "/v1/approvals",
    "/v1/tokens",
    "/v1/policy",
    "/v1/erasures/{volume}/confirm",
    // A keyholder has the root with an officer's word, and no program's.
    "/v1/keyholders",
];

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Role and name of who made it and may use it.
    pub(crate) who: String,
    hash: [u8; 32],
    /// Method and pattern of each endpoint.
    scopes: Vec<String>,
    made_unix_s: u64,
    expires_unix_s: u64,
}

fn scope(rule: &Rule) -> String {
    format!("{} {}", rule.verb.as_str(), rule.path)
}

/// What a token may be made for.
fn is_for_programs(rule: &Rule) -> bool {
    let reading = rule.verb == crate::access::Verb::Get;
    rule.proof == Proof::SecondFactor
        && (reading || !PEOPLE_ONLY.iter().any(|start| rule.path.starts_with(start)))
}

impl Book {
    /// Makes a token for its maker's programs.
    pub(crate) fn create_token(
        &mut self,
        request: &CreateToken,
        who: &str,
    ) -> Result<CreatedToken, KeyholderError> {
        let invalid = |what: String, next_step| KeyholderError::Invalid { what, next_step };
        if request.name.is_empty() || request.name.len() > NAME_BYTES_MAX {
            return Err(invalid("a token's name has 1 to 64 bytes".to_owned(), "name what it is for"));
        }
        if !(1..=DAYS_MAX).contains(&request.days) {
            return Err(invalid(format!("{} days is out of range", request.days), "give 1 to 365 days"));
        }
        if request.scopes.is_empty() {
            return Err(invalid("a token without scopes is good for nothing".to_owned(), "name endpoints"));
        }
        if request.scopes.len() > TABLE.len() {
            return Err(invalid(
                format!("{} scopes are more than there are endpoints", request.scopes.len()),
                "name each endpoint once",
            ));
        }
        let scopes: Vec<String> =
            request.scopes.iter().cloned().collect::<BTreeSet<String>>().into_iter().collect();
        for wanted in &scopes {
            if !TABLE.iter().any(|rule| scope(rule) == *wanted && is_for_programs(rule)) {
                return Err(invalid(
                    format!("`{wanted}` is no endpoint that a token can be made for"),
                    "give method and path as openapi.json has them, as in `POST /v1/push`; what is a person's own is none",
                ));
            }
        }
        let registry = self.registry()?;
        let now = clock::unix_s();
        if registry.tokens.iter().filter(|token| now < token.expires_unix_s).count() >= TOKENS_MAX {
            return Err(invalid(
                format!("there are {TOKENS_MAX} tokens already"),
                "revoke those that nobody uses",
            ));
        }
        let mut random = [0; 38];
        getrandom::fill(&mut random)
            .map_err(|error| VaultError::Random(std::io::Error::other(error.to_string())))?;
        let (id, secret) = random.split_at(6);
        let id = hex::encode(id);
        let token = format!("{PREFIX}{id}_{}", BASE64.encode(secret));
        let record = TokenRecord {
            id: id.clone(),
            name: request.name.clone(),
            who: who.to_owned(),
            hash: Sha256::digest(token.as_bytes()).into(),
            scopes: scopes.clone(),
            made_unix_s: now,
            expires_unix_s: now.saturating_add(u64::from(request.days) * 86_400),
        };
        let expires_unix_s = record.expires_unix_s;
        self.commit(|registry| {
            registry.tokens.retain(|token| now < token.expires_unix_s);
            registry.tokens.push(record);
            Ok(())
        })?;
        let fields = [
            ("by", who.into()),
            ("token", id.as_str().into()),
            ("name", request.name.as_str().into()),
            ("scopes", scopes.into()),
            ("days", request.days.into()),
        ];
        self.audit.record("token-created", fields)?;
        Ok(CreatedToken { id, token, expires_unix_s })
    }

    /// Whether the token is good for this.
    pub(super) fn check_token(&self, who: &str, token: &str, rule: &Rule) -> Result<(), KeyholderError> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = clock::unix_s();
        let known = self.registry()?.tokens.iter().find(|known| bool::from(known.hash.ct_eq(&hash)));
        let known = known.filter(|known| known.who == who && now < known.expires_unix_s);
        let known = known.ok_or(KeyholderError::BadToken)?;
        let wanted = scope(rule);
        if known.scopes.contains(&wanted) {
            Ok(())
        } else {
            Err(KeyholderError::OutOfScope { token: known.name.clone(), wanted })
        }
    }

    /// The tokens that have not ended.
    pub(crate) fn token_entries(&self) -> Result<Vec<TokenEntry>, KeyholderError> {
        let now = clock::unix_s();
        let entry = |token: &TokenRecord| TokenEntry {
            id: token.id.clone(),
            name: token.name.clone(),
            who: token.who.clone(),
            scopes: token.scopes.clone(),
            made_unix_s: token.made_unix_s,
            expires_unix_s: token.expires_unix_s,
        };
        let tokens = self.registry()?.tokens.iter();
        Ok(tokens.filter(|token| now < token.expires_unix_s).map(entry).collect())
    }

    /// Ends a token, from the next request on.
    pub(crate) fn revoke_token(&mut self, id: &str, by: &str) -> Result<(), KeyholderError> {
        if !self.registry()?.tokens.iter().any(|token| token.id == id) {
            return Err(KeyholderError::NoSuchToken { id: id.to_owned() });
        }
        self.commit(|registry| {
            registry.tokens.retain(|token| token.id != id);
            Ok(())
        })?;
        self.audit.record("token-revoked", [("by", by.into()), ("token", id.into())])?;
        Ok(())
    }
}
