//! What happened is told, to those who asked, and survives what the change survives.

use std::sync::Arc;

use crate::workload::content;
use objects::limits::{EVENTS_ENSURED, EVENTS_MAX};
use objects::simulated::SimulatedVolume;
use objects::{
    Acl, BucketOptions, CompleteOptions, CompletedPart, CopyOptions, Declared, DeleteRequest, Event,
    EventCounts, Happened, Notice, Notices, PutOptions, Store, StoreError, UploadOptions, VersionId,
    Versioning,
};
use units::ByteLen;

const BUCKET: &str = "bucket";
const HOOK: &str = "hook";

fn store() -> (SimulatedVolume, Arc<Store>) {
    let volume = SimulatedVolume::new(ByteLen(256 << 20));
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions { owner: "alice".into(), ..Default::default() }).unwrap();
    (volume, store)
}

fn notice(destination: &str, (happened, event): (Happened, &'static str)) -> Notice {
    Notice { happened, event, destination: destination.to_owned(), configuration: "rule".to_owned() }
}

fn notices(happened: &[(Happened, &'static str)]) -> Notices {
    Notices {
        to: happened.iter().map(|happened| notice(HOOK, *happened)).collect(),
        user: "alice".into(),
        address: "10.0.0.1".into(),
        request: "R1".into(),
    }
}

fn made() -> Notices {
    notices(&[(Happened::Made, "made")])
}

fn put(store: &Store, key: &str, notices: Notices) {
    let mut writer = store.put_object(BUCKET, key, None, None).unwrap();
    writer.append(&content(1, 9_000)).unwrap();
    writer.finish(PutOptions { notices, ..PutOptions::default() }).unwrap();
}

fn waiting(store: &Store) -> Vec<(u64, Event)> {
    store.waiting_events(HOOK, 1_000).unwrap()
}

fn names(store: &Store) -> Vec<(String, String)> {
    waiting(store).into_iter().map(|(_, event)| (event.name, event.key)).collect()
}

fn counts(store: &Store) -> EventCounts {
    store.event_counts().unwrap().into_iter().find(|(name, _)| name == HOOK).unwrap_or_default().1
}

#[test]
fn an_event_says_what_happened_to_which_object_and_who_asked() {
    let (_, store) = store();
    put(&store, "k", made());
    let (place, event) = waiting(&store).remove(0);
    let object = store.head_object(BUCKET, "k", None).unwrap();
    let told = (event.name.as_str(), event.key.as_str(), event.bucket.as_str(), event.owner.as_str());
    assert_eq!(told, ("made", "k", BUCKET, "alice"));
    assert_eq!((event.bytes, event.etag, event.version.clone()), (9_000, Some(object.etag), None));
    let asked = (event.user.as_str(), event.address.as_str(), event.request.as_str());
    assert_eq!((asked, event.configuration.as_str()), (("alice", "10.0.0.1", "R1"), "rule"));
    assert_eq!(event.sequence, place);
    store.set_versioning(BUCKET, Versioning::Enabled).unwrap();
    put(&store, "k", made());
    let current = store.head_object(BUCKET, "k", None).unwrap().version.unwrap().to_string();
    assert_eq!(waiting(&store)[1].1.version, Some(current));
}

#[test]
fn every_kind_of_change_is_told_once_and_what_changes_nothing_is_not() {
    let (_, store) = store();
    put(&store, "a", made());
    let source = store.object(BUCKET, "a", None).unwrap();
    let copy = |key: &str| {
        let options = CopyOptions { notices: made(), ..CopyOptions::default() };
        store.copy_object(&source, BUCKET, key, options).unwrap();
    };
    copy("b");
    copy("a");
    let upload = store.create_upload(BUCKET, "c", UploadOptions::default()).unwrap().id;
    let mut part = store.upload_part((BUCKET, "c"), &upload, 1, None, None).unwrap();
    part.append(&content(2, 100)).unwrap();
    let etag = part.finish(&Declared::default()).unwrap().etag.to_string();
    let listed = vec![CompletedPart { number: 1, etag, checksum: None }];
    let options = CompleteOptions { notices: made(), ..CompleteOptions::default() };
    store.complete_upload(BUCKET, "c", &upload, listed, options).unwrap();
    let changed = || notices(&[(Happened::Changed, "changed")]);
    store.set_tags(BUCKET, "c", None, vec![("a".into(), "b".into())], changed()).unwrap();
    store.set_object_acl(BUCKET, "c", None, Acl::default(), changed()).unwrap();
    let both = || notices(&[(Happened::Removed, "removed"), (Happened::Hidden, "hidden")]);
    let delete = |key: &str, version: Option<VersionId>| {
        let request = DeleteRequest { version, notices: both(), ..DeleteRequest::of(key) };
        store.delete_object(BUCKET, request).unwrap()
    };
    delete("c", None);
    delete("c", None);
    delete("never", None);
    store.set_versioning(BUCKET, Versioning::Enabled).unwrap();
    let marker = delete("b", None).version;
    delete("b", marker);
    delete("b", marker);
    let expected = [
        ("made", "a"),
        ("made", "b"),
        ("made", "a"),
        ("made", "c"),
        ("changed", "c"),
        ("changed", "c"),
        ("removed", "c"),
        ("hidden", "b"),
        ("removed", "b"),
    ];
    assert_eq!(names(&store), expected.map(|(name, key)| (name.to_owned(), key.to_owned())));
    let refused = store.set_tags(BUCKET, "never", None, Vec::new(), changed());
    assert!(matches!(refused, Err(StoreError::NoSuchKey)));
    assert_eq!(waiting(&store).len(), expected.len(), "what was refused is told to nobody");
}

#[test]
fn queues_keep_their_order_and_dead_letters_wait_for_a_decision() {
    let (_, store) = store();
    (0..5).for_each(|number| put(&store, &format!("k{number}"), made()));
    let places: Vec<u64> = waiting(&store).iter().map(|(place, _)| *place).collect();
    assert!(places.is_sorted() && places.windows(2).all(|pair| pair[0] < pair[1]));
    let added = store.events_added();
    store.settle_events(HOOK, places[..2].to_vec(), false).unwrap();
    store.settle_events(HOOK, vec![places[2]], true).unwrap();
    store.settle_events(HOOK, vec![places[0], 1], false).unwrap();
    assert_eq!(counts(&store), EventCounts { waiting: 2, dead: 1 });
    assert_eq!(store.dead_events(HOOK, 10).unwrap()[0].1.key, "k2");
    assert_eq!(store.events_added(), added, "nothing new waits");
    assert_eq!(store.retry_events(HOOK).unwrap(), 1);
    assert!(store.events_added() > added);
    assert_eq!(names(&store).into_iter().map(|(_, key)| key).collect::<Vec<_>>(), ["k3", "k4", "k2"]);
    let all = waiting(&store).iter().map(|(place, _)| *place).collect();
    store.settle_events(HOOK, all, true).unwrap();
    assert_eq!(store.discard_events(HOOK, false).unwrap(), 3);
    put(&store, "last", made());
    assert_eq!(store.discard_events(HOOK, false).unwrap(), 0, "what waits stays");
    assert_eq!(store.discard_events(HOOK, true).unwrap(), 1);
    assert_eq!(store.event_counts().unwrap(), []);
}

#[test]
fn a_change_and_its_event_are_there_together_or_not_at_all() {
    for cut in 0..40 {
        let (volume, store) = store();
        put(&store, "before", made());
        volume.cut_at(volume.steps() + cut);
        let mut acknowledged = Vec::new();
        for number in 0..6 {
            let key = format!("k{number}");
            let Ok(mut writer) = store.put_object(BUCKET, &key, None, None) else { break };
            if writer.append(&content(1, 9_000)).is_err() {
                break;
            }
            match writer.finish(PutOptions { notices: made(), ..PutOptions::default() }) {
                Ok(_) => acknowledged.push(key),
                Err(_) => break,
            }
        }
        store.close();
        let store = Store::open(volume.power_cut(cut)).unwrap();
        let told: Vec<String> = names(&store).into_iter().map(|(_, key)| key).collect();
        let is_there = |key: &str| store.head_object(BUCKET, key, None).is_ok();
        assert!(acknowledged.iter().all(|key| told.contains(key) && is_there(key)), "cut {cut}: {told:?}");
        assert!(told.iter().all(|key| is_there(key)), "cut {cut}: told of what never happened: {told:?}");
    }
}

#[test]
fn on_a_full_pool_deletes_go_through_and_what_nobody_is_told_of_is_counted() {
    let volume = SimulatedVolume::new(ByteLen(1 << 30));
    volume.set_capacity(Some(ByteLen(22 << 20)));
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let mut stored = 0;
    loop {
        let mut writer = store.put_object(BUCKET, &format!("k{stored}"), None, None).unwrap();
        writer.append(&content(1, 1_000)).unwrap();
        match writer.finish(PutOptions::default()) {
            Ok(_) => stored += 1,
            Err(StoreError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    for number in 0..stored {
        let notices = notices(&[(Happened::Removed, "removed")]);
        let request = DeleteRequest { notices, ..DeleteRequest::of(format!("k{number}")) };
        assert!(store.delete_object(BUCKET, request).unwrap().changed, "{number}");
    }
    let told = store.waiting_events(HOOK, usize::MAX).unwrap().len() as u64;
    assert_eq!(told + store.events_lost(), stored, "each is told of, or counted");
    assert!(store.events_lost() > 0 && told > 0, "{told} told of, {} lost", store.events_lost());
}

#[test]
fn a_destination_that_takes_nothing_takes_no_place_of_another() {
    const AT_ONCE: usize = 20_000;
    let volume = SimulatedVolume::new(ByteLen(4 << 30));
    let open = || Store::open(volume.clone()).unwrap();
    let store = open();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let tell = |store: &Store, destination: &str, times: usize| {
        let to = vec![notice(destination, (Happened::Made, "made")); times];
        put(store, "k", Notices { to, ..Notices::default() });
    };
    (0..EVENTS_MAX as usize / AT_ONCE).for_each(|_| tell(&store, HOOK, AT_ONCE));
    assert_eq!((counts(&store).waiting, store.events_lost()), (EVENTS_MAX, 0));
    tell(&store, HOOK, 1);
    assert_eq!((counts(&store).waiting, store.events_lost()), (EVENTS_MAX, 1));

    let other = |store: &Store| store.waiting_events("other", usize::MAX).unwrap();
    tell(&store, "other", 1);
    assert_eq!((other(&store).len(), store.events_lost()), (1, 1));
    // As many as are ensured, and no more: also when they were counted anew, and as dead letters.
    tell(&store, "other", EVENTS_ENSURED as usize);
    assert_eq!((other(&store).len() as u64, store.events_lost()), (EVENTS_ENSURED, 2));
    store.settle_events("other", vec![other(&store)[0].0], true).unwrap();
    tell(&store, "other", 1);
    assert_eq!(store.events_lost(), 3);
    store.close();
    let store = open();
    tell(&store, "other", 1);
    assert_eq!(store.events_lost(), 1);
    store.settle_events("other", vec![other(&store)[0].0], false).unwrap();
    tell(&store, "other", 2);
    assert_eq!(store.events_lost(), 2, "one of them has a place");
}

#[test]
fn nothing_is_kept_for_a_destination_that_there_is_not() {
    let (_, store) = store();
    put(&store, "before", made());
    store.keep_events_for(["other".to_owned()]);
    put(&store, "after", made());
    assert_eq!(names(&store), [("made".to_owned(), "before".to_owned())]);
    assert_eq!(store.events_lost(), 1);
    store.keep_events_for([HOOK.to_owned()]);
    put(&store, "again", made());
    assert_eq!((waiting(&store).len(), store.events_lost()), (2, 1));
}
