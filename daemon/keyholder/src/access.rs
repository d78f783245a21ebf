//! Which role may call which endpoint. The router is built from this table, so there is no other place to look.
//!
//! Operators run things; security officers decide who may have a key at all (shares, pins, latches). Forgetting is
//! never refused to either of them.

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

/// One endpoint and who may call it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The method.
    pub verb: Verb,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// The roles.
    pub roles: &'static [Role],
}

const READERS: &[Role] = &[Role::Operator, Role::SecurityOfficer, Role::Auditor, Role::Monitor];
const OPERATOR: &[Role] = &[Role::Operator];
const OFFICER: &[Role] = &[Role::SecurityOfficer];
const EITHER: &[Role] = &[Role::Operator, Role::SecurityOfficer];

/// Every endpoint.
pub const TABLE: &[Rule] = &[
    Rule { verb: Verb::Get, path: "/v1/status", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/ceremony", roles: OFFICER },
    Rule { verb: Verb::Post, path: "/v1/unseal", roles: OFFICER },
    Rule { verb: Verb::Get, path: "/v1/nodes", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/nodes", roles: EITHER },
    Rule { verb: Verb::Post, path: "/v1/nodes/{name}/approve", roles: OFFICER },
    Rule { verb: Verb::Patch, path: "/v1/nodes/{name}", roles: EITHER },
    Rule { verb: Verb::Delete, path: "/v1/nodes/{name}", roles: EITHER },
    Rule { verb: Verb::Get, path: "/v1/volumes", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/volumes", roles: OPERATOR },
    Rule { verb: Verb::Patch, path: "/v1/volumes/{label}", roles: OPERATOR },
    Rule { verb: Verb::Delete, path: "/v1/volumes/{label}", roles: OPERATOR },
    Rule { verb: Verb::Post, path: "/v1/volumes/{label}/clone", roles: OPERATOR },
    Rule { verb: Verb::Post, path: "/v1/volumes/{label}/rollback", roles: OPERATOR },
    // It decides which node may hold a key.
    Rule { verb: Verb::Post, path: "/v1/volumes/{label}/promote", roles: OFFICER },
    Rule { verb: Verb::Post, path: "/v1/push", roles: EITHER },
    Rule { verb: Verb::Post, path: "/v1/revoke", roles: EITHER },
    Rule { verb: Verb::Post, path: "/v1/lockdown", roles: EITHER },
    Rule { verb: Verb::Post, path: "/v1/unlatch", roles: OFFICER },
    Rule { verb: Verb::Get, path: "/v1/ledger/backup", roles: EITHER },
    Rule { verb: Verb::Post, path: "/v1/ledger/restore", roles: OFFICER },
    Rule { verb: Verb::Post, path: "/v1/drills", roles: EITHER },
];

/// Roles that may connect at all.
pub const ACCEPTED_ROLES: &[Role] = READERS;

/// The rule for an endpoint.
pub(crate) fn rule(verb: Verb, path: &str) -> Option<&'static Rule> {
    TABLE.iter().find(|rule| rule.verb == verb && rule.path == path)
}
