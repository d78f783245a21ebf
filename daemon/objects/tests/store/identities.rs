//! Users, groups and policies, and the generation that tells what was read of them before a change from what is so now.

use std::time::{Duration, SystemTime};

use objects::limits::{ATTACHED_MAX, POLICY_BYTES_MAX};
use objects::simulated::SimulatedVolume;
use objects::{BucketOptions, DeleteRequest, Principal, Store, StoreError};
use units::ByteLen;

fn user(name: &str) -> Principal {
    Principal::User(name.to_owned())
}

fn group(name: &str) -> Principal {
    Principal::Group(name.to_owned())
}

#[test]
fn a_user_has_the_policies_of_its_own_and_of_its_groups_and_keeps_its_limits() {
    let volume = SimulatedVolume::new(ByteLen(64 << 20));
    let store = Store::open(volume.clone()).unwrap();
    let key = store.create_user("alice").unwrap().id;
    let found = |store: &Store| {
        let credential = store.credential(&key).unwrap().unwrap();
        (credential.limited, credential.policies)
    };
    assert_eq!(found(&store), (false, vec![]));
    for (name, text) in [("own", "{1}"), ("shared", "{2}")] {
        store.put_policy(name, text).unwrap();
    }
    store.create_group("staff").unwrap();
    store.set_attached("shared", group("staff"), true).unwrap();
    store.set_membership("alice", "staff", true).unwrap();
    store.set_membership("alice", "staff", true).unwrap();
    store.set_attached("own", user("alice"), true).unwrap();
    let both = vec!["{1}".to_owned(), "{2}".to_owned()];
    assert_eq!(found(&store), (true, both.clone()));
    assert_eq!(store.groups().unwrap()[0].members, ["alice"]);
    assert!(matches!(store.delete_policy("own"), Err(StoreError::PolicyInUse)));
    assert!(matches!(store.delete_policy("shared"), Err(StoreError::PolicyInUse)));
    store.close();
    let store = Store::open(volume).unwrap();
    assert_eq!(found(&store), (true, both));
    store.put_policy("own", "{3}").unwrap();
    assert_eq!(found(&store).1, ["{3}", "{2}"]);
    store.delete_group("staff").unwrap();
    store.set_attached("own", user("alice"), false).unwrap();
    assert_eq!(found(&store), (true, vec![]), "a right taken away gives no other");
    store.delete_policy("own").unwrap();
    store.delete_user("alice").unwrap();
    store.create_user("alice").unwrap();
    assert!(!store.users().unwrap()[0].limited, "another user of the same name");
}

#[test]
fn what_is_not_there_is_named_and_limits_hold() {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    store.create_user("alice").unwrap();
    store.create_group("staff").unwrap();
    store.put_policy("p", &"x".repeat(POLICY_BYTES_MAX)).unwrap();
    let too_long = store.put_policy("p", &"x".repeat(POLICY_BYTES_MAX + 1));
    assert!(matches!(too_long, Err(StoreError::DocumentTooLarge)));
    assert!(matches!(store.create_group("staff"), Err(StoreError::GroupExists)));
    assert!(matches!(store.create_group("a b"), Err(StoreError::InvalidIdentityName)));
    assert!(matches!(store.put_policy("", "{}"), Err(StoreError::InvalidIdentityName)));
    assert!(matches!(store.set_membership("bob", "staff", true), Err(StoreError::NoSuchUser)));
    assert!(matches!(store.set_membership("alice", "crew", true), Err(StoreError::NoSuchGroup)));
    assert!(matches!(store.set_attached("q", user("alice"), true), Err(StoreError::NoSuchPolicy)));
    assert!(matches!(store.set_attached("p", user("bob"), true), Err(StoreError::NoSuchUser)));
    assert!(matches!(store.set_attached("p", group("crew"), true), Err(StoreError::NoSuchGroup)));
    assert!(matches!(store.delete_group("crew"), Err(StoreError::NoSuchGroup)));
    assert!(matches!(store.delete_policy("q"), Err(StoreError::NoSuchPolicy)));
    assert!(matches!(store.set_access_key_expiry("NL", None), Err(StoreError::NoSuchAccessKey)));
    for number in 0..=ATTACHED_MAX {
        let name = format!("p{number}");
        store.put_policy(&name, "{}").unwrap();
        let attached = store.set_attached(&name, user("alice"), true);
        assert_eq!(attached.is_ok(), number < ATTACHED_MAX, "{number}");
    }
}

#[test]
fn a_change_of_settings_begins_a_new_generation_and_nothing_else_does() {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    let generation = || store.settings_generation();
    let changes: [&dyn Fn(); 8] = [
        &|| store.create_bucket("bucket", BucketOptions::default()).unwrap(),
        &|| store.set_bucket_document("bucket", "policy", Some(b"{}".to_vec())).unwrap(),
        &|| drop(store.create_user("alice").unwrap()),
        &|| drop(store.create_access_key("alice").unwrap()),
        &|| store.put_policy("p", "{}").unwrap(),
        &|| store.set_attached("p", user("alice"), true).unwrap(),
        &|| {
            let key = store.users().unwrap()[0].access_keys[0].id.clone();
            store.set_access_key_expiry(&key, Some(SystemTime::now() + Duration::from_secs(9))).unwrap();
            store.delete_access_key(&key).unwrap();
        },
        &|| store.delete_user("alice").unwrap(),
    ];
    for change in changes {
        let before = generation();
        change();
        assert!(generation() > before);
    }
    let before = generation();
    store.put_object("bucket", "k", None, None).unwrap().finish(Default::default()).unwrap();
    store.delete_object("bucket", DeleteRequest::of("k")).unwrap();
    assert!(store.create_group("a b").is_err() && store.delete_user("alice").is_err());
    assert_eq!(generation(), before);
}
