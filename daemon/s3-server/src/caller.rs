//! Who asks. Found once for each request, before the protocol code runs, and carried along with it.

use s3s::S3Request;

/// The user whose access key signed the request; nobody, where it was not signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) user: Option<String>,
}

impl Caller {
    pub(crate) fn of<T>(request: &S3Request<T>) -> Self {
        request.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// What things are owned by that this caller makes: nobody's are everybody's.
    pub(crate) fn owner(&self) -> String {
        self.user.clone().unwrap_or_default()
    }
}
