//! A trail is written, and then treated in every way in which a trail can be treated.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use audit_log::{
    Entry, Finding, Head, Limits, Moment, Report, Severity, Signer, Suspicion, Trail, TrailId, Verifier,
    Witness, crosscheck, read_dir,
};
use ed25519_dalek::{Signer as _, SigningKey};
use units::BootId;

const BOOT: BootId = BootId([7; 16]);
const ROOT: [u8; 32] = [0xaa; 32];

#[derive(Debug)]
struct Seed([u8; 32]);

impl Signer for Seed {
    fn public(&self) -> [u8; 32] {
        SigningKey::from_bytes(&self.0).verifying_key().to_bytes()
    }

    fn sign(&self, digest: &[u8; 32]) -> Option<[u8; 64]> {
        Some(SigningKey::from_bytes(&self.0).sign(digest).to_bytes())
    }
}

fn at(second: u64) -> Moment {
    Moment { unix_ms: 1_700_000_000_000 + second * 1_000, boot: BOOT, boot_ns: second * 1_000_000_000 }
}

fn open(dir: &Path, run: u8, second: u64, limits: Limits) -> Trail<Seed> {
    let (trail, found) =
        Trail::open(dir, Seed([run; 32]), TrailId([1; 16]), at(second), limits, [("version", "1".into())])
            .unwrap();
    assert_eq!(found.broken, None);
    trail
}

fn certify(trail: &mut Trail<Seed>, second: u64) {
    let signature = Seed(ROOT).sign(&trail.certificate_digest()).unwrap();
    trail.certify(at(second), Seed(ROOT).public(), signature).unwrap();
}

/// Two certified runs, in several segments.
fn written(dir: &Path) -> Head {
    let limits = Limits { segment_bytes: 3_000 };
    for run in 0..2_u8 {
        let second = u64::from(run) * 1_000;
        let mut trail = open(dir, run, second, limits);
        certify(&mut trail, second + 1);
        for number in 0..12 {
            let fields = [("by", "operator/op".into()), ("volume", format!("v{run}{number}").into())];
            trail.record(at(second + 2 + number), "grant", fields).unwrap();
        }
    }
    let trail = open(dir, 9, 3_000, limits);
    drop(trail);
    verify(&read_dir(dir).unwrap(), []).head.unwrap()
}

fn verify(lines: &[String], witnessed: impl IntoIterator<Item = Head>) -> Report {
    let mut verifier = Verifier::new(&[Seed(ROOT).public()]).witnessed_at(witnessed);
    for line in lines {
        verifier.line(line);
    }
    verifier.finish()
}

#[test]
fn a_trail_of_several_runs_and_segments_holds() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    assert!(std::fs::read_dir(dir.path()).unwrap().count() > 2, "several segments");
    let report = verify(&read_dir(dir.path()).unwrap(), [head]);
    // The last run was never certified.
    assert_eq!(report.findings, [Finding::Uncertified { from: head.seq, to: head.seq }]);
    assert!(report.holds());
    assert_eq!(report.sessions.len(), 3);
    assert_eq!(report.entries, head.seq);
    let roots: Vec<_> = report.sessions.iter().map(|session| session.root_key.is_some()).collect();
    assert_eq!(roots, [true, true, false]);
}

#[test]
fn a_cut_at_every_entry_is_found_with_the_head_that_was_witnessed() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let lines = read_dir(dir.path()).unwrap();
    for kept in 0..lines.len() {
        let report = verify(&lines[..kept], [head]);
        let truncated = Finding::Truncated { end: kept as u64, witnessed: head.seq };
        assert!(report.findings.contains(&truncated), "{kept}: {:?}", report.findings);
        assert!(!report.holds());
        // Cut off at the beginning it is found by itself.
        if kept > 0 {
            assert!(!verify(&lines[kept..], []).holds(), "from {kept}");
        }
    }
}

#[test]
fn a_cut_at_every_byte_of_the_last_entries_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let text = read_dir(dir.path()).unwrap().join("\n") + "\n";
    let begin = text.len() - 1_500;
    for end in begin..text.len() - 1 {
        let lines: Vec<String> = text[..end].lines().map(str::to_owned).collect();
        assert!(!verify(&lines, [head]).holds(), "cut at byte {end}");
    }
}

