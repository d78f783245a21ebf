//! The table of what a bucket was configured with, as documents that only the head reads.

use redb::{ReadableTable, TableDefinition};

use super::rows::{Changes, Opened, Rewritten, Snapshot, put, remove};
use crate::error::StoreError;
use crate::records::BucketId;

pub(super) type DocumentKey = (u64, &'static str);
pub(super) const DOCUMENTS: TableDefinition<DocumentKey, &[u8]> = TableDefinition::new("bucket_documents");

macro_rules! document_reads {
    ($($borrow:tt)?) => {
        /// Every document of a bucket, by name.
        pub(crate) fn documents_of(&self, bucket: BucketId) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
            let table = self.documents()?;
            let view = self.view($($borrow)? table);
            let mut documents = Vec::new();
            for row in view.explain(view.table.range((bucket.0, "")..(bucket.0 + 1, "")))? {
                let (key, row) = view.explain(row)?;
                documents.push((key.value().1.to_owned(), row.value().to_vec()));
            }
            Ok(documents)
        }
    };
}

impl Snapshot {
    document_reads!(&);

    /// A document of a bucket.
    pub(crate) fn document(&self, bucket: BucketId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let table = self.documents()?;
        let view = self.view(&table);
        Ok(view.explain(view.table.get((bucket.0, name)))?.map(|row| row.value().to_vec()))
    }

    fn documents(&self) -> Opened<DocumentKey> {
        self.open(DOCUMENTS)
    }
}

impl<'txn> Changes<'txn> {
    document_reads!();

    pub(crate) fn put_document(
        &mut self,
        bucket: BucketId,
        name: &str,
        document: &[u8],
    ) -> Result<(), StoreError> {
        self.written += put(self.file, &mut self.documents, (bucket.0, name), document)?;
        Ok(())
    }

    pub(crate) fn remove_document(&mut self, bucket: BucketId, name: &str) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.documents, (bucket.0, name))?;
        Ok(())
    }

    fn documents(&self) -> Result<&Rewritten<'txn, DocumentKey>, StoreError> {
        Ok(&self.documents)
    }
}
