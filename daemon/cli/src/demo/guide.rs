//! What is said when everything serves: one object for scripts, instructions for people.

use serde::Serialize;

use crate::demo::s3;
use crate::demo::setup;
use crate::demo::site::{BUCKET, REGION, Site, VOLUME};
use crate::failure::{Done, Failure};
use crate::loopback::at;

/// The contract of `nightlatch demo --json`: programs build on these names, so none is changed or removed.
#[derive(Serialize)]
pub(super) struct Ready {
    nbd_uri: String,
    nbd_unix_uri: String,
    s3_endpoint: String,
    region: String,
    access_key: String,
    secret_key: String,
    admin_url: String,
    metrics_url: String,
    node_pid: i32,
    keyholder_pid: i32,
    dir: String,
}

impl Ready {
    pub(super) fn of(site: &Site) -> Done<Self> {
        let key = setup::access_key(site)?;
        let running = || Failure::local("the programs are not running", "look at their logs");
        let node = site.processes.node.as_ref().ok_or_else(running)?;
        let keyholder = site.processes.keyholder.as_ref().ok_or_else(running)?;
        Ok(Self {
            nbd_uri: nbd_uri(site),
            nbd_unix_uri: nbd_unix_uri(site),
            s3_endpoint: s3::endpoint(site),
            region: REGION.to_owned(),
            access_key: key.access_key,
            secret_key: key.secret_key,
            admin_url: format!("https://{}", at(site.ports.admin)),
            metrics_url: format!("http://{}/metrics", at(site.ports.metrics)),
            node_pid: node.pid(),
            keyholder_pid: keyholder.pid(),
            dir: site.dir.display().to_string(),
        })
    }
}

fn nbd_uri(site: &Site) -> String {
    let address = at(site.ports.nbd);
    if site.nbd_plain {
        format!("nbd://{address}/{VOLUME}")
    } else {
        let certificates = site.path("pki/nbd-client/demo");
        format!("nbds://{address}/{VOLUME}?tls-certificates={}", escaped(&certificates.to_string_lossy()))
    }
}

fn nbd_unix_uri(site: &Site) -> String {
    format!("nbd+unix:///{VOLUME}?socket={}", escaped(&site.nbd_socket.to_string_lossy()))
}

/// A path as the value of a URI's query: everything that has a meaning there is percent-encoded.
fn escaped(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// How to connect, for people.
pub(super) fn text(site: &Site) -> String {
    let (dir, socket) = (shell(&site.dir.to_string_lossy()), nbd_unix_uri(site));
    let tls = shell(&site.path("pki/nbd-client/demo").to_string_lossy());
    let qemu_tls = if site.nbd_plain {
        format!("  qemu-img info nbd://{}/{VOLUME}\n", at(site.ports.nbd))
    } else {
        format!(
            "  qemu-img info --object tls-creds-x509,id=t,endpoint=client,dir={tls} \\\n    --image-opts \
             driver=nbd,host=127.0.0.1,port={},export={VOLUME},tls-creds=t\n",
            site.ports.nbd
        )
    };
    let ca = if site.s3_plain {
        String::new()
    } else {
        format!("  export AWS_CA_BUNDLE={}\n", shell(&site.path("pki/ca-cert.pem").to_string_lossy()))
    };
    let ending = if site.is_temporary() {
        "Ctrl-C stops both programs and removes the directory; --dir DIR keeps it."
    } else {
        "Ctrl-C stops both programs; the same --dir brings them back with their data."
    };
    format!(
        "
It goes on serving. Try it from another terminal:

The volume, over a unix socket or over TLS with a client certificate:
  nbdinfo '{socket}'
  nbdcopy ./disk.img '{socket}'
  nbdinfo '{uri}'
{qemu_tls}
The bucket `{BUCKET}`; the access key is in {dir}/access-key.json:
  export AWS_ACCESS_KEY_ID=$(jq -r .access_key {dir}/access-key.json)
  export AWS_SECRET_ACCESS_KEY=$(jq -r .secret_key {dir}/access-key.json)
  export AWS_DEFAULT_REGION={REGION}
{ca}  aws --endpoint-url {s3} s3 ls s3://{BUCKET}

The keys:
  nightlatch --profile {dir} status
  kill -PWR {pid}                             as if the power failed
  nightlatch --profile {dir} push --all       the node is given its keys again
  nightlatch --profile {dir} lockdown         every key is taken away, and stays away
  nightlatch --profile {dir} unlatch --all    until a security officer says otherwise; then push

{ending}
",
        uri = nbd_uri(site),
        s3 = s3::endpoint(site),
        pid = site.processes.node.as_ref().map_or(0, |node| node.pid()),
    )
}

/// A word for a shell, quoted where it must be.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | ':' | '=');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_their_meaning_in_uris_and_shells() {
        assert_eq!(escaped("/tmp/a b&c?d#e%"), "/tmp/a%20b%26c%3Fd%23e%25");
        assert_eq!(shell("/tmp/plain-1.0_x"), "/tmp/plain-1.0_x");
        assert_eq!(shell("it's here"), r"'it'\''s here'");
        assert_eq!(shell(""), "''");
    }
}