#[test]
fn an_altered_byte_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let lines = read_dir(dir.path()).unwrap();
    for (number, line) in lines.iter().enumerate().take(16) {
        for position in (0..line.len()).step_by(3) {
            let mut bytes = line.clone().into_bytes();
            bytes[position] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let mut altered = lines.clone();
            altered[number] = changed;
            assert!(!verify(&altered, []).holds(), "line {number}, byte {position}");
        }
    }
}

#[test]
fn a_removed_repeated_or_exchanged_entry_is_found_at_every_place() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let lines = read_dir(dir.path()).unwrap();
    for place in 0..lines.len() {
        let mut removed = lines.clone();
        removed.remove(place);
        assert!(!verify(&removed, [head]).holds(), "removed {place}");
        let mut repeated = lines.clone();
        repeated.insert(place, lines[place].clone());
        assert!(!verify(&repeated, []).holds(), "repeated {place}");
        if place + 1 < lines.len() {
            let mut exchanged = lines.clone();
            exchanged.swap(place, place + 1);
            assert!(!verify(&exchanged, []).holds(), "exchanged {place}");
        }
    }
}

/// Somebody has the disk and the program, and not the root.
#[test]
fn entries_of_a_run_that_no_root_certified_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let mut forged = open(dir.path(), 66, 4_000, Limits::default());
    forged.record(at(4_001), "unlatch", [("by", "security-officer/alice".into())]).unwrap();
    let report = verify(&read_dir(dir.path()).unwrap(), [head]);
    assert!(report.findings.contains(&Finding::Uncertified { from: head.seq + 1, to: head.seq + 2 }));
    // With a certificate by a root of one's own it is worse.
    let signature = Seed([0xbb; 32]).sign(&forged.certificate_digest()).unwrap();
    forged.certify(at(4_002), Seed([0xbb; 32]).public(), signature).unwrap();
    let report = verify(&read_dir(dir.path()).unwrap(), [head]);
    assert!(report.findings.contains(&Finding::FalseCertificate { seq: head.seq + 3 }));
    assert!(!report.holds());
}

#[test]
fn a_fork_is_found_by_whoever_has_seen_the_other_branch() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(one.path());
    for entry in std::fs::read_dir(one.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, two.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut heads = Vec::new();
    for (dir, run) in [(one.path(), 20), (two.path(), 21)] {
        let mut trail = open(dir, run, 4_000, Limits::default());
        certify(&mut trail, 4_001);
        trail.record(at(4_002), "revoke", []).unwrap();
        heads.push(trail.signed_head());
    }
    // Each holds by itself, and certificates are in order.
    assert!(verify(&read_dir(one.path()).unwrap(), []).holds());
    let report = verify(&read_dir(one.path()).unwrap(), [heads[1].head]);
    assert!(report.findings.contains(&Finding::Forked { seq: heads[1].head.seq }), "{:?}", report.findings);
    let mut witness = Witness::open(&one.path().join("witness.jsonl")).unwrap();
    witness.keep(1, "compute-1", &heads[1]).unwrap();
    assert_eq!(
        witness.check("compute-1", &heads[0]),
        Err(Suspicion::Forked { witnessed: heads[1].head.seq })
    );
}

#[test]
fn a_witness_that_never_sees_an_entry_follows_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 0, Limits { segment_bytes: 2_000 });
    certify(&mut trail, 1);
    let path = dir.path().join("witness.jsonl");
    let mut witness = Witness::open(&path).unwrap();
    witness.check("k", &trail.signed_head()).unwrap();
    witness.keep(1, "k", &trail.signed_head()).unwrap();
    for number in 0..20 {
        trail.record(at(2 + number), "grant", [("volume", "secret-name".into())]).unwrap();
    }
    let mut witness = Witness::open(&path).unwrap();
    let last = witness.last("k").unwrap().head;
    let (claimed, digests) = trail.digests(last.seq, 1_000).unwrap();
    witness.check("k", &claimed).unwrap();
    assert_eq!(last.after(&digests), claimed.head);
    witness.keep(2, "k", &claimed).unwrap();
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(!kept.contains("secret-name") && kept.lines().count() == 2, "{kept}");
    // One digest fewer, or another one, does not arrive.
    assert_ne!(last.after(&digests[1..]), claimed.head);
    let cut = audit_log::SignedHead { head: last, ..claimed.clone() };
    assert!(witness.check("k", &cut).is_err(), "the signature is not over that head");
    let unsigned = audit_log::SignedHead { signature: "00".repeat(64), ..claimed.clone() };
    assert_eq!(witness.check("k", &unsigned), Err(Suspicion::Unsigned));
    let other_root = Seed([0xbb; 32]);
    let signature = other_root.sign(&trail.certificate_digest()).unwrap();
    let usurped = audit_log::SignedHead {
        root_key: Some(hex::encode(other_root.public())),
        certificate: Some(hex::encode(signature)),
        ..claimed
    };
    assert_eq!(witness.check("k", &usurped), Err(Suspicion::OtherRoot));
}

