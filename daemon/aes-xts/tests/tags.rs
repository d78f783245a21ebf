//! The sector tag against an independent implementation, and against the attack that breaks a nonce-masked one.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::atomic::AtomicU64;

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes_xts::{
    BatchError, Binding, Cipher, Direction, Kernel, Record, Sectors, TAG_WORDS, TagError, TagSchedule,
};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use support::{Key, Random, plain_key, seed};

struct TagKey([AtomicU64; TAG_WORDS]);

impl TagKey {
    fn new(hash_key: &[u8; 16], prf_key: &[u8; 32]) -> Self {
        let new = Self(std::array::from_fn(|_| AtomicU64::new(0)));
        new.schedule().expand(hash_key, prf_key);
        new
    }

    fn schedule(&self) -> &TagSchedule {
        TagSchedule::over(&self.0)
    }
}

/// TAG.md, word for word, on RustCrypto's `polyval` and `aes`.
fn expected_tag(
    (hash_key, prf_key): (&[u8; 16], &[u8; 32]),
    (domain, epoch): ([u8; 16], u32),
    (address, sequence): (u128, u64),
    ciphertext: &[u8],
) -> [u8; 16] {
    let mut message = b"nl-tag 1".to_vec();
    message.extend((ciphertext.len() as u64).to_le_bytes());
    message.extend(domain);
    message.extend(address.to_le_bytes());
    message.extend(sequence.to_le_bytes());
    message.extend(epoch.to_le_bytes());
    message.extend([0; 4]);
    message.extend(ciphertext);
    let mut hash = Polyval::new(hash_key.into());
    hash.update_padded(&message);
    let mut block = hash.finalize();
    Aes256::new_from_slice(prf_key).unwrap().encrypt_block(&mut block);
    block.into()
}

#[test]
fn every_kernel_makes_the_tags_and_checksums_of_an_independent_implementation() {
    let mut random = Random(seed());
    for case in 0..if cfg!(debug_assertions) { 60 } else { 300 } {
        let bytes = match case % 5 {
            0 => 4096,
            1 => 512,
            2 => 1024 * (1 + random.below(64)),
            3 => 512 * (1 + random.below(20)),
            _ => 16 * (32 + random.below(400)),
        };
        let count = 1 + random.below((96 * 1024 / bytes).clamp(1, 140));
        let first = u128::from(random.next()) << (random.next() % 64);
        let (mut hash_key, mut prf_key, mut domain) = ([0; 16], [0; 32], [0; 16]);
        random.fill(&mut hash_key);
        random.fill(&mut prf_key);
        random.fill(&mut domain);
        let epoch = u32::try_from(random.next() >> 32).unwrap();
        let sequences: Vec<u64> = (0..count).map(|_| random.next()).collect();
        let mut clear = vec![0; bytes * count];
        random.fill(&mut clear);
        let (key, tag_key) = (Key::new(&random.key()), TagKey::new(&hash_key, &prf_key));
        let binding = Binding { domain, epoch, sequences: &sequences };
        let sectors = Sectors { first, bytes };
        let mut ciphertext = clear.clone();
        key.apply(Kernel::by_name("portable").unwrap(), Direction::Encrypt, (first, bytes), &mut ciphertext)
            .unwrap();
        for kernel in Kernel::all() {
            let context = format!("{}, case {case}: {count} sectors of {bytes} from {first}", kernel.name());
            let cipher = Cipher::new(kernel, key.schedule(), key.scratch());
            let mut data = clear.clone();
            let mut sealed = vec![Record::default(); count];
            let blocks = cipher.seal(tag_key.schedule(), sectors, binding, &mut data, &mut sealed).unwrap();
            assert_eq!(blocks, clear.len() as u64 / 16);
            assert!(data == ciphertext, "ciphertext, {context}");
            let mut target = vec![0; clear.len()];
            let mut opened = vec![Record::default(); count];
            let apart = (&data[..], &mut target[..]);
            cipher.open(tag_key.schedule(), sectors, binding, apart, &mut opened).unwrap();
            assert!(target == clear, "plaintext, {context}");
            for (index, sector) in ciphertext.chunks_exact(bytes).enumerate() {
                let whose = (first.wrapping_add(index as u128), sequences[index]);
                let expected = expected_tag((&hash_key, &prf_key), (domain, epoch), whose, sector);
                for record in [&sealed[index], &opened[index]] {
                    assert_eq!(record.tag.bytes(), &expected, "sector {index}, {context}");
                    assert_eq!(record.checksum, crc32c::crc32c(sector), "sector {index}, {context}");
                }
            }
            assert!(
                key.scratch_words().iter().all(|word| word.load(std::sync::atomic::Ordering::Relaxed) == 0),
                "{context} left something in the scratch"
            );
        }
    }
}

