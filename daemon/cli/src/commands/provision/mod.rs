//! `nightlatch provision`: hands published images to machines that boot over the network.
//!
//! Invariants:
//! - What is handed out was verified with the release key, and is held in memory from then on: nobody can change it on its way.
//! - It reads requests and never writes: no upload, no listing, no path of this machine.
//! - A boot server is not believed by anybody. Firmware checks the image's signature, and the keyholder decides about keys.

mod http;
mod offer;
mod tftp;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use image_build::TrustedKey;
use tokio::net::{TcpListener, UdpSocket};

use crate::failure::{Done, Failure};
use crate::loopback;
use crate::output::Output;

/// `provision`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProvisionCommand {
    /// Serve published images by HTTP (UEFI HTTP boot, iPXE) and TFTP (PXE) until stopped
    #[command(
        after_help = "Examples:\n  nightlatch provision serve --site /srv/nightlatch --key release.pub\n  nightlatch provision serve --site /srv/nightlatch --key release.pub --http 192.0.2.2:8080 --tftp 192.0.2.2:69\n\nPoint your DHCP server at it: option 67 `http://ADDRESS/boot.efi` for UEFI HTTP boot, `boot.efi` with this server as the next\none for PXE, `http://ADDRESS/boot.ipxe` for iPXE. SITE/nodes.toml may give machines a profile of their own by MAC address,\nthe rest get --default:\n\n  [nodes]\n  \"52:54:00:12:34:56\" = \"storage\"\n\nImages are read at the start: start it again after `nightlatch image publish`."
    )]
    Serve {
        /// The folder that `nightlatch image publish` fills
        #[arg(long, value_name = "DIR")]
        site: PathBuf,
        /// The release key's public half
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The profile of machines that nodes.toml does not name
        #[arg(long = "default", value_name = "NAME", default_value = "server")]
        default_profile: String,
        /// Where to answer HTTP
        #[arg(long, value_name = "ADDRESS", default_value = "[::]:8080")]
        http: SocketAddr,
        /// Where to answer TFTP; none without it
        #[arg(long, value_name = "ADDRESS")]
        tftp: Option<SocketAddr>,
    },
}

pub(crate) fn run(command: &ProvisionCommand, output: Output) -> Done {
    let ProvisionCommand::Serve { site, key, default_profile, http, tftp } = command;
    let offer = Arc::new(offer::Offer::read(site, &TrustedKey::load(key)?, default_profile)?);
    loopback::run(async |stopped| serve(offer, site, (*http, *tftp), stopped, output).await)
}

async fn serve(
    offer: Arc<offer::Offer>,
    site: &Path,
    (http, tftp): (SocketAddr, Option<SocketAddr>),
    stopped: impl Future<Output = ()>,
    output: Output,
) -> Done {
    let taken = |address: SocketAddr| {
        move |error: std::io::Error| {
            Failure::local(
                format!("cannot listen on {address}: {error}"),
                "choose another address, or see who has it",
            )
        }
    };
    let listener = TcpListener::bind(http).await.map_err(taken(http))?;
    let http = listener.local_addr().map_err(taken(http))?;
    let socket = match tftp {
        Some(address) => Some(UdpSocket::bind(address).await.map_err(taken(address))?),
        None => None,
    };
    let tftp = socket.as_ref().and_then(|socket| socket.local_addr().ok());
    let said = serde_json::json!({ "site": site, "http": http, "tftp": tftp, "images": offer.images() });
    if output.is_json() {
        output.announce(&said)?;
    } else {
        output.show(&said, || offer.describe(http, tftp))?;
    }
    let transfers = async {
        match socket {
            Some(socket) => tftp::serve(socket, Arc::clone(&offer)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = http::serve(listener, Arc::clone(&offer)) => {}
        () = transfers => {}
        () = stopped => {}
    }
    Ok(())
}
