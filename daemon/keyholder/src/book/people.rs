//! People's second factor: enrolling it, logging in with it, forgetting it.
//!
//! Invariants:
//! - A code counts once, and within a minute and a half of its time.
//! - A login belongs to the certificate's key that it was made with, ends by itself, and is kept as a hash. One by an OpenID provider
//!   is as good as a certificate, and has a second factor where the policy takes the provider's.
//! - Once a security officer has a second factor, who has none yet gets one with an officer's approval, where the policy wants two people
//!   for that: a certificate alone, be it of anybody who ever had the issuer's key, is not enough.
//! - Guessing is slow: after a few wrong codes in a row nobody logs in as that person for a while.
//! - Taking keys back never waits for a second factor (the rules in [`crate::access::TABLE`] say so).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use identity::{GuestKey, PeerIdentity, Role};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use units::BootInstant;

use super::{Book, Grave};
use crate::access::Rule;
use crate::api::{EnrolledFactor, Login, OidcLoggedIn, PersonEntry};
use crate::clock;
use crate::error::KeyholderError;
use crate::oidc::{Claims, OidcError};
use crate::policy::SecondFactor;
use crate::totp;
use crate::vault::{VaultError, Wrapped};

/// Wrong codes in a row before a person is kept waiting: a typo or two, not a search.
const WRONG_MAX: u32 = 5;

/// For so long. With five codes of a million in each, a search takes decades.
const WAIT_MS: u64 = 5 * 60_000;

/// A secret that was shown and not confirmed with a code is forgotten after this.
const CONFIRM_MS: u64 = 10 * 60_000;

/// Logins at once.
const SESSIONS_MAX: usize = 1_024;

/// Of one person: a shell or two, a browser, some programs. One more ends the oldest, and nobody else's.
const SESSIONS_OF_PERSON_MAX: usize = 16;

/// ID tokens that are remembered: more logins than there are within a token's life.
const USED_TOKENS_MAX: usize = 16_384;

/// People with a second factor.
const PEOPLE_MAX: usize = 1_024;

/// A person who has enrolled a second factor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PersonRecord {
    /// Role and name, as in the certificate.
    pub(crate) who: String,
    /// The secret under the ledger key.
    pub(crate) secret: Wrapped,
    /// The last step whose code was used: none counts twice, after a restart neither.
    pub(crate) last_step: u64,
    pub(crate) since_unix_s: u64,
}

/// What is not kept past the program's end.
#[derive(Debug, Default)]
pub(super) struct People {
    /// By hash of the token.
    sessions: BTreeMap<[u8; 32], Session>,
    pending: BTreeMap<String, Pending>,
    wrong: BTreeMap<String, Wrong>,
    /// ID tokens that were used, by hash, until they are worth nothing anyway.
    used: BTreeMap<[u8; 32], u64>,
}

/// A login, of the certificate's or guest's key that it was made with.
#[derive(Debug)]
struct Session {
    peer: PeerIdentity,
    until: BootInstant,
    /// It was made with a second factor.
    second_factor: bool,
}

#[derive(Debug)]
struct Pending {
    secret: Wrapped,
    until: BootInstant,
}

#[derive(Debug)]
struct Wrong {
    count: u32,
    until: BootInstant,
}

