//! Several keyholders and one store: who wins, what a newcomer finds, and a store that is not the one it was.

use super::*;
use crate::cluster::kv::simulated::{SimulatedKv, SimulatedStore, Weather};
use crate::cluster::wire::{self, LeaseValue};
use crate::store::StoreError;

pub(super) const AHEAD_MS: u64 = 20_000;

/// A keyholder that shares a store.
pub(super) struct Member {
    pub(super) dir: tempfile::TempDir,
    pub(super) name: &'static str,
    pub(super) kv: SimulatedKv,
    pub(super) book: Book,
}

impl Member {
    pub(super) fn new(store: &SimulatedStore, name: &'static str) -> Self {
        let (dir, kv) = (tempfile::tempdir().unwrap(), store.access());
        let book = open_shared(dir.path(), name, &kv);
        Self { dir, name, kv, book }
    }

    /// The program ends without a word and is started again.
    pub(super) fn crash(&mut self) {
        let nowhere = tempfile::tempdir().unwrap();
        // The directory's lock goes with the book.
        self.book = open_shared(nowhere.path(), "nobody", &self.kv);
        self.book = open_shared(self.dir.path(), self.name, &self.kv);
    }

    pub(super) fn look(&mut self) -> Result<News, KeyholderError> {
        self.book.look_at_store()?;
        self.book.beat()?;
        Ok(self.book.take_news())
    }
}

fn open_shared(dir: &Path, name: &str, kv: &SimulatedKv) -> Book {
    let vault = Arc::new(Vault::new(Policy::AllowMlock).unwrap());
    let address = format!("https://{name}:7420");
    let access = Access { kv: Arc::new(kv.clone()), address, ahead_ms: AHEAD_MS };
    let leases = LeaseBounds { default_ms: 5_000, max_ms: 60_000 };
    Book::open(name.to_owned(), StateDir::open(dir).unwrap(), vault, leases, Some(access)).unwrap()
}

pub(super) fn add_second_node(book: &mut Book) {
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
}

/// Two unsealed keyholders over one store, which has two nodes and, on the first, two volumes.
pub(super) fn two(store: &SimulatedStore) -> ([Member; 2], Vec<SealedShare>) {
    let mut first = Member::new(store, "compute-1");
    first.look().unwrap_err();
    let shares = ceremony(&mut first.book);
    fill(&mut first.book);
    add_second_node(&mut first.book);
    let mut second = Member::new(store, "compute-2");
    second.look().unwrap();
    unseal(&mut second.book, &shares);
    first.look().unwrap();
    ([first, second], shares)
}

fn volume_of(book: &Book) -> VolumeId {
    book.find_volume("db-1").unwrap().0
}

fn is_changed<T>(result: &Result<T, KeyholderError>) -> bool {
    matches!(result, Err(KeyholderError::Store(StoreError::Changed)))
}

#[track_caller]
fn distrusted<T>(result: Result<T, KeyholderError>, words: &str) {
    match result {
        Err(KeyholderError::Store(StoreError::Distrusted { why })) => assert!(why.contains(words), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is trusted"),
    }
}

/// By its own value, which is not there any more: it is not said at once, because an answer may have been lost.
#[track_caller]
fn distrusted_in_the_end(member: &mut Member) {
    let looked = (0..4).map(|_| member.look()).find(|looked| !is_changed(looked));
    distrusted(looked.unwrap(), "set back");
}

#[test]
fn two_keyholders_have_one_ledger_and_each_sees_what_the_other_changes() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    assert_eq!(first.book.registry().unwrap().volumes, second.book.registry().unwrap().volumes);
    second.book.resized(volume_of(&second.book), 2 << 30, "test").unwrap();
    // Not seen yet: what is decided by an older ledger is not written over a newer one.
    assert!(is_changed(&first.book.resized(volume_of(&first.book), 3 << 30, "test")));
    assert!(first.look().unwrap().ledger);
    assert_eq!(first.book.registry().unwrap().volume_labelled("db-1").unwrap().size.0, 2 << 30);
    first.book.resized(volume_of(&first.book), 3 << 30, "test").unwrap();
    second.look().unwrap();
    assert_eq!(second.book.registry().unwrap().volume_labelled("db-1").unwrap().size.0, 3 << 30);
    // Each keeps a copy, and opens it with the same shares.
    let copies = [&first, &second].map(|member| std::fs::read(member.dir.path().join(LEDGER_FILE)).unwrap());
    assert!(copies[0] == copies[1] && !copies[0].is_empty());
}

