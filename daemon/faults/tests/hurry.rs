//! What a hurried thread's scheduling is while it is hurried and after.

use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;

/// `policy` of `/proc/PID/task/TID/stat`: the 41st field.
fn policy(thread: u64) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).expect("a thread's stat");
    let (_, after_name) = stat.rsplit_once(')').expect("a name in brackets");
    after_name.split_whitespace().nth(38).expect("41 fields").parse().expect("a number")
}

#[test]
fn a_hurried_thread_goes_before_normal_ones_until_it_is_let_go() {
    const NORMAL: u32 = 0;
    const FIFO: u32 = 1;
    let (number_in, number) = channel();
    let (end, ended) = channel::<()>();
    let late = thread::spawn(move || {
        let name = std::fs::read_link("/proc/thread-self").expect("a thread's folder");
        let number: u64 = name.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
        number_in.send(number).expect("someone who waits");
        let _ = ended.recv();
    });
    let thread = number.recv().expect("a number");
    assert_eq!(policy(thread), NORMAL);
    match faults::hurry(thread) {
        Some(hurried) => {
            assert_eq!((policy(thread), hurried.thread()), (FIFO, thread));
            drop(hurried);
        }
        None => eprintln!("no real-time priorities here (LimitRTPRIO): nothing to see"),
    }
    assert_eq!(policy(thread), NORMAL);
    drop(end);
    late.join().expect("an end");
    // The kernel lets go of it a moment after it is joined.
    while Path::new(&format!("/proc/self/task/{thread}")).exists() {
        thread::yield_now();
    }
    assert!(faults::hurry(thread).is_none(), "a thread that has ended");
    assert!(faults::hurry(u64::MAX).is_none());
}
