//! A random load on the store and the reference it is compared with: a map from names to bytes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use objects::simulated::SplitMix64;
use objects::{
    CompleteOptions, CompletedPart, Condition, Declared, ListRequest, Metadata, ObjectInfo, PutOptions,
    Store, StoreError, UploadOptions,
};

/// How long a random test runs; longer where `NIGHTLATCH_SOAK_SECONDS` says so.
pub(crate) fn budget(default: Duration) -> Instant {
    let soak = std::env::var("NIGHTLATCH_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Instant::now() + soak.map_or(default, Duration::from_secs)
}

/// The first seed: fresh each run, fixed by `NIGHTLATCH_SEED`.
pub(crate) fn first_seed() -> u64 {
    let fixed = std::env::var("NIGHTLATCH_SEED").ok().and_then(|text| text.parse().ok());
    fixed.unwrap_or_else(|| u64::from(std::process::id()) ^ clock())
}

fn clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
}

/// `len` bytes that only `tag` makes.
pub(crate) fn content(tag: u64, len: usize) -> Vec<u8> {
    let mut random = SplitMix64(tag);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A length that likes edges: empty, inline limit, sectors, several sectors.
pub(crate) fn length(random: &mut SplitMix64) -> usize {
    const EDGES: [usize; 12] = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 12_289, 65_536, 100_000];
    match random.below(3) {
        0 => EDGES[random.below(EDGES.len() as u64) as usize],
        1 => random.below(5_000) as usize,
        _ => random.below(60_000) as usize,
    }
}

/// Puts `bytes`, appended in random pieces.
pub(crate) fn put(
    store: &Store,
    bucket: &str,
    key: &str,
    bytes: &[u8],
    condition: Condition,
    random: &mut SplitMix64,
) -> Result<ObjectInfo, StoreError> {
    let declared = (random.below(2) == 0).then_some(bytes.len() as u64);
    let mut writer = store.put_object(bucket, key, declared, None)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
        writer.append(head)?;
        rest = tail;
    }
    let metadata = Metadata { user: vec![("length".into(), bytes.len().to_string())], ..Metadata::default() };
    writer.finish(PutOptions { metadata, condition, ..PutOptions::default() })
}

/// The whole object.
pub(crate) fn get(store: &Store, bucket: &str, key: &str) -> Result<Vec<u8>, StoreError> {
    let object = store.object(bucket, key, None)?;
    let mut reader = object.reader(&(0..object.info().bytes));
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next_chunk(7_000)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Uploads `parts` (the last may be short, the store's limit counts for the others) and completes them.
pub(crate) fn multipart(
    store: &Store,
    bucket: &str,
    key: &str,
    parts: &[Vec<u8>],
) -> Result<ObjectInfo, StoreError> {
    let upload = store.create_upload(bucket, key, UploadOptions::default())?;
    let mut completed = Vec::new();
    for (number, part) in (1..).zip(parts) {
        let mut writer =
            store.upload_part((bucket, key), &upload.id, number, Some(part.len() as u64), None)?;
        writer.append(part)?;
        let info = writer.finish(&Declared::default())?;
        completed.push(CompletedPart { number, etag: info.etag.to_string(), checksum: None });
    }
    store.complete_upload(bucket, key, &upload.id, completed, CompleteOptions::default())
}

/// Every key of `bucket` by pages of `limit`.
pub(crate) fn list_all(
    store: &Store,
    bucket: &str,
    request: &ListRequest,
) -> Result<(Vec<String>, Vec<String>), StoreError> {
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    let mut request = request.clone();
    loop {
        let page = store.list_objects(bucket, &request)?;
        assert!(page.objects.len() + page.prefixes.len() <= request.limit);
        keys.extend(page.objects.into_iter().map(|(key, _)| key));
        prefixes.extend(page.prefixes);
        match page.next {
            Some(next) => request.after = Some(next),
            None => return Ok((keys, prefixes)),
        }
    }
}

/// What the reference says a listing shows.
pub(crate) fn expected_listing(
    keys: &BTreeMap<String, Vec<u8>>,
    prefix: &str,
    delimiter: &str,
    after: Option<&str>,
) -> (Vec<String>, Vec<String>) {
    let (mut shown, mut prefixes) = (Vec::new(), Vec::new());
    for key in keys.keys().filter(|key| key.starts_with(prefix)) {
        let common = (!delimiter.is_empty())
            .then(|| key[prefix.len()..].find(delimiter))
            .flatten()
            .map(|at| &key[..prefix.len() + at + delimiter.len()]);
        match common {
            Some(common) if after.is_none_or(|after| key.as_str() > after && common != after) => {
                prefixes.push(common.to_owned());
            }
            None if after.is_none_or(|after| key.as_str() > after) => shown.push(key.clone()),
            _ => {}
        }
    }
    prefixes.dedup();
    (shown, prefixes)
}
