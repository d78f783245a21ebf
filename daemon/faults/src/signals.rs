//! The signal handlers. Everything in `on_fault` is on signal-safety(7)'s list or plain arithmetic.

use std::mem::MaybeUninit;

use libc::{c_int, c_void, siginfo_t};

use crate::InstallError;
use crate::line::Line;

/// Exit status of a process that gave up by itself, as a shell shows SIGABRT.
pub(crate) const ABORTED: i32 = EXIT_BASE + libc::SIGABRT;

/// A shell shows a process that a signal ended as 128 and its number.
const EXIT_BASE: i32 = 128;

/// Signals that say the program is broken, or did what its sandbox forbids.
const FAULTS: [(c_int, &[u8]); 7] = [
    (libc::SIGSEGV, b"SIGSEGV"),
    (libc::SIGBUS, b"SIGBUS"),
    (libc::SIGILL, b"SIGILL"),
    (libc::SIGFPE, b"SIGFPE"),
    (libc::SIGTRAP, b"SIGTRAP"),
    (libc::SIGABRT, b"SIGABRT"),
    (libc::SIGSYS, b"SIGSYS"),
];

/// `siginfo_t` as the kernel fills it for SIGSYS; sigaction(2).
#[repr(C)]
struct ForbiddenCall {
    signo: c_int,
    errno: c_int,
    code: c_int,
    call_addr: *mut c_void,
    syscall: c_int,
    arch: u32,
}

const _: () = assert!(size_of::<ForbiddenCall>() <= size_of::<siginfo_t>());

pub(crate) fn install() -> Result<(), InstallError> {
    for (signal, _) in FAULTS {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros are a valid sigaction: default handler, empty mask, no flags.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = on_fault as *const () as usize;
        // The handler stays in place: a second thread that breaks before the first has ended the process does its last act too,
        // where the default would end it in the midst of the first's. In one thread the signal is blocked meanwhile: a fault in a
        // broken last act is the kernel's to end.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is initialised and lives through the call; the handler has the signature that SA_SIGINFO asks
        // for and never returns.
        if unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) } != 0 {
            return Err(InstallError::Signal { signal, source: std::io::Error::last_os_error() });
        }
    }
    Ok(())
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    crate::act();
    let name = FAULTS.iter().find(|(number, _)| *number == signal).map_or(&b"a signal"[..], |(_, name)| name);
    let mut line = Line::new();
    line.push(b"fault: ").push(name);
    if signal == libc::SIGSYS && !info.is_null() {
        // SAFETY: the kernel passes a siginfo_t to a handler that was installed with SA_SIGINFO, filled for this signal as
        // `ForbiddenCall` says; it is no larger.
        let call = unsafe { (*info.cast::<ForbiddenCall>()).syscall };
        line.push(b", system call ").push_number(call.unsigned_abs()).push(b" is not allowed here");
    }
    line.push(b"; the last act is done, the process ends\n");
    say(line.as_bytes());
    end(EXIT_BASE + signal)
}

fn say(line: &[u8]) {
    // SAFETY: the pointer and the length are those of one slice. Whether anybody reads it does not matter any more.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Ends the process without running anything else: no destructor, no exit handler, no flush.
pub(crate) fn end(status: i32) -> ! {
    // SAFETY: _exit is safe from any state of the process.
    unsafe { libc::_exit(status) }
}
