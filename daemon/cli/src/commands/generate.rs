//! Shell completions and manual pages, from the grammar itself.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;

use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::output::Output;

pub(crate) fn completions(shell: clap_complete::Shell) -> Done {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "nightlatch", &mut text);
    write_out(&text)
}

pub(crate) fn manual(dir: Option<&Path>, output: Output) -> Done {
    let command = Arguments::command();
    let Some(dir) = dir else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text).map_err(|error| unwritable(&error))?;
        return write_out(&text);
    };
    std::fs::create_dir_all(dir).map_err(|error| Failure::file("make", dir, &error))?;
    clap_mangen::generate_to(command, dir)
        .map_err(|error| Failure::file("write manual pages to", dir, &error))?;
    output.show(&serde_json::json!({ "dir": dir }), || format!("wrote the manual pages to {}", dir.display()))
}

fn unwritable(error: &io::Error) -> Failure {
    Failure::local(format!("cannot write to standard output: {error}"), "")
}

fn write_out(text: &[u8]) -> Done {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unwritable(&error)),
        _ => Ok(()),
    }
}
