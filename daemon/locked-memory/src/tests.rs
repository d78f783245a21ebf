//! What the kernel says about the mappings, and what is left after use.

use std::fs;
use std::hint::black_box;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread;

use crate::map::page_bytes;
use crate::{
    ARENA_BYTES, ARENA_WORDS, Arena, KEY_STACK_BYTES, KeyStack, Layout, LockedMemoryError, MemoryKind,
    Policy, Span, Spans,
};

const AFTER_FIRST: (Layout, Span<4>) = Layout::new().take();
const FIRST: Span<4> = AFTER_FIRST.1;
const AFTER_KEYS: (Layout, Spans<90, 84>) = AFTER_FIRST.0.take_many();
const KEYS: Spans<90, 84> = AFTER_KEYS.1;
const LAST: Span<{ ARENA_WORDS - 8 - 84 * 96 }> = AFTER_KEYS.0.take().1;

fn arena() -> Arena {
    Arena::new(Policy::AllowMlock).unwrap()
}

fn key_stack() -> KeyStack {
    KeyStack::new(Policy::AllowMlock).unwrap()
}

/// One mapping of this process: address range, permissions, and the kernel's two-letter flags.
struct Region {
    start: usize,
    end: usize,
    permissions: String,
    flags: Vec<String>,
}

fn regions() -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            regions.last_mut().unwrap().flags = flags.split_whitespace().map(str::to_owned).collect();
        } else if let Some((range, rest)) = line.split_once(' ').filter(|(first, _)| !first.ends_with(':')) {
            let (start, end) = range.split_once('-').unwrap();
            let address = |text| usize::from_str_radix(text, 16).unwrap();
            let permissions = rest.split(' ').next().unwrap().to_owned();
            regions.push(Region { start: address(start), end: address(end), permissions, flags: Vec::new() });
        }
    }
    regions
}

/// Whether nobody may touch the page at `address`.
fn is_guard(regions: &[Region], address: usize) -> bool {
    regions.iter().any(|region| (region.start..region.end).contains(&address) && region.permissions == "---p")
}

fn assert_locked_away(start: usize, len: usize) {
    let regions = regions();
    let region = regions.iter().find(|region| (region.start..region.end).contains(&start)).unwrap();
    assert_eq!((region.start, region.end), (start, start + len));
    assert!(region.permissions.starts_with("rw-"), "{}", region.permissions);
    for (flag, meaning) in [("lo", "locked"), ("dd", "not dumped"), ("dc", "not copied to children")] {
        assert!(region.flags.iter().any(|present| present == flag), "{meaning}: {:?}", region.flags);
    }
    assert!(is_guard(&regions, start - 1), "guard page below");
    assert!(is_guard(&regions, start + len), "guard page above");
}

#[test]
fn the_arena_is_locked_undumped_uninherited_and_between_guard_pages() {
    let arena = arena();
    assert_locked_away(arena.words(FIRST).as_ptr().addr(), ARENA_BYTES);
}

#[test]
fn the_key_stack_is_locked_undumped_uninherited_and_between_guard_pages() {
    let stack = key_stack();
    let inside = stack.run(|| black_box(&mut [0u8; 16]).as_ptr().addr());
    let regions = regions();
    let region = regions.iter().find(|region| (region.start..region.end).contains(&inside)).unwrap();
    assert_locked_away(region.start, KEY_STACK_BYTES);
}

#[test]
fn no_descriptor_of_secret_memory_stays_open() {
    let _arena = arena();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert!(!target.to_string_lossy().contains("secretmem"), "{}", target.display());
    }
}

#[test]
fn secret_memory_cannot_be_read_through_proc() {
    use std::os::unix::fs::FileExt;
    let arena = arena();
    if arena.kind() != MemoryKind::MemfdSecret {
        eprintln!("no memfd_secret on this machine: nothing to see");
        return;
    }
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let control = [0x5au8; 16];
    let mut seen = [0; 16];
    memory.read_exact_at(&mut seen, control.as_ptr().addr() as u64).unwrap();
    assert_eq!(seen, control, "the way of looking works");
    let address = arena.words(FIRST).as_ptr().addr() as u64;
    assert!(memory.read_exact_at(&mut seen, address).is_err());
}