#[test]
fn of_two_that_take_the_same_fence_one_gets_it() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let granted = first.book.plan_push(NodeId([1; 16])).unwrap();
    assert_eq!(granted.len(), 2);
    assert!(second.book.plan_push(NodeId([1; 16])).unwrap().is_empty(), "it has not seen the other's grants");
    second.look().unwrap();
    for planned in second.book.plan_push(NodeId([1; 16])).unwrap() {
        let before = granted.iter().find(|grant| grant.order.volume == planned.order.volume).unwrap();
        assert!(planned.order.fence > before.order.fence);
    }
}

#[test]
fn a_volume_that_moved_waits_for_the_whole_record_of_another_keyholder_and_for_a_lease_of_its_own() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    first.book.plan_push(NodeId([1; 16])).unwrap();
    let volume = volume_of(&first.book);
    first.book.promoted(volume, NodeId([2; 16]), (None, 1 << 30), "test").unwrap();
    second.look().unwrap();
    for (book, longest_ms) in [(&mut first.book, 5_005), (&mut second.book, 5_005 + AHEAD_MS + 30)] {
        assert!(book.plan_push(NodeId([2; 16])).unwrap().is_empty());
        let left_ms = book.records.of(volume).unwrap().held_until().unwrap().ms_since(clock::now());
        assert!((longest_ms - 3_000..=longest_ms).contains(&left_ms), "{left_ms} of {longest_ms}");
    }
}

#[test]
fn renewals_go_on_inside_the_record_while_the_store_is_away_and_grants_do_not() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let advance = |ms| clock::simulated::set(clock::now().saturating_add_ms(ms));
    let store = SimulatedStore::default();
    let ([mut first, _], _) = two(&store);
    let node = NodeId([1; 16]);
    let planned = first.book.plan_push(node).unwrap();
    let recorded =
        planned.iter().map(|grant| first.book.records.of(grant.order.volume).unwrap().expires.unwrap());
    let recorded = recorded.min().unwrap();
    first.kv.set_weather(Weather::CutOff);
    first.look().unwrap_err();
    let mut renewed_until = clock::now();
    loop {
        advance(1_000);
        let (lease_ms, grants) = first.book.renew(node, &[]).unwrap().unwrap();
        if grants.is_empty() {
            break;
        }
        assert_eq!(grants.len(), 2);
        renewed_until = clock::now().saturating_add_ms(lease_ms);
        assert!(renewed_until <= recorded, "a lease outlives its record");
    }
    // To the last second that makes a lease.
    assert!(recorded.ms_since(renewed_until) <= 1_100, "{}", recorded.ms_since(renewed_until));
    first.book.reconcile(node, &BTreeMap::new()).unwrap();
    assert!(first.book.plan_push(node).unwrap().is_empty());
    assert!(first.book.commit(|_| Ok(())).is_err());
    // Back: what waited is pushed.
    first.kv.set_weather(Weather::Fair);
    assert!(first.look().unwrap().may_push);
    assert_eq!(first.book.plan_push(node).unwrap().len(), 2);
}