#[test]
fn a_line_that_a_crash_cut_short_is_taken_off_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 0, Limits::default());
    trail.record(at(1), "grant", []).unwrap();
    drop(trail);
    let path = dir.path().join("audit.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in second + 1..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (trail, found) =
            Trail::open(dir.path(), Seed([2; 32]), TrailId([1; 16]), at(5), Limits::default(), []).unwrap();
        assert_eq!((found.broken, found.torn_bytes), (None, (length - second) as u64));
        drop(trail);
        let report = verify(&read_dir(dir.path()).unwrap(), []);
        assert!(report.holds(), "{report:?}");
        assert!(report.findings.contains(&Finding::Torn { seq: 3 }));
    }
}

#[test]
fn a_trail_that_was_changed_is_continued_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 0, Limits::default());
    trail.record(at(1), "grant", [("volume", "v1".into())]).unwrap();
    trail.record(at(2), "grant", [("volume", "v2".into())]).unwrap();
    drop(trail);
    let path = dir.path().join("audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"v1\"", "\"v9\"")).unwrap();
    let (trail, found) =
        Trail::open(dir.path(), Seed([2; 32]), TrailId([1; 16]), at(5), Limits::default(), []).unwrap();
    assert_eq!(found.broken, Some(Finding::Altered { seq: 2 }));
    drop(trail);
    let report = verify(&read_dir(dir.path()).unwrap(), []);
    assert_eq!(report.severity(), Some(Severity::Broken));
    assert!(report.findings.contains(&Finding::FoundBroken { seq: 5 }), "{report:?}");
}

#[test]
fn a_clock_that_was_set_is_told_and_one_that_nobody_sets_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 100, Limits::default());
    let set = Moment { unix_ms: at(101).unix_ms - 3_600_000, ..at(101) };
    trail.record(set, "grant", []).unwrap();
    let report = verify(&read_dir(dir.path()).unwrap(), []);
    assert!(report.findings.contains(&Finding::ClockSet { seq: 2, by_ms: -3_600_000 }), "{report:?}");
    assert!(report.holds());
    trail.record(Moment { boot_ns: 1, ..at(102) }, "grant", []).unwrap();
    assert!(!verify(&read_dir(dir.path()).unwrap(), []).holds());
    // Another boot counts anew.
    trail.record(Moment { boot: BootId([8; 16]), boot_ns: 0, ..at(103) }, "grant", []).unwrap();
    let breaches = verify(&read_dir(dir.path()).unwrap(), []);
    assert_eq!(breaches.findings.iter().filter(|found| found.severity() == Severity::Broken).count(), 1);
}

#[test]
fn what_is_pruned_after_its_time_is_said_and_what_is_removed_otherwise_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let mut trail = open(dir.path(), 5, 5_000, Limits { segment_bytes: 3_000 });
    certify(&mut trail, 5_001);
    let pruned = trail.prune(at(5_002), at(500).unix_ms).unwrap().unwrap();
    assert!(pruned > 1 && pruned < head.seq);
    let lines = read_dir(dir.path()).unwrap();
    let report = verify(&lines, [head]);
    assert!(report.holds(), "{report:?}");
    assert!(report.findings.contains(&Finding::Pruned { to: pruned }));
    // One more segment than the trail says.
    let first: Vec<_> = lines.iter().skip(8).cloned().collect();
    assert!(!verify(&first, []).holds());
    assert_eq!(trail.prune(at(5_003), at(500).unix_ms).unwrap(), None, "nothing older is left");
}

