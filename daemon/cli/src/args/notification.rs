//! `notification`.

use clap::Subcommand;

use super::NodeArg;

/// `notification`.
#[derive(Debug, Subcommand)]
pub(crate) enum NotificationCommand {
    /// Where notifications go, how many wait, and what is wrong
    #[command(
        after_help = "Webhooks stand in the node's configuration; a bucket's owner names one of them as topic or queue:\n  [[s3.webhooks]]\n  name = \"orders\"\n  url = \"https://hooks.example.com/s3\"\n  secret_file = \"orders.secret\"\nMake a secret with:  umask 077; echo whsec_$(openssl rand -base64 32) > orders.secret"
    )]
    List(NodeArg),
    /// Deliver once more what a webhook did not take
    #[command(
        after_help = "A notification that is refused five times (4xx), or that is not taken for a day, is a dead letter. It is kept until it is\ndelivered once more, or discarded.\nExample:\n  nightlatch notification retry orders"
    )]
    Retry {
        /// The webhook
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Drop what a webhook did not take
    #[command(
        after_help = "Of a webhook that the node's configuration names no more, what waits for it is dropped as well.\nExample:\n  nightlatch notification discard orders"
    )]
    Discard {
        /// The webhook
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
}