#[test]
fn a_keyholder_gives_nothing_under_a_record_that_another_wrote_also_where_its_own_would_be_the_same() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let node = NodeId([1; 16]);
    let planned = first.book.plan_push(node).unwrap();
    second.look().unwrap();
    let held = planned.iter().map(|planned| (planned.order.volume, planned.order.grant)).collect();
    second.book.reconcile(node, &held).unwrap();
    // In the same moment: what is left by the first one's record is as much as the second would record.
    assert_eq!(second.book.renew(node, &[]).unwrap().unwrap().1.len(), 2);
    let written = store.value(&wire::lease_name(volume_of(&first.book))).unwrap();
    assert_eq!(wire::decode::<LeaseValue>(&written).unwrap().by, "compute-2");
    // So the first one, which knows of its own lease only, does not let the volume go meanwhile.
    first.book.reconcile(node, &BTreeMap::new()).unwrap();
    assert!(first.book.plan_push(node).unwrap().is_empty());
}

#[test]
fn a_store_that_is_away_for_a_moment_after_a_takeover_costs_no_key() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let advance = |ms| clock::simulated::set(clock::now().saturating_add_ms(ms));
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let node = NodeId([1; 16]);
    let planned = first.book.plan_push(node).unwrap();
    second.look().unwrap();
    let held = planned.iter().map(|planned| (planned.order.volume, planned.order.grant)).collect();
    assert!(second.book.reconcile(node, &held).unwrap().is_empty());
    second.kv.set_weather(Weather::CutOff);
    // An answer without them would end them.
    assert_eq!(second.book.renew(node, &[]).unwrap(), None);
    advance(1_000);
    second.kv.set_weather(Weather::Fair);
    second.look().unwrap();
    assert_eq!(second.book.renew(node, &[]).unwrap().unwrap().1.len(), 2);
    // Leases of its own come first.
    let other = planned[1].order.volume;
    let forget_own = |records: &mut BTreeMap<VolumeId, LeaseRecord>| {
        if let Some(record) = records.get_mut(&other) {
            record.given = None;
        }
    };
    second.book.records.update(&mut second.book.store, forget_own).unwrap();
    second.kv.set_weather(Weather::CutOff);
    second.look().unwrap_err();
    advance(100);
    let (_, renewed) = second.book.renew(node, &[]).unwrap().unwrap();
    assert_eq!(renewed, [planned[0].order.grant]);
}

#[test]
fn evidence_from_before_another_keyholders_grant_was_seen_is_not_judged() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let node = NodeId([1; 16]);
    let opened = clock::now();
    assert!(!second.book.was_granted_since(node, opened));
    first.book.plan_push(node).unwrap();
    clock::simulated::set(opened.saturating_add_ms(1));
    second.look().unwrap();
    assert!(second.book.was_granted_since(node, opened), "that the node held nothing was before that");
    clock::simulated::set(opened.saturating_add_ms(2));
    assert!(!second.book.was_granted_since(node, clock::now()), "a new session's evidence counts");
    assert!(!first.book.was_granted_since(node, opened), "its own grants come after its evidence");
    assert!(!second.book.was_granted_since(NodeId([2; 16]), opened));
}

#[test]
fn a_write_whose_answer_is_lost_counts_as_anothers() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let node = NodeId([1; 16]);
    first.kv.set_weather(Weather::AnswersLost);
    assert!(
        first.book.plan_push(node).unwrap().is_empty(),
        "nothing leaves that is not known to be recorded"
    );
    let volume = volume_of(&first.book);
    assert!(first.book.records.of(volume).is_none());
    first.kv.set_weather(Weather::Fair);
    first.look().unwrap();
    assert!(first.book.records.of(volume).unwrap().expires.is_some(), "it was recorded after all");
    assert_eq!(first.book.plan_push(node).unwrap()[0].order.fence, units::Fence(2));
    second.look().unwrap();
    // The ledger likewise.
    let serial = first.book.header().unwrap().serial;
    first.kv.set_weather(Weather::AnswersLost);
    first.book.commit(|_| Ok(())).unwrap_err();
    first.kv.set_weather(Weather::Fair);
    first.look().unwrap();
    assert_eq!(first.book.header().unwrap().serial, serial + 1);
    first.book.commit(|_| Ok(())).unwrap();
}

