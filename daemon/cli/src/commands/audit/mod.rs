//! `nightlatch audit`: verify, search, export, witness.

mod export;
mod witness;

use std::time::{SystemTime, UNIX_EPOCH};

use audit_log::{
    Disagreement, Entry, Filter, Page, Report, Severity, TrailId, Verifier, Witness, crosscheck,
};
use identity::HttpsClient;
use keyholder::api::{KeyholderStatus, NodeEntry};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::{AuditCommand, AuditFilter, AuditSearch, AuditVerify};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::output::{Output, table};

pub(crate) fn run(
    command: &AuditCommand,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        AuditCommand::Verify(arguments) => verify(arguments, connections, output),
        AuditCommand::Search(arguments) => search(arguments, &connections()?, output),
        AuditCommand::Export(arguments) => export::run(arguments, &connections()?, output),
        AuditCommand::Witness(arguments) => witness::run(arguments, &connections()?, output),
    }
}

/// Everything after entry `after`, from the keyholder or a node.
async fn fetch(client: &HttpsClient, mut after: u64) -> Done<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let page: Page = client.get(&format!("/v1/audit?after={after}")).await?;
        let last = page.lines.iter().rev().find_map(|line| Entry::parse(line).ok());
        let done = last.as_ref().is_none_or(|last| last.seq <= after || last.seq >= page.head.head.seq);
        after = last.map_or(after, |last| last.seq);
        lines.extend(page.lines);
        if done {
            return Ok(lines);
        }
    }
}

fn entries(lines: &[String]) -> Vec<Entry> {
    lines.iter().filter_map(|line| Entry::parse(line).ok()).collect()
}

/// What a verification says.
#[derive(Serialize)]
struct Verified {
    holds: bool,
    #[serde(flatten)]
    report: Report,
    /// Whether the root's key was given or witnessed, and not taken from the trail itself.
    root_key_pinned: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<VerifiedNode>,
}

#[derive(Serialize)]
struct VerifiedNode {
    name: String,
    holds: bool,
    #[serde(flatten)]
    report: Report,
    disagreements: Vec<Disagreement>,
}

fn verify(arguments: &AuditVerify, connections: impl FnOnce() -> Done<Connections>, output: Output) -> Done {
    let witness = arguments.witness.as_deref().map(open_witness).transpose()?;
    let (name, lines, node) = match &arguments.dir {
        Some(dir) => {
            let lines = audit_log::read_dir(dir).map_err(|error| Failure::local(error.to_string(), ""))?;
            (None, lines, None)
        }
        None => {
            let connections = connections()?;
            let keyholder = connections.keyholder(Ask::Trail)?;
            let status: KeyholderStatus = wait(keyholder.get("/v1/status"))??;
            let mut lines = wait(fetch(&keyholder, 0))??;
            let node = match &arguments.node {
                None => None,
                Some(node) => {
                    let told_until = entries(&lines).last().map_or(0, |entry| entry.seq);
                    let theirs = read_node(&connections, node)?;
                    // Once more: what the node took meanwhile, the keyholder granted before.
                    lines = wait(fetch(&keyholder, 0))??;
                    Some((theirs, told_until))
                }
            };
            (Some(status.name), lines, node)
        }
    };
    let pinned = arguments
        .root_key
        .clone()
        .or_else(|| witnessed_root(witness.as_ref()?, name.as_deref(), &lines).map(str::to_owned));
    let roots = pinned.as_deref().map(parse_root_key).transpose()?;
    let heads = witness.iter().flat_map(|witness| match &name {
        Some(name) => witness.heads(name).collect::<Vec<_>>(),
        // The witness may know trails of others too; what it knows of those says nothing about this one.
        None => {
            let trail = named_trail(&lines);
            witness.all_heads().filter(|head| trail.is_none_or(|trail| head.trail == trail)).collect()
        }
    });
    let mut verifier = Verifier::new(roots.as_slice()).witnessed_at(heads);
    lines.iter().for_each(|line| verifier.line(line));
    let report = verifier.finish();
    let node = node.map(|(theirs, told_until)| theirs.compare(&entries(&lines), told_until));
    let holds = report.holds() && node.as_ref().is_none_or(|node| node.holds);
    let verified = Verified { holds, report, root_key_pinned: pinned.is_some(), node };
    output.show(&verified, || describe(&verified))?;
    if holds {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failed,
        "audit-broken",
        "the audit trail does not hold",
        "keep a copy of it, compare with the witness's heads and the nodes' trails, and find out who changed it",
    ))
}

