//! What the ledger does not grow past, and what people may not do.

use super::*;
use crate::access::TABLE;
use crate::api::CreateToken;
use crate::ledger::PolicyRecord;

#[test]
fn a_ledger_that_would_not_be_read_again_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    let file = dir.path().join(LEDGER_FILE);
    let size =
        |text: usize| PolicyRecord { text: "x".repeat(text), serial: 1, by: "test".to_owned(), at_unix_s: 0 };
    let most = usize::try_from(LEDGER_BYTES_MAX).unwrap();
    let set = |book: &mut Book, text: usize| {
        book.commit(|registry| {
            registry.policy = Some(size(text));
            Ok(())
        })
    };
    let before = std::fs::read(&file).unwrap();
    assert_eq!(set(&mut book, most).unwrap_err().kind(), ("invalid", 400));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(book.registry().unwrap().policy, None, "nothing has changed in memory");
    set(&mut book, most - 128 * 1024).unwrap();
    drop(book);
    assert_eq!(open(dir.path()).state(), SealState::Sealed, "one that is just below is read");
}

/// Whoever makes volumes until there is no room stops nobody from taking keys back.
#[test]
fn a_full_ledger_takes_latches_and_deletions() {
    use crate::cluster::kv::simulated::SimulatedStore;
    let store = SimulatedStore::default();
    let ([mut shared, _], _) = cluster::two(&store);
    store.limit_writes(RESERVE_BYTES + 32 * 1024);
    let dir = tempfile::tempdir().unwrap();
    let mut alone = open(dir.path());
    ceremony(&mut alone);
    fill(&mut alone);
    let most = usize::try_from(LEDGER_BYTES_MAX).unwrap();
    for (book, begin) in [(&mut shared.book, 0), (&mut alone, most - RESERVE_BYTES - 8 * 1024)] {
        let grow = |book: &mut Book, bytes: usize| {
            book.commit(|registry| {
                let text = "x".repeat(registry.policy.as_ref().map_or(0, |policy| policy.text.len()) + bytes);
                registry.policy = Some(PolicyRecord { text, serial: 1, by: "test".to_owned(), at_unix_s: 0 });
                Ok(())
            })
        };
        grow(book, begin).unwrap();
        while grow(book, 1_024).is_ok() {}
        let label = book.registry().unwrap().volumes[0].label.clone();
        for target in [Target::All, Target::Volume(label.clone())] {
            book.latch(&target, "somebody with a long name").unwrap();
            book.write_latches("revoke", &target, "somebody").unwrap();
        }
        book.lock_down("somebody").unwrap();
        book.write_latches("lockdown", &Target::All, "somebody").unwrap();
        assert!(grow(book, 1_024).is_err());
        let (volume, _) = book.begin_deletion(&label, "somebody").unwrap();
        book.erase_volume(volume, "somebody").unwrap();
        book.unlatch(&Target::All, "somebody").unwrap();
    }
}

#[test]
fn a_tokens_scopes_are_kept_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    let request = |count: usize| CreateToken {
        name: "scraper".to_owned(),
        scopes: vec!["GET /v1/policy".to_owned(); count],
        days: 1,
    };
    let refused = book.create_token(&request(TABLE.len() + 1), "auditor/eve").unwrap_err();
    assert_eq!(refused.kind(), ("invalid", 400));
    book.create_token(&request(TABLE.len()), "auditor/eve").unwrap();
    assert_eq!(book.token_entries().unwrap()[0].scopes, ["GET /v1/policy"]);
}

#[test]
fn no_token_is_made_for_what_takes_a_persons_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    let request = |scope: &str| CreateToken { name: "x".to_owned(), scopes: vec![scope.to_owned()], days: 1 };
    for scope in ["POST /v1/keyholders/{name}/join", "POST /v1/approvals/{id}/approve", "POST /v1/policy"] {
        let refused = book.create_token(&request(scope), "security-officer/eve").unwrap_err();
        assert_eq!(refused.kind(), ("invalid", 400), "{scope}");
    }
    book.create_token(&request("POST /v1/push"), "security-officer/eve").unwrap();
}

