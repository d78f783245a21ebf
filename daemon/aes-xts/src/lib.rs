//! AES-256-XTS over key schedules that live in the arena.
#![expect(unsafe_code, reason = "views arena words as a schedule and scrubs registers and stack")]

mod schedule;

pub use schedule::{SCHEDULE_WORDS, XtsKeyError, XtsSchedule};