/// The root key that the witness knows for the keyholder, or for the trail that a directory without a name begins with.
fn witnessed_root<'a>(witness: &'a Witness, name: Option<&str>, lines: &[String]) -> Option<&'a str> {
    match name {
        Some(name) => witness.root_key(name),
        None => witness.root_key_of_trail(named_trail(lines)?),
    }
}

/// The trail that the first line which names one is of.
fn named_trail(lines: &[String]) -> Option<TrailId> {
    lines.iter().find_map(|line| Entry::parse(line).ok()?.text("trail").parse().ok())
}

fn parse_root_key(text: &str) -> Done<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| {
        Failure::usage(
            format!("`{text}` is not an Ed25519 public key"),
            "give the 64 hexadecimal digits that `nightlatch audit verify` showed when all was well",
        )
    })?;
    Ok(key)
}

fn open_witness(path: &std::path::Path) -> Done<Witness> {
    if !path.exists() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Failure::file("read", path, &missing));
    }
    Witness::open(path).map_err(|error| Failure::local(error.to_string(), ""))
}

/// A node's own trail.
struct NodeTrail {
    name: String,
    id: String,
    pinned: Option<[u8; 32]>,
    lines: Vec<String>,
}

fn read_node(connections: &Connections, name: &str) -> Done<NodeTrail> {
    let known: Vec<NodeEntry> = wait(connections.keyholder(Ask::Trail)?.get("/v1/nodes"))??;
    let entry = known.into_iter().find(|entry| entry.name == name).ok_or_else(|| {
        Failure::usage(
            format!("the keyholder knows no node {name}"),
            "`nightlatch node list` shows those there are",
        )
    })?;
    let key = entry.identity_key.filter(|_| entry.approved);
    let pinned = key.as_deref().map(parse_root_key).transpose()?;
    let client = wait(connections.node(Some(name), Ask::Trail))??;
    let lines = wait(fetch(&client, 0))??;
    Ok(NodeTrail { name: name.to_owned(), id: entry.node.to_string(), pinned, lines })
}

impl NodeTrail {
    fn compare(self, keyholder: &[Entry], told_until: u64) -> VerifiedNode {
        // An unapproved node's key is nobody's word.
        let mut verifier = Verifier::of_node(self.pinned.unwrap_or_default());
        self.lines.iter().for_each(|line| verifier.line(line));
        let report = verifier.finish();
        let disagreements = crosscheck(keyholder, told_until, &self.id, &entries(&self.lines));
        let agrees = disagreements.iter().all(|disagreement| disagreement.severity() != Severity::Broken);
        let holds = report.holds() && agrees;
        VerifiedNode { name: self.name, holds, report, disagreements }
    }
}

fn describe(verified: &Verified) -> String {
    let mut text = describe_report("The keyholder's trail", &verified.report);
    let roots: std::collections::BTreeSet<&str> =
        verified.report.sessions.iter().filter_map(|session| session.root_key.as_deref()).collect();
    for root in roots {
        text.push_str(&match verified.root_key_pinned {
            true => format!("  certified by the root's audit key {root}\n"),
            false => format!(
                "  certified by the root's audit key {root}: compare it, and give it with --root-key the next time\n"
            ),
        });
    }
    if let Some(node) = &verified.node {
        text.push_str(&describe_report(&format!("The trail of {}", node.name), &node.report));
        for disagreement in &node.disagreements {
            text.push_str(&format!("  {}: {disagreement}\n", mark(disagreement.severity())));
        }
        if node.disagreements.is_empty() {
            text.push_str("  it agrees with the keyholder's about keys and wipes\n");
        }
    }
    text
}

fn describe_report(what: &str, report: &Report) -> String {
    let verdict = match report.severity() {
        None | Some(Severity::Note) => "holds",
        Some(Severity::Doubt) => "holds, with doubts",
        Some(Severity::Broken) => "DOES NOT HOLD",
    };
    let end = report.head.map_or("nothing".to_owned(), |head| format!("entry {} ({})", head.seq, head.hash));
    let mut text = format!(
        "{what} {verdict}: {} entries by {} runs, up to {end}\n",
        report.entries,
        report.sessions.len()
    );
    for finding in &report.findings {
        text.push_str(&format!("  {}: {finding}\n", mark(finding.severity())));
    }
    text
}

