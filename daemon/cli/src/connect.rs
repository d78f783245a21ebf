//! Clients of the keyholder and of nodes, each with a certificate that may do what is asked.

use std::path::{Path, PathBuf};

use identity::{Credentials, Endpoint, ExpectedPeer, HttpsClient, PrivateFile, Role, control_client};
use keyholder::api::{Login, NodeEntry};

use crate::failure::{Done, Failure};
use crate::profile::{Profile, ProfileIdentity, ProfileNode};

/// Reads that every role of people may do.
const READERS: &[Role] =
    &[Role::Operator, Role::StorageAdmin, Role::SecurityOfficer, Role::Auditor, Role::Monitor];

/// What is asked of a server, as it stands in the server's own table of roles.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// Reading status and lists.
    Read,
    /// Reading the audit trail.
    Trail,
    /// Day to day changes: the operator's, and some the storage administrator's.
    Operate,
    /// What only a security officer may do.
    Decide,
    /// Forgetting, pushing and enrolling: operator or security officer.
    Either,
}

impl Ask {
    const fn roles(self) -> &'static [Role] {
        match self {
            Self::Read => READERS,
            Self::Trail => &[Role::Auditor, Role::SecurityOfficer, Role::Operator, Role::StorageAdmin],
            Self::Operate => &[Role::Operator, Role::StorageAdmin],
            Self::Decide => &[Role::SecurityOfficer],
            Self::Either => &[Role::Operator, Role::SecurityOfficer],
        }
    }
}

/// Connections by one profile.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) profile: Profile,
    pub(crate) role: Option<Role>,
    /// Where the token of a program is, which is for the person's own keyholder.
    token_file: Option<PathBuf>,
}

impl Connections {
    /// By the profile that `given` names; with the certificate of `role` where one is named.
    pub(crate) fn load(given: Option<&Path>, role: Option<Role>) -> Done<Self> {
        let token_file = std::env::var_os("NIGHTLATCH_TOKEN_FILE").map(PathBuf::from);
        Ok(Self { profile: Profile::load(given)?, role, token_file })
    }

    /// By this profile, of an installation that this program has made.
    pub(crate) fn of(profile: Profile) -> Self {
        Self { profile, role: None, token_file: None }
    }

    /// The certificate that may do it.
    fn identity(&self, ask: Ask) -> Done<&ProfileIdentity> {
        match self.role {
            Some(role) => self.profile.identity(&[role]),
            // What a storage administrator may do an operator may too, and not the other way round.
            None if matches!(ask, Ask::Operate) => {
                let operator = self.profile.identity(&[Role::Operator]);
                operator.or_else(|_| self.profile.identity(ask.roles()))
            }
            None => self.profile.identity(ask.roles()),
        }
    }

    /// Keeps a login beside the key of the certificate that it was made with; only that key can use it. Says whose it is, and where.
    pub(crate) fn keep_login(&self, ask: Ask, login: &Login) -> Done<(Role, PathBuf)> {
        let identity = self.identity(ask)?;
        let path = login_file(identity);
        let _ = std::fs::remove_file(&path);
        PrivateFile::create(&path, login.token.as_bytes())?;
        Ok((identity.role, path))
    }

