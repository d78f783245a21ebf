//! `nightlatch audit witness`: the trail's heads, kept where its writers cannot reach.

use std::time::Duration;

use audit_log::{ENTRIES_MAX, Head, Suspicion, Witness};
use keyholder::api::{AuditDigests, KeyholderStatus};
use serde::Serialize;

use super::now_unix_ms;
use crate::args::AuditWitness;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::output::Output;

/// What was seen.
#[derive(Serialize)]
struct Seen {
    of: String,
    #[serde(flatten)]
    head: Head,
    /// Entries since the last look; `null` at the first.
    new_entries: Option<u64>,
    certified: bool,
}

pub(super) fn run(arguments: &AuditWitness, connections: &Connections, output: Output) -> Done {
    let mut witness =
        Witness::open(&arguments.state).map_err(|error| Failure::local(error.to_string(), ""))?;
    let Some(interval) = arguments.interval else {
        let seen = wait(look(&mut witness, connections))??;
        return output.show(&seen, || describe(&seen));
    };
    wait(async {
        loop {
            match look(&mut witness, connections).await {
                Ok(seen) if output.is_json() => output.announce(&seen)?,
                Ok(seen) => output.show(&seen, || describe(&seen))?,
                // The alarm is for good; a keyholder that is away for a moment is not.
                Err(failure) if failure.problem.kind == "audit-alarm" => return Err(failure),
                Err(failure) => output.failure(&failure),
            }
            tokio::time::sleep(Duration::from_secs(interval)).await;
        }
    })?
}

fn describe(seen: &Seen) -> String {
    let since = match seen.new_entries {
        None => "seen for the first time and believed".to_owned(),
        Some(count) => format!("continues what was witnessed, with {count} new entries"),
    };
    let run = if seen.certified { "" } else { " (its run is not certified: the keyholder is sealed)" };
    format!("{}: entry {} ({}) {since}{run}\n", seen.of, seen.head.seq, seen.head.hash)
}

fn alarm(of: &str, suspicion: &Suspicion) -> Failure {
    Failure::new(
        Exit::Failed,
        "audit-alarm",
        format!("the audit trail of {of}: {suspicion}"),
        "keep this witness's file and a copy of the trail, and find out who changed it",
    )
}

async fn look(witness: &mut Witness, connections: &Connections) -> Done<Seen> {
    let keyholder = connections.keyholder(Ask::Read)?;
    let status: KeyholderStatus = keyholder.get("/v1/status").await?;
    let of = status.name;
    let known = witness.last(&of).map(|observed| observed.head);
    let mut at = known;
    loop {
        let (after, count) = at.map_or((0, 0), |head| (head.seq, ENTRIES_MAX));
        let AuditDigests { head: claimed, digests } =
            keyholder.get(&format!("/v1/audit/digests?after={after}&count={count}")).await?;
        witness.check(&of, &claimed).map_err(|suspicion| alarm(&of, &suspicion))?;
        let reached = at.map_or(claimed.head, |head| head.after(&digests));
        if reached.seq < claimed.head.seq && !digests.is_empty() {
            at = Some(reached);
            continue;
        }
        if reached != claimed.head {
            let witnessed = known.map_or(0, |head| head.seq);
            return Err(alarm(&of, &Suspicion::Forked { witnessed }));
        }
        let certified = claimed.check_signature().map_err(|suspicion| alarm(&of, &suspicion))?;
        if known != Some(claimed.head) {
            witness
                .keep(now_unix_ms(), &of, &claimed)
                .map_err(|error| Failure::local(error.to_string(), ""))?;
        }
        let new_entries = known.map(|head| claimed.head.seq - head.seq);
        return Ok(Seen { of, head: claimed.head, new_entries, certified });
    }
}
