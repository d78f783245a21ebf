//! Users and their access keys. They live in the sealed index, so a sealed node knows none.
//!
//! A user is a name with at least one access key. A secret is shown once, when it is made; from then on it leaves the
//! index only to check a signature.

use std::time::SystemTime;

use zeroize::{Zeroize, Zeroizing};

use crate::commit::{Dropped, Mutation};
use crate::error::StoreError;
use crate::index::Changes;
use crate::limits::{ACCESS_KEYS_PER_USER_MAX, USER_NAME_BYTES_MAX, USERS_MAX};
use crate::records::AccessKeyRow;
use crate::store::{Store, now_ms, random_bytes, time_of};

const ID_PREFIX: &str = "NL";
const ID_CHARS: usize = 20;
const ID_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// 40 characters of 62: 238 bits.
const SECRET_CHARS: usize = 40;
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A secret access key. Overwritten when dropped; never printed.
pub struct SecretAccessKey(String);

impl SecretAccessKey {
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
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserInfo {
    /// Name.
    pub name: String,
    /// Access keys, oldest first.
    pub access_keys: Vec<AccessKeyInfo>,
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
        let mut users = std::collections::BTreeMap::<String, Vec<AccessKeyInfo>>::new();
        self.shared.read(|snapshot| {
            snapshot.walk_access_keys(&mut |id, row| {
                let row = AccessKeyRow::decode(row)?;
                let info = AccessKeyInfo { id: id.to_owned(), created: time_of(row.created_ms) };
                users.entry(row.user.to_owned()).or_default().push(info);
                Ok(())
            })
        })?;
        let sorted = |(name, mut access_keys): (String, Vec<AccessKeyInfo>)| {
            access_keys.sort_by_key(|key| key.created);
            UserInfo { name, access_keys }
        };
        Ok(users.into_iter().map(sorted).collect())
    }

    /// Whether there is a user of this name.
    ///
    /// # Errors
    /// Outages only.
    pub fn has_user(&self, name: &str) -> Result<bool, StoreError> {
        let mut found = false;
        self.shared.read(|snapshot| {
            snapshot.walk_access_keys(&mut |_, row| {
                found |= AccessKeyRow::decode(row)?.user == name;
                Ok(())
            })
        })?;
        Ok(found)
    }

    /// Deletes a user with all access keys. Signatures made with them fail from here on.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUser`].
    pub fn delete_user(&self, name: &str) -> Result<(), StoreError> {
        self.shared.submit(DeleteUser { name: name.to_owned() })
    }

    /// Deletes one access key; the user goes with the last one.
    ///
    /// # Errors
    /// [`StoreError::NoSuchAccessKey`].
    pub fn delete_access_key(&self, id: &str) -> Result<(), StoreError> {
        self.shared.submit(DeleteAccessKey { id: id.to_owned() })
    }

    /// The user and the secret of an access key, `None` if there is no such key.
    ///
    /// # Errors
    /// Outages only.
    pub fn secret(&self, id: &str) -> Result<Option<(String, SecretAccessKey)>, StoreError> {
        self.shared.read(|snapshot| {
            snapshot.access_key(id, |row| {
                let row = AccessKeyRow::decode(row)?;
                Ok((row.user.to_owned(), SecretAccessKey(row.secret.to_owned())))
            })
        })
    }

    fn add_access_key(&self, user: &str, new_user: bool) -> Result<NewAccessKey, StoreError> {
        let id = format!("{ID_PREFIX}{}", *random_text::<{ ID_CHARS - ID_PREFIX.len() }>(ID_ALPHABET));
        let secret = SecretAccessKey(random_text::<SECRET_CHARS>(SECRET_ALPHABET).to_string());
        let row = AccessKeyRow { created_ms: now_ms(), user, secret: secret.expose() }.encode();
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

/// Ids of the access keys of `user`, and whether anything else is there.
fn access_keys_of(changes: &Changes<'_>, user: &str) -> Result<(Vec<String>, usize), StoreError> {
    let mut ids = Vec::new();
    let mut users = std::collections::HashSet::new();
    changes.walk_access_keys(&mut |id, row| {
        let row = AccessKeyRow::decode(row)?;
        if row.user == user {
            ids.push(id.to_owned());
        }
        users.insert(row.user.to_owned());
        Ok(())
    })?;
    Ok((ids, users.len()))
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

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let (existing, users) = access_keys_of(changes, &self.user)?;
        match (self.new_user, existing.is_empty()) {
            (true, false) => return Err(StoreError::UserExists),
            (false, true) => return Err(StoreError::NoSuchUser),
            (true, true) if users >= USERS_MAX => return Err(StoreError::TooManyUsers),
            (false, false) if existing.len() >= ACCESS_KEYS_PER_USER_MAX => {
                return Err(StoreError::TooManyUsers);
            }
            _ => {}
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

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let (ids, _) = access_keys_of(changes, &self.name)?;
        if ids.is_empty() {
            return Err(StoreError::NoSuchUser);
        }
        ids.iter().try_for_each(|id| changes.remove_access_key(id))
    }

    fn committed(self) {}
}

struct DeleteAccessKey {
    id: String,
}

impl Mutation for DeleteAccessKey {
    type Output = ();
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        changes.access_key(&self.id, |_| Ok(()))?.ok_or(StoreError::NoSuchAccessKey)?;
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