/// Role and name, as the trail names people.
pub(crate) fn who(peer: &PeerIdentity) -> String {
    format!("{}/{}", peer.role, peer.name)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn too_many(count: usize) -> KeyholderError {
    KeyholderError::Invalid {
        what: format!("{count} people are logged in"),
        next_step: "try again when some of the logins have ended",
    }
}

impl Book {
    /// Whether the peer may go on with what takes more than a certificate. `token` is what came with the request.
    pub(crate) fn check_second_factor(
        &mut self,
        peer: &PeerIdentity,
        token: Option<&str>,
        rule: &Rule,
    ) -> Result<(), KeyholderError> {
        let who = who(peer);
        // Sealed, it knows nobody's second factor; what needs the ledger is refused for that.
        let Some(open) = &self.open else { return Ok(()) };
        // Whoever comes with a program's token is held to it, whatever else they could do.
        if let Some(token) = token.filter(|token| token.starts_with(super::tokens::PREFIX)) {
            return self.check_token(&who, token, rule);
        }
        let enrolled = open.registry.people.iter().any(|person| person.who == who);
        let now = clock::now();
        self.people.sessions.retain(|_, session| now < session.until);
        let session = token.and_then(|token| self.people.sessions.get(&hash(token)));
        if session.is_some_and(|session| session.peer == *peer && session.second_factor) {
            return Ok(());
        }
        match self.policy.people.second_factor {
            _ if enrolled => Err(KeyholderError::NotLoggedIn { who }),
            SecondFactor::Enrolled => Ok(()),
            SecondFactor::Required => Err(KeyholderError::NoSecondFactor { who }),
        }
    }

    /// Who a guest is that comes with the token of a login by this key.
    pub(crate) fn guest(&self, guest: &GuestKey, token: &str) -> Option<PeerIdentity> {
        let session =
            self.people.sessions.get(&hash(token)).filter(|session| clock::now() < session.until)?;
        (session.peer.spki_sha256 == guest.spki_sha256).then(|| session.peer.clone())
    }

    /// Logs somebody in for whom the OpenID provider vouches, in the role that was asked for, or the first that the policy gives.
    pub(crate) fn log_in_by_provider(
        &mut self,
        guest: &GuestKey,
        claims: &Claims,
        wanted: Option<Role>,
    ) -> Result<OidcLoggedIn, KeyholderError> {
        self.registry()?;
        let now = clock::unix_s();
        self.people.used.retain(|_, until| now < *until);
        if self.people.used.contains_key(&claims.token) {
            return Err(OidcError::Used.into());
        }
        let name = claims.name.clone();
        let roles = self.policy.roles_of(&claims.all);
        let role = roles.into_iter().find(|role| wanted.is_none_or(|wanted| wanted == *role));
        let Some(role) = role else {
            let fields = [("by", format!("oidc/{name}").into()), ("why", "no-role".into())];
            self.audit.record("login-refused", fields)?;
            return Err(KeyholderError::NoRole { name: name.to_string(), role: wanted });
        };
        if self.people.used.len() >= USED_TOKENS_MAX {
            return Err(too_many(USED_TOKENS_MAX));
        }
        let peer = PeerIdentity { role, name, spki_sha256: guest.spki_sha256 };
        let second_factor = self.policy.takes_second_factor(&claims.all);
        let login = self.begin_session(&peer, second_factor)?;
        self.people.used.insert(claims.token, claims.expires_unix_s);
        let fields = [
            ("by", who(&peer).into()),
            ("minutes", (login.lasts_ms / 60_000).into()),
            ("provider", true.into()),
            ("second_factor", second_factor.into()),
        ];
        self.audit.record("login", fields)?;
        Ok(OidcLoggedIn { login, role, name: peer.name.to_string(), second_factor })
    }

    fn begin_session(&mut self, peer: &PeerIdentity, second_factor: bool) -> Result<Login, KeyholderError> {
        let now = clock::now();
        self.people.sessions.retain(|_, session| now < session.until);
        let own = self.people.sessions.iter().filter(|(_, session)| who(&session.peer) == who(peer));
        let own: Vec<_> = own.map(|(hash, session)| (session.until, *hash)).collect();
        if own.len() >= SESSIONS_OF_PERSON_MAX
            && let Some((_, oldest)) = own.into_iter().min()
        {
            self.people.sessions.remove(&oldest);
        }
        if self.people.sessions.len() >= SESSIONS_MAX {
            return Err(too_many(SESSIONS_MAX));
        }
        let mut token = [0; 32];
        getrandom::fill(&mut token)
            .map_err(|error| VaultError::Random(std::io::Error::other(error.to_string())))?;
        let token = BASE64.encode(token);
        let lasts_ms = u64::from(self.policy.people.session_minutes) * 60_000;
        let session = Session { peer: peer.clone(), until: now.saturating_add_ms(lasts_ms), second_factor };
        self.people.sessions.insert(hash(&token), session);
        Ok(Login { token, lasts_ms })
    }

    /// Makes a secret for the peer's authenticator. It counts once a code of it was given.
    pub(crate) fn begin_enrolment(&mut self, peer: &PeerIdentity) -> Result<EnrolledFactor, KeyholderError> {
        let who = who(peer);
        let registry = self.registry()?;
        if registry.people.iter().any(|person| person.who == who) {
            return Err(KeyholderError::Exists { what: format!("a second factor of {who}") });
        }
        if registry.people.len() >= PEOPLE_MAX {
            return Err(KeyholderError::Invalid {
                what: format!("{PEOPLE_MAX} people have a second factor already"),
                next_step: "forget those of people who have left",
            });
        }
        // Whoever has the people issuer's key can be anybody with a name that is new: somebody who is known has to know them. The first
        // officer has nobody to be known by.
        let is_officer =
            |person: &PersonRecord| person.who.starts_with(&format!("{}/", Role::SecurityOfficer));
        if registry.people.iter().any(is_officer) {
            self.require_others(Grave::People, &format!("enrol a second factor of {who}"), &who)?;
        }
        let (secret, base32) = self.vault.make_totp_secret(&who)?;
        let until = clock::now().saturating_add_ms(CONFIRM_MS);
        self.people.pending.insert(who.clone(), Pending { secret, until });
        self.audit.record("second-factor-shown", [("by", who.as_str().into())])?;
        let label = format!("Nightlatch:{}", who.replace('/', "%2F"));
        let uri = format!(
            "otpauth://totp/{label}?secret={base32}&issuer=Nightlatch&algorithm=SHA1&digits=6&period=30"
        );
        Ok(EnrolledFactor { secret: base32, uri })
    }

    /// The first code of a new secret: from now on it is wanted.
    pub(crate) fn confirm_enrolment(
        &mut self,
        peer: &PeerIdentity,
        code: &str,
    ) -> Result<(), KeyholderError> {
        let who = who(peer);
        let now = clock::now();
        self.people.pending.retain(|_, pending| now < pending.until);
        self.refuse_guessing(&who)?;
        let Some(pending) = self.people.pending.get(&who) else {
            return Err(KeyholderError::Invalid {
                what: "no second factor waits to be confirmed".to_owned(),
                next_step: "begin with `nightlatch people enrol`",
            });
        };
        let secret = pending.secret;
        if self.registry()?.people.iter().any(|person| person.who == who) {
            // At another keyholder meanwhile: its secret is the one that counts.
            self.people.pending.remove(&who);
            return Err(KeyholderError::Exists { what: format!("a second factor of {who}") });
        }
        let Some(step) = self.matching_step(&who, &secret, code, 0)? else {
            return Err(self.wrong_code(&who)?);
        };
        let record =
            PersonRecord { who: who.clone(), secret, last_step: step, since_unix_s: clock::unix_s() };
        self.commit(|registry| {
            registry.people.push(record);
            Ok(())
        })?;
        self.people.pending.remove(&who);
        self.people.wrong.remove(&who);
        self.audit.record("second-factor-enrolled", [("by", who.into())])?;
        Ok(())
    }

    /// Logs the peer in with a code.
    pub(crate) fn log_in(&mut self, peer: &PeerIdentity, code: &str) -> Result<Login, KeyholderError> {
        let who = who(peer);
        let person = self.registry()?.people.iter().find(|person| person.who == who).cloned();
        let person = person.ok_or_else(|| KeyholderError::NoSecondFactor { who: who.clone() })?;
        self.refuse_guessing(&who)?;
        let Some(step) = self.matching_step(&who, &person.secret, code, person.last_step)? else {
            return Err(self.wrong_code(&who)?);
        };
        // Durable before the login counts: after a crash the code is used up.
        self.commit(|registry| {
            registry
                .people
                .iter_mut()
                .filter(|person| person.who == who)
                .for_each(|person| person.last_step = step);
            Ok(())
        })?;
        self.people.wrong.remove(&who);
        let login = self.begin_session(peer, true)?;
        let minutes = login.lasts_ms / 60_000;
        self.audit.record("login", [("by", who.into()), ("minutes", minutes.into())])?;
        Ok(login)
    }

    /// Ends every login of the peer.
    pub(crate) fn log_out(&mut self, peer: &PeerIdentity) -> Result<(), KeyholderError> {
        let who = who(peer);
        self.people.sessions.retain(|_, session| self::who(&session.peer) != who);
        self.audit.record("logout", [("by", who.into())])?;
        Ok(())
    }

    /// Forgets somebody's second factor, and ends the logins that were made with it.
    pub(crate) fn forget_factor(&mut self, of: &str, by: &str) -> Result<(), KeyholderError> {
        self.check_person(of)?;
        self.commit(|registry| {
            registry.people.retain(|person| person.who != of);
            Ok(())
        })?;
        self.people.sessions.retain(|_, session| who(&session.peer) != of);
        self.audit.record("second-factor-forgotten", [("by", by.into()), ("of", of.into())])?;
        Ok(())
    }

    /// Whether this person has a second factor to forget.
    pub(crate) fn check_person(&self, of: &str) -> Result<(), KeyholderError> {
        let known = self.registry()?.people.iter().any(|person| person.who == of);
        if known { Ok(()) } else { Err(KeyholderError::NoSuchPerson { who: of.to_owned() }) }
    }

    /// Who has enrolled.
    pub(crate) fn person_entries(&self) -> Result<Vec<PersonEntry>, KeyholderError> {
        let now = clock::now();
        let logged_in = |known: &str| {
            self.people.sessions.values().any(|session| who(&session.peer) == known && now < session.until)
        };
        Ok(self
            .registry()?
            .people
            .iter()
            .map(|person| PersonEntry {
                who: person.who.clone(),
                enrolled_unix_s: person.since_unix_s,
                logged_in: logged_in(&person.who),
            })
            .collect())
    }

    fn matching_step(
        &self,
        who: &str,
        secret: &Wrapped,
        text: &str,
        last_used: u64,
    ) -> Result<Option<u64>, KeyholderError> {
        let Some(code) = totp::parse(text) else { return Ok(None) };
        for step in totp::steps(totp::step_at(clock::unix_s()), last_used) {
            if self.vault.totp_code(who, secret, step)? == code {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    fn refuse_guessing(&mut self, who: &str) -> Result<(), KeyholderError> {
        let now = clock::now();
        self.people.wrong.retain(|_, wrong| now < wrong.until);
        match self.people.wrong.get(who) {
            Some(wrong) if wrong.count >= WRONG_MAX => Err(KeyholderError::TooManyCodes {
                who: who.to_owned(),
                wait_s: wrong.until.ms_since(now).div_ceil(1_000),
            }),
            _ => Ok(()),
        }
    }

    fn wrong_code(&mut self, who: &str) -> Result<KeyholderError, KeyholderError> {
        let until = clock::now().saturating_add_ms(WAIT_MS);
        let wrong = self.people.wrong.entry(who.to_owned()).or_insert(Wrong { count: 0, until });
        wrong.count += 1;
        wrong.until = until;
        let fields = [("by", who.into()), ("in_a_row", wrong.count.into())];
        self.audit.record("login-refused", fields)?;
        Ok(KeyholderError::WrongCode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::tests::{ceremony, open};

    fn peer(name: &str) -> PeerIdentity {
        PeerIdentity { role: Role::Operator, name: name.parse().unwrap(), spki_sha256: [0; 32] }
    }

    #[test]
    fn one_person_has_so_many_logins_and_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = open(dir.path());
        ceremony(&mut book);
        let first = book.begin_session(&peer("anna"), true).unwrap().token;
        let other = book.begin_session(&peer("berta"), true).unwrap().token;
        clock::simulated::set(clock::now().saturating_add_ms(1));
        (0..SESSIONS_MAX).for_each(|_| drop(book.begin_session(&peer("anna"), true).unwrap()));
        assert_eq!(book.people.sessions.len(), SESSIONS_OF_PERSON_MAX + 1);
        assert!(!book.people.sessions.contains_key(&hash(&first)), "the oldest went");
        assert!(book.people.sessions.contains_key(&hash(&other)));
    }
}
