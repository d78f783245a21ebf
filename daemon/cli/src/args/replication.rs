//! `peer` and `replication`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use units::VolumeId;

use super::NodeArg;

/// `peer`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// Name another node in a node's configuration: its name and key are read from its certificate
    #[command(
        after_help = "Both nodes name each other: the one that sends with --address, the other without. Each takes it at its next start.\nThe other node needs a port for peers: `peers = \"ADDRESS:7413\"` under [listen].\nExamples:\n  nightlatch peer add ./pki/node/node-2/cert.pem --address 10.0.2.5:7413 --config /etc/nightlatch/node.toml\n  nightlatch peer add ./pki/node/node-1/cert.pem --config node.toml      on node-2: node-1 may send here\n  nightlatch peer add ./pki/node/node-2/cert.pem                         prints what to add"
    )]
    Add(PeerAdd),
    /// The peers of a running node, and whether it is connected to them
    List(NodeArg),
    /// Take another node out of a node's configuration
    #[command(
        after_help = "Nothing is sent to it, or taken from it, from the node's next start on; replicas that are there stay. What the node kept\nfor its sake is deleted.\nExample:\n  nightlatch peer remove node-2 --config /etc/nightlatch/node.toml"
    )]
    Remove {
        /// Its name
        name: String,
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// `peer add`.
#[derive(Debug, Args)]
pub(crate) struct PeerAdd {
    /// The other node's certificate (PEM)
    pub(crate) certificate: PathBuf,
    /// Where to dial it, HOST:PORT; without it, it only may send here
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Exchange this volume with it, by its id; may be given again. All where none is given
    #[arg(long = "volume", value_name = "ID")]
    pub(crate) volumes: Vec<VolumeId>,
    /// It may send nothing here: for a node that only takes what this one sends
    #[arg(long)]
    pub(crate) no_receive: bool,
    /// Where it is, as `residency` under [replication] names places
    #[arg(long, value_name = "PLACE")]
    pub(crate) residency: Option<String>,
    /// The node's configuration file, to be changed; without it, print what to add
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `replication`.
#[derive(Debug, Subcommand)]
pub(crate) enum ReplicationCommand {
    /// How far each volume is at each peer, and which replicas are here
    #[command(
        after_help = "LAG is how old the state is that the peer has, and what was written since. A volume that is stopped says why: mostly, that\nanother writer has taken over, or that the replica has gone another way and a person must decide.\nExamples:\n  nightlatch replication status --node node-1\n  nightlatch replication status --json"
    )]
    Status(NodeArg),
}
