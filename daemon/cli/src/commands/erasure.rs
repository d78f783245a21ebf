//! `nightlatch erasure`: what is still to be destroyed, and the certificate that nothing is.

use identity::PrivateFile;
use keyholder::api::{ConfirmErasure, Done as Empty, ErasureEntry, ErasureState, SignedErasure};

use crate::args::ErasureCommand;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table};

pub(crate) fn run(command: &ErasureCommand, connections: &Connections, output: Output) -> Done {
    match command {
        ErasureCommand::List => {
            let all: Vec<ErasureEntry> = wait(connections.keyholder(Ask::Trail)?.get("/v1/erasures"))??;
            output.show(&all, || {
                let rows: Vec<_> = all.iter().map(row).collect();
                table(&["VOLUME", "LABEL", "ERASED", "BY", "STATE"], &rows, "no volume was erased yet")
            })
        }
        ErasureCommand::Confirm { volume, destroyed_up_to } => {
            let keyholder = connections.keyholder(Ask::Decide)?;
            let body = ConfirmErasure { destroyed_up_to_serial: *destroyed_up_to };
            let entry: ErasureEntry =
                wait(keyholder.post(&format!("/v1/erasures/{volume}/confirm"), &body))??;
            output.show(&entry, || format!("{}: {}\n", entry.label, state(&entry)))
        }
        ErasureCommand::Certificate { volume, file } => {
            let keyholder = connections.keyholder(Ask::Trail)?;
            let signed: SignedErasure =
                wait(keyholder.post(&format!("/v1/erasures/{volume}/certificate"), &Empty {}))??;
            let text = serde_json::to_string_pretty(&signed)
                .map_err(|error| Failure::local(format!("the certificate cannot be written: {error}"), ""))?;
            PrivateFile::create(file, format!("{text}\n").as_bytes())?;
            let made = serde_json::json!({ "file": file, "root_key": signed.root_key });
            output.show(&made, || format!("Wrote the certificate to {}.\n", file.display()))
        }
    }
}

fn state(entry: &ErasureEntry) -> String {
    match (entry.state, entry.destroy_backups_up_to_serial) {
        (ErasureState::Complete, _) => "complete".to_owned(),
        (ErasureState::Shared, _) => format!("its key lives on in {}", entry.shared_with.join(", ")),
        (ErasureState::Pending, Some(serial)) => {
            format!("PENDING: destroy ledger backups up to serial {serial}")
        }
        (ErasureState::Pending, None) => "PENDING".to_owned(),
    }
}

fn row(entry: &ErasureEntry) -> Vec<String> {
    vec![
        entry.volume.to_string(),
        entry.label.clone(),
        moment(entry.at_unix_s),
        entry.by.clone(),
        state(entry),
    ]
}
