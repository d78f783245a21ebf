//! What users may do besides what they own: groups they belong to, and policies attached to both.
//!
//! A user who was never given a group or a policy is limited by what others own alone. From the first one on policies decide,
//! and go on deciding when the last one is taken away: taking a right away must not give others.
//!
//! The store keeps a policy as the text that the head checked; what it means is decided there. Everything that decides about a
//! request of a user is read in one moment ([`Store::credential`]).

use crate::commit::{Dropped, Mutation};
use crate::credentials::{AccessKeyInfo, SecretAccessKey};
use crate::error::StoreError;
use crate::index::{Changes, Snapshot};
use crate::limits::{ATTACHED_MAX, GROUPS_MAX, IDENTITY_NAME_BYTES_MAX, POLICIES_MAX, POLICY_BYTES_MAX};
use crate::records::{AccessKeyRow, GroupRecord, PolicyRecord, UserRecord};
use crate::store::{Store, now_ms};

/// A group of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Name.
    pub name: String,
    /// Policies attached to it.
    pub policies: Vec<String>,
    /// Names of the users who belong to it.
    pub members: Vec<String>,
}

/// A policy that can be attached to users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// Name.
    pub name: String,
    /// As it was put.
    pub text: String,
}

/// Whom a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A user.
    User(String),
    /// Every member of a group.
    Group(String),
}

/// Everything about an access key that decides about a request signed with it.
#[derive(Debug)]
pub struct Credential {
    /// The user.
    pub user: String,
    /// Signs requests.
    pub secret: SecretAccessKey,
    /// The key itself.
    pub key: AccessKeyInfo,
    /// Whether policies decide what the user may do.
    pub limited: bool,
    /// Texts of the policies attached to the user and to the user's groups.
    pub policies: Vec<String>,
}

impl Store {
    /// What decides about requests signed with an access key; `None` if there is no such key. One that has expired is found.
    ///
    /// # Errors
    /// Outages only.
    pub fn credential(&self, id: &str) -> Result<Option<Credential>, StoreError> {
        self.shared.read(|snapshot| {
            let found = snapshot.access_key(id, |row| {
                let row = AccessKeyRow::decode(row)?;
                let secret = SecretAccessKey::new(row.secret);
                Ok((row.user.to_owned(), secret, AccessKeyInfo::of(id, &row)))
            })?;
            let Some((user, secret, key)) = found else { return Ok(None) };
            let record: UserRecord = snapshot.identity(&user)?.unwrap_or_default();
            let limited = record.limited;
            let policies = policies_of(snapshot, record)?;
            Ok(Some(Credential { user, secret, key, limited, policies }))
        })
    }

    /// Grows with every change of a bucket's settings, of users, access keys, groups and policies: what was read of them is
    /// still so while this is what it was before it was read.
    pub fn settings_generation(&self) -> u64 {
        self.shared.settings_generation()
    }

    /// Makes an empty group.
    ///
    /// # Errors
    /// [`StoreError::GroupExists`], [`StoreError::InvalidIdentityName`], [`StoreError::TooManyIdentities`].
    pub fn create_group(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        self.change(
            move |changes, name| {
                if changes.identity::<GroupRecord>(name)?.is_some() {
                    return Err(StoreError::GroupExists);
                }
                if changes.identities_of::<GroupRecord>()?.len() >= GROUPS_MAX {
                    return Err(StoreError::TooManyIdentities);
                }
                changes.put_identity(name, &GroupRecord { created_ms: now_ms(), policies: Vec::new() })
            },
            name,
        )
    }

    /// Deletes a group; its members stay users.
    ///
    /// # Errors
    /// [`StoreError::NoSuchGroup`].
    pub fn delete_group(&self, name: &str) -> Result<(), StoreError> {
        self.change(
            |changes, name| {
                changes.identity::<GroupRecord>(name)?.ok_or(StoreError::NoSuchGroup)?;
                for (user, mut record) in changes.identities_of::<UserRecord>()? {
                    if remove_from(&mut record.groups, name) {
                        changes.put_identity(&user, &record)?;
                    }
                }
                changes.remove_identity::<GroupRecord>(name)
            },
            name,
        )
    }

    /// All groups by name.
    ///
    /// # Errors
    /// Outages only.
    pub fn groups(&self) -> Result<Vec<GroupInfo>, StoreError> {
        self.shared.read(|snapshot| {
            let users = snapshot.identities_of::<UserRecord>()?;
            let groups = snapshot.identities_of::<GroupRecord>()?.into_iter().map(|(name, record)| {
                let belongs = |(_, user): &&(String, UserRecord)| user.groups.contains(&name);
                let members = users.iter().filter(belongs).map(|(user, _)| user.clone()).collect();
                GroupInfo { policies: record.policies, members, name }
            });
            Ok(groups.collect())
        })
    }

    /// Makes a user a member of a group, or no longer.
    ///
    /// # Errors
    /// [`StoreError::NoSuchGroup`], [`StoreError::NoSuchUser`], [`StoreError::TooManyIdentities`].
    pub fn set_membership(&self, user: &str, group: &str, member: bool) -> Result<(), StoreError> {
        let group = group.to_owned();
        self.change(
            move |changes, user| {
                changes.identity::<GroupRecord>(&group)?.ok_or(StoreError::NoSuchGroup)?;
                let mut record = user_record(changes, user)?;
                set_in(&mut record.groups, &group, member)?;
                record.limited |= member;
                changes.put_identity(user, &record)
            },
            user,
        )
    }

