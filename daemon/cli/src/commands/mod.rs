//! The commands, one module for each noun. Each prints its result and returns; none exits the process itself.

mod attached;
mod audit;
pub(crate) mod doctor;
mod erasure;
mod generate;
mod hardware;
mod heal;
mod identity;
pub(crate) mod image;
mod key;
mod keyholder;
mod keys_out;
mod named_key;
mod node;
mod notification;
mod oidc;
mod peer;
mod people;
mod pki;
mod policy;
mod pool;
pub(crate) mod provision;
mod replication;
mod rotate;
mod schedule;
mod scrub;
pub(crate) mod send;
mod snapshot;
mod status;
mod store;
mod volume;
mod webhook;

use std::future::Future;

pub(crate) use key::{OfficerKey, open_share, read_json};
pub(crate) use node::{PlannedNode, make_private_dir, random_id, to_toml};
pub(crate) use snapshot::id_of;

use crate::args::{Arguments, Command};
use crate::connect::Connections;
use crate::demo;
use crate::failure::{Done, Failure};
use crate::mirror;
use crate::output::Output;

/// Runs a command to its end.
pub(crate) fn run(arguments: Arguments, output: &Output) -> Done {
    let Arguments { global, command } = arguments;
    let output = *output;
    let connections = || Connections::load(global.profile.as_deref(), global.role);
    match command {
        Command::Demo(demo) => demo::run(&demo, output),
        Command::Pki(command) => pki::run(&command, output),
        Command::Key(command) => key::run(&command, connections, output),
        Command::Node(command) => node::run(&command, connections, output),
        Command::Pool(command) => pool::run(&command, connections, output),
        Command::Volume(command) => volume::run(&command, &connections()?, output),
        Command::Mirror(arguments) => mirror::run(&arguments, output),
        Command::Snapshot(command) => snapshot::run(&command, &connections()?, output),
        Command::Peer(command) => peer::run(&command, connections, output),
        Command::Replication(command) => replication::run(&command, &connections()?, output),
        Command::Bucket(command) => store::buckets(&command, &connections()?, output),
        Command::User(command) => identity::users(&command, &connections()?, output),
        Command::Group(command) => identity::groups(&command, &connections()?, output),
        Command::AccessPolicy(command) => identity::policies(&command, &connections()?, output),
        Command::Image(command) => image::run(&command, output),
        Command::Audit(command) => audit::run(&command, connections, output),
        Command::Policy(command) => policy::run(&command, connections, output),
        Command::People(command) => people::people(&command, &connections()?, output),
        Command::Login(arguments) if arguments.oidc => oidc::login(&arguments, &connections()?, output),
        Command::Login(_) => people::login(&connections()?, output),
        Command::Logout => people::logout(&connections()?, output),
        Command::Token(command) => people::tokens(&command, &connections()?, output),
        Command::Approval(command) => people::approvals(&command, &connections()?, output),
        Command::Erasure(command) => erasure::run(&command, &connections()?, output),
        Command::Keyholder(command) => keyholder::run(&command, &connections()?, output),
        Command::Webhook(command) => webhook::run(&command, connections, output),
        Command::Provision(command) => provision::run(&command, output),
        Command::Quota(command) => store::quotas(&command, &connections()?, output),
        Command::Notification(command) => notification::run(&command, &connections()?, output),
        Command::Status => status::run(&connections()?, output),
        Command::Push(target) => keys_out::push(&target, &connections()?, output),
        Command::Revoke(target) => keys_out::revoke(&target, &connections()?, output),
        Command::Lockdown => keys_out::lockdown(&connections()?, output),
        Command::Unlatch(target) => keys_out::unlatch(&target, &connections()?, output),
        Command::Doctor(_) => Ok(()),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { dir } => generate::manual(dir.as_deref(), output),
        Command::RunAttached { parent, command } => attached::run(parent, &command),
    }
}

/// Waits for a request on a runtime of its own.
pub(crate) fn wait<T>(request: impl Future<Output = T>) -> Done<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("the runtime cannot be started: {error}"), ""))?;
    Ok(runtime.block_on(request))
}
