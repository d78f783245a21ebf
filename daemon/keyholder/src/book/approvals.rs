//! What one person may not do alone: asked for by one, seen by all, approved by others or lapsed.
//!
//! Who asks says the same thing again once it is approved; then it is done, once. An approval is for exactly that act by exactly that
//! person. The same person under another role is the same person.

use units::BootInstant;

use super::Book;
use crate::api::{Approval, ApprovalState};
use crate::clock;
use crate::error::KeyholderError;
use identity::Role;

/// Requests that wait at once; more is somebody flooding the others.
const REQUESTS_MAX: usize = 64;

/// Of these of one kind: whoever floods the others with wishes to be enrolled does not keep them from lifting a latch.
const REQUESTS_OF_A_KIND_MAX: usize = 32;

/// Longest reason for breaking the glass.
const REASON_BYTES_MAX: usize = 500;

/// What takes more than one person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grave {
    /// Erasing a volume.
    Erase,
    /// A policy that asks for less.
    Loosen,
    /// Rolling back, promoting, shrinking, going on from another state.
    Overwrite,
    /// Lifting a latch.
    Unlatch,
    /// Forgetting somebody's second factor, and enrolling somebody's first.
    People,
}

impl Grave {
    /// Who may approve it, beside those who may do it.
    const fn approvers(self) -> &'static [Role] {
        match self {
            Self::Erase | Self::Overwrite => &[Role::Operator, Role::SecurityOfficer],
            Self::Loosen | Self::Unlatch | Self::People => &[Role::SecurityOfficer],
        }
    }
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Request {
    id: String,
    grave: Grave,
    act: String,
    by: String,
    need: u8,
    approved_by: Vec<String>,
    broken_glass: bool,
    asked_unix_s: u64,
    until: BootInstant,
}

impl Request {
    fn is_approved(&self) -> bool {
        self.broken_glass || 1 + self.approved_by.len() >= usize::from(self.need)
    }

    fn entry(&self, now: BootInstant) -> Approval {
        Approval {
            id: self.id.clone(),
            act: self.act.clone(),
            by: self.by.clone(),
            need: self.need,
            approved_by: self.approved_by.clone(),
            state: match (self.broken_glass, self.is_approved()) {
                (true, _) => ApprovalState::GlassBroken,
                (false, true) => ApprovalState::Approved,
                (false, false) => ApprovalState::Wanted,
            },
            asked_unix_s: self.asked_unix_s,
            lapses_ms: self.until.ms_since(now),
        }
    }
}

/// The person behind a role.
fn person(who: &str) -> &str {
    who.split_once('/').map_or(who, |(_, name)| name)
}

impl Book {
    /// Lets `by` go on with `act` where that takes one person, or has been approved; that approval is used up. Otherwise it is asked for.
    pub(crate) fn require_others(&mut self, grave: Grave, act: &str, by: &str) -> Result<(), KeyholderError> {
        let quorum = &self.policy.quorum;
        let need = match grave {
            Grave::Erase => quorum.erase,
            Grave::Loosen => quorum.loosen,
            Grave::Overwrite => quorum.overwrite,
            Grave::Unlatch => quorum.unlatch,
            Grave::People => quorum.people,
        };
        let lapse_ms = u64::from(quorum.lapse_minutes) * 60_000;
        if need <= 1 {
            return Ok(());
        }
        self.drop_lapsed()?;
        let known = self
            .approvals
            .iter()
            .position(|request| request.grave == grave && request.act == act && request.by == by);
        if let Some(position) = known {
            // A policy that asks for more by now asks for it of this too.
            self.approvals[position].need = self.approvals[position].need.max(need);
            if self.approvals[position].is_approved() {
                let request = self.approvals.remove(position);
                let fields = [
                    ("by", by.into()),
                    ("request", request.id.into()),
                    ("act", request.act.into()),
                    ("approved_by", request.approved_by.into()),
                ];
                self.audit.record("approval-used", fields)?;
                return Ok(());
            }
            return Err(wanted(&self.approvals[position]));
        }
        let of_kind = self.approvals.iter().filter(|request| request.grave == grave).count();
        if self.approvals.len() >= REQUESTS_MAX || of_kind >= REQUESTS_OF_A_KIND_MAX {
            return Err(KeyholderError::Invalid {
                what: format!("{} requests wait for approval already", self.approvals.len()),
                next_step: "decide about them first (`nightlatch approval list`)",
            });
        }
        let mut id = [0; 4];
        getrandom::fill(&mut id)
            .map_err(|error| crate::vault::VaultError::Random(std::io::Error::other(error.to_string())))?;
        let request = Request {
            id: hex::encode(id),
            grave,
            act: act.to_owned(),
            by: by.to_owned(),
            need,
            approved_by: Vec::new(),
            broken_glass: false,
            asked_unix_s: clock::unix_s(),
            until: clock::now().saturating_add_ms(lapse_ms),
        };
        let fields = [
            ("by", by.into()),
            ("request", request.id.as_str().into()),
            ("act", act.into()),
            ("need", need.into()),
        ];
        self.audit.record("approval-wanted", fields)?;
        let error = wanted(&request);
        self.approvals.push(request);
        Err(error)
    }