#[test]
fn a_latch_is_written_whoever_else_writes_and_is_not_lifted_by_an_older_word() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    first.book.lock_down("test").unwrap();
    second.book.resized(volume_of(&second.book), 2 << 30, "test").unwrap();
    first.book.write_latches("lockdown", &Target::All, "test").unwrap();
    second.look().unwrap();
    assert!(second.book.registry().unwrap().lockdown.is_some());
    assert_eq!(first.book.registry().unwrap().volume_labelled("db-1").unwrap().size.0, 2 << 30);
    second
        .book
        .reconcile(NodeId([1; 16]), &BTreeMap::from([(volume_of(&second.book), GrantId([9; 16]))]))
        .unwrap();
    let judged = second.book.latched_since(NodeId([1; 16]));
    assert_eq!(judged, Judgement::RevokeAll(lease::message::RevokeCause::Lockdown));
}

#[test]
fn a_revocation_is_confirmed_by_whoever_may_hold_the_key_and_nobody_else() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let (of_first, of_second) = (NodeId([1; 16]), NodeId([2; 16]));
    let volume = volume_of(&first.book);
    first.book.plan_push(of_first).unwrap();
    first.book.promoted(volume, of_second, (None, 1 << 30), "test").unwrap();
    second.look().unwrap();
    let since = clock::now();
    let target = Target::Volume("db-1".to_owned());
    second.book.latch(&target, "test").unwrap();
    assert_eq!(second.book.nodes_of(&target).unwrap(), [of_second]);
    for scope in [Some(volume), None] {
        assert!(!second.book.is_forgotten(of_second, scope, since), "the node before it holds the key");
    }
    // Likewise where the node that has it now is dialled here and says that it holds nothing.
    second.book.reconcile(of_second, &BTreeMap::new()).unwrap();
    assert!(!second.book.is_forgotten(of_second, Some(volume), since));
    first.book.reconcile(of_first, &BTreeMap::new()).unwrap();
    first.book.flush_records().unwrap();
    second.look().unwrap();
    assert!(second.book.is_forgotten(of_second, Some(volume), since));
}

#[test]
fn a_restarted_keyholder_finds_the_leases_and_its_trail_again() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], shares) = two(&store);
    first.book.plan_push(NodeId([1; 16])).unwrap();
    second.look().unwrap();
    second.book.commit(|_| Ok(())).unwrap();
    first.crash();
    unseal(&mut first.book, &shares);
    assert!(first.book.plan_push(NodeId([1; 16])).unwrap().is_empty(), "the store has not been heard");
    first.look().unwrap();
    assert!(first.book.wait_until.is_none());
    assert!(first.book.records.of(volume_of(&first.book)).unwrap().expires.is_some());
    let trail = std::fs::read_to_string(first.dir.path().join("audit.jsonl")).unwrap();
    assert!(!trail.contains("audit-truncated"), "the ledger's last note was of the other's trail");
}

#[test]
fn a_store_that_was_set_back_is_noticed_by_those_who_run_and_by_those_who_start() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], shares) = two(&store);
    let backup = store.backup();
    let volume = volume_of(&first.book);
    first.book.begin_deletion("db-1", "test").unwrap();
    let erased = first.book.erase_volume(volume, "test").unwrap();
    assert_eq!(erased.erasure, crate::api::Erasure::PendingBackups, "etcd's own files are a backup");
    second.look().unwrap();
    store.restore(backup);
    distrusted_in_the_end(&mut first);
    first.crash();
    distrusted(first.look(), "set back");
    unseal(&mut first.book, &shares);
    // It opens its own copy, which is without the volume, and nothing brings the other one back.
    assert!(first.book.registry().unwrap().volume(volume).is_none());
    assert!(first.book.plan_push(NodeId([1; 16])).unwrap().is_empty());
    distrusted(first.book.commit(|_| Ok(())), "set back");
    // Others wrote so much since that the revision is past the one known.
    (0..100).for_each(|_| store.overwrite("later", Vec::new()));
    distrusted_in_the_end(&mut second);
    second.crash();
    distrusted(second.look(), "set back");
}

