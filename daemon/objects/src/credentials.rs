//! Users and their access keys. They live in the sealed index, so a sealed node knows none.
//!
//! A user may have several access keys, so that one can take another's place. A secret is shown once, when it is made; from
//! then on it leaves the index only to check a signature. What users may do is in `identities`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use zeroize::{Zeroize, Zeroizing};

use crate::commit::{Dropped, Mutation};
use crate::error::StoreError;
use crate::identities::user_record;
use crate::index::Changes;
use crate::limits::{ACCESS_KEYS_PER_USER_MAX, USER_NAME_BYTES_MAX, USERS_MAX};
use crate::records::{AccessKeyRow, QuotaRecord, UserRecord};
use crate::store::{Store, ms_of, now_ms, random_bytes, time_of};
use crate::usage::QuotaOf;

const ID_PREFIX: &str = "NL";
const ID_CHARS: usize = 20;
const ID_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// 40 characters of 62: 238 bits.
const SECRET_CHARS: usize = 40;
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A secret access key. Overwritten when dropped; never printed.
pub struct SecretAccessKey(String);

impl SecretAccessKey {
    pub(crate) fn new(secret: &str) -> Self {
        Self(secret.to_owned())
    }

    /// The secret, for checking a signature or for showing it the one time.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for SecretAccessKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for SecretAccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretAccessKey(..)")
    }
}

/// An access key that was just made: the only time its secret is shown.
#[derive(Debug)]
pub struct NewAccessKey {
    /// The user.
    pub user: String,
    /// Names the key in requests.
    pub id: String,
    /// Signs requests.
    pub secret: SecretAccessKey,
}

/// An access key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKeyInfo {
    /// Names the key in requests.
    pub id: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it ends; signatures made with it fail from then on.
    pub expires: Option<SystemTime>,
}

impl AccessKeyInfo {
    pub(crate) fn of(id: &str, row: &AccessKeyRow<'_>) -> Self {
        let expires = (row.expires_ms > 0).then(|| time_of(row.expires_ms));
        Self { id: id.to_owned(), created: time_of(row.created_ms), expires }
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserInfo {
    /// Name.
    pub name: String,
    /// Access keys, oldest first.
    pub access_keys: Vec<AccessKeyInfo>,
    /// Whether policies decide what the user may do.
    pub limited: bool,
    /// Groups that the user belongs to.
    pub groups: Vec<String>,
    /// Policies attached to the user alone.
    pub policies: Vec<String>,
}

impl UserInfo {
    fn sorted(mut self) -> Self {
        self.access_keys.sort_by_key(|key| key.created);
        self
    }
}

impl Store {
    /// Makes a user with a first access key.
    ///
    /// # Errors
    /// [`StoreError::UserExists`], [`StoreError::InvalidUserName`], [`StoreError::TooManyUsers`].
    pub fn create_user(&self, name: &str) -> Result<NewAccessKey, StoreError> {
        check_user_name(name)?;
        self.add_access_key(name, true)
    }

    /// Makes another access key for a user: to rotate, make one, switch the clients, delete the old one.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUser`], [`StoreError::TooManyUsers`].
    pub fn create_access_key(&self, user: &str) -> Result<NewAccessKey, StoreError> {
        check_user_name(user)?;
        self.add_access_key(user, false)
    }

    /// All users by name.
    ///
    /// # Errors
    /// Outages only.
    pub fn users(&self) -> Result<Vec<UserInfo>, StoreError> {
        let user = |name: String, record: UserRecord| UserInfo {
            name,
            access_keys: Vec::new(),
            limited: record.limited,
            groups: record.groups,
            policies: record.policies,
        };
        self.shared.read(|snapshot| {
            let recorded = snapshot.identities_of::<UserRecord>()?.into_iter();
            let mut users: BTreeMap<String, UserInfo> =
                recorded.map(|(name, record)| (name.clone(), user(name, record))).collect();
            snapshot.walk_access_keys(&mut |id, row| {
                let row = AccessKeyRow::decode(row)?;
                let name = row.user.to_owned();
                let entry = users.entry(name.clone()).or_insert_with(|| user(name, UserRecord::default()));
                entry.access_keys.push(AccessKeyInfo::of(id, &row));
                Ok(())
            })?;
            Ok(users.into_values().map(UserInfo::sorted).collect())
        })
    }

    /// Whether there is a user of this name.
    ///
    /// # Errors
    /// Outages only.
    pub fn has_user(&self, name: &str) -> Result<bool, StoreError> {
        self.shared.read(|snapshot| {
            let mut found = snapshot.identity::<UserRecord>(name)?.is_some();
            if !found {
                snapshot.walk_access_keys(&mut |_, row| {
                    found |= AccessKeyRow::decode(row)?.user == name;
                    Ok(())
                })?;
            }
            Ok(found)
        })
    }

    /// Deletes a user with all access keys. Signatures made with them fail from here on.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUser`].
    pub fn delete_user(&self, name: &str) -> Result<(), StoreError> {
        self.shared.submit(DeleteUser { name: name.to_owned() })
    }

    /// Sets when an access key ends, or that it does not. To rotate a user's keys: make one, let the others end when the clients
    /// have changed over.
    ///
    /// # Errors
    /// [`StoreError::NoSuchAccessKey`].
    pub fn set_access_key_expiry(&self, id: &str, expires: Option<SystemTime>) -> Result<(), StoreError> {
        let expires_ms = expires.map_or(0, |expires| ms_of(expires).max(1));
        self.shared.submit(SetExpiry { id: id.to_owned(), expires_ms })
    }

    /// Deletes one access key; its user stays. Signatures made with it fail from here on.
    ///
    /// # Errors
    /// [`StoreError::NoSuchAccessKey`].
    pub fn delete_access_key(&self, id: &str) -> Result<(), StoreError> {
        self.shared.submit(DeleteAccessKey { id: id.to_owned() })
    }

    fn add_access_key(&self, user: &str, new_user: bool) -> Result<NewAccessKey, StoreError> {
        let id = format!("{ID_PREFIX}{}", *random_text::<{ ID_CHARS - ID_PREFIX.len() }>(ID_ALPHABET));
        let secret = SecretAccessKey(random_text::<SECRET_CHARS>(SECRET_ALPHABET).to_string());
        let row =
            AccessKeyRow { created_ms: now_ms(), expires_ms: 0, user, secret: secret.expose() }.encode();
        let row = Zeroizing::new(row);
        self.shared.submit(AddAccessKey { user: user.to_owned(), id: id.clone(), row, new_user })?;
        Ok(NewAccessKey { user: user.to_owned(), id, secret })
    }
}

/// `N` characters, each equally likely.
fn random_text<const N: usize>(alphabet: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(N));
    let fair =
        u8::MAX - (u8::MAX % u8::try_from(alphabet.len()).expect("an alphabet of at most 255 characters"));
    while text.len() < N {
        let [byte] = random_bytes();
        if byte < fair {
            text.push(char::from(alphabet[usize::from(byte) % alphabet.len()]));
        }
    }
    text
}

fn check_user_name(name: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'-');
    let valid = (1..=USER_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed);
    if valid { Ok(()) } else { Err(StoreError::InvalidUserName) }
}

