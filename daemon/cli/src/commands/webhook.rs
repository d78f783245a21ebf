//! `nightlatch webhook`: who is told of what happens, and what was not taken.

use keyholder::api::{DeadLetter, Done as Empty, Letters, WebhookEntry, WebhookTested};
use keyholder::webhooks::create_secret;

use crate::args::{LettersArgs, WebhookCommand};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table};

pub(crate) fn run(
    command: &WebhookCommand,
    connections: impl Fn() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        WebhookCommand::List => {
            let all = entries(&connections()?)?;
            output.show(&all, || {
                let rows: Vec<_> = all.iter().map(row).collect();
                table(
                    &["WEBHOOK", "ADDRESS", "EVENTS", "TAKEN", "DEAD", "STATE"],
                    &rows,
                    "the keyholder's configuration has no [[webhook]]",
                )
            })
        }
        WebhookCommand::DeadLetters { name } => {
            let all = entries(&connections()?)?;
            let is_meant = |entry: &&WebhookEntry| name.as_ref().is_none_or(|name| *name == entry.name);
            let meant: Vec<_> = all.iter().filter(is_meant).collect();
            if let (Some(name), []) = (name, meant.as_slice()) {
                return Err(Failure::usage(
                    format!("there is no webhook {name}"),
                    "`nightlatch webhook list` shows those there are",
                ));
            }
            let of = |entry: &WebhookEntry| {
                entry.dead_letters.iter().map(|letter| letter_row(entry, letter)).collect::<Vec<_>>()
            };
            output.show(&meant, || {
                let rows: Vec<_> = meant.iter().flat_map(|entry| of(entry)).collect();
                table(
                    &["WEBHOOK", "ENTRY", "EVENT", "WHEN", "ATTEMPTS", "WHY"],
                    &rows,
                    "there is no dead letter",
                )
            })
        }
        WebhookCommand::Test { name } => {
            let keyholder = connections()?.keyholder(Ask::Operate)?;
            let tested: WebhookTested =
                wait(keyholder.post(&format!("/v1/webhooks/{name}/test"), &Empty {}))??;
            output.show(&tested, || {
                format!("{name} took it: status {} after {} ms.\n", tested.status, tested.elapsed_ms)
            })
        }
        WebhookCommand::Replay(letters) => {
            let entry = change(&connections()?, letters, "replay")?;
            output.show(&entry, || format!("{}: what was named is sent again.\n", entry.name))
        }
        WebhookCommand::Discard { letters, yes } => {
            output.confirm(*yes, &format!("Forget dead letters of {}?", letters.name))?;
            let entry = change(&connections()?, letters, "discard")?;
            output.show(&entry, || {
                format!("{}: {} dead letters are left.\n", entry.name, entry.dead_letters.len())
            })
        }
        WebhookCommand::Secret { file } => {
            create_secret(file).map_err(|error| Failure::local(error.to_string(), ""))?;
            output.show(&serde_json::json!({ "file": file }), || {
                format!(
                    "Wrote {}; name it as `secret` of a [[webhook]] in the keyholder's configuration, and give its content to the receiver.\n",
                    file.display()
                )
            })
        }
    }
}

fn entries(connections: &Connections) -> Done<Vec<WebhookEntry>> {
    Ok(wait(connections.keyholder(Ask::Read)?.get("/v1/webhooks"))??)
}

fn change(connections: &Connections, letters: &LettersArgs, act: &str) -> Done<WebhookEntry> {
    let keyholder = connections.keyholder(Ask::Operate)?;
    let body = Letters { entries: letters.entries.clone() };
    Ok(wait(keyholder.post(&format!("/v1/webhooks/{}/{act}", letters.name), &body))??)
}

fn row(entry: &WebhookEntry) -> Vec<String> {
    let state = entry.waiting.as_ref().map_or_else(
        || "told of everything".to_owned(),
        |waiting| {
            format!(
                "WAITS with {} of entry {} since {}: {}",
                waiting.event,
                waiting.entry,
                moment(waiting.since_unix_s),
                waiting.why
            )
        },
    );
    let dropped = match entry.dropped_letters {
        0 => String::new(),
        count => format!(" (+{count} dropped)"),
    };
    vec![
        entry.name.clone(),
        entry.address.clone(),
        entry.events.join(", "),
        entry.delivered.to_string(),
        format!("{}{dropped}", entry.dead_letters.len()),
        state,
    ]
}

fn letter_row(entry: &WebhookEntry, letter: &DeadLetter) -> Vec<String> {
    vec![
        entry.name.clone(),
        letter.entry.to_string(),
        letter.event.clone(),
        moment(letter.at_unix_s),
        letter.attempts.to_string(),
        letter.why.clone(),
    ]
}
