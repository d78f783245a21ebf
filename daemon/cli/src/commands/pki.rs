//! `nightlatch pki`: an authority and certificates for those who have none.

use std::path::{Path, PathBuf};

use identity::pki::{Authority, Issued, LEAF_DAYS_DEFAULT};
use identity::{Endpoint, PeerName, Role, TrustDomain};
use serde::Serialize;

use crate::args::{IssueRole, Pki};
use crate::failure::{Done, Failure};
use crate::output::Output;
use crate::profile::{PROFILE_FILE, Profile, ProfileIdentity};

/// A certificate and its key, as `--json` names them.
#[derive(Debug, Serialize)]
struct IssuedFiles {
    cert: PathBuf,
    key: PathBuf,
}

impl From<Issued> for IssuedFiles {
    fn from(issued: Issued) -> Self {
        Self { cert: issued.cert, key: issued.key }
    }
}

pub(crate) fn run(command: &Pki, output: Output) -> Done {
    match command {
        Pki::Init { dir, trust_domain, operator, security_officer, keyholder } => {
            init(dir, trust_domain, [operator, security_officer], keyholder.clone(), output)
        }
        Pki::Issue { role, name, pki, hosts, days } => issue(*role, name, pki, hosts, *days, output),
    }
}

fn init(
    dir: &Path,
    trust_domain: &TrustDomain,
    [operator, officer]: [&PeerName; 2],
    keyholder: Option<Endpoint>,
    output: Output,
) -> Done {
    let authority = Authority::create(dir, trust_domain)?;
    let mut identities = Vec::new();
    for (role, name) in [(Role::Operator, operator), (Role::SecurityOfficer, officer)] {
        let issued = authority.issue(role, name, LEAF_DAYS_DEFAULT)?;
        identities.push(ProfileIdentity {
            role,
            cert: inside(dir, issued.cert),
            key: inside(dir, issued.key),
        });
    }
    let trust = authority.trust_files();
    let profile = Profile {
        trust_domain: trust_domain.clone(),
        people_issuer: inside(dir, trust.people),
        machines_issuer: inside(dir, trust.machines),
        clients_issuer: inside(dir, trust.clients),
        keyholder,
        identities,
        nodes: Vec::new(),
        file: PathBuf::new(),
    };
    let path = dir.join(PROFILE_FILE);
    profile.create(&path)?;
    let made = serde_json::json!({ "dir": dir, "trust_domain": trust_domain, "profile": path });
    output.show(&made, || {
        format!(
            "Made an authority for {trust_domain} in {dir}, with certificates for the operator {operator} and the \
             security officer {officer}.\n\n\
             Next:\n  \
             nightlatch pki issue keyholder keyholder-1 --pki {dir}\n  \
             nightlatch pki issue node node-1 --pki {dir}\n  \
             nightlatch pki issue server node-1 --host NAME-OR-ADDRESS --pki {dir}\n\n\
             Use the profile with --profile {dir}. Move {dir}/root/ca.key offline: it is needed only to make new issuers.",
            dir = dir.display()
        )
    })
}

/// The path as it stands in a file inside `dir`.
fn inside(dir: &Path, path: PathBuf) -> PathBuf {
    path.strip_prefix(dir).map(Path::to_owned).unwrap_or(path)
}

fn issue(role: IssueRole, name: &PeerName, pki: &Path, hosts: &[String], days: u32, output: Output) -> Done {
    let authority = Authority::open(pki).map_err(|error| {
        Failure::local(
            error.to_string(),
            "name the authority's directory with --pki, or make one with `nightlatch pki init`",
        )
    })?;
    let Some(role) = role.role() else {
        let issued = authority.issue_server(name, hosts, days)?;
        let (ecdsa, rsa) = (IssuedFiles::from(issued.ecdsa), IssuedFiles::from(issued.rsa));
        return output.show(&serde_json::json!({ "ecdsa": ecdsa, "rsa": rsa }), || {
            format!(
                "Issued host certificates for {}:\n  {}\n  {}\n(keys beside them)",
                hosts.join(", "),
                ecdsa.cert.display(),
                rsa.cert.display()
            )
        });
    };
    if !hosts.is_empty() {
        return Err(Failure::usage(
            format!("a certificate for the role {role} carries no host name"),
            "leave --host out, or issue a `server` certificate",
        ));
    }
    let issued = IssuedFiles::from(authority.issue(role, name, days)?);
    output.show(&issued, || {
        format!("Issued {role}/{name}:\n  {}\n  {}", issued.cert.display(), issued.key.display())
    })
}