/// TAG.md's vectors: made by `tests/vectors/tags.py` with nothing of this crate.
#[test]
fn the_committed_vectors_hold() {
    let mut vectors = 0;
    for line in include_str!("vectors/tags.txt").lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<Vec<u8>> = line.split(' ').map(|field| hex::decode(field).unwrap()).collect();
        let [hash_key, prf_key, domain, epoch, address, sequence, ciphertext, checksum, tag] = &fields[..]
        else {
            panic!("nine fields: {line}")
        };
        let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        let tag_key = TagKey::new(&hash_key[..].try_into().unwrap(), &prf_key[..].try_into().unwrap());
        let sequences = [u64::try_from(number(sequence)).unwrap()];
        let epoch = u32::try_from(number(epoch)).unwrap();
        let binding = Binding { domain: domain[..].try_into().unwrap(), epoch, sequences: &sequences };
        let sectors = Sectors { first: number(address), bytes: ciphertext.len() };
        let key = Key::new(&plain_key());
        for kernel in Kernel::all() {
            let cipher = Cipher::new(kernel, key.schedule(), key.scratch());
            let mut records = [Record::default()];
            let mut target = vec![0; ciphertext.len()];
            let apart = (&ciphertext[..], &mut target[..]);
            cipher.open(tag_key.schedule(), sectors, binding, apart, &mut records).unwrap();
            assert_eq!(hex::encode(records[0].tag.bytes()), hex::encode(tag), "{}", kernel.name());
            assert_eq!(u128::from(records[0].checksum), number(checksum), "{}", kernel.name());
        }
        vectors += 1;
    }
    assert_eq!(vectors, 6);
}

#[test]
fn every_field_that_a_tag_binds_changes_it() {
    let mut random = Random(seed());
    let (key, tag_key) = (Key::new(&random.key()), TagKey::new(&[3; 16], &[4; 32]));
    let cipher = Cipher::new(Kernel::fastest(), key.schedule(), key.scratch());
    let mut ciphertext = vec![0; 4096];
    random.fill(&mut ciphertext);
    let tag = |first: u128, bytes: usize, domain: u8, epoch: u32, sequence: u64, data: &[u8]| {
        let sequences = vec![sequence; data.len() / bytes];
        let mut records = vec![Record::default(); sequences.len()];
        let binding = Binding { domain: [domain; 16], epoch, sequences: &sequences };
        let mut target = vec![0; data.len()];
        let apart = (data, &mut target[..]);
        cipher.open(tag_key.schedule(), Sectors { first, bytes }, binding, apart, &mut records).unwrap();
        *records[0].tag.bytes()
    };
    let original = tag(9, 4096, 1, 2, 3, &ciphertext);
    assert_eq!(
        tag(9, 4096, 1, 2, 3, &ciphertext),
        original,
        "the same again: the sequence repeats, so does the tag"
    );
    let mut changed = ciphertext.clone();
    let bit = random.below(4096 * 8);
    changed[bit / 8] ^= 1 << (bit % 8);
    for (what, other) in [
        ("address", tag(10, 4096, 1, 2, 3, &ciphertext)),
        ("address, upper half", tag(9 | 1 << 100, 4096, 1, 2, 3, &ciphertext)),
        ("domain", tag(9, 4096, 2, 2, 3, &ciphertext)),
        ("epoch", tag(9, 4096, 1, 3, 3, &ciphertext)),
        ("sequence", tag(9, 4096, 1, 2, 4, &ciphertext)),
        ("length", tag(9, 2048, 1, 2, 3, &ciphertext)),
        ("ciphertext", tag(9, 4096, 1, 2, 3, &changed)),
    ] {
        assert_ne!(other, original, "{what} is not bound");
    }
}