#[test]
fn a_store_that_was_set_back_is_noticed_by_who_writes_before_it_looks_again() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let backup = store.backup();
    first.book.resized(volume_of(&first.book), 2 << 30, "test").unwrap();
    // Its own value is as the backup has it, so a write of that alone meets nothing unexpected.
    second.book.look_at_store().unwrap();
    store.restore(backup);
    distrusted(second.book.beat(), "set back");
}

#[test]
fn an_emptied_or_another_store_is_not_taken_for_the_right_one() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], shares) = two(&store);
    store.restore(SimulatedStore::default().backup());
    first.crash();
    distrusted(first.look(), "empty");
    let other = SimulatedStore::default();
    let (_others, _) = two(&other);
    store.restore(other.backup());
    second.crash();
    distrusted(second.look(), "another one");
    unseal(&mut second.book, &shares);
    assert!(second.book.plan_push(NodeId([1; 16])).unwrap().is_empty());
}

#[test]
fn what_somebody_put_into_the_store_is_not_followed() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let good = store.value(wire::LEDGER).unwrap();
    let forge = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let end = bytes.len() - 32;
        let checksum: [u8; 32] = Sha256::digest(&bytes[..end]).into();
        bytes[end..].copy_from_slice(&checksum);
        bytes
    };
    // The serial is the header's first byte.
    store.overwrite(wire::LEDGER, forge(&|bytes| bytes[16] += 1));
    distrusted(first.look(), "does not open");
    store.overwrite(wire::LEDGER, good[..good.len() - 1].to_vec());
    distrusted(second.look(), "does not read");
    assert!(first.book.registry().is_ok(), "what was known stays");
}

#[test]
fn a_ledger_that_cannot_be_followed_is_not_written_over() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    // Of a later program, whose policy has a word that this one does not know.
    let (text, by) = ("version = 1\nlater = true\n".to_owned(), "test".to_owned());
    first
        .book
        .commit(|registry| {
            registry.policy = Some(crate::ledger::PolicyRecord { text, serial: 1, by, at_unix_s: 1 });
            registry.lockdown = Some(latch_by(LatchCause::Lockdown, "test"));
            Ok(())
        })
        .unwrap();
    let written = store.value(wire::LEDGER).unwrap();
    distrusted(second.look(), "cannot be followed");
    distrusted(second.book.commit(|_| Ok(())), "cannot be followed");
    assert!(second.book.plan_push(NodeId([1; 16])).unwrap().is_empty(), "there is a lockdown");
    assert!(store.value(wire::LEDGER).unwrap() == written);
}

#[test]
fn a_ledger_that_could_not_be_kept_here_is_written_all_the_same_and_its_serial_used_once() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], shares) = two(&store);
    let volume = volume_of(&first.book);
    std::fs::create_dir(first.dir.path().join("ledger.new")).unwrap();
    distrusted(first.book.resized(volume, 2 << 30, "test"), "could not be kept here");
    distrusted(first.book.resized(volume, 3 << 30, "test"), "could not be kept here");
    second.look().unwrap();
    assert_eq!(second.book.registry().unwrap().volume(volume).unwrap().size.0, 2 << 30);
    // There is room again.
    std::fs::remove_dir(first.dir.path().join("ledger.new")).unwrap();
    first.crash();
    unseal(&mut first.book, &shares);
    first.look().unwrap();
    assert_eq!(first.book.registry().unwrap().volume(volume).unwrap().size.0, 2 << 30);
    first.book.resized(volume, 3 << 30, "test").unwrap();
    second.look().unwrap();
}