fn mark(severity: Severity) -> &'static str {
    match severity {
        Severity::Broken => "BROKEN",
        Severity::Doubt => "doubt",
        Severity::Note => "note",
    }
}

impl AuditFilter {
    fn filter(&self) -> Done<Filter> {
        let moment = |text: &Option<String>| text.as_deref().map(parse_moment).transpose();
        Ok(Filter {
            event: self.event.clone(),
            by: self.by.clone(),
            about: self.about.clone(),
            since_unix_ms: moment(&self.since)?,
            until_unix_ms: moment(&self.until)?,
        })
    }
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A moment of RFC 3339, or how long ago.
fn parse_moment(text: &str) -> Done<u64> {
    let wrong = || {
        Failure::usage(
            format!("`{text}` is neither a moment nor a length of time"),
            "give one as in 2026-01-31T12:00:00Z, or how long ago, as in 30m, 2h or 7d",
        )
    };
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).map_err(|_| wrong());
    }
    let unit = text.chars().last().ok_or_else(wrong)?;
    let ms: u64 = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(now_unix_ms().saturating_sub(count.saturating_mul(ms)))
}

fn search(arguments: &AuditSearch, connections: &Connections, output: Output) -> Done {
    let filter = arguments.filter.filter()?;
    let client = match &arguments.node {
        None => connections.keyholder(Ask::Trail)?,
        Some(node) => wait(connections.node(Some(node), Ask::Trail))??,
    };
    let lines = wait(fetch(&client, 0))??;
    let mut found: Vec<Entry> = entries(&lines).into_iter().filter(|entry| filter.takes(entry)).collect();
    let surplus = found.len().saturating_sub(arguments.last);
    found.drain(..surplus);
    let documents: Vec<Value> = found.iter().map(|entry| Value::Object(entry.fields.clone())).collect();
    output.show(&documents, || {
        let rows: Vec<_> = found.iter().map(row).collect();
        table(&["ENTRY", "WHEN", "EVENT", "BY", "ABOUT"], &rows, "no such entries")
    })
}

/// Fields that have a column of their own, or are about the entry itself.
const OWN_COLUMN: &[&str] = &["v", "seq", "unix_ms", "boot", "boot_ns", "event", "by"];

fn row(entry: &Entry) -> Vec<String> {
    let about: Vec<_> = entry
        .fields
        .iter()
        .filter(|(name, value)| !OWN_COLUMN.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| match value.as_str() {
            Some(text) => format!("{name}={text}"),
            None => format!("{name}={value}"),
        })
        .collect();
    let when = OffsetDateTime::from_unix_timestamp_nanos(i128::from(entry.at.unix_ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default();
    let by = entry.actor().unwrap_or_default().to_owned();
    vec![entry.seq.to_string(), when, entry.event.clone(), by, about.join(" ")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_to_the_root_that_the_witness_knows() {
        let golden = include_str!("../../../../audit-log/tests/golden/audit-v2.jsonl");
        let lines: Vec<String> = golden.lines().map(str::to_owned).collect();
        let trail = Entry::parse(&lines[0]).unwrap().text("trail").to_owned();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heads.jsonl");
        let hash = "11".repeat(32);
        let observed = format!(
            r#"{{"unix_ms":1,"of":"compute-1","trail":"{trail}","seq":1,"hash":"{hash}","root_key":"ab"}}"#
        );
        std::fs::write(&path, observed + "\n").unwrap();
        let witness = Witness::open(&path).unwrap();
        assert_eq!(witnessed_root(&witness, None, &lines), Some("ab"));
        assert_eq!(witnessed_root(&witness, Some("compute-1"), &lines), Some("ab"));
        assert_eq!(witnessed_root(&witness, Some("compute-2"), &lines), None);
        assert_eq!(witnessed_root(&witness, None, &[]), None);
    }

    #[test]
    fn moments_are_read_in_both_forms_and_nothing_else() {
        assert_eq!(parse_moment("1970-01-01T00:00:01.5Z").unwrap(), 1_500);
        let hour_ago = parse_moment("1h").unwrap();
        assert!((3_599_000..3_700_000).contains(&(now_unix_ms() - hour_ago)));
        for text in ["", "h", "1y", "-1h", "yesterday", "1", "1970-01-01"] {
            assert!(parse_moment(text).is_err(), "{text}");
        }
    }
}