#[test]
fn a_stored_tag_is_accepted_whole_or_cut_and_in_no_other_length() {
    let mut records = [Record::default()];
    let (key, tag_key) = (Key::new(&plain_key()), TagKey::new(&[3; 16], &[4; 32]));
    let cipher = Cipher::new(Kernel::fastest(), key.schedule(), key.scratch());
    let binding = Binding { domain: [1; 16], epoch: 1, sequences: &[1] };
    let sectors = Sectors { first: 0, bytes: 512 };
    cipher.seal(tag_key.schedule(), sectors, binding, &mut [0; 512], &mut records).unwrap();
    let [record] = &records;
    for len in 8..=16 {
        let mut stored = record.tag.bytes()[..len].to_vec();
        assert_eq!(record.tag.verify(&stored), Ok(()));
        for at in 0..len {
            stored[at] ^= 0x10;
            assert_eq!(record.tag.verify(&stored), Err(TagError::Mismatch));
            stored[at] ^= 0x10;
        }
    }
    assert_eq!(record.tag.verify(&record.tag.bytes()[..7]), Err(TagError::Length(7)));
    assert_eq!(record.tag.verify(&[0; 17]), Err(TagError::Length(17)));
    assert_eq!(record.tag.verify(&[]), Err(TagError::Length(0)));
    for (sequences, records) in [(2, 1), (1, 2), (0, 0)] {
        let binding = Binding { sequences: &vec![1; sequences], ..binding };
        let mut records = vec![Record::default(); records];
        let refused = cipher.seal(tag_key.schedule(), sectors, binding, &mut [0; 512], &mut records);
        assert!(matches!(refused, Err(BatchError::Records { sectors: 1, .. })), "{refused:?}");
    }
}

/// POLYVAL of blocks under `key`.
fn polyval(key: u128, blocks: &[u128]) -> u128 {
    let mut hash = Polyval::new(&key.to_le_bytes().into());
    for block in blocks {
        hash.update(&[block.to_le_bytes().into()]);
    }
    u128::from_le_bytes(hash.finalize().into())
}

/// a·b·x^-128, which is POLYVAL of one block.
fn dot(a: u128, b: u128) -> u128 {
    polyval(a, &[b])
}

/// The element that `dot` multiplies by without changing: x^128.
const ONE: u128 = 1 << 127 | 1 << 126 | 1 << 121 | 1;

fn power(base: u128, mut exponent: u128) -> u128 {
    let (mut result, mut square) = (ONE, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = dot(result, square);
        }
        square = dot(square, square);
        exponent >>= 1;
    }
    result
}

/// Joux's forbidden attack on a hash that is only masked, with the mask repeated: the difference of two tags is a polynomial
/// in the hash key. For messages of two blocks that differ in the first, it is difference·H^2, and a square root gives H.
/// With H, the tag of any other message follows. Returns the forged message and tag.
fn forge_from_repeated_nonce(seen: &[([u128; 2], u128); 2]) -> ([u128; 2], u128) {
    let [(first, first_tag), (second, second_tag)] = seen;
    let difference = first[0] ^ second[0];
    let square = dot(first_tag ^ second_tag, power(difference, u128::MAX - 1));
    let key = power(square, 1 << 127);
    let mask = first_tag ^ polyval(key, first);
    let message = [first[0] ^ 0xF0_F0F0, first[1] ^ 0x1234_5678];
    (message, mask ^ polyval(key, &message))
}