    /// One more person agrees.
    pub(crate) fn approve_request(
        &mut self,
        id: &str,
        role: Role,
        by: &str,
    ) -> Result<Approval, KeyholderError> {
        let position = self.find_request(id)?;
        let request = &mut self.approvals[position];
        if !request.grave.approvers().contains(&role) {
            return Err(KeyholderError::OfficerOnly { act: "approving this" });
        }
        let own = person(&request.by) == person(by);
        if own || request.approved_by.iter().any(|other| person(other) == person(by)) {
            return Err(KeyholderError::SamePerson { own });
        }
        request.approved_by.push(by.to_owned());
        let entry = request.entry(clock::now());
        let fields = [("by", by.into()), ("request", id.into()), ("act", entry.act.as_str().into())];
        self.audit.record("approval-given", fields)?;
        Ok(entry)
    }

    /// Takes a request off: refused by another, or taken back.
    pub(crate) fn refuse_request(&mut self, id: &str, by: &str) -> Result<(), KeyholderError> {
        let position = self.find_request(id)?;
        let request = self.approvals.remove(position);
        let fields = [("by", by.into()), ("request", id.into()), ("act", request.act.into())];
        self.audit.record("approval-refused", fields)?;
        Ok(())
    }

    /// A security officer goes on alone, and everybody sees it.
    pub(crate) fn break_glass(
        &mut self,
        id: &str,
        reason: &str,
        by: &str,
    ) -> Result<Approval, KeyholderError> {
        if !self.policy.quorum.break_glass {
            return Err(KeyholderError::NoBreakGlass);
        }
        if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
            return Err(KeyholderError::Invalid {
                what: "breaking the glass takes a reason of 1 to 500 bytes".to_owned(),
                next_step: "say why nobody else can be asked",
            });
        }
        let position = self.find_request(id)?;
        let request = &mut self.approvals[position];
        request.broken_glass = true;
        let entry = request.entry(clock::now());
        tracing::error!(
            by,
            act = entry.act,
            reason,
            "break-glass: one person goes on alone with what takes several"
        );
        let fields = [
            ("by", by.into()),
            ("request", id.into()),
            ("act", entry.act.as_str().into()),
            ("asked_by", entry.by.as_str().into()),
            ("reason", reason.into()),
        ];
        self.audit.record("break-glass", fields)?;
        self.last_break_glass = Some(crate::api::BreakGlass {
            at_unix_s: clock::unix_s(),
            by: by.to_owned(),
            act: entry.act.clone(),
            reason: reason.to_owned(),
        });
        Ok(entry)
    }

    /// Everything that waits, for everybody to see.
    pub(crate) fn approval_entries(&mut self) -> Result<Vec<Approval>, KeyholderError> {
        self.drop_lapsed()?;
        let now = clock::now();
        Ok(self.approvals.iter().map(|request| request.entry(now)).collect())
    }

    fn find_request(&mut self, id: &str) -> Result<usize, KeyholderError> {
        self.registry()?;
        self.drop_lapsed()?;
        let position = self.approvals.iter().position(|request| request.id == id);
        position.ok_or_else(|| KeyholderError::NoSuchRequest { id: id.to_owned() })
    }

    fn drop_lapsed(&mut self) -> Result<(), KeyholderError> {
        let now = clock::now();
        let lapsed: Vec<Request> = self.approvals.extract_if(.., |request| now >= request.until).collect();
        for request in lapsed {
            let fields = [
                ("asked_by", request.by.into()),
                ("request", request.id.into()),
                ("act", request.act.into()),
            ];
            self.audit.record("approval-lapsed", fields)?;
        }
        Ok(())
    }
}

fn wanted(request: &Request) -> KeyholderError {
    KeyholderError::ApprovalWanted {
        id: request.id.clone(),
        act: request.act.clone(),
        have: request.approved_by.len(),
        need: request.need.saturating_sub(1),
    }
}
