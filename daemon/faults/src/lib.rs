//! What a breaking program does: its last act first, then a message, then the end.
//!
//! Invariants:
//! - A fault signal, a forbidden system call or a panic runs the last act (for a node: the wipe) before anything else.
//! - The signal handler calls nothing that allocates, locks or is unsafe in a signal handler, provided the last act does
//!   not either. It runs on the alternate stack that std gives each thread it starts, so an overflown stack is no
//!   obstacle.
//! - Nothing resumes: the process ends with status 128 + signal, 134 (as by SIGABRT) after a panic.
//! - One exception, by name: a panic inside [`contain`] is an error of what runs there, and comes back as one.
//!
//! It knows no keys. It is no crash reporter: no core, no backtrace of memory, a line on standard error.
#![expect(
    unsafe_code,
    reason = "installs signal handlers, ends the process from within them, and gives a late thread priority"
)]

mod hurry;
mod line;
mod signals;

use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::OnceLock;

pub use hurry::{Hurried, hurry};

/// The last act, once installed.
static LAST_ACT: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

thread_local! {
    /// How many [`contain`] calls this thread is inside of.
    static CONTAINED: Cell<u32> = const { Cell::new(0) };
}

/// Why nothing was installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is a last act already.
    #[error("the fault handlers are installed already")]
    Twice,
    /// The kernel refused a handler.
    #[error("no handler for signal {signal} could be installed: {source}")]
    Signal {
        /// Its number.
        signal: i32,
        /// Why.
        source: std::io::Error,
    },
}

/// A panic that stayed where it was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the code that was run here panicked")]
pub struct Panicked;

/// From here on every fault signal and every panic outside [`contain`] runs `last_act` and ends the process.
///
/// `last_act` must be fit for a signal handler: no allocation, no lock, no panic; it may run on any thread, at any
/// moment, more than once and on several threads at a time.
pub fn install(last_act: impl Fn() + Send + Sync + 'static) -> Result<(), InstallError> {
    LAST_ACT.set(Box::new(last_act)).map_err(|_| InstallError::Twice)?;
    std::panic::set_hook(Box::new(move |panic| {
        if CONTAINED.get() == 0 {
            act();
            report(panic);
            signals::end(signals::ABORTED);
        }
        report(panic);
    }));
    signals::install()
}

/// Runs code that may panic over what it finds on disk, and makes an error of it. What it worked on is not to be used
/// afterwards.
pub fn contain<R>(run: impl FnOnce() -> R) -> Result<R, Panicked> {
    CONTAINED.set(CONTAINED.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(run));
    CONTAINED.set(CONTAINED.get() - 1);
    result.map_err(|_| Panicked)
}

/// What std would say, but for the backtrace: a confined thread may open none of the files that it takes, and would end by
/// the attempt instead of here.
fn report(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let message = panic.payload_as_str().unwrap_or("without a message");
    let mut out = std::io::stderr().lock();
    // Nobody is left to hear of an error.
    let _ = match panic.location() {
        Some(place) => writeln!(out, "thread '{thread}' panicked at {place}:\n{message}"),
        None => writeln!(out, "thread '{thread}' panicked at an unknown place:\n{message}"),
    };
}

fn act() {
    if let Some(last_act) = LAST_ACT.get() {
        last_act();
    }
}
