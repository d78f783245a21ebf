//! The restored ledger's policy, lifted for the drill.
//!
//! A ledger brings the policy with it that was in force: second factors of people who are not here, quorums, hours, what machines
//! have to prove. The drill's own people are officers of its own authority, as many as the policy wants. They enrol second
//! factors of their own where it asks for them, and put a policy in force that asks for nothing. All of it ends with the drill:
//! what is changed is the copy.

use std::time::{SystemTime, UNIX_EPOCH};

use identity::ClientError;
use keyholder::api::{
    Approval, ApprovalState, Code, Done as Empty, EnrolledFactor, Login, NewPolicy, PolicyPreview,
    PolicyStatus,
};
use keyholder::authenticator_code;

use crate::connect::{Ask, Connections};
use crate::drill::site::Site;
use crate::failure::{Done, Failure};

/// No policy asks for more people.
pub(super) const OFFICERS_MAX: usize = 8;

const NO_RULES: &str = "version = 1\n";

/// Seconds for which a code is good.
const CODE_S: u64 = 30;

impl Site {
    /// Puts a policy in force that asks for nothing, if the ledger has one that does.
    pub(super) async fn lift_policy(&mut self) -> Done {
        let first = self.officer(0)?;
        let keyholder = first.keyholder(Ask::Decide)?;
        let found: Result<PolicyStatus, ClientError> = keyholder.get("/v1/policy").await;
        let (policy, with_codes) = match found {
            Err(ClientError::Refused { problem, .. }) if problem.kind == "second-factor" => {
                log_in(&first).await?;
                let policy: PolicyStatus = first.keyholder(Ask::Decide)?.get("/v1/policy").await?;
                (policy, true)
            }
            found => (found?, false),
        };
        if policy.text.is_none() {
            return Ok(());
        }
        let request = NewPolicy { text: NO_RULES.to_owned() };
        for other in 1..=OFFICERS_MAX {
            let applied: Result<PolicyPreview, ClientError> =
                first.keyholder(Ask::Decide)?.post("/v1/policy", &request).await;
            match applied {
                Err(ClientError::Refused { problem, .. }) if problem.kind == "approval-wanted" => {
                    let other = self.officer(other)?;
                    if with_codes {
                        log_in(&other).await?;
                    }
                    approve(&other).await?;
                }
                applied => {
                    applied.map_err(|error| {
                        Failure::from(error).during("lifting the policy of the restored ledger")
                    })?;
                    // One who has enrolled nothing is asked for nothing from here on.
                    self.use_officer(OFFICERS_MAX + 1)?;
                    return Ok(());
                }
            }
        }
        Err(Failure::local("the policy of the restored ledger wants more people than any may", "report this"))
    }
}

/// Enrols a second factor, and logs in with it.
async fn log_in(officer: &Connections) -> Done {
    let keyholder = officer.keyholder(Ask::Decide)?;
    let factor: EnrolledFactor = keyholder.post("/v1/people/me/second-factor", &Empty {}).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let code = |moment| {
        let code = authenticator_code(&factor.secret, moment);
        code.map(|code| Code { code }).ok_or_else(|| {
            Failure::local("the keyholder gave no secret that an authenticator takes", "report this")
        })
    };
    // Each counts once: that of now confirms, and the next one, which counts already, logs in. Both still do where the time of the
    // first is over meanwhile.
    let confirm = code(now)?;
    let _: Empty = keyholder.post("/v1/people/me/second-factor/confirm", &confirm).await?;
    let login: Login = keyholder.post("/v1/login", &code(now.saturating_add(CODE_S))?).await?;
    officer.keep_login(Ask::Decide, &login)?;
    Ok(())
}

/// Approves what waits.
async fn approve(officer: &Connections) -> Done {
    let keyholder = officer.keyholder(Ask::Decide)?;
    let waiting: Vec<Approval> = keyholder.get("/v1/approvals").await?;
    for request in waiting.into_iter().filter(|request| request.state == ApprovalState::Wanted) {
        let _: Approval = keyholder.post(&format!("/v1/approvals/{}/approve", request.id), &Empty {}).await?;
    }
    Ok(())
}
