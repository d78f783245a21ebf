//! `nightlatch policy`: check, diff, apply, show.

use std::path::Path;

use keyholder::api::{NewPolicy, PolicyPreview, PolicyStatus};
use keyholder::policy::{EXAMPLE, POLICY_BYTES_MAX, Policy};

use crate::args::PolicyCommand;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::output::{Output, moment, print, table};

pub(crate) fn run(
    command: &PolicyCommand,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        PolicyCommand::Check { file } => check(file, output),
        PolicyCommand::Diff { file } => {
            let policy = read(file)?;
            let keyholder = connections()?.keyholder(Ask::Trail)?;
            let preview: PolicyPreview = wait(keyholder.post("/v1/policy/check", &policy))??;
            output.show(&preview, || describe(&preview, "would change"))
        }
        PolicyCommand::Apply { file } => {
            let policy = read(file)?;
            let keyholder = connections()?.keyholder(Ask::Decide)?;
            let applied: PolicyPreview = wait(keyholder.post("/v1/policy", &policy))??;
            output.show(&applied, || format!("The policy is in force.\n{}", describe(&applied, "changed")))
        }
        PolicyCommand::Show { example: true } => print(EXAMPLE),
        PolicyCommand::Show { example: false } => {
            let keyholder = connections()?.keyholder(Ask::Trail)?;
            let status: PolicyStatus = wait(keyholder.get("/v1/policy"))??;
            output.show(&status, || show(&status))
        }
    }
}

/// Reads and checks a file before anybody is asked about it.
fn read(file: &Path) -> Done<NewPolicy> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure::file("read", file, &error))?;
    match Policy::parse(&text) {
        Ok(_) => Ok(NewPolicy { text }),
        Err(error) => {
            let line = error.line.map(|line| format!(":{line}")).unwrap_or_default();
            let message = format!("{}{line}: {}", file.display(), error.what);
            Err(Failure::new(Exit::Failed, "invalid-policy", message, error.next_step))
        }
    }
}

fn check(file: &Path, output: Output) -> Done {
    let NewPolicy { text } = read(file)?;
    let made = serde_json::json!({ "file": file, "valid": true, "bytes": text.len(), "bytes_max": POLICY_BYTES_MAX });
    output.show(&made, || format!("{} is a policy.\n", file.display()))
}

fn show(status: &PolicyStatus) -> String {
    match (&status.text, &status.by, status.at_unix_s) {
        (Some(text), Some(by), Some(at)) => {
            format!("# policy {}, applied by {by} on {}\n{text}", status.serial, moment(at))
        }
        _ => "# there is no policy yet; `nightlatch policy show --example` prints one to begin with\n"
            .to_owned(),
    }
}

fn describe(preview: &PolicyPreview, changes: &str) -> String {
    let rows: Vec<_> = preview
        .differences
        .iter()
        .map(|change| {
            let less = if change.loosens { "asks for less" } else { "" };
            vec![change.setting.clone(), change.before.clone(), change.after.clone(), less.to_owned()]
        })
        .collect();
    let mut text = table(&["SETTING", "BEFORE", "AFTER", ""], &rows, &format!("nothing {changes}"));
    for refused in &preview.would_refuse {
        text.push_str(&format!("{} on {}: {}\n", refused.volume, refused.node, refused.why));
    }
    text
}
