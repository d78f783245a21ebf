//! Nodes' machines: what their TPMs prove, beside what people approved.

use attestation::{Name, Register};
use units::NodeId;

use super::{Book, NodeNow};
use crate::api::{TpmEntry, TpmState};
use crate::attest::{Approved, Proven, Unproven, compare};
use crate::error::KeyholderError;
use crate::policy::Machine;

impl Book {
    /// Whether the key that signed a quote is known to be in the TPM that it names: it was approved as such, or has shown it since this
    /// program was started.
    pub(crate) fn knows_tpm(&self, node: NodeId, proven: &Proven) -> bool {
        let approved = self.open.as_ref().and_then(|open| open.registry.tpm_of(node));
        let shown = self.nodes.get(&node).and_then(|now| now.proof.as_ref().ok()).map(Proven::approved);
        approved.into_iter().chain(shown.as_ref()).any(|known| proven.is_of(known))
    }

    /// What is known of a node's machine.
    pub(crate) fn machine(&self, node: NodeId) -> Machine {
        let unknown = NodeNow::default();
        let now = self.nodes.get(&node).unwrap_or(&unknown);
        let approved = self.open.as_ref().and_then(|open| open.registry.tpm_of(node));
        let Some(approved) = approved else {
            // A TPM that nobody approved can be anybody's.
            return Machine::Claims;
        };
        match judged(now, approved) {
            Ok(proven) => Machine::Proves {
                boot_loader: proven.register(Register::BOOT_LOADER),
                image: proven.register(Register::IMAGE),
                is_as_approved: approved.has_image_of(proven),
            },
            Err(unproven) => {
                Machine::Disproved { because: unproven.to_string(), would_need: unproven.would_need() }
            }
        }
    }

    /// As the API shows it; `None` where there neither is nor was a TPM.
    pub(super) fn tpm_entry(&self, node: NodeId) -> Option<TpmEntry> {
        let now = self.nodes.get(&node);
        let approved = self.open.as_ref().and_then(|open| open.registry.tpm_of(node));
        let proof = now.map(|now| &now.proof);
        let proven = proof.and_then(|proof| proof.as_ref().ok());
        let problem = match (now, approved) {
            (Some(now), Some(approved)) => judged(now, approved).err(),
            (Some(NodeNow { proof: Err(unproven), .. }), None) if *unproven != Unproven::NoTpm => {
                Some(unproven.clone())
            }
            _ => None,
        };
        if approved.is_none() && proven.is_none() && problem.is_none() {
            return None;
        }
        let state = match (approved, &problem) {
            (_, Some(_)) => TpmState::Refused,
            (Some(_), None) => TpmState::Approved,
            (None, None) => TpmState::Claimed,
        };
        let shown = |register| proven.map(|proven| hex::encode(proven.register(register)));
        let firmware = proven.and_then(Proven::firmware);
        Some(TpmEntry {
            state,
            fingerprint: proven.map(Proven::tpm).or(approved.map(Approved::tpm)).map(|name| name.to_string()),
            certificate: proven.and_then(Proven::certificate).map(hex::encode),
            pcr4: shown(Register::BOOT_LOADER),
            pcr11: shown(Register::IMAGE),
            secure_boot: firmware.and_then(|firmware| firmware.secure_boot),
            unexplained: firmware
                .map(|firmware| firmware.unexplained.iter().map(|register| register.number()).collect()),
            wipes: proven.map(|proven| proven.wipes().len()),
            problem: problem.map(|problem| format!("{problem}; would need {}", problem.would_need())),
        })
    }

    /// What approving the node now approves of its TPM, if one `spoke` for the key that is approved. `given` is the fingerprint that a person read from the machine.
    pub(super) fn tpm_to_approve(
        &self,
        node: NodeId,
        spoke: bool,
        given: Option<&str>,
    ) -> Result<Option<(Name, Approved)>, KeyholderError> {
        let proven = self.nodes.get(&node).and_then(|now| now.proof.as_ref().ok()).filter(|_| spoke);
        let found = proven.map(|proven| (proven.tpm(), proven.approved()));
        let known = self.registry()?.tpm_of(node).map(Approved::tpm);
        let is_another = found.as_ref().is_some_and(|(name, _)| known.is_some_and(|known| known != *name));
        let given = match given {
            Some(given) => given.trim().to_ascii_lowercase(),
            // Another board's TPM takes a person who has read its fingerprint.
            None if is_another => String::new(),
            None => return Ok(found),
        };
        match found {
            Some((name, _)) if name.to_string() == given => Ok(found),
            found => Err(KeyholderError::OtherFingerprint {
                name: format!("the TPM of {}", self.node_name(node)),
                claimed: found.map_or("none".to_owned(), |(name, _)| name.to_string()),
                given,
            }),
        }
    }
}

/// What a node's TPM proves, where that is what was approved.
fn judged<'a>(now: &'a NodeNow, approved: &Approved) -> Result<&'a Proven, Unproven> {
    match &now.proof {
        Ok(proven) => compare(proven, approved).map(|()| proven),
        Err(Unproven::NoTpm) => Err(Unproven::TpmGone),
        Err(unproven) => Err(unproven.clone()),
    }
}