/// Whoever removes the beginning can say that it was pruned, and cannot have that certified.
#[test]
fn what_a_run_that_no_root_certified_says_was_pruned_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let early = Entry::parse(&read_dir(dir.path()).unwrap()[2]).unwrap();
    let early = Head { seq: early.seq, hash: early.hash, ..head };
    let mut forged = open(dir.path(), 66, 5_000, Limits { segment_bytes: 3_000 });
    let pruned = forged.prune(at(5_002), at(500).unix_ms).unwrap().unwrap();
    let first = pruned + 1;
    let report = verify(&read_dir(dir.path()).unwrap(), [early]);
    assert!(report.findings.contains(&Finding::BeginningMissing { first }), "{report:?}");
    assert!(report.findings.contains(&Finding::WitnessedMissing { witnessed: 3, first }), "{report:?}");
    assert!(!report.holds());
    // The same entries by a run that the root stands for.
    certify(&mut forged, 5_003);
    let lines = read_dir(dir.path()).unwrap();
    let report = verify(&lines, [early]);
    assert!(report.holds(), "{report:?}");
    // The last one that was pruned is known by its hash.
    let last = Entry::parse(&lines[0]).unwrap().previous;
    assert!(verify(&lines, [Head { seq: pruned, hash: last, ..head }]).holds());
    let other = Head { seq: pruned, ..early };
    assert!(verify(&lines, [other]).findings.contains(&Finding::Forked { seq: pruned }));
}

#[test]
fn notes_and_doubts_crowd_no_breach_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 0, Limits::default());
    certify(&mut trail, 1);
    for number in 0..150 {
        let at = at(2 + number);
        trail.append(Moment { unix_ms: at.unix_ms + number % 2 * 60_000, ..at }, "grant", []).unwrap();
    }
    trail.sync().unwrap();
    let end = trail.head();
    let witnessed = Head { seq: end.seq + 1, ..end };
    let report = verify(&read_dir(dir.path()).unwrap(), [witnessed]);
    let truncated = Finding::Truncated { end: end.seq, witnessed: end.seq + 1 };
    assert!(report.findings.contains(&truncated) && report.findings.len() == 101, "{report:?}");
}

#[test]
fn a_trail_of_version_1_is_set_aside_and_the_new_one_says_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let old = include_str!("golden/audit-v1.jsonl");
    std::fs::write(dir.path().join("audit.jsonl"), old).unwrap();
    drop(open(dir.path(), 1, 0, Limits::default()));
    assert_eq!(std::fs::read_to_string(dir.path().join("audit-v1.jsonl")).unwrap(), old);
    let lines = read_dir(dir.path()).unwrap();
    let start = Entry::parse(&lines[0]).unwrap();
    let continues = &start.fields["continues"];
    assert_eq!(continues["lines"], 3);
    assert_eq!(continues["broken_at_line"], serde_json::Value::Null);
    let last: serde_json::Value = serde_json::from_str(old.lines().last().unwrap()).unwrap();
    assert_eq!(continues["last_hash"], last["hash"]);
    assert!(verify(&lines, []).holds());
}

#[test]
fn a_second_trail_of_version_1_is_set_aside_beside_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let old = include_str!("golden/audit-v1.jsonl");
    let first_lines: String = old.split_inclusive('\n').take(2).collect();
    for content in [old, first_lines.as_str(), old] {
        std::fs::write(dir.path().join("audit.jsonl"), content).unwrap();
        drop(open(dir.path(), 1, 0, Limits::default()));
    }
    let named = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(named("audit-v1.jsonl"), old);
    assert_eq!(named("audit-v1-2.jsonl"), first_lines);
    assert_eq!(named("audit-v1-3.jsonl"), old);
    let start = Entry::parse(&read_dir(dir.path()).unwrap()[0]).unwrap();
    assert_eq!(start.fields["continues"]["file"], "audit-v1-3.jsonl");
}

/// Made by this version of the program: every later one has to verify it.
#[test]
fn the_golden_trail_holds() {
    let lines: Vec<String> = include_str!("golden/audit-v2.jsonl").lines().map(str::to_owned).collect();
    let report = verify(&lines, []);
    assert_eq!(report.findings, []);
    assert_eq!(report.entries, 4);
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 3, 0, Limits::default());
    certify(&mut trail, 1);
    let fields = [("by", "operator/op".into()), ("why", "a \"quoted\" word".into())];
    trail.record(at(2), "revoke", fields).unwrap();
    trail.record(at(3), "stop", []).unwrap();
    assert_eq!(read_dir(dir.path()).unwrap(), lines, "what is written has not changed");
}

