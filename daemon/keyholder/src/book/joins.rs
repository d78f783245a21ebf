//! The root on its way from a keyholder that has it to one that may have it: who may, when, how often.

use std::collections::{BTreeMap, VecDeque};

use lease::message::SigningPublicKey;
use subtle::ConstantTimeEq;
use units::BootInstant;

use super::{APPROVAL_MS, Book};
use crate::api::{JoinApproved, SealState};
use crate::clock;
use crate::error::KeyholderError;
use crate::join::{JoinAnswer, Joiner, Received, Verified, root_aad};
use crate::policy::Join;

const HOUR_MS: u64 = 3_600_000;

/// What is known of keyholders that ask for the root; gone at a restart.
#[derive(Debug, Default)]
pub(super) struct Joins {
    /// A person approved a join until then.
    approved_until: BTreeMap<String, (BootInstant, String)>,
    /// When the root was given away within the last hour.
    given: VecDeque<BootInstant>,
    /// What a keyholder was refused with last: said once, not with each attempt.
    refused: BTreeMap<String, &'static str>,
}

/// Keyholders whose refusals are remembered: strangers have no certificate of a keyholder.
const REFUSED_MAX: usize = 64;

impl Book {
    /// A security officer lets a keyholder have the root, once, within the next minutes.
    pub(crate) fn approve_join(&mut self, name: &str, by: &str) -> Result<JoinApproved, KeyholderError> {
        self.registry()?;
        if self.policy.keyholder(name).is_none() {
            return Err(not_named(name));
        }
        let until = clock::now().saturating_add_ms(APPROVAL_MS);
        self.audit.record("join-approved", [("by", by.into()), ("keyholder", name.into())])?;
        self.joins.approved_until.insert(name.to_owned(), (until, by.to_owned()));
        Ok(JoinApproved { keyholder: name.to_owned(), within_ms: APPROVAL_MS })
    }

    /// Gives the root to a keyholder whose request was verified, if it may have it.
    pub(crate) fn give_root(&mut self, request: &Verified) -> Result<JoinAnswer, KeyholderError> {
        let may = self.may_have_root(request);
        let approved_by = match may {
            Ok(approved_by) => approved_by,
            Err(error) => {
                let kind = error.kind().0;
                let known = &mut self.joins.refused;
                if known.len() < REFUSED_MAX && known.insert(request.joiner.clone(), kind) != Some(kind) {
                    let fields =
                        [("keyholder", request.joiner.as_str().into()), ("why", error.to_string().into())];
                    self.audit.record("root-refused", fields)?;
                }
                return Err(error);
            }
        };
        let set = &self.opened()?.header.share_set;
        let aad = root_aad(set.set, set.root_epoch);
        let fields = [
            ("keyholder", request.joiner.as_str().into()),
            ("identity", hex::encode(request.identity_key).into()),
            ("by", approved_by.as_deref().unwrap_or("policy").into()),
        ];
        // Before it leaves.
        self.audit.record("root-given", fields)?;
        self.joins.approved_until.remove(&request.joiner);
        self.joins.refused.remove(&request.joiner);
        self.joins.given.push_back(clock::now());
        tracing::warn!(keyholder = request.joiner, "another keyholder gets the root from this one");
        let sealed = self.vault.seal_root(&request.envelope_key, &request.info, &aad)?;
        Ok(request.answer(&sealed, |digest| self.vault.sign(digest))?)
    }

    /// Whether it may, and who approved it where somebody did.
    fn may_have_root(&mut self, request: &Verified) -> Result<Option<String>, KeyholderError> {
        self.store.may_grant()?;
        let header = &self.opened()?.header;
        let name = request.joiner.as_str();
        if header.grant_signing_key != request.root {
            return Err(KeyholderError::OtherRoot { name: name.to_owned() });
        }
        let rule = self.policy.keyholder(name).ok_or_else(|| not_named(name))?;
        let identity = hex::decode(&rule.identity).unwrap_or_default();
        if !bool::from(identity.as_slice().ct_eq(request.identity_key.as_slice())) {
            let claimed = hex::encode(request.identity_key);
            return Err(KeyholderError::OtherIdentity { name: name.to_owned(), claimed });
        }
        let now = clock::now();
        while self.joins.given.front().is_some_and(|at| at.saturating_add_ms(HOUR_MS) <= now) {
            self.joins.given.pop_front();
        }
        let per_hour = self.policy.joins_per_hour();
        let approved = self.joins.approved_until.get(name).filter(|(until, _)| now < *until);
        let approved_by = approved.map(|(_, by)| by.clone());
        if rule.join == Join::Approve && approved_by.is_none() {
            return Err(KeyholderError::JoinNotApproved { name: name.to_owned() });
        }
        // People who are there may go on; what happens by itself has a bound.
        if approved_by.is_none() && self.joins.given.len() >= usize::try_from(per_hour).unwrap_or(usize::MAX)
        {
            return Err(KeyholderError::TooManyJoins { per_hour });
        }
        Ok(approved_by)
    }

    /// What this keyholder asks another one with; `None` where there is nothing to ask for.
    pub(crate) fn joiner(
        &self,
        giver: &str,
        identity_key: SigningPublicKey,
    ) -> Result<Option<Joiner>, KeyholderError> {
        if self.state() != SealState::Sealed || self.store.may_grant().is_err() {
            return Ok(None);
        }
        let Some(header) = self.header() else { return Ok(None) };
        Ok(Some(Joiner {
            joiner: self.name.clone(),
            giver: giver.to_owned(),
            identity_key,
            root: header.grant_signing_key,
            envelope_key: self.vault.make_join_key()?,
        }))
    }

    /// Takes the root from another keyholder's answer, and opens the ledger.
    pub(crate) fn take_root(&mut self, received: &Received, giver: &str) -> Result<(), KeyholderError> {
        let set = self.sealed.as_ref().ok_or(KeyholderError::NoLedger)?.header.share_set.clone();
        let aad = root_aad(set.set, set.root_epoch);
        self.vault.open_root(&set, &received.info, &aad, &received.sealed)?;
        let recorded = self.audit.record("root-taken", [("from", giver.into())]);
        // Half open is sealed: with a root in the arena nobody could give it another.
        recorded.inspect_err(|_| self.vault.wipe())?;
        self.unseal_or_forget(&format!("keyholder/{giver}"))
    }
}

fn not_named(name: &str) -> KeyholderError {
    KeyholderError::NotEnrolled { name: name.to_owned() }
}
