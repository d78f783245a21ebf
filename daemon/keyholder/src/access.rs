//! Which role may call which endpoint. The router is built from this table, so there is no other place to look.
//!
//! Operators run things; storage administrators make and size volumes, and give no node a key; security officers decide who may have
//! a key at all (shares, pins, latches). Forgetting is never refused to operators and officers.

use identity::Role;

/// The HTTP methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reads.
    Get,
    /// Creates or acts.
    Post,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Verb {
    /// The method's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// One endpoint and who may call it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The method.
    pub verb: Verb,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// The roles.
    pub roles: &'static [Role],
    /// What it takes beside a certificate.
    pub proof: Proof,
}

/// What a certificate has to be accompanied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By nothing: it says nothing secret, it takes keys away, or it is how the rest is obtained.
    Certificate,
    /// By an officer's share, which opens nothing without the others: the ledger that knows second factors is not open yet.
    Share,
    /// By a login with a second factor, where the policy or the person has one.
    SecondFactor,
    /// Its certificate names nobody: whoever it is has yet to say so, by a token of the OpenID provider.
    IdToken,
}

const READERS: &[Role] =
    &[Role::Operator, Role::StorageAdmin, Role::SecurityOfficer, Role::Auditor, Role::Monitor];
/// Everybody with a login: a monitoring system has none.
const PEOPLE: &[Role] = &[Role::Operator, Role::StorageAdmin, Role::SecurityOfficer, Role::Auditor];
/// The trail says who did what: a monitoring system needs no more of it than that it goes on.
const TRAIL_READERS: &[Role] = &[Role::Operator, Role::SecurityOfficer, Role::Auditor];
const OPERATOR: &[Role] = &[Role::Operator];
/// Who makes volumes and sizes them. Erasing one, and going back to an older state, is an operator's.
const STORAGE: &[Role] = &[Role::Operator, Role::StorageAdmin];
const OFFICER: &[Role] = &[Role::SecurityOfficer];
/// One that has the root is asked for it by one that has not.
const KEYHOLDER: &[Role] = &[Role::Keyholder];
/// Those who have no certificate of a role.
const GUESTS: &[Role] = &[];
const EITHER: &[Role] = &[Role::Operator, Role::SecurityOfficer];

