//! What our kernels are measured against.

use std::path::Path;

use aes::Aes256;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes_xts::{Direction, Kernel, Sectors};
use anyhow::{Result, anyhow, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use xts_mode::{Xts128, get_tweak_default};

use crate::evp::Evp;
use crate::ours::{KEY, Keys};
use crate::{Subject, Task};

/// The rival of our records.
pub(crate) const GCM: &str = "AES-256-GCM";

/// The newest OpenSSL that builds: `build.rs` makes it.
const NEWEST_OPENSSL: &str = env!("NIGHTLATCH_NEWEST_OPENSSL");

pub(crate) fn subjects() -> Result<Vec<Subject<'static>>> {
    let mut subjects = Vec::new();
    let xts = || -> Result<_> { Ok(Xts128::new(half(0)?, half(1)?)) };
    let (forward, back) = (xts()?, xts()?);
    subjects.push(Subject::new("xts-mode", Task::Encrypt, move |data, bytes| {
        forward.encrypt_area(data, bytes, 1, get_tweak_default);
    }));
    subjects.push(Subject::new("xts-mode", Task::Decrypt, move |data, bytes| {
        back.decrypt_area(data, bytes, 1, get_tweak_default);
    }));
    subjects.extend(aes_crate()?);
    subjects.extend(Evp::aws_lc().subjects("AWS-LC, EVP")?);
    subjects.extend(aws_lc_raw()?);
    for path in ["libcrypto.so.3", NEWEST_OPENSSL] {
        let (evp, version) = Evp::openssl(Path::new(path))?;
        subjects.extend(evp.subjects(&version)?);
    }
    subjects.extend(gcm()?);
    let mut copy = Vec::new();
    subjects.push(Subject::new("memcpy", Task::Pass, move |data, _| {
        copy.resize(data.len(), 0);
        copy.copy_from_slice(data);
    }));
    subjects.extend(sums());
    Ok(subjects)
}

fn half(index: usize) -> Result<Aes256> {
    Aes256::new_from_slice(&KEY[32 * index..][..32]).map_err(|error| anyhow!("{error}"))
}

/// The `aes` crate in batches of 64 blocks, under a tweak loop of our own.
fn aes_crate() -> Result<[Subject<'static>; 2]> {
    let run = |task| -> Result<_> {
        let (cipher, tweak_cipher) = (half(0)?, half(1)?);
        Ok(Subject::new("aes crate", task, move |data: &mut [u8], bytes| {
            for (number, sector) in (1_u128..).zip(data.chunks_exact_mut(bytes)) {
                let mut first: Block<Aes256> = number.to_le_bytes().into();
                tweak_cipher.encrypt_block(&mut first);
                let mut tweak = u128::from_le_bytes(first.into());
                for batch in sector.chunks_mut(64 * 16) {
                    let start = tweak;
                    tweak = add_tweaks(batch, start);
                    let (blocks, _) = Block::<Aes256>::slice_as_chunks_mut(batch);
                    if task == Task::Encrypt {
                        cipher.encrypt_blocks(blocks);
                    } else {
                        cipher.decrypt_blocks(blocks);
                    }
                    add_tweaks(batch, start);
                }
            }
        }))
    };
    Ok([run(Task::Encrypt)?, run(Task::Decrypt)?])
}

/// Adds successive tweaks to the blocks of `batch`; returns the one after them.
fn add_tweaks(batch: &mut [u8], mut tweak: u128) -> u128 {
    let (blocks, _) = batch.as_chunks_mut::<16>();
    for block in blocks {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
        tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
    }
    tweak
}

type RawXts = unsafe extern "C" fn(
    *const u8,
    *mut u8,
    usize,
    *const aws_lc_sys::AES_KEY,
    *const aws_lc_sys::AES_KEY,
    *const u8,
) -> i32;

unsafe extern "C" {
    #[link_name = "aws_lc_0_47_0_aes_hw_xts_encrypt_avx512"]
    fn raw_encrypt(
        source: *const u8,
        target: *mut u8,
        len: usize,
        key: *const aws_lc_sys::AES_KEY,
        tweak_key: *const aws_lc_sys::AES_KEY,
        tweak: *const u8,
    ) -> i32;
    #[link_name = "aws_lc_0_47_0_aes_hw_xts_decrypt_avx512"]
    fn raw_decrypt(
        source: *const u8,
        target: *mut u8,
        len: usize,
        key: *const aws_lc_sys::AES_KEY,
        tweak_key: *const aws_lc_sys::AES_KEY,
        tweak: *const u8,
    ) -> i32;
}