    /// Makes or replaces a policy. The text is the head's to check.
    ///
    /// # Errors
    /// [`StoreError::InvalidIdentityName`], [`StoreError::DocumentTooLarge`], [`StoreError::TooManyIdentities`].
    pub fn put_policy(&self, name: &str, text: &str) -> Result<(), StoreError> {
        check_name(name)?;
        if text.len() > POLICY_BYTES_MAX {
            return Err(StoreError::DocumentTooLarge);
        }
        let record = PolicyRecord { created_ms: now_ms(), text: text.to_owned() };
        self.change(
            move |changes, name| {
                let is_new = changes.identity::<PolicyRecord>(name)?.is_none();
                if is_new && changes.identities_of::<PolicyRecord>()?.len() >= POLICIES_MAX {
                    return Err(StoreError::TooManyIdentities);
                }
                changes.put_identity(name, &record)
            },
            name,
        )
    }

    /// Deletes a policy that is attached to nobody.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPolicy`], [`StoreError::PolicyInUse`].
    pub fn delete_policy(&self, name: &str) -> Result<(), StoreError> {
        self.change(
            |changes, name| {
                changes.identity::<PolicyRecord>(name)?.ok_or(StoreError::NoSuchPolicy)?;
                let named = |policies: &[String]| policies.iter().any(|policy| policy == name);
                let by_user =
                    changes.identities_of::<UserRecord>()?.iter().any(|(_, user)| named(&user.policies));
                let by_group =
                    changes.identities_of::<GroupRecord>()?.iter().any(|(_, group)| named(&group.policies));
                if by_user || by_group {
                    return Err(StoreError::PolicyInUse);
                }
                changes.remove_identity::<PolicyRecord>(name)
            },
            name,
        )
    }

    /// All policies by name.
    ///
    /// # Errors
    /// Outages only.
    pub fn policies(&self) -> Result<Vec<PolicyInfo>, StoreError> {
        self.shared.read(|snapshot| {
            let policies = snapshot.identities_of::<PolicyRecord>()?;
            Ok(policies.into_iter().map(|(name, record)| PolicyInfo { name, text: record.text }).collect())
        })
    }

    /// Attaches a policy, or takes it off.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPolicy`], [`StoreError::NoSuchUser`], [`StoreError::NoSuchGroup`],
    /// [`StoreError::TooManyIdentities`].
    pub fn set_attached(&self, policy: &str, to: Principal, attached: bool) -> Result<(), StoreError> {
        self.change(
            move |changes, policy| {
                changes.identity::<PolicyRecord>(policy)?.ok_or(StoreError::NoSuchPolicy)?;
                match &to {
                    Principal::User(user) => {
                        let mut record = user_record(changes, user)?;
                        set_in(&mut record.policies, policy, attached)?;
                        record.limited |= attached;
                        changes.put_identity(user, &record)
                    }
                    Principal::Group(group) => {
                        let mut record: GroupRecord =
                            changes.identity(group)?.ok_or(StoreError::NoSuchGroup)?;
                        set_in(&mut record.policies, policy, attached)?;
                        changes.put_identity(group, &record)
                    }
                }
            },
            policy,
        )
    }

    fn change(
        &self,
        change: impl Fn(&mut Changes<'_>, &str) -> Result<(), StoreError> + Send + 'static,
        name: &str,
    ) -> Result<(), StoreError> {
        self.shared.submit(ChangeIdentity { name: name.to_owned(), change: Box::new(change) })
    }
}

type Change = dyn Fn(&mut Changes<'_>, &str) -> Result<(), StoreError> + Send;

/// Checks everything before it changes anything.
struct ChangeIdentity {
    name: String,
    change: Box<Change>,
}

impl Mutation for ChangeIdentity {
    type Output = ();
    const NEEDS_ROOM: bool = false;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        (self.change)(changes, &self.name)
    }

    fn committed(self) {}
}

/// A user's row. Users of earlier versions of the store have none until something about them changes.
pub(crate) fn user_record(changes: &Changes<'_>, user: &str) -> Result<UserRecord, StoreError> {
    if let Some(record) = changes.identity(user)? {
        return Ok(record);
    }
    let mut has_key = false;
    changes.walk_access_keys(&mut |_, row| {
        has_key |= AccessKeyRow::decode(row)?.user == user;
        Ok(())
    })?;
    if has_key { Ok(UserRecord::default()) } else { Err(StoreError::NoSuchUser) }
}

fn policies_of(snapshot: &Snapshot, record: UserRecord) -> Result<Vec<String>, StoreError> {
    let mut names = record.policies;
    for group in &record.groups {
        names.extend(snapshot.identity::<GroupRecord>(group)?.unwrap_or_default().policies);
    }
    let missing = StoreError::Corrupt { what: "a policy that is attached to a user is missing" };
    let text = |name: String| {
        let policy: PolicyRecord = snapshot.identity(&name)?.ok_or_else(|| missing.clone())?;
        Ok(policy.text)
    };
    names.into_iter().map(text).collect()
}

fn remove_from(list: &mut Vec<String>, name: &str) -> bool {
    let before = list.len();
    list.retain(|entry| entry != name);
    list.len() < before
}

fn set_in(list: &mut Vec<String>, name: &str, there: bool) -> Result<(), StoreError> {
    remove_from(list, name);
    if there && list.len() >= ATTACHED_MAX {
        return Err(StoreError::TooManyIdentities);
    }
    if there {
        list.push(name.to_owned());
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = (1..=IDENTITY_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed);
    if valid { Ok(()) } else { Err(StoreError::InvalidIdentityName) }
}
