//! The grammar of snapshots.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use units::{PoolId, VolumeId};

use super::{NodeArg, Span, span};

/// `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a volume as it is, sealed or not
    #[command(
        after_help = "Examples:\n  nightlatch snapshot create db\n  nightlatch snapshot create db --lock 30d\n  nightlatch snapshot create 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --node node-1    by its id, without the keyholder"
    )]
    Create {
        /// The volume, by its name or its id
        volume: String,
        /// Let nobody delete it before so long: 30s, 15m, 24h, 90d
        #[arg(long, value_name = "TIME", value_parser = span)]
        lock: Option<Span>,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Lock a snapshot, or for longer than it is: nobody deletes it before, and nobody makes the lock shorter
    #[command(
        after_help = "Time counts while the node runs, and no clock that somebody could set is asked: what the node is off for comes on top.\nExample:\n  nightlatch snapshot lock 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --for 30d"
    )]
    Lock {
        /// The snapshot's id
        snapshot: VolumeId,
        /// How long from now on: 30s, 15m, 24h, 90d
        #[arg(long = "for", value_name = "TIME", value_parser = span)]
        lock: Span,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Take snapshots of a volume again and again, lock them, and delete the oldest; of a replica, keep what arrives
    #[command(
        after_help = "Without an option it shows the schedules and what became of them. The node takes them by itself, sealed or not. Of a replica the newest snapshot that has arrived whole is kept, once an interval; whoever sends can neither delete nor unlock it. Where an unusual part of a volume was rewritten from one snapshot to the next (ransomware does that), the node raises an alert and deletes nothing of the volume by schedule until --acknowledge. What is locked takes space until its time is over: where that runs short, nothing more is taken in and an alert is raised.\nExamples:\n  nightlatch snapshot schedule db --every 1h --keep 24 --lock 7d\n  nightlatch snapshot schedule 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --node backup-1 --every 1d --keep 30 --lock 30d    a replica, by its id\n  nightlatch snapshot schedule --node backup-1\n  nightlatch snapshot schedule db --acknowledge"
    )]
    Schedule(SnapshotScheduleArgs),
    /// Send a snapshot to another node, or to a file: ciphertext, which needs no key on either side
    #[command(
        after_help = "The other node keeps it as a replica, which nobody writes and no key is given to until it is promoted (`nightlatch volume promote`). Only what differs from its newest snapshot travels, where both have that. What breaks off goes on where it was when the same is said again.\nExamples:\n  nightlatch snapshot send 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --node node-1 --to-node node-2\n  nightlatch snapshot send 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --since 0d9e… --output tuesday.snapshot"
    )]
    Send {
        /// The snapshot's id
        snapshot: VolumeId,
        #[command(flatten)]
        node: NodeArg,
        /// An older snapshot, of which only the difference is sent
        #[arg(long, value_name = "SNAPSHOT")]
        since: Option<VolumeId>,
        /// The node that receives it
        #[arg(long, value_name = "NAME", required_unless_present = "output")]
        to_node: Option<String>,
        /// The pool for a new replica; by default the one with most free space
        #[arg(long, requires = "to_node")]
        pool: Option<PoolId>,
        /// A new file to write it to
        #[arg(long, value_name = "FILE", conflicts_with = "to_node")]
        output: Option<PathBuf>,
    },
    /// Give a snapshot from a file to a node, which keeps it as a replica
    Receive {
        /// A file that `nightlatch snapshot send --output` wrote
        file: PathBuf,
        #[command(flatten)]
        node: NodeArg,
        /// The pool for a new replica; by default the one with most free space
        #[arg(long)]
        pool: Option<PoolId>,
    },
    /// List the snapshots of a node
    List(NodeArg),
    /// Delete a snapshot and free what only it showed
    Delete {
        /// The snapshot's id
        snapshot: VolumeId,
        #[command(flatten)]
        node: NodeArg,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Write a snapshot to a bucket of any S3 server, whole or what differs from one that is there: ciphertext, which needs no key
    #[command(
        after_help = "Since the newest exported one that the node still has, unless --full or --since says otherwise. What breaks off goes on where it was when the same is said again. The access key is read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.\nExamples:\n  nightlatch snapshot export 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --to s3://backup/nightlatch --endpoint https://s3.eu-central-1.amazonaws.com --region eu-central-1\n  nightlatch snapshot export db@5b0cf6a1f9c04ab29a6f37f2f0a0c7de --to s3://backup --endpoint https://s3.example.com --ca ca.pem --full"
    )]
    Export(SnapshotExport),
    /// Give a snapshot from a bucket to a node, with those it was exported since: the node keeps it as a replica
    #[command(
        after_help = "Example:\n  nightlatch snapshot import 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --from s3://backup/nightlatch --endpoint https://s3.example.com --node node-2\n  nightlatch volume promote db --node node-2"
    )]
    Import(SnapshotImport),
    /// List the snapshots in a bucket; with --verify read them and compare every byte with its digest
    Exports {
        #[command(flatten)]
        bucket: BucketArg,
        /// Read everything and compare it; needs no key, and no node
        #[arg(long)]
        verify: bool,
    },
    /// Delete the oldest snapshots in a bucket, but none that a younger one was exported since
    Prune {
        #[command(flatten)]
        bucket: BucketArg,
        /// How many of each volume are kept
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        /// Delete what exports left behind that broke off and were not finished; none may be on its way
        #[arg(long)]
        unfinished: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `snapshot schedule`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotScheduleArgs {
    /// The volume, by its name or its id; without it every schedule of the node is shown
    pub(crate) volume: Option<String>,
    /// How often: 15m, 1h, 1d
    #[arg(long, value_name = "TIME", value_parser = span, requires = "keep")]
    pub(crate) every: Option<Span>,
    /// How many are kept; what is locked is kept beside them
    #[arg(long, value_name = "NUMBER", requires = "every")]
    pub(crate) keep: Option<u32>,
    /// How long nobody can delete each: 24h, 7d
    #[arg(long, value_name = "TIME", value_parser = span, requires = "every")]
    pub(crate) lock: Option<Span>,
    /// From which part of what a snapshot shows, in percent, its being rewritten in the next raises an alert
    #[arg(long, value_name = "PERCENT", requires = "every", default_value_t = 50)]
    pub(crate) alert_rewritten: u8,
    /// Take no more; those there are stay
    #[arg(long, conflicts_with_all = ["every", "acknowledge"])]
    pub(crate) remove: bool,
    /// What was unusual is all right: delete the oldest again
    #[arg(long, conflicts_with = "every")]
    pub(crate) acknowledge: bool,
    #[command(flatten)]
    pub(crate) node: NodeArg,
}

/// Where snapshots are exported to.
#[derive(Debug, Args)]
pub(crate) struct BucketArg {
    /// The bucket, and what the keys in it begin with
    #[arg(long = "bucket", visible_aliases = ["to", "from"], value_name = "s3://BUCKET/PREFIX")]
    pub(crate) place: Place,
    /// The S3 server
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: url::Url,
    /// The region that requests are signed for
    #[arg(long, value_name = "NAME", env = "AWS_REGION", default_value = "us-east-1")]
    pub(crate) region: String,
    /// Certificates that the server's is trusted by, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Put the bucket's name into the host name, not into the path
    #[arg(long)]
    pub(crate) virtual_host: bool,
}

/// `snapshot export`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotExport {
    /// The snapshot, by its id; VOLUME@ID says of which volume it has to be
    pub(crate) snapshot: SnapshotName,
    #[command(flatten)]
    pub(crate) bucket: BucketArg,
    #[command(flatten)]
    pub(crate) node: NodeArg,
    /// An exported snapshot, of which only the difference is written
    #[arg(long, value_name = "SNAPSHOT")]
    pub(crate) since: Option<VolumeId>,
    /// Write all of it
    #[arg(long, conflicts_with = "since")]
    pub(crate) full: bool,
}

