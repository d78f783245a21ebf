//! What Valgrind's memcheck sees of the kernels that it can run (portable and AES-NI): no access outside of what was given,
//! nothing read that was never written, and no branch or address that depends on a key, a tweak or plaintext. For the last,
//! schedules and data are marked as undefined before each call: memcheck follows such bits through every operation and
//! reports the first that decides anything (the method of `ctgrind`).
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(unsafe_code, reason = "talks to Valgrind, plants a read past an end")]

mod support;

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

use aes_xts::{Binding, Cipher, Direction, Kernel, Record, Sectors, TAG_WORDS, TagSchedule};
use support::{Key, Random, plain_key};

/// What the run inside of Valgrind is to do wrong.
const PLANT: &str = "NIGHTLATCH_MEMCHECK_PLANT";

/// Client requests of memcheck.h and valgrind.h.
const RUNNING_ON_VALGRIND: u64 = 0x1001;
const MAKE_UNDEFINED: u64 = 0x4D43_0001;
const MAKE_DEFINED: u64 = 0x4D43_0002;

/// The magic sequence of valgrind.h for x86-64, which does nothing on a processor. Zero without Valgrind.
fn request(code: u64, at: *const u8, len: usize) -> u64 {
    let arguments = [code, at as u64, len as u64, 0, 0, 0];
    let mut result = 0_u64;
    // SAFETY: rotations of a register by 128 bits in all and an exchange with itself; Valgrind reads the six words.
    unsafe {
        std::arch::asm!(
            "rol rdi,3", "rol rdi,13", "rol rdi,61", "rol rdi,51",
            "xchg rbx,rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") result,
            out("rdi") _,
        );
    }
    result
}

fn classify<T>(secret: &[T]) {
    request(MAKE_UNDEFINED, secret.as_ptr().cast(), size_of_val(secret));
}

fn declassify<T>(public: &[T]) {
    request(MAKE_DEFINED, public.as_ptr().cast(), size_of_val(public));
}

/// Runs inside of Valgrind, in a process of its own: on its own it is an ordinary, small test.
#[test]
fn no_kernel_decides_anything_by_a_secret() {
    let random = &mut Random(1);
    let key = Key::new(&plain_key());
    let tags: [AtomicU64; TAG_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let (hash_key, prf_key) = ([3; 16], [4; 32]);
    classify(&hash_key);
    classify(&prf_key);
    TagSchedule::over(&tags).expand(&hash_key, &prf_key);
    classify(key.words());
    for kernel in Kernel::all() {
        for bytes in [512, 528, 1024] {
            let mut clear = vec![0; 9 * bytes];
            random.fill(&mut clear);
            classify(&clear);
            let cipher = Cipher::new(kernel, key.schedule(), key.scratch());
            let sectors = Sectors { first: 5, bytes };
            let binding = Binding { domain: [1; 16], epoch: 2, sequences: &[3; 9] };
            let mut records = [Record::default(); 9];
            let (mut data, mut target) = (clear.clone(), vec![0; clear.len()]);
            cipher.apply(Direction::Encrypt, sectors, &mut data).unwrap();
            cipher.apply_into(Direction::Decrypt, sectors, (&data, &mut target)).unwrap();
            let mut sealed = clear.clone();
            cipher.seal(TagSchedule::over(&tags), sectors, binding, &mut sealed, &mut records).unwrap();
            let mut opened = vec![0; clear.len()];
            let apart = (&sealed[..], &mut opened[..]);
            cipher.open(TagSchedule::over(&tags), sectors, binding, apart, &mut records).unwrap();
            for bytes in [&clear, &data, &target, &sealed, &opened] {
                declassify(bytes);
            }
            assert!(sealed == data && target == clear && opened == clear, "{}, {bytes} B", kernel.name());
        }
    }
    match std::env::var(PLANT).as_deref() {
        Ok("branch") if key.words()[3].load(Ordering::Relaxed) & 1 == 1 => println!("odd"),
        Ok("read") => {
            let data = vec![1_u8; 512];
            let past = std::hint::black_box(data.as_ptr()).wrapping_add(512);
            // SAFETY: none: one byte past the end, which memcheck has to find. It is within the allocator's block.
            println!("{}", unsafe { past.read_volatile() });
        }
        _ => {}
    }
    let kernels: Vec<_> = Kernel::all().map(Kernel::name).collect();
    println!("under valgrind: {}, {}", request(RUNNING_ON_VALGRIND, std::ptr::null(), 0), kernels.join(", "));
}

fn memcheck(plant: &str) -> Output {
    Command::new("valgrind")
        .args(["--quiet", "--error-exitcode=99", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "no_kernel_decides_anything_by_a_secret", "--nocapture", "--test-threads=1"])
        .env(PLANT, plant)
        .output()
        .expect("valgrind; tests/clients.sh installs it")
}

#[test]
fn memcheck_finds_what_is_planted_and_nothing_else() {
    let clean = memcheck("nothing");
    let text = String::from_utf8_lossy(&clean.stdout);
    assert_eq!(clean.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&clean.stderr));
    assert!(
        text.contains("under valgrind: 1, aes-ni, portable"),
        "not inside of Valgrind, or other kernels: {text}"
    );
    for (plant, report) in [("branch", "depends on uninitialised value"), ("read", "Invalid read of size 1")]
    {
        let found = memcheck(plant);
        let text = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(99), "a planted {plant} was not found: {text}");
        assert!(text.contains(report), "something else than the planted {plant} was found: {text}");
    }
}
