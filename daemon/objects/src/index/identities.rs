//! The table of users, groups and policies; what a policy says is known to the head only.

use redb::{ReadableTable, TableDefinition};

use super::rows::{Changes, Opened, Rewritten, Snapshot, put, remove};
use crate::error::StoreError;
use crate::records::{self, Row};

pub(super) type IdentityKey = (&'static str, &'static str);
pub(super) const IDENTITIES: TableDefinition<IdentityKey, &[u8]> = TableDefinition::new("identities");

/// A type of row of the table, by the first half of its key.
pub(crate) trait Identity: Row {
    const KIND: &'static str;
}

macro_rules! identity_reads {
    ($($borrow:tt)?) => {
        /// A user, a group or a policy.
        pub(crate) fn identity<R: Identity>(&self, name: &str) -> Result<Option<R>, StoreError> {
            let table = self.identities()?;
            self.view($($borrow)? table).row::<IdentityKey, _>((R::KIND, name))
        }

        /// All of one kind, by name.
        pub(crate) fn identities_of<R: Identity>(&self) -> Result<Vec<(String, R)>, StoreError> {
            let table = self.identities()?;
            let view = self.view($($borrow)? table);
            let mut found = Vec::new();
            for row in view.explain(view.table.range((R::KIND, "")..))? {
                let (key, row) = view.explain(row)?;
                let (kind, name) = key.value();
                if kind != R::KIND {
                    break;
                }
                found.push((name.to_owned(), records::decode(row.value())?));
            }
            Ok(found)
        }
    };
}

impl Snapshot {
    identity_reads!(&);

    fn identities(&self) -> Opened<IdentityKey> {
        self.open(IDENTITIES)
    }
}

impl<'txn> Changes<'txn> {
    identity_reads!();

    pub(crate) fn put_identity<R: Identity>(&mut self, name: &str, record: &R) -> Result<(), StoreError> {
        let row = records::encode(record);
        self.written += put(self.file, &mut self.identities, (R::KIND, name), &row)?;
        Ok(())
    }

    pub(crate) fn remove_identity<R: Identity>(&mut self, name: &str) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.identities, (R::KIND, name))?;
        Ok(())
    }

    fn identities(&self) -> Result<&Rewritten<'txn, IdentityKey>, StoreError> {
        Ok(&self.identities)
    }
}