/// `snapshot import`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotImport {
    /// The snapshot, by its id
    pub(crate) snapshot: SnapshotName,
    #[command(flatten)]
    pub(crate) bucket: BucketArg,
    #[command(flatten)]
    pub(crate) node: NodeArg,
    /// The pool for a new replica; by default the one with most free space
    #[arg(long)]
    pub(crate) pool: Option<PoolId>,
}

/// A snapshot, and the volume that it has to be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotName {
    pub(crate) volume: Option<String>,
    pub(crate) snapshot: VolumeId,
}

impl std::str::FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, snapshot) = match text.rsplit_once('@') {
            Some((volume, snapshot)) => (Some(volume.to_owned()), snapshot),
            None => (None, text),
        };
        let snapshot = snapshot.parse().map_err(|error: units::InvalidId| error.to_string())?;
        Ok(Self { volume, snapshot })
    }
}

/// A bucket, and what keys in it begin with: empty, or with a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("s3://").ok_or("give it as s3://BUCKET or s3://BUCKET/PREFIX")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() {
            return Err("it names no bucket".to_owned());
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket: bucket.to_owned(), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_what_its_keys_begin_with() {
        let place =
            |bucket: &str, prefix: &str| Place { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        for (text, expected) in [
            ("s3://b", place("b", "")),
            ("s3://b/", place("b", "")),
            ("s3://b/one/two/", place("b", "one/two/")),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for wrong in ["b/one", "s3://", "s3:///one", "https://b/one"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_snapshot_is_named_by_its_id_with_or_without_its_volume() {
        const ID: &str = "5b0cf6a1f9c04ab29a6f37f2f0a0c7de";
        let snapshot = ID.parse().unwrap();
        assert_eq!(ID.parse(), Ok(SnapshotName { volume: None, snapshot }));
        let of_volume = SnapshotName { volume: Some("db".to_owned()), snapshot };
        assert_eq!(format!("db@{ID}").parse(), Ok(of_volume));
        assert!("db@".parse::<SnapshotName>().is_err() && "db".parse::<SnapshotName>().is_err());
    }
}
