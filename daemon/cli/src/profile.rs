//! The profile: where nodes and the keyholder are, and the certificates of the person at the keyboard.
//!
//! Looked for in this order: `--profile`, `NIGHTLATCH_PROFILE`, `$XDG_CONFIG_HOME/nightlatch`, `~/.config/nightlatch`.
//! A directory stands for the `profile.toml` in it. Relative paths are relative to the file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use identity::{Endpoint, Role, Trust, TrustDomain, TrustFiles};
use serde::{Deserialize, Serialize};

use crate::failure::{Done, Failure};

/// The file's name inside a directory.
pub(crate) const PROFILE_FILE: &str = "profile.toml";

/// Connection settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// The organisation's name in every certificate.
    pub(crate) trust_domain: TrustDomain,
    /// Issuers of people (PEM).
    pub(crate) people_issuer: PathBuf,
    /// Issuers of machines (PEM).
    pub(crate) machines_issuer: PathBuf,
    /// Issuers of NBD clients (PEM).
    pub(crate) clients_issuer: PathBuf,
    /// The keyholder's administrative port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keyholder: Option<Endpoint>,
    /// Certificates of this person, one for each role held; the first that may do a thing is used.
    #[serde(default)]
    pub(crate) identities: Vec<ProfileIdentity>,
    /// Nodes whose addresses differ from those that the keyholder has, or that are used without a keyholder.
    #[serde(default)]
    pub(crate) nodes: Vec<ProfileNode>,
    /// Where it was read from.
    #[serde(skip)]
    pub(crate) file: PathBuf,
}

/// A certificate of this person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProfileIdentity {
    /// The role in the certificate.
    pub(crate) role: Role,
    /// The certificate (PEM).
    pub(crate) cert: PathBuf,
    /// Its key (PEM, mode 0600).
    pub(crate) key: PathBuf,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProfileNode {
    /// Its name, as in its certificate.
    pub(crate) name: String,
    /// Its administrative port.
    pub(crate) admin: Endpoint,
}