/// Ids of the access keys of `user`.
fn access_keys_of(changes: &Changes<'_>, user: &str) -> Result<Vec<String>, StoreError> {
    let mut ids = Vec::new();
    changes.walk_access_keys(&mut |id, row| {
        if AccessKeyRow::decode(row)?.user == user {
            ids.push(id.to_owned());
        }
        Ok(())
    })?;
    Ok(ids)
}

struct AddAccessKey {
    user: String,
    id: String,
    row: Zeroizing<Vec<u8>>,
    new_user: bool,
}

impl Mutation for AddAccessKey {
    type Output = ();
    const NEEDS_ROOM: bool = true;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let keys = access_keys_of(changes, &self.user)?;
        let existing = match user_record(changes, &self.user) {
            Ok(record) => Some(record),
            Err(StoreError::NoSuchUser) => None,
            Err(error) => return Err(error),
        };
        match (self.new_user, existing) {
            (true, Some(_)) => return Err(StoreError::UserExists),
            (false, None) => return Err(StoreError::NoSuchUser),
            (false, Some(_)) if keys.len() >= ACCESS_KEYS_PER_USER_MAX => {
                return Err(StoreError::TooManyUsers);
            }
            (false, Some(_)) => {}
            (true, None) => {
                if changes.identities_of::<UserRecord>()?.len() >= USERS_MAX {
                    return Err(StoreError::TooManyUsers);
                }
                changes.put_identity(&self.user, &UserRecord::default())?;
            }
        }
        changes.put_access_key(&self.id, &self.row)
    }

    fn committed(self) {}
}

struct DeleteUser {
    name: String,
}

impl Mutation for DeleteUser {
    type Output = ();
    const NEEDS_ROOM: bool = false;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        user_record(changes, &self.name)?;
        changes.remove_identity::<UserRecord>(&self.name)?;
        changes.remove_identity::<QuotaRecord>(&QuotaOf::User(self.name.clone()).row())?;
        access_keys_of(changes, &self.name)?.iter().try_for_each(|id| changes.remove_access_key(id))
    }

    fn committed(self) {}
}

struct SetExpiry {
    id: String,
    expires_ms: u64,
}

impl Mutation for SetExpiry {
    type Output = ();
    const NEEDS_ROOM: bool = false;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let changed = changes.access_key(&self.id, |row| {
            let row = AccessKeyRow { expires_ms: self.expires_ms, ..AccessKeyRow::decode(row)? };
            Ok(Zeroizing::new(row.encode()))
        })?;
        changes.put_access_key(&self.id, &changed.ok_or(StoreError::NoSuchAccessKey)?)
    }

    fn committed(self) {}
}

struct DeleteAccessKey {
    id: String,
}

impl Mutation for DeleteAccessKey {
    type Output = ();
    const NEEDS_ROOM: bool = false;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let user = changes.access_key(&self.id, |row| Ok(AccessKeyRow::decode(row)?.user.to_owned()))?;
        let user = user.ok_or(StoreError::NoSuchAccessKey)?;
        // A user of an earlier version of the store is one only by its keys.
        let record = user_record(changes, &user)?;
        changes.put_identity(&user, &record)?;
        changes.remove_access_key(&self.id)
    }

    fn committed(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_limited() {
        for good in ["a", "alice@example.com", "svc_backup-1.eu", &"u".repeat(USER_NAME_BYTES_MAX)] {
            assert!(check_user_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "ü", "a/b", &"u".repeat(USER_NAME_BYTES_MAX + 1)] {
            assert!(check_user_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = SecretAccessKey("hunter2hunter2".to_owned());
        assert!(!format!("{secret:?}").contains("hunter"));
    }

    #[test]
    fn random_text_uses_its_whole_alphabet() {
        let text: String = (0..200).map(|_| random_text::<40>(SECRET_ALPHABET).to_string()).collect();
        assert!(SECRET_ALPHABET.iter().all(|byte| text.contains(char::from(*byte))));
        assert_eq!(random_text::<18>(ID_ALPHABET).len(), 18);
    }
}
