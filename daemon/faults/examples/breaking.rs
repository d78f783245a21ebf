//! Breaks in the way its argument names, after installing a last act that says so. The tests watch it die.
#![expect(unsafe_code, reason = "asks for memory that may be executed")]

use std::io::Write;

fn main() {
    let how = std::env::args().nth(1).unwrap_or_default();
    // Two writes of one call each: the order on standard error is the order in which things happened.
    let slowly = how == "slowly";
    faults::install(move || {
        if slowly {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        let _ = std::io::stderr().write_all(b"last act\n");
    })
    .expect("nothing was installed before");
    match how.as_str() {
        "contained" => {
            let caught = faults::contain(|| panic!("on purpose"));
            assert_eq!(caught, Err(faults::Panicked));
            println!("went on");
        }
        "panic" => panic!("on purpose"),
        "panic-in-a-thread" => {
            let thread = std::thread::spawn(|| panic!("on purpose"));
            let _ = thread.join();
            println!("went on");
        }
        "caught-panic" => {
            let _ = std::panic::catch_unwind(|| panic!("on purpose"));
            println!("went on");
        }
        "overflow" => println!("{}", deeper(1)),
        "overflow-in-a-thread" => {
            let thread = std::thread::spawn(|| println!("{}", deeper(1)));
            let _ = thread.join();
            println!("went on");
        }
        "abort" => std::process::abort(),
        "forbidden" => {
            sandbox::before_threads(std::env::vars_os().map(|(name, _)| name))
                .expect("before there are threads");
            sandbox::restrict_calls(sandbox::Role::Node).expect("a call filter");
            make_executable();
            println!("went on");
        }
        // Whoever started it sends signals, which threads take that have not had one.
        "slowly" => {
            let wait = || loop {
                std::thread::park();
            };
            let others = [(); 3].map(|()| std::thread::spawn(wait));
            println!("ready");
            others.into_iter().for_each(|other| drop(other.join()));
        }
        // Whoever started it sends a signal.
        _ => {
            println!("ready");
            loop {
                std::thread::park();
            }
        }
    }
}

fn make_executable() {
    let wanted = libc::PROT_READ | libc::PROT_EXEC;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists; it is never used.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, wanted, kind, -1, 0) };
}

/// Recursion that the optimiser can't turn into a loop, until the stack ends.
#[expect(unconditional_recursion, reason = "the stack is meant to overflow")]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    deeper(depth + 1) + frame[usize::try_from(depth % 64).unwrap_or(0)]
}
