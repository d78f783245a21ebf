//! What is handed out: verified images in memory, by the paths that firmware asks for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use image_build::{Manifest, TrustedKey};
use serde::{Deserialize, Serialize};

use crate::failure::{Done, Failure};
use crate::output::table;

/// Of an image, what a machine without a disk needs.
const FILES: [&str; 3] = ["network.efi", "vmlinuz", "initrd"];

/// What firmware asks for that was told one name for all machines.
const BOOT_IMAGE: &str = "boot.efi";
const BOOT_SCRIPT: &str = "boot.ipxe";

/// A published image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Published {
    profile: String,
    sequence: u64,
    release: String,
    /// What a kernel without an image around it is given.
    #[serde(skip)]
    command_line: String,
}

/// Everything that is handed out.
#[derive(Debug)]
pub(crate) struct Offer {
    images: Vec<Published>,
    files: BTreeMap<String, Bytes>,
    default_profile: String,
    nodes: BTreeMap<String, String>,
}

/// `nodes.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nodes {
    #[serde(default)]
    nodes: BTreeMap<String, String>,
}

/// Twelve hexadecimal digits in small letters, however they were divided.
fn mac(text: &str) -> Option<String> {
    let digits: String =
        text.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    let divided = text.chars().all(|letter| letter.is_ascii_hexdigit() || letter == ':' || letter == '-');
    (digits.len() == 12 && divided).then_some(digits)
}

impl Offer {
    /// Verifies the newest image of every profile below `site`.
    pub(crate) fn read(site: &Path, key: &TrustedKey, default_profile: &str) -> Done<Self> {
        let mut offer = Self {
            images: Vec::new(),
            files: BTreeMap::new(),
            default_profile: default_profile.to_owned(),
            nodes: read_nodes(&site.join("nodes.toml"))?,
        };
        let entries = std::fs::read_dir(site).map_err(|error| Failure::file("read", site, &error))?;
        for entry in entries.flatten() {
            let newest = entry.path().join("newest");
            if newest.is_dir() {
                let verified = image_build::verify(&newest, key)?;
                offer.add(&newest, &verified.manifest, &verified.signed_for_secure_boot)?;
            }
        }
        let wanted: Vec<&String> = offer.nodes.values().chain([&offer.default_profile]).collect();
        match wanted.into_iter().find(|name| !offer.images.iter().any(|image| &image.profile == *name)) {
            None => Ok(offer),
            Some(name) => Err(Failure::local(
                format!("no image of the profile `{name}` is published in {}", site.display()),
                "publish one with `nightlatch image publish`, or name another with --default or in nodes.toml",
            )),
        }
    }

    fn add(&mut self, folder: &Path, manifest: &Manifest, signed: &[String]) -> Done {
        for name in FILES {
            let path = match signed.iter().any(|signed| signed == name) {
                true => folder.join("signed").join(name),
                false => folder.join(name),
            };
            let contents = std::fs::read(&path).map_err(|error| Failure::file("read", &path, &error))?;
            self.files.insert(format!("{}/{name}", manifest.profile), contents.into());
        }
        self.images.push(Published {
            profile: manifest.profile.clone(),
            sequence: manifest.sequence,
            release: manifest.release.clone(),
            command_line: manifest.command_line.clone(),
        });
        Ok(())
    }

    pub(crate) fn images(&self) -> &[Published] {
        &self.images
    }

    /// The profile of a machine by its MAC address, as it was written.
    fn profile_of(&self, machine: &str) -> &str {
        let named = mac(machine).and_then(|machine| self.nodes.get(&machine));
        named.unwrap_or(&self.default_profile)
    }

