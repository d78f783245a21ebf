//! Random operations, compared with a map after every step, with the store closed and opened again in between.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::workload::{budget, content, expected_listing, first_seed, get, length, list_all, multipart, put};
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{
    BucketOptions, Condition, CopyOptions, DeleteRequest, ListRequest, Metadata, Store, StoreError, TagMatch,
};
use units::ByteLen;

type Bucket = BTreeMap<String, Vec<u8>>;

struct Model {
    volume: SimulatedVolume,
    store: std::sync::Arc<Store>,
    buckets: BTreeMap<String, Bucket>,
    /// Objects looked up earlier, with what they held then.
    readers: Vec<(objects::Object, Vec<u8>)>,
    random: SplitMix64,
}

const KEYS: [&str; 14] =
    ["a", "a/", "a/b", "a/b/c", "a/c", "ab", "b", "b//x", "b/ä", "c-1", "c-2", "d/e/f/g", "z", "zz/日本"];

impl Model {
    fn new(seed: u64) -> Self {
        let volume = SimulatedVolume::new(ByteLen(64 << 20));
        let store = Store::open(volume.clone()).unwrap();
        Self { volume, store, buckets: BTreeMap::new(), readers: Vec::new(), random: SplitMix64(seed) }
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.random.below(from.len() as u64) as usize]
    }

    fn step(&mut self) {
        let bucket = self.pick(&["photos", "videos", "attic"]);
        let key = self.pick(&KEYS);
        match self.random.below(100) {
            0..=4 => {
                let result = self.store.create_bucket(bucket, BucketOptions::default());
                assert_eq!(result.is_ok(), !self.buckets.contains_key(bucket));
                self.buckets.entry(bucket.to_owned()).or_default();
            }
            5..=6 => self.delete_bucket(bucket),
            7..=49 => self.put(bucket, key),
            50..=54 => self.put_multipart(bucket, key),
            55..=62 => self.copy(bucket, key),
            63..=72 => self.delete(bucket, key),
            73..=80 => self.look_up(bucket, key),
            81..=94 => self.compare_listing(bucket),
            95..=97 => self.readers.clear(),
            _ => self.reopen(),
        }
    }

    fn delete_bucket(&mut self, bucket: &str) {
        let result = self.store.delete_bucket(bucket);
        match self.buckets.get(bucket) {
            None => assert!(matches!(result, Err(StoreError::NoSuchBucket))),
            Some(keys) if !keys.is_empty() => assert!(matches!(result, Err(StoreError::BucketNotEmpty))),
            Some(_) => {
                result.unwrap();
                self.buckets.remove(bucket);
            }
        }
    }

    fn put(&mut self, bucket: &str, key: &str) {
        let tag = self.random.next_u64();
        let bytes = content(tag, length(&mut self.random));
        let exists = self.buckets.get(bucket).map(|keys| keys.contains_key(key));
        let (condition, expected) = match (self.random.below(4), exists) {
            (_, None) => (Condition::default(), false),
            (0, Some(exists)) => {
                (Condition { if_none_match: Some(TagMatch::Any), ..Condition::default() }, !exists)
            }
            (1, Some(exists)) => {
                (Condition { if_match: Some(TagMatch::Any), ..Condition::default() }, exists)
            }
            (_, Some(_)) => (Condition::default(), true),
        };
        let result = put(&self.store, bucket, key, &bytes, condition, &mut self.random);
        assert_eq!(result.is_ok(), expected, "{result:?}");
        if result.is_ok() {
            self.buckets.get_mut(bucket).unwrap().insert(key.to_owned(), bytes);
        }
    }

    fn put_multipart(&mut self, bucket: &str, key: &str) {
        let Some(keys) = self.buckets.get_mut(bucket) else { return };
        let tag = self.random.next_u64();
        // A part below the limit may only be the last one: one short part, or a long one before it.
        let parts = match self.random.below(8) {
            0 => vec![content(tag, (5 << 20) + 1), content(tag + 1, length(&mut self.random))],
            _ => vec![content(tag, length(&mut self.random))],
        };
        let info = multipart(&self.store, bucket, key, &parts).unwrap();
        assert_eq!(usize::from(info.etag.parts), parts.len());
        keys.insert(key.to_owned(), parts.concat());
    }

    fn copy(&mut self, bucket: &str, key: &str) {
        let to_bucket = self.pick(&["photos", "videos", "attic"]);
        let to_key = self.pick(&KEYS);
        let Ok(source) = self.store.object(bucket, key, None) else { return };
        let metadata = (self.random.below(2) == 0).then(Metadata::default);
        let result = self.store.copy_object(
            &source,
            to_bucket,
            to_key,
            CopyOptions { metadata, ..CopyOptions::default() },
        );
        let bytes = self.buckets[bucket][key].clone();
        match self.buckets.get_mut(to_bucket) {
            None => assert!(matches!(result, Err(StoreError::NoSuchBucket))),
            Some(keys) => {
                result.unwrap();
                keys.insert(to_key.to_owned(), bytes);
            }
        }
    }

    fn delete(&mut self, bucket: &str, key: &str) {
        let result = self.store.delete_object(bucket, DeleteRequest::of(key));
        match self.buckets.get_mut(bucket) {
            None => assert!(matches!(result, Err(StoreError::NoSuchBucket))),
            Some(keys) => {
                result.unwrap();
                keys.remove(key);
            }
        }
    }

    fn look_up(&mut self, bucket: &str, key: &str) {
        let expected = self.buckets.get(bucket).and_then(|keys| keys.get(key));
        match (self.store.object(bucket, key, None), expected) {
            (Ok(object), Some(bytes)) => {
                assert_eq!(object.info().bytes, bytes.len() as u64);
                self.readers.push((object, bytes.clone()));
            }
            (Err(StoreError::NoSuchBucket | StoreError::NoSuchKey), None) => {}
            (found, _) => panic!("{bucket}/{key}: {found:?}"),
        }
    }

    fn compare_listing(&mut self, bucket: &str) {
        let prefix = self.pick(&["", "a", "a/", "b/", "zz/", "nothing"]).to_owned();
        let delimiter = self.pick(&["", "/", "/b", "-"]).to_owned();
        let after = match self.random.below(3) {
            0 => Some(self.pick(&KEYS).to_owned()),
            _ => None,
        };
        let limit = 1 + self.random.below(5) as usize;
        let request = ListRequest { prefix, delimiter, after, limit, ..ListRequest::default() };
        let Some(keys) = self.buckets.get(bucket) else {
            assert!(matches!(self.store.list_objects(bucket, &request), Err(StoreError::NoSuchBucket)));
            return;
        };
        let expected = expected_listing(keys, &request.prefix, &request.delimiter, request.after.as_deref());
        assert_eq!(list_all(&self.store, bucket, &request).unwrap(), expected, "{request:?}");
    }

    fn reopen(&mut self) {
        self.check_readers();
        self.readers.clear();
        self.store.close();
        self.store = Store::open(self.volume.clone()).unwrap();
        self.compare_all();
    }

    fn check_readers(&self) {
        for (object, bytes) in &self.readers {
            let half = bytes.len() as u64 / 2;
            for range in [0..bytes.len() as u64, half..bytes.len() as u64, half..half + (half > 0) as u64] {
                let mut reader = object.reader(&range);
                let mut found = Vec::new();
                while let Some(chunk) = reader.next_chunk(10_000).unwrap() {
                    found.extend_from_slice(&chunk);
                }
                assert!(found == bytes[range.start as usize..range.end as usize], "an open object changed");
            }
        }
    }

    fn compare_all(&self) {
        let names: Vec<_> = self.store.buckets().unwrap().into_iter().map(|bucket| bucket.name).collect();
        assert!(names.iter().eq(self.buckets.keys()));
        for (bucket, keys) in &self.buckets {
            for (key, bytes) in keys {
                assert!(get(&self.store, bucket, key).unwrap() == *bytes, "{bucket}/{key} differs");
            }
        }
    }

    /// Once nobody reads, the space that is taken is what the objects need.
    fn check_no_leak(mut self) {
        self.readers.clear();
        let needed: u64 =
            self.buckets.values().flat_map(BTreeMap::values).map(|bytes| bytes.len() as u64).sum();
        self.store.close();
        drop(self.store);
        let store = Store::open(self.volume.clone()).unwrap();
        for bucket in self.buckets.keys() {
            let keys: Vec<_> = self.buckets[bucket].keys().map(DeleteRequest::of).collect();
            store.delete_objects(bucket, &keys).unwrap();
        }
        store.wait_until_reclaimed();
        let empty = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap().status().unwrap().free;
        assert_eq!(store.status().unwrap().free, empty, "space leaked ({needed} bytes were in use)");
    }
}

#[test]
fn a_random_history_reads_back_like_a_map() {
    let deadline = budget(Duration::from_secs(6));
    let mut seed = first_seed();
    loop {
        println!("NIGHTLATCH_SEED={seed}");
        let mut model = Model::new(seed);
        for step in 0..400 {
            model.step();
            if step % 50 == 0 {
                model.check_readers();
                model.compare_all();
            }
        }
        model.check_no_leak();
        if std::time::Instant::now() > deadline {
            return;
        }
        seed += 1;
    }
}
