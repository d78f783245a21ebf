//! Certificates for one run, RSA because QEMU's server wants that, in the places where servers and libnbd look.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    pub(crate) fn make(scratch: &Path) -> Result<Self> {
        let new = Self { folder: scratch.to_owned() };
        fs::create_dir_all(new.servers())?;
        fs::create_dir_all(new.clients())?;
        fs::set_permissions(scratch, fs::Permissions::from_mode(0o755))?;
        let servers = new.servers();
        openssl(
            &servers,
            "req -x509 -newkey rsa:2048 -nodes -subj /CN=bench -days 2 -keyout ca-key.pem -out ca-cert.pem",
        )?;
        for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
            openssl(
                &servers,
                &format!(
                    "req -x509 -newkey rsa:2048 -nodes -subj /CN={name} -days 2 -CA ca-cert.pem -CAkey ca-key.pem \
                     -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage={usage} \
                     -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {name}-key.pem -out {name}-cert.pem"
                ),
            )?;
        }
        for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
            fs::copy(servers.join(file), new.clients().join(file))?;
        }
        // Keys of two days for numbers on a loopback interface; the client runs as somebody else.
        for entry in fs::read_dir(new.clients())? {
            fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o644))?;
        }
        Ok(new)
    }

    /// Authority and server's certificate with their keys.
    pub(crate) fn servers(&self) -> PathBuf {
        self.folder.join("servers")
    }

    /// The client's home.
    pub(crate) fn home(&self) -> &Path {
        &self.folder
    }

    /// Where libnbd looks.
    fn clients(&self) -> PathBuf {
        self.folder.join(".pki/libnbd")
    }
}

fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .context("openssl could not be started: run tests/clients.sh bench")?;
    ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
