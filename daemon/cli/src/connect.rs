//! Clients of the keyholder and of nodes, each with a certificate that may do what is asked.

use std::path::Path;

use identity::{Credentials, ExpectedPeer, HttpsClient, Role, control_client};

use crate::failure::{Done, Failure};
use crate::profile::Profile;

/// Reads that every role of people may do.
const READERS: &[Role] = &[Role::Operator, Role::SecurityOfficer, Role::Auditor, Role::Monitor];

/// What is asked of a server, as it stands in the server's own table of roles.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// Reading status and lists.
    Read,
    /// Day to day changes.
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
            Self::Operate => &[Role::Operator],
            Self::Decide => &[Role::SecurityOfficer],
            Self::Either => &[Role::Operator, Role::SecurityOfficer],
        }
    }
}

/// Connections by one profile.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) profile: Profile,
    role: Option<Role>,
}

impl Connections {
    /// By the profile that `given` names; with the certificate of `role` where one is named.
    pub(crate) fn load(given: Option<&Path>, role: Option<Role>) -> Done<Self> {
        Ok(Self { profile: Profile::load(given)?, role })
    }

    /// By this profile.
    pub(crate) fn of(profile: Profile) -> Self {
        Self { profile, role: None }
    }

    fn tls(&self, ask: Ask, expected: ExpectedPeer) -> Done<std::sync::Arc<rustls::ClientConfig>> {
        let identity = match self.role {
            Some(role) => self.profile.identity(&[role])?,
            None => self.profile.identity(ask.roles())?,
        };
        let credentials = Credentials::load(&identity.cert, &identity.key)?;
        Ok(control_client(&credentials, &self.profile.trust()?, expected)?)
    }

    /// The keyholder.
    pub(crate) fn keyholder(&self, ask: Ask) -> Done<HttpsClient> {
        let endpoint = self.profile.keyholder.clone().ok_or_else(|| {
            Failure::usage(
                "the profile names no keyholder",
                "add `keyholder = \"https://HOST:PORT\"`, the address of its administrative port",
            )
        })?;
        Ok(HttpsClient::new(endpoint, self.tls(ask, ExpectedPeer::role(Role::Keyholder))?))
    }

    /// The node with this name, or the only one; nobody but the node of that name is accepted there.
    pub(crate) fn node(&self, name: Option<&str>, ask: Ask) -> Done<HttpsClient> {
        let node = self.profile.node(name)?;
        let peer = node.name.parse().map_err(|error: identity::InvalidName| {
            Failure::usage(error.to_string(), "correct the node's name in the profile")
        })?;
        Ok(HttpsClient::new(node.admin.clone(), self.tls(ask, ExpectedPeer::named(Role::Node, peer))?))
    }
}
