//! Gives its rights up as a daemon does and then tries what its first argument names. The tests look at how it fares.
//!
//! Arguments: the attempt, a directory that stays open, a file outside of it, a TCP port that somebody listens on.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use sandbox::{Access, Enforcement, FileRules, Role};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [attempt, inside, outside, port] = arguments.as_slice() else { panic!("four arguments") };
    let inside = PathBuf::from(inside);
    let port: u16 = port.parse().expect("a port");
    // The C library installs its handlers with the first thread; a daemon has its wiper by then.
    std::thread::spawn(|| {}).join().expect("a thread that ends");
    faults::install(|| {}).expect("installed once");
    sandbox::before_threads(std::env::vars_os().map(|(name, _)| name)).expect("before there are threads");
    sandbox::drop_capabilities().expect("capabilities to drop");
    let rules = FileRules::default().allow(&inside, Access::Change);
    let enforcement = sandbox::restrict_files(&rules).expect("file rules");
    assert_eq!(enforcement, Enforcement::Full, "this kernel's Landlock is too old for the test");
    // What the file rules refuse is tried before the call filter, which would refuse it first.
    match attempt.as_str() {
        "write-inside" => {
            std::fs::write(inside.join("file"), b"data").expect("a directory that stays open");
            assert_eq!(std::fs::read(inside.join("file")).expect("it can be read"), b"data");
            return println!("allowed");
        }
        "read-outside" => return refused(File::open(outside).map(drop)),
        "write-outside" => return refused(std::fs::write(outside, b"data")),
        "execute-inside" => return refused(Command::new(inside.join("program")).status().map(drop)),
        "bind" => return refused(TcpListener::bind("127.0.0.1:0").map(drop)),
        "dial" => return refused(TcpStream::connect(("127.0.0.1", port)).map(drop)),
        _ => {}
    }
    let role = if attempt == "open-in-wiper" { Role::Wiper } else { Role::Node };
    sandbox::restrict_calls(role).expect("a call filter");
    match attempt.as_str() {
        "thread" => {
            let answer = std::thread::spawn(|| 42).join().expect("a thread that ends");
            return println!("{}", if answer == 42 { "allowed" } else { "wrong" });
        }
        "execute" => drop(Command::new("/bin/true").status()),
        "internet-socket" => drop(TcpStream::connect(("127.0.0.1", port))),
        "listen" => drop(TcpListener::bind("127.0.0.1:0")),
        "unshare" => drop(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)),
        "open-in-wiper" => drop(File::open(inside.join("file"))),
        other => panic!("no such attempt: {other}"),
    }
    println!("went on");
}

fn refused(result: std::io::Result<()>) {
    match result {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => println!("refused"),
        other => println!("{other:?}"),
    }
}
