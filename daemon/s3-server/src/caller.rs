//! Who asks. Found once for each request, before the protocol code runs, and carried along with it.

use std::sync::Arc;

use s3s::S3Request;

use crate::authority::Asker;
use crate::known::Signer;

/// Who signed the request; nobody, where it was not signed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    pub(crate) signer: Option<Arc<Signer>>,
}

impl Caller {
    pub(crate) fn of<T>(request: &S3Request<T>) -> Self {
        request.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    pub(crate) fn user(&self) -> Option<&str> {
        self.signer.as_ref().map(|signer| signer.user.as_str())
    }

    /// As what decides about the request sees the caller.
    pub(crate) fn asker(&self) -> Asker<'_> {
        self.signer.as_ref().map_or(Asker::NOBODY, |signer| signer.asker())
    }

    /// What things are owned by that this caller makes: nobody's are everybody's.
    pub(crate) fn owner(&self) -> String {
        self.user().unwrap_or_default().to_owned()
    }
}