#[test]
fn a_node_that_is_marked_again_is_noted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    for _ in 0..3 {
        book.mark_compromised("node-1", "test").unwrap();
    }
    let suspicions = &book.registry().unwrap().suspicions;
    assert_eq!((suspicions.len(), suspicions[0].key), (1, Some([7; 32])), "with the key that it had");
}

#[test]
fn a_compromised_id_is_not_approved_again_with_another_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    book.mark_compromised("node-1", "test").unwrap();
    for key in [[7; 32], [9; 32]] {
        let refused = leases::approve(&mut book, key).unwrap_err();
        assert!(matches!(refused, KeyholderError::Compromised { .. }), "{refused}");
    }
}

#[test]
fn an_approval_of_a_policy_names_the_whole_digest_of_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    book.apply_policy("version = 1\n[quorum]\nloosen = 2\n", "security-officer/anna").unwrap();
    let looser = "version = 1\n";
    book.apply_policy(looser, "security-officer/anna").unwrap_err();
    let act = book.approval_entries().unwrap().remove(0).act;
    assert!(act.contains(&hex::encode(Sha256::digest(looser.as_bytes()))), "{act}");
}

#[test]
fn shrinking_takes_as_many_people_as_rolling_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    book.apply_policy("version = 1\n[quorum]\noverwrite = 2\n", "security-officer/anna").unwrap();
    let resize = |size_bytes, allow_shrink| crate::api::ResizeVolume { size_bytes, allow_shrink };
    book.allow_resize("db-1", &resize(2 << 30, false), "operator/op").unwrap();
    let refused = book.allow_resize("db-1", &resize(4096, true), "operator/op").unwrap_err();
    assert!(matches!(refused, KeyholderError::ApprovalWanted { .. }), "{refused}");
    let id = book.approval_entries().unwrap().remove(0).id;
    book.approve_request(&id, identity::Role::Operator, "operator/other").unwrap();
    // For this size, and once.
    assert!(book.allow_resize("db-1", &resize(8192, true), "operator/op").is_err());
    book.allow_resize("db-1", &resize(4096, true), "operator/op").unwrap();
    assert!(book.allow_resize("db-1", &resize(4096, true), "operator/op").is_err());
}

#[test]
fn an_approval_covers_neither_later_latches_nor_other_states_nor_a_policy_that_asks_for_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let node = Target::Node("node-1".to_owned());
    book.latch(&node, "operator/op").unwrap();
    let before = book.unlatch_act(&node).unwrap();
    assert_eq!(book.unlatch_act(&node).unwrap(), before);
    // A wipe that latches is another reason to look.
    let id = crate::ledger::WipeId { boot: BootId([5; 16]), at: BootInstant(9) };
    if let Some(open) = &mut book.open {
        open.registry.nodes[0].latch.as_mut().unwrap().wipe = Some(id);
    }
    let after = book.unlatch_act(&node).unwrap();
    assert!(after != before && after.contains("wipe 9"), "{after}");
    assert!(book.unlatch_act(&Target::All).unwrap().contains("node-1"));

    let untouched = book.accept_act("db-1").unwrap();
    let volume = book.find_volume("db-1").unwrap().0;
    book.volume_now(volume).found = Some(StateVerdict::Older);
    assert_ne!(book.accept_act("db-1").unwrap(), untouched);

    let ask = |book: &mut Book| book.require_others(Grave::Unlatch, "unlatch", "security-officer/anna");
    let policy = |count: u8| format!("version = 1\n[quorum]\nunlatch = {count}\n");
    book.apply_policy(&policy(2), "test").unwrap();
    ask(&mut book).unwrap_err();
    let request = book.approval_entries().unwrap().remove(0).id;
    book.approve_request(&request, identity::Role::SecurityOfficer, "security-officer/bob").unwrap();
    book.apply_policy(&policy(3), "test").unwrap();
    ask(&mut book).unwrap_err();
    book.approve_request(&request, identity::Role::SecurityOfficer, "security-officer/carol").unwrap();
    ask(&mut book).unwrap();
}

