//! The command line: what people and scripts do with a node and a keyholder, and the demonstration of both.
//!
//! Invariants:
//! - Every command has a `--json` form whose standard output is exactly one JSON document; everything else, progress
//!   and errors included, goes to standard error.
//! - The exit status says what sort of failure it was ([`failure::Exit`]); the message says what to do next.
//! - A secret is printed only by the command that makes it, once. Secrets otherwise live in files of mode 0600 and
//!   never on a command line, where every user of the machine could read them.
//! - Nothing that exists is overwritten, and what cannot be undone asks first or wants `--yes`.
//!
//! What it is not: it decides nothing about who may do what. The keyholder and the node do, by certificate.

mod args;
mod commands;
mod connect;
mod demo;
mod drill;
mod export;
pub mod failure;
mod loopback;
mod mirror;
mod output;
mod profile;
mod s3;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Arguments;
use crate::output::Output;

/// Runs the program on this process's arguments.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.global.json);
    if let args::Command::Doctor(doctor) = &arguments.command {
        return commands::doctor::run(doctor, output);
    }
    match commands::run(arguments, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}
