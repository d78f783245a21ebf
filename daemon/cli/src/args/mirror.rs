//! `mirror`.

use std::path::PathBuf;

use clap::Args;

use super::Place;

/// `mirror`.
#[derive(Debug, Args)]
pub(crate) struct MirrorArgs {
    /// What to bring in: everything below it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    pub(crate) source: Place,
    /// Where to
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    pub(crate) target: Place,
    /// The S3 server that is copied from
    #[arg(long, value_name = "URL")]
    pub(crate) from: url::Url,
    /// Its region
    #[arg(long, value_name = "NAME", default_value = "us-east-1")]
    pub(crate) from_region: String,
    /// Certificates that it is trusted by, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) from_ca: Option<PathBuf>,
    /// Put its bucket's name into the host name, not into the path
    #[arg(long)]
    pub(crate) from_virtual_host: bool,
    /// The S3 server that is copied to
    #[arg(long, value_name = "URL")]
    pub(crate) to: url::Url,
    /// Its region
    #[arg(long, value_name = "NAME", env = "AWS_REGION", default_value = "us-east-1")]
    pub(crate) to_region: String,
    /// Certificates that it is trusted by, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) to_ca: Option<PathBuf>,
    /// Put its bucket's name into the host name, not into the path
    #[arg(long)]
    pub(crate) to_virtual_host: bool,
    /// Copy what has another entity tag, also where the target's was written later and does not say of what it is a copy
    #[arg(long)]
    pub(crate) exact: bool,
    /// Say what would be copied, and copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Objects, and pieces of objects, on their way at the same time; each has 16 MiB in memory, and one of more counts as several
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) at_once: u16,
    /// Where it is written down which uploads were begun, to go on with them; a file in the user's state directory where not given
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: Option<PathBuf>,
}
