//! What somebody gets who has stolen something: each row of SECURITY.md's table about the keyholder that no other file here tries.

use std::time::Duration;

use identity::Role;
use keyholder::access::{Proof, TABLE, Verb};
use keyholder::api::{
    Approval, Code, Done, EnrolledFactor, KeyState, LedgerBackup, Lockdown, Login, Outcome, Target,
};
use serde_json::{Value, json};

use crate::people::{apply, code, enrol, login};
use crate::site::{Site, add_node, ceremony_request, officer_secret, refusal};

const STRICT: &str =
    "version = 1\n[people]\nsecond_factor = \"required\"\n[quorum]\npeople = 2\nloosen = 2\nunlatch = 2\n";

/// Whoever has the issuer's key makes certificates for any name, old or new. `Site::client` does just that.
#[tokio::test(flavor = "multi_thread")]
async fn the_people_issuers_key_makes_nobody_of_whom_more_than_a_certificate_is_asked() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    site.create("db", 1).await;
    let officer = site.officer();
    let secret = enrol(&officer).await;
    let officer = login(officer, &secret, 1).await;
    apply(&officer, STRICT).await;

    let forged = [Role::Operator, Role::StorageAdmin, Role::SecurityOfficer, Role::Auditor]
        .map(|role| (role, site.client(role, "made-up")));
    for (role, client) in &forged {
        for rule in TABLE.iter().filter(|rule| rule.proof == Proof::SecondFactor && rule.roles.contains(role))
        {
            let path = ["{name}", "{label}", "{role}", "{id}", "{volume}"]
                .iter()
                .fold(rule.path.to_owned(), |path, parameter| path.replace(parameter, "x"));
            let answer: Result<Value, _> = match rule.verb {
                Verb::Get => client.get(&path).await,
                Verb::Post => client.post(&path, &json!({})).await,
                Verb::Patch => client.patch(&path, &json!({})).await,
                Verb::Delete => client.delete(&path).await,
            };
            assert_eq!(refusal(answer), (401, "second-factor".to_owned()), "{role} {path}");
        }
        // A new name is enrolled by somebody who is known, and nobody of these is.
        let answer = client.post::<EnrolledFactor>("/v1/people/me/second-factor", &Done {}).await;
        assert_eq!(refusal(answer), (409, "approval-wanted".to_owned()), "{role}");
    }
    // A known name is enrolled already, and wants the code of who it is.
    let twin = site.client(Role::SecurityOfficer, "alice");
    let answer = twin.post::<EnrolledFactor>("/v1/people/me/second-factor", &Done {}).await;
    assert_eq!(refusal(answer), (409, "exists".to_owned()));
    let guess = Code { code: "000000".to_owned() };
    assert_eq!(refusal(twin.post::<Login>("/v1/login", &guess).await), (401, "wrong-code".to_owned()));
    // What comes with a share wants one.
    let forged_officer = &forged[2].1;
    let twice = forged_officer.post::<Value>("/v1/ceremony", &ceremony_request(1, 1)).await;
    assert_eq!(refusal(twice), (409, "exists".to_owned()));
    let machine = site.fake_node(2).await;
    let other = forged_officer.post::<Value>("/v1/nodes", &add_node(2, &machine)).await;
    assert_eq!(refusal(other), (401, "second-factor".to_owned()));

    // An officer sees who asks, and lets a person in that is one.
    let waiting: Vec<Approval> = officer.get("/v1/approvals").await.unwrap();
    assert_eq!(waiting.len(), forged.len(), "{waiting:?}");
    let bob = site.client(Role::Operator, "bob");
    let asked = bob.post::<EnrolledFactor>("/v1/people/me/second-factor", &Done {}).await;
    assert_eq!(refusal(asked), (409, "approval-wanted".to_owned()));
    let waiting: Vec<Approval> = officer.get("/v1/approvals").await.unwrap();
    let request = waiting.iter().find(|request| request.by == "operator/bob").unwrap();
    assert_eq!(request.act, "enrol a second factor of operator/bob");
    let _: Approval = officer.post(&format!("/v1/approvals/{}/approve", request.id), &Done {}).await.unwrap();
    let secret = enrol(&bob).await;
    login(bob, &secret, 1).await.get::<LedgerBackup>("/v1/ledger/backup").await.unwrap();

    // What is left is an outage, which officers lift.
    let outcome: Outcome = forged[0].1.post("/v1/lockdown", &Lockdown {}).await.unwrap();
    assert!(outcome.nodes[0].confirmed && node.keys().is_empty(), "{outcome:?}");
    let lifted = forged_officer.post::<Outcome>("/v1/unlatch", &Target::All).await;
    assert_eq!(refusal(lifted), (401, "second-factor".to_owned()));

    // Nor does it help that the keyholder is sealed: shares are asked for then.
    site.stop().await;
    site.start().await;
    let forged_officer = site.client(Role::SecurityOfficer, "made-up");
    let sealed = forged_officer.post::<Value>("/v1/unlatch", &Target::All).await;
    assert_eq!(refusal(sealed), (503, "sealed".to_owned()));
    let share = shares[0].open(&officer_secret(1)).unwrap();
    let mut altered = serde_json::to_value(&share).unwrap();
    altered["value"] = "A".repeat(altered["value"].as_str().unwrap().len()).into();
    let refused = forged_officer.post::<Value>("/v1/unseal", &json!({ "share": altered })).await;
    assert!(matches!(refusal(refused).0, 400 | 409));
    site.unseal(&shares).await;
    assert!(node.keys().is_empty(), "the lockdown outlives a restart");
}

/// One who has a code and no more time than it takes: a clock that was set does not make an old code a new one, nor a lease longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_another_time_and_one_that_was_used_open_nothing() {
    let site = Site::new().await;
    site.ceremony().await;
    let operator = site.operator();
    let secret = enrol(&operator).await;
    for steps in [-20, -3, 3, 20, 2_000_000] {
        let answer = operator.post::<Login>("/v1/login", &code(&secret, steps)).await;
        let (status, _) = refusal(answer);
        assert!(matches!(status, 401 | 429), "{steps}");
    }
}

/// A stolen disk of a keyholder, put into another machine with a certificate of its own: without shares it is a sealed keyholder, and no
/// node is dialled.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_state_directory_dials_no_node_and_gives_nobody_anything_without_shares() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    site.create("db", 1).await;
    site.stop().await;
    let sessions = node.sessions();
    site.start().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.sessions(), sessions, "a sealed keyholder knows no node");
    for path in ["/v1/ledger/backup", "/v1/people", "/v1/tokens", "/v1/policy", "/v1/erasures"] {
        let answer = site.client(Role::SecurityOfficer, "thief").get::<Value>(path).await;
        assert_eq!(refusal(answer), (503, "sealed".to_owned()), "{path}");
    }
    site.unseal(&shares).await;
    site.wait("the key", |status| status.volumes[0].key == KeyState::Unlocked).await;
}