#[test]
fn a_sealed_arena_refuses_every_change_of_its_mapping() {
    let arena = arena();
    if !arena.is_sealed() {
        eprintln!("no mseal on this machine: nothing to see");
        return;
    }
    let start = arena.words(FIRST).as_ptr().cast_mut();
    // SAFETY: if the kernel did allow it the test would fail before anyone uses the arena again.
    let unmapped = unsafe { libc::munmap(start.cast(), ARENA_BYTES) };
    assert_eq!((unmapped, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
    // SAFETY: as above.
    let protected = unsafe { libc::mprotect(start.cast(), ARENA_BYTES, libc::PROT_NONE) };
    assert_eq!((protected, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
    arena.words(FIRST)[0].store(1, Ordering::Relaxed);
}

#[test]
fn a_sealed_key_stack_refuses_every_change_of_its_mapping_and_still_runs() {
    let stack = key_stack();
    if !stack.seal() {
        eprintln!("no mseal on this machine: nothing to see");
        return;
    }
    let inside = stack.run(|| black_box(&mut [0u8; 16]).as_ptr().addr());
    let page = std::ptr::with_exposed_provenance_mut::<libc::c_void>(inside & !(page_bytes() - 1));
    // SAFETY: if the kernel did allow it the test would fail before anyone uses the stack again.
    let protected = unsafe { libc::mprotect(page, page_bytes(), libc::PROT_NONE) };
    assert_eq!((protected, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
    assert_eq!(stack.run(|| litter(1)), 200 * 1024);
}

#[test]
fn a_small_key_stack_is_as_locked_away_and_as_clean() {
    let stack = KeyStack::with_bytes(64 * 1024, Policy::AllowMlock).unwrap();
    let inside = stack.run(|| black_box(&mut [0xa5u8; 1024]).as_ptr().addr());
    let regions = regions();
    let region = regions.iter().find(|region| (region.start..region.end).contains(&inside)).unwrap();
    assert_locked_away(region.start, 64 * 1024);
    assert_eq!(words_left(&stack), 0);
}

#[test]
fn spans_begin_on_cache_lines_do_not_overlap_and_reach_the_end() {
    let arena = arena();
    let start = arena.words(FIRST).as_ptr().addr();
    let mut end_of_previous = start + mem::size_of_val(arena.words(FIRST));
    for index in 0..84 {
        let words = arena.words(KEYS.at(index).unwrap());
        assert_eq!(words.as_ptr().addr() % 64, 0);
        assert!(words.as_ptr().addr() >= end_of_previous);
        end_of_previous = words.as_ptr_range().end.addr();
    }
    assert_eq!(KEYS.at(84), None);
    assert_eq!(arena.words(LAST).as_ptr_range().end.addr(), start + ARENA_BYTES);
}

#[test]
fn zeroing_a_span_leaves_its_neighbours_and_zeroing_the_arena_leaves_nothing() {
    let arena = arena();
    let fill =
        |index| arena.words(KEYS.at(index).unwrap()).iter().for_each(|word| word.store(7, Ordering::Relaxed));
    let words = |index| arena.words(KEYS.at(index).unwrap()).iter().map(|word| word.load(Ordering::Relaxed));
    (0..84).for_each(fill);
    arena.zero_span(KEYS.at(3).unwrap());
    assert!(
        words(2).all(|word| word == 7) && words(3).all(|word| word == 0) && words(4).all(|word| word == 7)
    );
    thread::scope(|scope| {
        scope.spawn(|| arena.zero());
        scope.spawn(|| arena.zero());
    });
    assert!((0..84).flat_map(words).all(|word| word == 0));
}

#[test]
fn a_secret_goes_in_by_move_and_comes_out_whole() {
    let arena = arena();
    let secret = arena.secret(FIRST);
    let bytes: [u8; 32] = std::array::from_fn(|index| u8::try_from(index).unwrap());
    let mut source = bytes;
    secret.write_from(&mut source);
    assert_eq!(source, [0; 32], "the source is zeroed");
    let mut out = [0xff; 32];
    secret.read_into(&mut out);
    assert_eq!(out, bytes);
    assert_eq!(
        arena.words(FIRST)[0].load(Ordering::Relaxed).to_ne_bytes(),
        bytes[..8],
        "bytes in memory order"
    );
    secret.zero();
    secret.read_into(&mut out);
    assert_eq!(out, [0; 32]);
}

#[test]
fn random_secrets_fill_every_word_and_differ() {
    let arena = arena();
    let [mut first, mut second] = [[0; 32]; 2];
    arena.secret(FIRST).fill_random().unwrap();
    arena.secret(FIRST).read_into(&mut first);
    arena.secret(FIRST).fill_random().unwrap();
    arena.secret(FIRST).read_into(&mut second);
    assert_ne!(first, second);
    assert!(first.chunks(8).chain(second.chunks(8)).all(|word| word != [0; 8]));
}

/// Fills a good part of the stack with a pattern, as a cipher would with its state.
#[inline(never)]
fn litter(pattern: u8) -> u64 {
    let mut locals = [pattern; 200 * 1024];
    black_box(&mut locals);
    locals.iter().map(|byte| u64::from(*byte)).sum()
}

fn words_left(stack: &KeyStack) -> usize {
    stack.words().iter().filter(|word| word.load(Ordering::Relaxed) != 0).count()
}

#[test]
fn nothing_is_left_on_the_key_stack_after_return() {
    let stack = key_stack();
    let before = stack.run(|| {
        let sum = litter(0xa5);
        (sum, words_left(&stack))
    });
    assert_eq!(before.0, 0xa5 * 200 * 1024);
    assert!(before.1 > 100 * 1024 / 8, "the pattern was there: {} words", before.1);
    assert_eq!(words_left(&stack), 0);
}

#[test]
fn a_panic_goes_on_after_the_key_stack_is_wiped_and_the_next_run_works() {
    let stack = key_stack();
    let panic =
        catch_unwind(AssertUnwindSafe(|| stack.run(|| assert_eq!(litter(1), 0, "on purpose")))).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("on purpose"));
    assert_eq!(words_left(&stack), 0);
    assert_eq!(stack.run(|| 7), 7);
}

#[test]
fn a_run_inside_a_run_stays_on_the_key_stack() {
    let stack = key_stack();
    let (outer, inner) = stack.run(|| {
        let outer = psm::stack_pointer().addr();
        (outer, stack.run(|| psm::stack_pointer().addr()))
    });
    assert!(outer.abs_diff(inner) < KEY_STACK_BYTES);
    assert!(outer.abs_diff(psm::stack_pointer().addr()) > page_bytes());
}

#[test]
fn threads_take_turns_on_the_key_stack() {
    let stack = key_stack();
    thread::scope(|scope| {
        for thread in 1..=4u8 {
            let stack = &stack;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(stack.run(|| litter(thread)), u64::from(thread) * 200 * 1024);
                }
            });
        }
    });
    assert!(!stack.is_busy());
    assert!(stack.run(|| stack.is_busy()));
    assert_eq!(words_left(&stack), 0);
}

/// Makes `memfd_secret` fail for this thread as it does on a kernel without it.
fn take_memfd_secret_away() {
    let statement = |code: u32, jump_true, jump_false, k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: jump_true,
        jf: jump_false,
        k,
    };
    let number = u32::try_from(libc::SYS_memfd_secret).unwrap();
    let errno = u32::try_from(libc::ENOSYS).unwrap();
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter =
        libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: no pointers are passed.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the filter is a valid program that outlives the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) }, 0);
}

#[test]
fn without_secret_memory_nothing_is_given_unless_mlock_is_allowed_by_name() {
    thread::spawn(|| {
        take_memfd_secret_away();
        let refused = Arena::new(Policy::RequireMemfdSecret).unwrap_err();
        assert!(matches!(refused, LockedMemoryError::NoSecretMemory(_)), "{refused}");
        assert!(refused.to_string().contains("allow mlock by name"), "says what to do: {refused}");
        assert!(KeyStack::new(Policy::RequireMemfdSecret).is_err());

        let arena = Arena::new(Policy::AllowMlock).unwrap();
        assert_eq!(arena.kind(), MemoryKind::Mlock);
        assert_locked_away(arena.words(FIRST).as_ptr().addr(), ARENA_BYTES);
        assert_eq!(KeyStack::new(Policy::AllowMlock).unwrap().run(|| litter(1)), 200 * 1024);
    })
    .join()
    .unwrap();
}
