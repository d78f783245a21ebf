//! `nightlatch demo`: a keyholder and a node on this machine's loopback address, made as an operator would make them.
//!
//! On a terminal it tells the story of a key: pushed, used, lost with the power, pushed again. With `--json` it prints
//! one object when everything serves ([`guide::Ready`]) and runs until SIGINT or SIGTERM; scripts build on that.
//!
//! Invariants:
//! - Everything lives in one directory; used again, the same installation comes back with its data.
//! - Every step is what the commands and programs do for anyone: nothing here is staged, every figure is measured.
//! - The node and the keyholder end when this program ends, however it ends.

mod disk;
mod guide;
mod s3;
mod setup;
mod site;
mod story;
mod traffic;

use crate::args::DemoArgs;
use crate::failure::Done;
use crate::loopback::{self, processes};
use crate::output::Output;
use site::Site;

/// Runs the demonstration to its end, which is a signal.
pub(crate) fn run(arguments: &DemoArgs, output: Output) -> Done {
    loopback::run(async |stopped| {
        processes::check_programs()?;
        let mut site = Site::open(arguments)?;
        let result = tokio::select! {
            result = serve(&mut site, output) => result,
            () = stopped => Ok(()),
        };
        output.note("\nStopping: clients finish, keys are wiped.");
        site.processes.stop().await;
        site.close();
        result
    })
}

/// Sets up, tells the story or prints the contract, and serves until one of the programs ends.
async fn serve(site: &mut Site, output: Output) -> Done {
    setup::run(site, output).await?;
    if output.is_json() {
        setup::push(site).await?;
        output.announce(&guide::Ready::of(site)?)?;
    } else {
        story::tell(site, output).await?;
        output.show(&(), || guide::text(site))?;
    }
    Err(site.processes.ended().await)
}