impl Profile {
    /// Reads the profile that `given` names, or the person's own.
    pub(crate) fn load(given: Option<&Path>) -> Done<Self> {
        let path = Self::path(given)?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::local(
                format!("cannot read the profile {}: {error}", path.display()),
                "name one with --profile or NIGHTLATCH_PROFILE; `nightlatch pki init` and `nightlatch demo` write one",
            )
        })?;
        let mut profile: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            let message = error.message().lines().next().unwrap_or("not valid TOML").to_owned();
            Failure::local(format!("{}:{line}: {message}", path.display()), "correct the file")
        })?;
        let absolute = std::path::absolute(&path).map_err(|error| Failure::file("find", &path, &error))?;
        profile.resolve(absolute.parent().unwrap_or(Path::new("/")));
        profile.file = absolute;
        Ok(profile)
    }

    fn path(given: Option<&Path>) -> Done<PathBuf> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => std::env::var_os("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .filter(|dir| dir.is_absolute())
                .or_else(|| std::env::home_dir().map(|home| home.join(".config")))
                .ok_or_else(|| {
                    Failure::usage("there is no home directory to look for a profile in", "give --profile")
                })?
                .join("nightlatch"),
        };
        Ok(if path.is_dir() || given.is_none() { path.join(PROFILE_FILE) } else { path })
    }

    fn resolve(&mut self, dir: &Path) {
        let issuers = [&mut self.people_issuer, &mut self.machines_issuer, &mut self.clients_issuer];
        let own = self.identities.iter_mut().flat_map(|identity| [&mut identity.cert, &mut identity.key]);
        for path in issuers.into_iter().chain(own) {
            *path = dir.join(&*path);
        }
    }

    /// Writes a new profile; fails where one exists.
    pub(crate) fn create(&self, path: &Path) -> Done {
        identity::PrivateFile::create(path, self.to_text()?.as_bytes())?;
        Ok(())
    }

    /// The directory that its relative paths start from.
    pub(crate) fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// Adds a certificate at the end of the file, behind whatever a person has written there.
    pub(crate) fn add_identity(&self, identity: &ProfileIdentity) -> Done {
        #[derive(Serialize)]
        struct Table<'a> {
            identities: [&'a ProfileIdentity; 1],
        }
        let table = toml::to_string(&Table { identities: [identity] })
            .map_err(|error| Failure::local(format!("the profile cannot be written: {error}"), ""))?;
        let failed = |error| Failure::file("add an identity to", &self.file, &error);
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.file).map_err(failed)?;
        std::io::Write::write_all(&mut file, format!("\n{table}").as_bytes()).map_err(failed)
    }

    /// The file's text.
    pub(crate) fn to_text(&self) -> Done<String> {
        let mut text = String::from("# Connection settings of `nightlatch`; see `nightlatch help`.\n\n");
        let body = toml::to_string(self)
            .map_err(|error| Failure::local(format!("the profile cannot be written: {error}"), ""))?;
        // Writing to a String does not fail.
        let _ = write!(text, "{body}");
        Ok(text)
    }

    /// Reads the issuers.
    pub(crate) fn trust(&self) -> Done<Trust> {
        Ok(Trust::load(&TrustFiles {
            trust_domain: self.trust_domain.clone(),
            people: self.people_issuer.clone(),
            machines: self.machines_issuer.clone(),
            clients: self.clients_issuer.clone(),
        })?)
    }

    /// The person's first certificate whose role is one of `roles`.
    pub(crate) fn identity(&self, roles: &[Role]) -> Done<&ProfileIdentity> {
        self.identities.iter().find(|identity| roles.contains(&identity.role)).ok_or_else(|| {
            let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
            Failure::usage(
                format!("the profile has no certificate with the role {}", names.join(" or ")),
                "have one issued (`nightlatch pki issue`) and add it to the profile as an [[identities]] table",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Profile {
        Profile {
            trust_domain: "test.example".parse().unwrap(),
            people_issuer: "issuers/people.pem".into(),
            machines_issuer: "issuers/machines.pem".into(),
            clients_issuer: "/etc/clients.pem".into(),
            keyholder: Some("https://127.0.0.1:7401".parse().unwrap()),
            identities: vec![ProfileIdentity {
                role: Role::Operator,
                cert: "operator/alice/cert.pem".into(),
                key: "operator/alice/key.pem".into(),
            }],
            nodes: vec![ProfileNode {
                name: "node-1".into(),
                admin: "https://127.0.0.1:7411".parse().unwrap(),
            }],
            file: PathBuf::new(),
        }
    }

    #[test]
    fn a_profile_reads_back_with_paths_from_its_own_directory() {
        let dir = tempfile::tempdir().unwrap();
        example().create(&dir.path().join(PROFILE_FILE)).unwrap();
        let read = Profile::load(Some(dir.path())).unwrap();
        assert_eq!(read.people_issuer, dir.path().join("issuers/people.pem"));
        assert_eq!(read.clients_issuer, PathBuf::from("/etc/clients.pem"));
        assert_eq!(read.identities[0].key, dir.path().join("operator/alice/key.pem"));
        assert_eq!(read.nodes, example().nodes);
        assert!(example().create(&dir.path().join(PROFILE_FILE)).is_err());
    }

    #[test]
    fn what_is_missing_is_said_with_the_next_step() {
        let profile = example();
        let officer = profile.identity(&[Role::SecurityOfficer]).unwrap_err().to_string();
        assert!(officer.contains("security-officer") && officer.contains("pki issue"), "{officer}");
        let missing = Profile::load(Some(Path::new("/nonexistent/p.toml"))).unwrap_err().to_string();
        assert!(missing.contains("NIGHTLATCH_PROFILE"), "{missing}");
    }
}
