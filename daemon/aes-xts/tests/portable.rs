//! The portable kernel alone, small enough for an interpreter of Rust.

use std::sync::atomic::AtomicU64;

use aes::Aes256;
use aes::cipher::KeyInit;
use aes_xts::{
    Binding, Cipher, Direction, Kernel, Record, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, TAG_WORDS,
    TagSchedule, XtsSchedule,
};
use xts_mode::{Xts128, get_tweak_default};

#[test]
fn the_portable_kernel_agrees_with_xts_mode_in_place_and_apart_and_tags_both_ways_alike() {
    let schedule: [AtomicU64; SCHEDULE_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let scratch: [AtomicU64; SCRATCH_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let tags: [AtomicU64; TAG_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let key: [u8; 64] = std::array::from_fn(|index| u8::try_from(index).unwrap());
    let (schedule, tags) = (XtsSchedule::over(&schedule), TagSchedule::over(&tags));
    schedule.expand_portably(&key).unwrap();
    tags.expand(&[1; 16], &[2; 32]);
    let cipher = Cipher::new(Kernel::by_name("portable").unwrap(), schedule, Scratch::over(&scratch));
    let sectors = Sectors { first: 7, bytes: 528 };
    let clear: Vec<u8> = (0..2 * 528_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let half = |at: usize| Aes256::new_from_slice(&key[at..][..32]).unwrap();
    let mut expected = clear.clone();
    Xts128::new(half(0), half(32)).encrypt_area(&mut expected, 528, 7, get_tweak_default);

    let mut apart = vec![0; clear.len()];
    assert_eq!(cipher.apply_into(Direction::Encrypt, sectors, (&clear, &mut apart)), Ok(66));
    assert_eq!(apart, expected);
    let binding = Binding { domain: [3; 16], epoch: 4, sequences: &[5, 6] };
    let (mut sealed, mut opened) = ([Record::default(); 2], [Record::default(); 2]);
    let mut data = clear.clone();
    cipher.seal(tags, sectors, binding, &mut data, &mut sealed).unwrap();
    assert_eq!(data, expected);
    cipher.open(tags, sectors, binding, (&data, &mut apart), &mut opened).unwrap();
    assert_eq!(apart, clear);
    for (sealed, opened) in sealed.iter().zip(&opened) {
        assert_eq!(sealed.tag.verify(opened.tag.bytes()), Ok(()));
        assert_eq!(sealed.checksum, opened.checksum);
    }
    cipher.apply(Direction::Decrypt, sectors, &mut data).unwrap();
    assert_eq!(data, clear);
}