#[test]
fn what_a_look_has_seen_is_not_lost_with_what_it_failed_at() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let node = NodeId([1; 16]);
    let link = wire::LinkValue { holder: "compute-2".to_owned(), incarnation: [0; 16] };
    first.book.put_link(node, &link).unwrap();
    first.book.commit(|_| Ok(())).unwrap();
    std::fs::create_dir(second.dir.path().join("ledger.new")).unwrap();
    distrusted(second.look(), "cannot be followed");
    let items = second.book.take_news().items;
    assert!(items.iter().any(|(named, _)| *named == wire::Named::Link(node)));
    // Likewise of a look that was taken for the sake of a write.
    let mut third = Member::new(&store, "compute-3");
    third.book.look_at_store().unwrap();
    third.book.look_at_store().unwrap();
    assert!(third.book.take_news().items.iter().any(|(named, _)| *named == wire::Named::Link(node)));
}

#[test]
fn a_lease_record_that_was_taken_out_or_damaged_is_one_of_the_longest_lease() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let ([mut first, _], shares) = two(&store);
    let node = NodeId([1; 16]);
    first.book.plan_push(node).unwrap();
    first.book.commit(|_| Ok(())).unwrap();
    let volume = volume_of(&first.book);
    store.overwrite(&wire::lease_name(volume), b"damaged".to_vec());
    first.look().unwrap();
    let record = *first.book.records.of(volume).unwrap();
    assert_eq!(record.node, NOBODY);
    assert!(record.expires.unwrap().ms_since(clock::now()) > 4_000);
    // A newcomer, to whom nobody has shown a record.
    store.remove(&wire::lease_name(volume));
    let mut third = Member::new(&store, "compute-3");
    third.look().unwrap();
    unseal(&mut third.book, &shares);
    let record = third.book.records.of(volume).unwrap();
    assert_eq!((record.node, record.fence), (NOBODY, units::Fence(1)));
    assert!(third.book.plan_push(node).unwrap().iter().all(|planned| planned.order.volume != volume));
}

#[test]
fn what_one_keyholder_deletes_another_knows_of_and_goes_on_writing() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let node = NodeId([1; 16]);
    first.book.plan_push(node).unwrap();
    let state = lease::message::PoolState { pool: units::PoolId([6; 16]), count: 9, chain: [5; 32] };
    first.book.records.set_states(&[state]);
    first.book.flush_records().unwrap();
    second.look().unwrap();
    assert_eq!(second.book.records.state_of(state.pool), Some(state));
    let volume = volume_of(&first.book);
    first.book.begin_deletion("db-1", "test").unwrap();
    first.book.erase_volume(volume, "test").unwrap();
    let kept = first.book.find_volume("db-2").unwrap().0;
    first.book.records.forget_state(&mut first.book.store, kept, Some(state.pool)).unwrap();
    second.look().unwrap();
    // The node says that it holds nothing, which is news of both volumes as long as both are known.
    second.book.reconcile(node, &BTreeMap::new()).unwrap();
    (0..2).for_each(|_| drop(second.look().unwrap()));
    assert_eq!(second.book.records.state_of(state.pool), None, "it was forgotten on a person's word");
    let pushed = second.book.plan_push(node).unwrap();
    assert_eq!(pushed.iter().map(|grant| grant.order.volume).collect::<Vec<_>>(), [kept]);
    assert_eq!(second.book.renew(node, &[]).unwrap().unwrap().1.len(), 1);
}

#[test]
fn an_emptied_store_is_noticed_by_who_runs() {
    let store = SimulatedStore::default();
    let ([mut first, _second], _) = two(&store);
    for name in store.names() {
        store.remove(&name);
    }
    first.book.look_at_store().unwrap();
    distrusted(first.book.look_at_store(), "it is empty");
}