#[test]
fn a_page_begins_and_ends_where_it_was_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let trail = open(dir.path(), 5, 5_000, Limits { segment_bytes: 3_000 });
    let all = read_dir(dir.path()).unwrap();
    for after in 0..=head.seq {
        for count in [1, 3, 1_000] {
            let page = trail.page(after, count).unwrap();
            let skip = usize::try_from(after).unwrap();
            let expected: Vec<_> = all.iter().skip(skip).take(count).cloned().collect();
            assert_eq!(page.lines, expected, "after {after}, {count}");
            assert_eq!(page.head.head.seq, head.seq + 1);
        }
    }
}

#[test]
fn a_reader_sees_the_trail_as_it_was_while_it_is_written_on_and_pruned() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let mut trail = open(dir.path(), 5, 5_000, Limits { segment_bytes: 3_000 });
    let all = read_dir(dir.path()).unwrap();
    let (page, whole, late) = (trail.reader().unwrap(), trail.reader().unwrap(), trail.reader().unwrap());
    // Far enough for the segment that was written then to be closed, and for the next one too.
    for number in 0..40 {
        trail.record(at(6_000 + number), "later", [("text", "x".repeat(200).into())]).unwrap();
    }
    let page = page.page(0, 1_000).unwrap();
    assert_eq!(page.lines, all);
    assert_eq!(page.head.head.seq, all.len() as u64);
    let mut lines = Vec::new();
    whole.each_line(|line| lines.push(line)).unwrap();
    assert_eq!(lines, all);
    assert!(trail.prune(at(9_000), u64::MAX).unwrap().is_some());
    let left = late.page(0, 1_000).unwrap();
    assert!(
        left.lines.len() < all.len() && all.ends_with(&left.lines),
        "what was pruned is left out, no more"
    );
}

#[test]
fn two_trails_that_disagree_are_told_apart() {
    let node = "11".repeat(16);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut keyholder = open(one.path(), 1, 0, Limits::default());
    let mut own = open(two.path(), 2, 0, Limits::default());
    let granted = |trail: &mut Trail<Seed>, event: &str, grant: &str| {
        trail.record(at(10), event, [("node", node.clone().into()), ("grant", grant.into())]).unwrap();
    };
    granted(&mut keyholder, "grant", "g1");
    granted(&mut keyholder, "receipt", "g1");
    granted(&mut own, "key-taken", "g1");
    own.record(at(20), "wiped", [("cause", "power".into()), ("at_boot_ns", 77.into())]).unwrap();
    let wiped = |boot: String| {
        [
            ("node", node.clone().into()),
            ("cause", "power".into()),
            ("node_boot", boot.into()),
            ("node_boot_ns", 77.into()),
        ]
    };
    keyholder.record(at(20), "wiped", wiped(BOOT.to_string())).unwrap();
    own.record(at(30), "stop", []).unwrap();
    let entries = |dir: &Path| -> Vec<Entry> {
        read_dir(dir).unwrap().iter().map(|line| Entry::parse(line).unwrap()).collect()
    };
    assert_eq!(crosscheck(&entries(one.path()), 99, &node, &entries(two.path())), []);
    granted(&mut keyholder, "receipt", "g2");
    granted(&mut own, "key-taken", "g3");
    keyholder.record(at(21), "wiped", wiped("00".repeat(16))).unwrap();
    let found = crosscheck(&entries(one.path()), 99, &node, &entries(two.path()));
    let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 3, "{texts:?}");
    assert!(texts[0].contains("g3") && texts[1].contains("g2") && texts[2].contains("power"), "{texts:?}");
}

