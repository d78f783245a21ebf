//! Which role may call which endpoint. The router is built from this table, so there is no other place to look.

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
}

const READERS: &[Role] = &[
    Role::Operator,
    Role::StorageAdmin,
    Role::SecurityOfficer,
    Role::Auditor,
    Role::Monitor,
    Role::Keyholder,
];
/// Who gives people and machines their access to what is stored.
const OPERATOR: &[Role] = &[Role::Operator];
/// Who looks after pools, snapshots, replicas and buckets.
const STORAGE: &[Role] = &[Role::Operator, Role::StorageAdmin];
const STORAGE_AND_AUDITOR: &[Role] = &[Role::Operator, Role::StorageAdmin, Role::Auditor];
const OPERATOR_AND_AUDITOR: &[Role] = &[Role::Operator, Role::Auditor];
const TRAIL_READERS: &[Role] = &[Role::Operator, Role::SecurityOfficer, Role::Auditor, Role::Keyholder];
const KEYHOLDER: &[Role] = &[Role::Keyholder];

/// Every endpoint over mutual TLS.
pub const TABLE: &[Rule] = &[
    Rule { verb: Verb::Get, path: "/v1/status", roles: READERS },
    Rule { verb: Verb::Get, path: "/v1/hardware", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/disks/{disk}/locate", roles: STORAGE },
    Rule { verb: Verb::Get, path: "/v1/pools", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/pools/{pool}/grow", roles: STORAGE },
    Rule { verb: Verb::Post, path: "/v1/pools/{pool}/replace", roles: STORAGE },
    Rule { verb: Verb::Get, path: "/v1/pools/{pool}/check", roles: STORAGE },
    Rule { verb: Verb::Post, path: "/v1/pools/{pool}/scrub", roles: STORAGE },
    // Ciphertext that the node's own record of it fits: whoever moves it can put nothing else there.
    Rule { verb: Verb::Get, path: "/v1/pools/{pool}/wanted", roles: OPERATOR },
    Rule { verb: Verb::Post, path: "/v1/pools/{pool}/heal/{offset}", roles: OPERATOR },
    Rule { verb: Verb::Post, path: "/v1/sectors/find", roles: OPERATOR },
    Rule { verb: Verb::Get, path: "/v1/volumes", roles: READERS },
    // Volumes are made, resized and removed through the keyholder, which keeps their names and keys.
    Rule { verb: Verb::Post, path: "/v1/volumes", roles: KEYHOLDER },
    Rule { verb: Verb::Patch, path: "/v1/volumes/{volume}", roles: KEYHOLDER },
    Rule { verb: Verb::Delete, path: "/v1/volumes/{volume}", roles: KEYHOLDER },
    Rule { verb: Verb::Post, path: "/v1/volumes/{volume}/rollback", roles: KEYHOLDER },
    Rule { verb: Verb::Post, path: "/v1/volumes/{volume}/limits", roles: STORAGE },
    Rule { verb: Verb::Get, path: "/v1/volumes/{volume}/access", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/volumes/{volume}/access", roles: OPERATOR },
    // Snapshots need neither name nor key; a clone is a volume.
    Rule { verb: Verb::Get, path: "/v1/snapshots", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/snapshots", roles: STORAGE },
    Rule { verb: Verb::Delete, path: "/v1/snapshots/{snapshot}", roles: STORAGE },
    // Nobody makes a lock shorter, so whoever may delete may lock.
    Rule { verb: Verb::Post, path: "/v1/snapshots/{snapshot}/lock", roles: OPERATOR },
    Rule { verb: Verb::Get, path: "/v1/replication", roles: READERS },
    Rule { verb: Verb::Get, path: "/v1/schedules", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/volumes/{volume}/schedule", roles: OPERATOR },
    Rule { verb: Verb::Delete, path: "/v1/volumes/{volume}/schedule", roles: OPERATOR },
    Rule { verb: Verb::Post, path: "/v1/volumes/{volume}/schedule/acknowledge", roles: OPERATOR },
    Rule { verb: Verb::Post, path: "/v1/snapshots/{snapshot}/clone", roles: KEYHOLDER },
    // Ciphertext and its records: who moves them sees no more than who has the disk.
    Rule { verb: Verb::Get, path: "/v1/snapshots/{snapshot}/manifest", roles: STORAGE },
    Rule { verb: Verb::Get, path: "/v1/snapshots/{snapshot}/portion", roles: STORAGE },
    Rule { verb: Verb::Post, path: "/v1/replicas", roles: STORAGE },
    Rule { verb: Verb::Post, path: "/v1/replicas/{volume}/{snapshot}", roles: STORAGE },
    Rule { verb: Verb::Post, path: "/v1/replicas/{volume}/{snapshot}/end", roles: STORAGE },
    // The keyholder decides which node may hold the key.
    Rule { verb: Verb::Post, path: "/v1/replicas/{volume}/promote", roles: KEYHOLDER },
    Rule { verb: Verb::Get, path: "/v1/buckets", roles: STORAGE_AND_AUDITOR },
    Rule { verb: Verb::Post, path: "/v1/buckets", roles: STORAGE },
    Rule { verb: Verb::Delete, path: "/v1/buckets/{bucket}", roles: STORAGE },
    Rule { verb: Verb::Get, path: "/v1/users", roles: OPERATOR_AND_AUDITOR },
    Rule { verb: Verb::Post, path: "/v1/users", roles: OPERATOR },
    Rule { verb: Verb::Delete, path: "/v1/users/{user}", roles: OPERATOR },
    Rule { verb: Verb::Delete, path: "/v1/access-keys/{access_key}", roles: OPERATOR },
    Rule { verb: Verb::Get, path: "/v1/identities", roles: OPERATOR_AND_AUDITOR },
    Rule { verb: Verb::Post, path: "/v1/identities", roles: OPERATOR },
    Rule { verb: Verb::Get, path: "/v1/webhooks", roles: OPERATOR_AND_AUDITOR },
    Rule { verb: Verb::Post, path: "/v1/webhooks", roles: OPERATOR },
    // Its own account of what it did, for whoever compares it with the keyholder's.
    Rule { verb: Verb::Get, path: "/v1/audit", roles: TRAIL_READERS },
    Rule { verb: Verb::Get, path: "/v1/audit/digests", roles: READERS },
    Rule { verb: Verb::Post, path: "/v1/audit/witnessed", roles: KEYHOLDER },
    // Forgetting is never refused to anyone who runs the place.
    Rule {
        verb: Verb::Post,
        path: "/v1/wipe",
        roles: &[Role::Operator, Role::StorageAdmin, Role::SecurityOfficer, Role::Keyholder],
    },
];

/// Roles that may connect to the administrative port at all.
pub const ACCEPTED_ROLES: &[Role] = READERS;

/// The rule for an endpoint.
pub(crate) fn rule(verb: Verb, path: &str) -> Option<&'static Rule> {
    TABLE.iter().find(|rule| rule.verb == verb && rule.path == path)
}
