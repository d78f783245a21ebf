//! `nightlatch notification`: where notifications of buckets go, and what was not taken.

use admin::api::{Webhook, WebhookChange, WebhookChanged};

use crate::args::NotificationCommand;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::Done;
use crate::output::{Output, moment, table};

pub(crate) fn run(command: &NotificationCommand, connections: &Connections, output: Output) -> Done {
    match command {
        NotificationCommand::List(node) => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let webhooks: Vec<Webhook> = wait(client.get("/v1/webhooks"))??;
            output.show(&webhooks, || {
                let rows: Vec<_> = webhooks.iter().map(row).collect();
                table(
                    &["WEBHOOK", "WAITING", "DEAD", "DELIVERED", "LAST", "TROUBLE"],
                    &rows,
                    "no webhooks: name them in [[s3.webhooks]] of the node's configuration",
                )
            })
        }
        NotificationCommand::Retry { name, node } => {
            let change = WebhookChange::Retry { webhook: name.clone() };
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let changed: WebhookChanged = wait(client.post("/v1/webhooks", &change))??;
            output.show(&changed, || {
                format!("{} notifications for {name} are delivered once more.", changed.notifications)
            })
        }
        NotificationCommand::Discard { name, node } => {
            let change = WebhookChange::Discard { webhook: name.clone() };
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let changed: WebhookChanged = wait(client.post("/v1/webhooks", &change))??;
            output.show(&changed, || format!("Dropped {} notifications for {name}.", changed.notifications))
        }
    }
}

fn row(webhook: &Webhook) -> Vec<String> {
    let trouble = match (&webhook.trouble, webhook.configured) {
        (_, false) => "not in the node's configuration",
        (Some(trouble), true) => trouble,
        (None, true) => "-",
    };
    vec![
        webhook.name.clone(),
        webhook.waiting.to_string(),
        webhook.dead.to_string(),
        webhook.delivered.to_string(),
        webhook.last_delivered_unix_s.map_or_else(|| "-".to_owned(), moment),
        trouble.to_owned(),
    ]
}