/// A node tells of a wipe before it writes it down, and the power may be gone in between.
#[test]
fn a_wipe_that_ended_with_the_power_is_a_doubt_and_one_that_was_left_out_is_not() {
    let node = "11".repeat(16);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut keyholder = open(one.path(), 1, 0, Limits::default());
    drop(open(two.path(), 2, 0, Limits::default()));
    let wiped = |boot: BootId| {
        [
            ("node", node.clone().into()),
            ("cause", "power".into()),
            ("node_boot", boot.to_string().into()),
            ("node_boot_ns", at(20).boot_ns.into()),
        ]
    };
    keyholder.record(at(20), "wiped", wiped(BOOT)).unwrap();
    let found = || {
        let entries = |dir: &Path| -> Vec<Entry> {
            read_dir(dir).unwrap().iter().map(|line| Entry::parse(line).unwrap()).collect()
        };
        let found = crosscheck(&entries(one.path()), 99, &node, &entries(two.path()));
        found.iter().map(audit_log::Disagreement::severity).collect::<Vec<_>>()
    };
    assert_eq!(found(), [Severity::Doubt], "nothing follows");
    // The machine is there again.
    let rebooted = Moment { boot: BootId([8; 16]), boot_ns: 5, ..at(40) };
    let (mut later, _) =
        Trail::open(two.path(), Seed([3; 32]), TrailId([1; 16]), rebooted, Limits::default(), []).unwrap();
    later.record(Moment { boot_ns: 6, ..rebooted }, "act", []).unwrap();
    assert_eq!(found(), [Severity::Doubt], "another boot follows");
    // Of a boot that the node never wrote of, it would have had a start.
    keyholder.record(at(41), "wiped", wiped(BootId([9; 16]))).unwrap();
    assert_eq!(found(), [Severity::Doubt, Severity::Broken]);
}

#[test]
fn a_wipe_that_the_node_left_out_and_went_on_is_no_doubt() {
    let node = "11".repeat(16);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut keyholder = open(one.path(), 1, 0, Limits::default());
    let mut own = open(two.path(), 2, 0, Limits::default());
    let fields = [
        ("node", node.clone().into()),
        ("cause", "power".into()),
        ("node_boot", BOOT.to_string().into()),
        ("node_boot_ns", at(20).boot_ns.into()),
    ];
    keyholder.record(at(20), "wiped", fields).unwrap();
    own.record(at(25), "act", []).unwrap();
    let entries = |dir: &Path| -> Vec<Entry> {
        read_dir(dir).unwrap().iter().map(|line| Entry::parse(line).unwrap()).collect()
    };
    let found = crosscheck(&entries(one.path()), 99, &node, &entries(two.path()));
    assert_eq!(found, [audit_log::Disagreement::NeverWiped { cause: "power".to_owned(), seq: 2 }]);
}

/// A trail of one run whose current segment holds one entry behind the one that begins it, and its last closed segment.
fn just_rolled(dir: &Path) -> std::path::PathBuf {
    let mut trail = open(dir, 1, 0, Limits { segment_bytes: 3_000 });
    let current = dir.join("audit.jsonl");
    let mut second = 1;
    while std::fs::read_dir(dir).unwrap().count() < 3
        || std::fs::read_to_string(&current).unwrap().lines().count() != 2
    {
        trail.record(at(second), "grant", [("by", "operator/op".into())]).unwrap();
        second += 1;
    }
    let begins = |path: &Path| Entry::parse(std::fs::read_to_string(path).unwrap().lines().next().unwrap());
    assert_eq!(begins(&current).unwrap().event, "segment");
    let closed = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    closed.filter(|path| *path != current).max().unwrap()
}

#[test]
fn a_roll_that_fails_is_tried_again_and_leaves_the_trail_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 0, Limits { segment_bytes: 2_000 });
    // Nothing can be written where the next segment is begun.
    let next = dir.path().join("audit.jsonl.new");
    std::fs::create_dir(&next).unwrap();
    let mut second = 1;
    let mut record = |trail: &mut Trail<Seed>| {
        second += 1;
        trail.record(at(second), "grant", [("by", "operator/op".into())])
    };
    while record(&mut trail).is_ok() {}
    let head = trail.head();
    for _ in 0..3 {
        let error = record(&mut trail).unwrap_err().to_string();
        assert!(error.contains("audit.jsonl.new"), "{error}");
        assert_eq!(trail.head(), head);
    }
    std::fs::remove_dir(&next).unwrap();
    // What an attempt left behind is in nobody's way.
    std::fs::write(&next, "half a li").unwrap();
    for _ in 0..20 {
        record(&mut trail).unwrap();
    }
    let end = trail.head();
    drop(trail);
    let report = verify(&read_dir(dir.path()).unwrap(), [head, end]);
    assert!(report.holds() && report.head == Some(end), "{report:?}");
    assert!(std::fs::read_dir(dir.path()).unwrap().count() > 2, "several segments");
}