#[test]
fn a_keyholder_that_was_alone_brings_its_ledger_and_its_leases() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let dir = tempfile::tempdir().unwrap();
    let mut alone = open(dir.path());
    let shares = ceremony(&mut alone);
    fill(&mut alone);
    let planned = alone.plan_push(NodeId([1; 16])).unwrap();
    drop(alone);
    let kv = store.access();
    let mut joined = open_shared(dir.path(), "compute-1", &kv);
    joined.look_at_store().unwrap();
    assert!(store.value(wire::LEDGER).is_none(), "nobody founds a store without the root");
    unseal(&mut joined, &shares);
    joined.look_at_store().unwrap();
    let mut second = Member::new(&store, "compute-2");
    second.look().unwrap();
    unseal(&mut second.book, &shares);
    for grant in planned {
        let record = second.book.records.of(grant.order.volume).unwrap();
        assert_eq!((record.grant, record.fence), (grant.order.grant, grant.order.fence));
        assert!(record.expires.unwrap().ms_since(clock::now()) > 3_000);
    }
}

#[test]
fn records_of_before_there_was_a_store_are_not_taken_for_those_of_after_it() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let store = SimulatedStore::default();
    let dir = tempfile::tempdir().unwrap();
    let mut alone = open(dir.path());
    let shares = ceremony(&mut alone);
    fill(&mut alone);
    alone.plan_push(NodeId([1; 16])).unwrap();
    drop(alone);
    let old = std::fs::read(dir.path().join(LEASES_FILE)).unwrap();
    let mut joined = open_shared(dir.path(), "compute-1", &store.access());
    unseal(&mut joined, &shares);
    joined.look_at_store().unwrap();
    assert!(joined.grants_wait().is_none());
    assert!(!dir.path().join(LEASES_FILE).exists());
    drop(joined);
    // Also where an earlier program left it.
    std::fs::write(dir.path().join(LEASES_FILE), old).unwrap();
    drop(open_shared(dir.path(), "compute-1", &store.access()));
    // The store is lost: CLUSTER.md, "When the store is not the one it was".
    std::fs::remove_file(dir.path().join("store-mark")).unwrap();
    let mut again = open_shared(dir.path(), "compute-1", &SimulatedStore::default().access());
    unseal(&mut again, &shares);
    again.look_at_store().unwrap();
    assert!(again.grants_wait().is_some());
    drop(again);
    // And where it is to be alone again.
    let mut alone = open(dir.path());
    unseal(&mut alone, &shares);
    assert!(alone.grants_wait().is_some());
}

#[test]
fn two_names_alike_are_noticed() {
    let store = SimulatedStore::default();
    let ([mut first, _], _) = two(&store);
    let mut double = Member::new(&store, "compute-1");
    double.look().unwrap();
    distrusted(first.look(), "calls itself compute-1");
}

#[test]
fn nothing_in_the_store_holds_a_secret_or_a_label() {
    let store = SimulatedStore::default();
    let ([mut first, _], _) = two(&store);
    first.book.plan_push(NodeId([1; 16])).unwrap();
    let secrets = first.book.vault.secrets_for_test();
    let values = store.values();
    assert!(values.iter().any(|value| contains(value, b"officer-1")), "the search finds what is there");
    for value in values {
        for word in secrets.iter().flat_map(|secret| secret.chunks(8)) {
            assert!(!contains(&value, word));
        }
        assert!(!contains(&value, b"db-1"));
    }
}

#[test]
fn a_lease_value_tells_how_long_it_is_good_for_and_nothing_of_clocks() {
    let store = SimulatedStore::default();
    let ([mut first, _], _) = two(&store);
    clock::simulated::set(BootInstant(u64::MAX / 2));
    first.book.plan_push(NodeId([1; 16])).unwrap();
    let value = store.value(&wire::lease_name(volume_of(&first.book))).unwrap();
    let value: LeaseValue = wire::decode(&value).unwrap();
    assert_eq!(value.left_ms, Some(5_005 + AHEAD_MS));
    assert_eq!(value.by, "compute-1");
}