/// Every endpoint.
pub const TABLE: &[Rule] = &[
    Rule { verb: Verb::Get, path: "/v1/status", roles: READERS, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/ceremony", roles: OFFICER, proof: Proof::Share },
    Rule { verb: Verb::Post, path: "/v1/unseal", roles: OFFICER, proof: Proof::Share },
    Rule { verb: Verb::Get, path: "/v1/nodes", roles: READERS, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/nodes", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/nodes/{name}/approve", roles: OFFICER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Patch, path: "/v1/nodes/{name}", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Delete, path: "/v1/nodes/{name}", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Get, path: "/v1/volumes", roles: READERS, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/volumes", roles: STORAGE, proof: Proof::SecondFactor },
    Rule { verb: Verb::Patch, path: "/v1/volumes/{label}", roles: STORAGE, proof: Proof::SecondFactor },
    Rule { verb: Verb::Delete, path: "/v1/volumes/{label}", roles: OPERATOR, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/volumes/{label}/clone", roles: STORAGE, proof: Proof::SecondFactor },
    Rule {
        verb: Verb::Post,
        path: "/v1/volumes/{label}/rollback",
        roles: OPERATOR,
        proof: Proof::SecondFactor,
    },
    // It decides which node may hold a key.
    Rule {
        verb: Verb::Post,
        path: "/v1/volumes/{label}/promote",
        roles: OFFICER,
        proof: Proof::SecondFactor,
    },
    Rule {
        verb: Verb::Post,
        path: "/v1/volumes/{label}/accept-state",
        roles: OFFICER,
        proof: Proof::SecondFactor,
    },
    Rule { verb: Verb::Post, path: "/v1/volumes/{label}/rotate", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/push", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/revoke", roles: EITHER, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/lockdown", roles: EITHER, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/unlatch", roles: OFFICER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Get, path: "/v1/ledger/backup", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/ledger/restore", roles: OFFICER, proof: Proof::Share },
    Rule { verb: Verb::Post, path: "/v1/drills", roles: EITHER, proof: Proof::SecondFactor },
    Rule {
        verb: Verb::Post,
        path: "/v1/nodes/{name}/compromised",
        roles: EITHER,
        proof: Proof::SecondFactor,
    },
    Rule { verb: Verb::Get, path: "/v1/policy", roles: TRAIL_READERS, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/policy", roles: OFFICER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/policy/check", roles: TRAIL_READERS, proof: Proof::SecondFactor },
    Rule { verb: Verb::Get, path: "/v1/people", roles: TRAIL_READERS, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/people/me/second-factor", roles: PEOPLE, proof: Proof::Certificate },
    Rule {
        verb: Verb::Post,
        path: "/v1/people/me/second-factor/confirm",
        roles: PEOPLE,
        proof: Proof::Certificate,
    },
    Rule {
        verb: Verb::Delete,
        path: "/v1/people/{role}/{name}/second-factor",
        roles: OFFICER,
        proof: Proof::SecondFactor,
    },
    Rule { verb: Verb::Post, path: "/v1/login", roles: PEOPLE, proof: Proof::Certificate },
    Rule { verb: Verb::Get, path: "/v1/login/oidc", roles: GUESTS, proof: Proof::IdToken },
    Rule { verb: Verb::Post, path: "/v1/login/oidc", roles: GUESTS, proof: Proof::IdToken },
    Rule { verb: Verb::Post, path: "/v1/logout", roles: PEOPLE, proof: Proof::Certificate },
    Rule { verb: Verb::Get, path: "/v1/approvals", roles: PEOPLE, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/approvals/{id}/approve", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/approvals/{id}/refuse", roles: EITHER, proof: Proof::SecondFactor },
    Rule {
        verb: Verb::Post,
        path: "/v1/approvals/{id}/break-glass",
        roles: OFFICER,
        proof: Proof::SecondFactor,
    },
    Rule { verb: Verb::Get, path: "/v1/tokens", roles: PEOPLE, proof: Proof::SecondFactor },
    Rule { verb: Verb::Post, path: "/v1/tokens", roles: PEOPLE, proof: Proof::SecondFactor },
    Rule { verb: Verb::Delete, path: "/v1/tokens/{id}", roles: EITHER, proof: Proof::SecondFactor },
    Rule { verb: Verb::Get, path: "/v1/erasures", roles: TRAIL_READERS, proof: Proof::SecondFactor },
    Rule {
        verb: Verb::Post,
        path: "/v1/erasures/{volume}/confirm",
        roles: OFFICER,
        proof: Proof::SecondFactor,
    },
    Rule {
        verb: Verb::Post,
        path: "/v1/erasures/{volume}/certificate",
        roles: TRAIL_READERS,
        proof: Proof::SecondFactor,
    },
    // The configuration says where events go, so there is nothing here that makes a keyholder connect somewhere else.
    Rule { verb: Verb::Get, path: "/v1/webhooks", roles: READERS, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/webhooks/{name}/test", roles: OPERATOR, proof: Proof::SecondFactor },
    Rule {
        verb: Verb::Post,
        path: "/v1/webhooks/{name}/replay",
        roles: OPERATOR,
        proof: Proof::SecondFactor,
    },
    Rule {
        verb: Verb::Post,
        path: "/v1/webhooks/{name}/discard",
        roles: OPERATOR,
        proof: Proof::SecondFactor,
    },
    Rule { verb: Verb::Get, path: "/v1/audit", roles: TRAIL_READERS, proof: Proof::SecondFactor },
    Rule { verb: Verb::Get, path: "/v1/audit/digests", roles: READERS, proof: Proof::Certificate },
    Rule { verb: Verb::Post, path: "/v1/keyholders/{name}/join", roles: OFFICER, proof: Proof::SecondFactor },
    // Its body is signed by the key that the policy names, for this very connection.
    Rule { verb: Verb::Post, path: "/v1/root", roles: KEYHOLDER, proof: Proof::Certificate },
];

/// Roles that may connect at all.
pub const ACCEPTED_ROLES: &[Role] = READERS;

/// The same where keyholders share a store: one that has no root asks the others for it.
pub const ACCEPTED_AMONG_KEYHOLDERS: &[Role] = &[
    Role::Operator,
    Role::StorageAdmin,
    Role::SecurityOfficer,
    Role::Auditor,
    Role::Monitor,
    Role::Keyholder,
];

/// The rule for an endpoint.
pub(crate) fn rule(verb: Verb, path: &str) -> Option<&'static Rule> {
    TABLE.iter().find(|rule| rule.verb == verb && rule.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_call_something_may_connect() {
        for role in TABLE.iter().flat_map(|rule| rule.roles) {
            assert!(ACCEPTED_AMONG_KEYHOLDERS.contains(role), "{role}");
            // A keyholder that shares no store is asked by none for anything.
            assert_eq!(ACCEPTED_ROLES.contains(role), *role != Role::Keyholder, "{role}");
        }
    }
}