/// AWS-LC's AVX-512 routine itself, without EVP around it.
fn aws_lc_raw() -> Result<Vec<Subject<'static>>> {
    if !(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("vaes")) {
        return Ok(Vec::new());
    }
    let run = |task, routine: RawXts| -> Result<_> {
        let key = expanded(&KEY[..32], task == Task::Encrypt)?;
        let tweak_key = expanded(&KEY[32..], true)?;
        Ok(Subject::new("AWS-LC, raw", task, move |data: &mut [u8], bytes| {
            for (number, sector) in (1_u128..).zip(data.chunks_exact_mut(bytes)) {
                let (source, target) = (sector.as_ptr(), sector.as_mut_ptr());
                let tweak = number.to_le_bytes();
                // SAFETY: the processor has AVX-512 and VAES; a sector in place, keys expanded for this direction.
                unsafe {
                    routine(source, target, bytes, &raw const key, &raw const tweak_key, tweak.as_ptr())
                };
            }
        }))
    };
    Ok(vec![run(Task::Encrypt, raw_encrypt)?, run(Task::Decrypt, raw_decrypt)?])
}

fn expanded(key: &[u8], encrypt: bool) -> Result<aws_lc_sys::AES_KEY> {
    // SAFETY: a structure of numbers, of which zeros are a value.
    let mut expanded = unsafe { std::mem::zeroed() };
    // SAFETY: 32 bytes of key, room for a schedule.
    let failed = unsafe {
        if encrypt {
            aws_lc_sys::AES_set_encrypt_key(key.as_ptr(), 256, &raw mut expanded)
        } else {
            aws_lc_sys::AES_set_decrypt_key(key.as_ptr(), 256, &raw mut expanded)
        }
    };
    ensure!(failed == 0, "AWS-LC refused the key");
    Ok(expanded)
}

/// AES-256-GCM by AWS-LC, a message and a tag for each sector.
fn gcm() -> Result<[Subject<'static>; 2]> {
    let key = || -> Result<_> {
        Ok(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, &KEY[..32]).map_err(|_| anyhow!("a key of 32 bytes"))?,
        ))
    };
    let (sealing, opening) = (key()?, key()?);
    let nonce = |number: usize| {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&(number as u64).to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    };
    let seal = Subject::new(GCM, Task::Seal, move |data: &mut [u8], bytes| {
        for (number, sector) in data.chunks_exact_mut(bytes).enumerate() {
            let tag = sealing.seal_in_place_separate_tag(nonce(number), Aad::empty(), sector);
            std::hint::black_box(tag.is_ok());
        }
    });
    // The tag is of other data: opening computes it, finds it wrong, and has decrypted by then.
    let mut target = Vec::new();
    let open = Subject::new(GCM, Task::Open, move |data: &mut [u8], bytes| {
        target.resize(bytes, 0);
        for (number, sector) in data.chunks_exact_mut(bytes).enumerate() {
            let opened =
                opening.open_separate_gather(nonce(number), Aad::empty(), sector, &[0; 16], &mut target);
            std::hint::black_box(opened.is_ok());
        }
    });
    Ok([seal, open])
}

/// Checksums, and the collision-resistant hashes of which replication signs one.
fn sums() -> Vec<Subject<'static>> {
    type Sum = fn(&[u8]) -> u64;
    let sums: [(&str, Sum); 4] = [
        ("CRC-32C, crc32c", |sector| u64::from(crc32c::crc32c(sector))),
        ("CRC-32C, crc-fast", |sector| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, sector)),
        ("BLAKE3", |sector| u64::from(blake3::hash(sector).as_bytes()[0])),
        ("SHA-256", |sector| u64::from(Sha256::digest(sector)[0])),
    ];
    sums.into_iter()
        .map(|(name, sum)| {
            Subject::new(name, Task::Pass, move |data: &mut [u8], bytes| {
                let total =
                    data.chunks_exact(bytes).fold(0_u64, |total, sector| total.wrapping_add(sum(sector)));
                std::hint::black_box(total);
            })
        })
        .collect()
}

/// A fast wrong cipher would be no result: every subject that encrypts makes the same of the same.
pub(crate) fn agree(keys: &Keys) -> Result<()> {
    const BYTES: usize = 4096;
    let clear = vec![0xC3; 8 * BYTES];
    for (task, direction) in [(Task::Encrypt, Direction::Encrypt), (Task::Decrypt, Direction::Decrypt)] {
        let mut expected = clear.clone();
        let portable = Kernel::by_name("portable")?;
        keys.cipher(portable).apply(direction, Sectors { first: 1, bytes: BYTES }, &mut expected)?;
        for mut subject in subjects()?.into_iter().chain(keys.subjects()) {
            let mut data = clear.clone();
            if subject.task == task {
                (subject.work)(&mut data, BYTES);
                ensure!(data == expected, "{} disagrees with the others", subject.name);
            }
        }
    }
    Ok(())
}
