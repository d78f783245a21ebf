//! A node's configuration as an image takes it: a flat set of files, and a `node.toml` that names them there.
//!
//! What `nightlatch node init` made lies in several folders of this machine. In the image all of it is in one, read only; the
//! state is on the disk's own partition.

use std::path::{Path, PathBuf};

use config::NodeConfig;
use image_build::Configuration;

use crate::commands::to_toml;
use crate::failure::{Done, Failure};

/// Where an image keeps the node's state.
const STATE_DIR: &str = "/var/lib/nightlatch";

/// Reads `config` and every file that it names.
pub(crate) fn collect(config: &Path, network: Option<&Path>) -> Done<Configuration> {
    let mut config = NodeConfig::load(config)?;
    let mut files = Vec::new();
    let mut take = |path: &mut PathBuf, name: &str| -> Done {
        let contents = std::fs::read(&*path).map_err(|error| Failure::file("read", path, &error))?;
        files.push((name.to_owned(), contents));
        *path = name.into();
        Ok(())
    };
    let (mut identity, mut keyholder) = (config.identity_key_file(), config.keyholder_key_file());
    take(&mut identity, "identity.key")?;
    config.keys.identity = Some(identity);
    if !keyholder.exists() {
        return Err(Failure::local(
            format!("the node has no grant-signing key pinned: there is no {}", keyholder.display()),
            "write the key that `nightlatch key status` shows into it: nobody can do so once the node runs from its image",
        ));
    }
    take(&mut keyholder, "keyholder.pub")?;
    config.keys.keyholder = Some(keyholder);
    let tls = &mut config.tls;
    for (path, name) in [
        (&mut tls.cert, "node.pem"),
        (&mut tls.key, "node.key"),
        (&mut tls.people_issuer, "people-issuer.pem"),
        (&mut tls.machines_issuer, "machines-issuer.pem"),
        (&mut tls.clients_issuer, "clients-issuer.pem"),
    ] {
        take(path, name)?;
    }
    for (number, server) in tls.server.iter_mut().enumerate() {
        take(&mut server.cert, &format!("server-{number}.pem"))?;
        take(&mut server.key, &format!("server-{number}.key"))?;
    }
    for nut in &mut config.sources.nut {
        let name = format!("{}.password", nut.name);
        nut.password_file.as_mut().map_or(Ok(()), |path| take(path, &name))?;
    }
    if let Some(network) = network {
        take(&mut network.to_owned(), "network.toml")?;
    }
    config.state_dir = STATE_DIR.into();
    files.push(("node.toml".to_owned(), to_toml(&config)?.into_bytes()));
    Ok(Configuration { files })
}