    /// Forgets it.
    pub(crate) fn forget_login(&self, ask: Ask) -> Done {
        let path = login_file(self.identity(ask)?);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::file("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    fn tls(&self, ask: Ask, expected: ExpectedPeer) -> Done<std::sync::Arc<rustls::ClientConfig>> {
        let identity = self.identity(ask)?;
        let credentials = Credentials::load(&identity.cert, &identity.key)?;
        Ok(control_client(&credentials, &self.profile.trust()?, expected)?)
    }

    /// Where the keyholder is.
    pub(crate) fn keyholder_endpoint(&self) -> Done<Endpoint> {
        self.profile.keyholder.clone().ok_or_else(|| {
            Failure::usage(
                "the profile names no keyholder",
                "add `keyholder = \"https://HOST:PORT\"`, the address of its administrative port",
            )
        })
    }

    /// The keyholder.
    pub(crate) fn keyholder(&self, ask: Ask) -> Done<HttpsClient> {
        let client =
            HttpsClient::new(self.keyholder_endpoint()?, self.tls(ask, ExpectedPeer::role(Role::Keyholder))?);
        // One that has ended is refused, and the refusal says to log in again.
        let token = match &self.token_file {
            Some(file) => Some(PrivateFile::read(file, "token")?),
            None => PrivateFile::read(&login_file(self.identity(ask)?), "login").ok(),
        };
        let token = token.and_then(|token| String::from_utf8(token.to_vec()).ok());
        Ok(match token {
            Some(token) => client.with_bearer(token.trim().to_owned()),
            None => client,
        })
    }

    /// The node with this name, or the only one; nobody but the node of that name is accepted there.
    pub(crate) async fn node(&self, name: Option<&str>, ask: Ask) -> Done<HttpsClient> {
        let node = self.find_node(name).await?;
        self.client_of(&node, ask)
    }

    /// A client of a node whose address is known.
    pub(crate) fn client_of(&self, node: &ProfileNode, ask: Ask) -> Done<HttpsClient> {
        let peer = node.name.parse().map_err(|error: identity::InvalidName| {
            Failure::usage(error.to_string(), "correct the node's name in the profile")
        })?;
        Ok(HttpsClient::new(node.admin.clone(), self.tls(ask, ExpectedPeer::named(Role::Node, peer))?))
    }

    /// Where a node is: by the profile, which knows best what is reachable from here; otherwise by the keyholder.
    pub(crate) async fn find_node(&self, name: Option<&str>) -> Done<ProfileNode> {
        let own = &self.profile.nodes;
        if let Some(found) = own.iter().find(|node| name == Some(node.name.as_str())) {
            return Ok(found.clone());
        }
        if let (None, [only]) = (name, own.as_slice()) {
            return Ok(only.clone());
        }
        let known = match &self.profile.keyholder {
            Some(_) => {
                let entries: Vec<NodeEntry> = self.keyholder(Ask::Read)?.get("/v1/nodes").await?;
                with_those_of_the_keyholder(own, &entries)
            }
            None => own.clone(),
        };
        choose(known, name)
    }
}

/// The profile's nodes, and those that only the keyholder knows.
pub(crate) fn with_those_of_the_keyholder(own: &[ProfileNode], entries: &[NodeEntry]) -> Vec<ProfileNode> {
    let mut known = own.to_vec();
    for entry in entries {
        if !known.iter().any(|node| node.name == entry.name) {
            known.push(ProfileNode { name: entry.name.clone(), admin: entry.admin_address.clone() });
        }
    }
    known
}

fn login_file(identity: &ProfileIdentity) -> PathBuf {
    identity.key.with_extension("login")
}

fn choose(mut known: Vec<ProfileNode>, name: Option<&str>) -> Done<ProfileNode> {
    const ADD: &str =
        "add it at the keyholder (`nightlatch node add`), or to the profile as a [[nodes]] table";
    match name {
        Some(name) => match known.iter().position(|node| node.name == name) {
            Some(index) => Ok(known.swap_remove(index)),
            None => Err(Failure::usage(format!("there is no node {name}"), ADD)),
        },
        None if known.len() == 1 => Ok(known.swap_remove(0)),
        None if known.is_empty() => Err(Failure::usage("there is no node yet", ADD)),
        None => {
            let names: Vec<_> = known.iter().map(|node| node.name.as_str()).collect();
            Err(Failure::usage(format!("there are several nodes: {}", names.join(", ")), "say which"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, port: u16) -> ProfileNode {
        ProfileNode { name: name.to_owned(), admin: format!("https://127.0.0.1:{port}").parse().unwrap() }
    }

    #[test]
    fn the_only_node_needs_no_name_and_several_do() {
        assert_eq!(choose(vec![node("a", 1)], None).unwrap(), node("a", 1));
        assert_eq!(choose(vec![node("a", 1), node("b", 2)], Some("b")).unwrap(), node("b", 2));
        let several = choose(vec![node("a", 1), node("b", 2)], None).unwrap_err().to_string();
        assert!(several.contains("a, b"), "{several}");
        for (known, name) in [(vec![], None), (vec![node("a", 1)], Some("c"))] {
            assert!(choose(known, name).unwrap_err().to_string().contains("node add"));
        }
    }
}