#[test]
fn a_trail_opens_as_the_same_one_wherever_a_crash_met_the_roll() {
    type Crash = fn(dir: &Path, closed: &Path, segment: &str, rest: &str);
    let crashes: [(&str, Crash); 5] = [
        ("before the new segment was whole", |dir, closed, segment, _| {
            std::fs::rename(closed, dir.join("audit.jsonl")).unwrap();
            std::fs::write(dir.join("audit.jsonl.new"), &segment[..segment.len() / 2]).unwrap();
        }),
        ("before the full one was renamed", |dir, closed, segment, _| {
            std::fs::rename(closed, dir.join("audit.jsonl")).unwrap();
            std::fs::write(dir.join("audit.jsonl.new"), segment).unwrap();
        }),
        ("before the new one was renamed", |dir, _, segment, _| {
            std::fs::remove_file(dir.join("audit.jsonl")).unwrap();
            std::fs::write(dir.join("audit.jsonl.new"), segment).unwrap();
        }),
        ("before there was a new one", |dir, _, _, _| std::fs::remove_file(dir.join("audit.jsonl")).unwrap()),
        ("and the new one begins without saying whose it is", |dir, closed, segment, rest| {
            let full = std::fs::read_to_string(closed).unwrap();
            std::fs::write(closed, full + segment).unwrap();
            std::fs::write(dir.join("audit.jsonl"), rest).unwrap();
        }),
    ];
    for (when, crash) in crashes {
        let dir = tempfile::tempdir().unwrap();
        let closed = just_rolled(dir.path());
        let current = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
        let (segment, rest) = current.split_at(current.find('\n').unwrap() + 1);
        crash(dir.path(), &closed, segment, rest);
        let other_id = TrailId([9; 16]);
        let (trail, found) =
            Trail::open(dir.path(), Seed([2; 32]), other_id, at(900), Limits::default(), []).unwrap();
        assert_eq!(found.broken, None, "{when}");
        assert_eq!(trail.head().trail, TrailId([1; 16]), "{when}");
        assert!(!dir.path().join("audit.jsonl.new").exists(), "{when}");
        let lines = read_dir(dir.path()).unwrap();
        let report = verify(&lines, [trail.head()]);
        assert!(report.holds(), "{when}: {report:?}");
        assert_eq!(trail.page(0, lines.len()).unwrap().lines, lines, "{when}");
    }
}

#[test]
fn the_largest_number_is_one_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let head = written(dir.path());
    let trail = open(dir.path(), 5, 5_000, Limits { segment_bytes: 3_000 });
    assert_eq!(trail.page(u64::MAX, 10).unwrap().lines, Vec::<String>::new());
    assert_eq!(trail.digests(u64::MAX, 10).unwrap().1, []);
    let end = Head { seq: u64::MAX, ..head };
    let (_, digests) = trail.digests(0, 1).unwrap();
    assert_eq!(end.after(&digests).seq, u64::MAX);
    // An entry that claims to be the last there can be, and one that says that everything was pruned.
    let mut lines = read_dir(dir.path()).unwrap();
    let line = lines.last().unwrap();
    let claimed = line.replace(&format!("\"seq\":{}", head.seq + 1), &format!("\"seq\":{}", u64::MAX));
    assert_ne!(*line, claimed);
    lines.push(claimed.clone());
    lines.push(
        claimed.replace("\"event\":\"start\"", &format!("\"event\":\"audit-pruned\",\"to\":{}", u64::MAX)),
    );
    assert!(!verify(&lines, [end]).holds());
    assert!(!verify(&lines[1..], [end]).holds());
}

#[test]
fn a_witness_knows_the_root_of_a_trail_without_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = open(dir.path(), 1, 0, Limits::default());
    let mut witness = Witness::open(&dir.path().join("witness.jsonl")).unwrap();
    // Seen first before the root was there.
    witness.keep(1, "compute-1", &trail.signed_head()).unwrap();
    assert_eq!(witness.root_key_of_trail(TrailId([1; 16])), None);
    certify(&mut trail, 1);
    witness.keep(2, "compute-1", &trail.signed_head()).unwrap();
    let root = hex::encode(Seed(ROOT).public());
    assert_eq!(witness.root_key_of_trail(TrailId([1; 16])), Some(root.as_str()));
    assert_eq!(witness.root_key_of_trail(TrailId([2; 16])), None);
}