/// Sequences repeat after a crash, a rolled-back disk or a promotion. A tag of the kind of GMAC, POLYVAL masked with
/// AES(sequence), gives its key away then; this one does not, because what leaves is AES of the hash.
#[test]
fn a_repeated_sequence_breaks_a_masked_hash_and_not_this_tag() {
    let mut random = Random(seed());
    let block = |random: &mut Random| u128::from(random.next()) << 64 | u128::from(random.next());
    let (mut hash_key, mut prf_key) = ([0; 16], [0; 32]);
    random.fill(&mut hash_key);
    random.fill(&mut prf_key);
    let (prf, hash_number) = (Aes256::new_from_slice(&prf_key).unwrap(), u128::from_le_bytes(hash_key));
    let aes = |block: u128| {
        let mut block = block.to_le_bytes().into();
        prf.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    };
    let messages: [[u128; 2]; 2] = std::array::from_fn(|_| [block(&mut random), 77]);
    let nonce = 42;
    let masked = |message: [u128; 2]| polyval(hash_number, &message) ^ aes(nonce);
    let (message, forged) = forge_from_repeated_nonce(&messages.map(|message| (message, masked(message))));
    assert!(messages.iter().all(|seen| *seen != message));
    assert_eq!(forged, masked(message), "the attack is real: it forges a GMAC");

    // The same two messages as two versions of a sector with one address, epoch and sequence, tagged by this crate. The
    // attack applies to their first difference as it stands: the blocks before and after it are equal.
    let (key, tag_key) = (Key::new(&random.key()), TagKey::new(&hash_key, &prf_key));
    let cipher = Cipher::new(Kernel::fastest(), key.schedule(), key.scratch());
    let mut versions: [Vec<u8>; 2] = std::array::from_fn(|_| vec![0; 4096]);
    random.fill(&mut versions[0]);
    versions[1] = versions[0].clone();
    for (version, message) in versions.iter_mut().zip(messages) {
        version[4096 - 32..][..16].copy_from_slice(&message[0].to_le_bytes());
    }
    let tag_of = |ciphertext: &[u8]| {
        let mut records = [Record::default()];
        let mut target = vec![0; ciphertext.len()];
        let binding = Binding { domain: [1; 16], epoch: 1, sequences: &[7] };
        let apart = (ciphertext, &mut target[..]);
        cipher
            .open(tag_key.schedule(), Sectors { first: 5, bytes: 4096 }, binding, apart, &mut records)
            .unwrap();
        u128::from_le_bytes(*records[0].tag.bytes())
    };
    let tags = versions.each_ref().map(|version| tag_of(version));
    let difference = messages[0][0] ^ messages[1][0];
    let square = dot(tags[0] ^ tags[1], power(difference, u128::MAX - 1));
    assert_ne!(power(square, 1 << 127), hash_number, "the hash key came out of two tags");
    // The forgery that goes with it: change the last block and correct the tag by what the hash would change.
    let stolen = power(square, 1 << 127);
    let mut forged_version = versions[0].clone();
    forged_version[4095] ^= 0x80;
    let forged_tag = tags[0] ^ dot(1 << 127, stolen);
    assert_ne!(forged_tag, tag_of(&forged_version), "the forgery was accepted");
    // Against the masked form the very same correction is accepted.
    let masked_hash = |version: &[u8]| {
        let (blocks, _) = version.as_chunks::<16>();
        polyval(hash_number, &blocks.iter().map(|block| u128::from_le_bytes(*block)).collect::<Vec<_>>())
            ^ aes(nonce)
    };
    let masks = versions.each_ref().map(|version| masked_hash(version));
    let square = dot(masks[0] ^ masks[1], power(difference, u128::MAX - 1));
    let stolen = power(square, 1 << 127);
    assert_eq!(
        masks[0] ^ dot(1 << 127, stolen),
        masked_hash(&forged_version),
        "the attack is real at this length too"
    );
}