#[test]
fn what_a_marked_node_ever_had_is_found_in_the_trail_and_noted() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let order = book.plan_push(NodeId([1; 16])).unwrap()[0].order.clone();
    let second = AddNode {
        name: "node-2".to_owned(),
        node: NodeId([2; 16]),
        key_address: "https://127.0.0.1:7421".parse().unwrap(),
        admin_address: "https://127.0.0.1:7422".parse().unwrap(),
        identity_key: Some(hex::encode([8; 32])),
        push: PushPolicy::Auto,
        lease_ms: None,
    };
    book.add_node(&second, "test").unwrap();
    book.promoted(order.volume, second.node, (None, 1 << 30), "test").unwrap();
    let marked = book.mark_compromised("node-1", "test").unwrap();
    assert!(book.registry().unwrap().nodes[0].latch.is_some(), "in force before the trail is read");
    assert_eq!(book.registry().unwrap().suspicions[0].exposed.len(), 1, "what is on it now");
    let spans = suspicions::spans(book.audit.reader().unwrap(), marked.node).unwrap();
    let compromise = book.note_exposed(&marked, &spans, "test").unwrap();
    assert_eq!(compromise.exposed.len(), 2);
    let had = compromise.exposed.iter().find(|exposed| exposed.volume == order.volume).unwrap();
    assert!(had.first_unix_s.is_some());
    assert_eq!(book.registry().unwrap().suspicions[0].exposed.len(), 2);
}

#[test]
fn what_is_too_long_for_an_entry_is_in_the_trail_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    let nodes: Vec<String> = (0..400).map(|number| format!("\"node-{number:040}\"")).collect();
    let long = format!("[[volume]]\nlabel = \"db\"\nnodes = [{}]\n", nodes.join(", "));
    let policy = format!("version = 1\n{long}");
    book.apply_policy(&policy, "security-officer/anna").unwrap();
    let entry = events(dir.path(), "policy-applied").remove(0);
    let said = entry.fields["changed"].to_string();
    assert!(said.contains("SHA-256") && said.len() < 4_096, "{} bytes", said.len());

    book.audit.record("test", [("by", "anna".into()), ("much", "x".repeat(2 << 20).into())]).unwrap();
    let entry = events(dir.path(), "test").remove(0);
    assert_eq!(entry.text("by"), "anna");
    assert_eq!(entry.text("left_out_sha256").len(), 64);
    assert!(entry.fields.get("much").is_none());
}

#[test]
fn an_unsealing_that_fails_on_its_way_leaves_the_keyholder_sealed_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    drop(book);
    let mut book = open(dir.path());
    // Lost, and not to be written: there is something in the file's place.
    book.records_found = Found::Lost;
    let beside = dir.path().join("leases.new");
    std::fs::create_dir(&beside).unwrap();
    let share = |number: u8| shares[usize::from(number) - 1].open(&[number; 32]).unwrap();
    book.submit_share(&share(1), "test").unwrap();
    book.submit_share(&share(3), "test").unwrap_err();
    assert_eq!(book.state(), SealState::Sealed);
    assert!(book.vault.secrets_for_test().iter().all(|secret| *secret == [0; 32]), "the root is gone again");
    std::fs::remove_dir(&beside).unwrap();
    unseal(&mut book, &shares);
}

#[test]
fn a_ceremony_is_not_repeated_over_what_people_have_decided() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    ceremony(&mut book);
    fill(&mut book);
    book.mark_compromised("node-1", "test").unwrap();
    for label in ["db-1", "db-2"] {
        let volume = book.find_volume(label).unwrap().0;
        book.erase_volume(volume, "test").unwrap();
    }
    book.remove_node("node-1", "test").unwrap();
    let request = CeremonyRequest { threshold: 1, officers: Vec::new() };
    let refused = book.ceremony(&request, "test").unwrap_err();
    assert!(matches!(refused, KeyholderError::LedgerExists), "{refused}");
    assert_eq!(book.registry().unwrap().suspicions.len(), 1);
}