    /// The file at this path: an image's, or what stands for the machine that asks.
    pub(crate) fn find(&self, path: &str) -> Option<Bytes> {
        let path = path.trim_start_matches('/');
        if let Some(file) = self.files.get(path) {
            return Some(file.clone());
        }
        let (machine, name) = match path.strip_prefix("node/") {
            Some(rest) => rest.split_once('/')?,
            None => ("", path),
        };
        let profile = self.profile_of(machine);
        match name {
            BOOT_IMAGE => self.files.get(&format!("{profile}/{}", FILES[0])).cloned(),
            // Which machine it is, iPXE knows when it runs.
            BOOT_SCRIPT if machine.is_empty() => {
                Some(Bytes::from_static(b"#!ipxe\nchain node/${netX/mac:hexraw}/boot.ipxe\n"))
            }
            BOOT_SCRIPT => {
                self.images.iter().find(|image| image.profile == profile).map(|image| script(image).into())
            }
            _ => None,
        }
    }

    /// For people.
    pub(crate) fn describe(&self, http: SocketAddr, tftp: Option<SocketAddr>) -> String {
        let row = |image: &Published| {
            vec![image.profile.clone(), image.sequence.to_string(), image.release.clone()]
        };
        let rows: Vec<_> = self.images.iter().map(row).collect();
        let tftp = tftp.map(|address| format!(", TFTP on {address}")).unwrap_or_default();
        format!(
            "Serving by HTTP on {http}{tftp}. Machines without a profile of their own get `{}`.\n{}",
            self.default_profile,
            table(&["PROFILE", "SEQUENCE", "RELEASE"], &rows, "nothing")
        )
    }
}

/// Under UEFI the image itself; on other machines its kernel, whose start nobody measures.
fn script(image: &Published) -> String {
    let Published { profile, command_line, .. } = image;
    format!(
        "#!ipxe\niseq ${{platform}} efi && chain /{profile}/network.efi ||\n\
         kernel /{profile}/vmlinuz initrd=initrd {command_line}\ninitrd --name initrd /{profile}/initrd\nboot\n"
    )
}

fn read_nodes(path: &Path) -> Done<BTreeMap<String, String>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        result => result.map_err(|error| Failure::file("read", path, &error))?,
    };
    let wrong = |what: String| {
        Failure::local(
            format!("{}: {what}", path.display()),
            "`nightlatch provision serve --help` shows an example",
        )
    };
    let nodes: Nodes = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let parsed = nodes.nodes.into_iter().map(|(machine, profile)| {
        let digits = mac(&machine).ok_or_else(|| wrong(format!("`{machine}` is no MAC address")))?;
        Ok((digits, profile))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        let files = ["server/network.efi", "storage/network.efi"]
            .map(|name| (name.to_owned(), name.as_bytes().into()));
        let image = |profile: &str| Published {
            profile: profile.to_owned(),
            sequence: 1,
            release: "1.0.0".to_owned(),
            command_line: "lockdown=confidentiality quiet".to_owned(),
        };
        Offer {
            images: vec![image("server"), image("storage")],
            files: files.into(),
            default_profile: "server".to_owned(),
            nodes: [("525400123456".to_owned(), "storage".to_owned())].into(),
        }
    }

    #[test]
    fn a_machine_gets_its_own_profile_and_every_other_the_default() {
        let offer = offer();
        let text = |path: &str| offer.find(path).map(|file| String::from_utf8(file.to_vec()).unwrap());
        assert_eq!(text("/node/525400123456/boot.efi").as_deref(), Some("storage/network.efi"));
        assert_eq!(text("/node/52-54-00-12-34-56/boot.efi").as_deref(), Some("storage/network.efi"));
        assert_eq!(text("/node/525400123457/boot.efi").as_deref(), Some("server/network.efi"));
        assert_eq!(text("boot.efi").as_deref(), Some("server/network.efi"));
        assert!(text("/boot.ipxe").unwrap().contains("mac:hexraw"));
        let script = text("/node/525400123456/boot.ipxe").unwrap();
        assert!(
            script.contains("chain /storage/network.efi")
                && script.contains("lockdown=confidentiality quiet\n")
        );
    }

    #[test]
    fn nothing_else_is_there() {
        let offer = offer();
        for path in
            ["", "/", "../server/network.efi", "/server", "/etc/passwd", "/node/x", "/server/manifest.sig"]
        {
            assert!(offer.find(path).is_none(), "{path}");
        }
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:5g", "52 54 00 12 34 56", "5254001234567"] {
            assert!(mac(wrong).is_none(), "{wrong}");
        }
    }
}
