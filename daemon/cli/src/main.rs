//! `nightlatch`: one command line for nodes and keyholders.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
