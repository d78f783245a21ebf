//! Second factors, and what takes more than one person.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use identity::{HttpsClient, Role};
use keyholder::access::{Proof, TABLE, Verb};
use keyholder::api::{
    Approval, ApprovalState, Code, CreateToken, CreatedToken, Done, EnrolledFactor, ErasureEntry,
    ErasureState, Lockdown, Login, NewPolicy, Outcome, PolicyPreview, Reason, SignedErasure, Target,
    TokenEntry, VolumeErased,
};
use serde_json::Value;
use sha1::Sha1;

use crate::site::{Site, refusal};

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An authenticator by the standard's text, not by the crate's code.
pub(crate) fn code(secret: &str, steps_ahead: i64) -> Code {
    let step = u64::try_from(i64::try_from(unix_s() / 30).unwrap() + steps_ahead).unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: String =
        secret.chars().map(|letter| format!("{:05b}", alphabet.find(letter).unwrap())).collect();
    let key: Vec<u8> = bits
        .as_bytes()
        .chunks_exact(8)
        .map(|bits| u8::from_str_radix(std::str::from_utf8(bits).unwrap(), 2).unwrap())
        .collect();
    let mut mac = Hmac::<Sha1>::new_from_slice(&key).unwrap();
    mac.update(&step.to_be_bytes());
    let hash = mac.finalize().into_bytes();
    let offset = usize::from(hash[19] & 15);
    let word = u32::from_be_bytes(hash[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
    Code { code: format!("{:06}", word % 1_000_000) }
}

/// Enrols the client's person; returns the secret. The code of now is used up: what follows takes that of the next step, which counts
/// already.
pub(crate) async fn enrol(client: &HttpsClient) -> String {
    enrol_by(client, 0).await
}

/// Before the end of a step, so that the code of the step before it still counts when it arrives.
async fn early_in_a_step() {
    while unix_s() % 30 >= 20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn enrol_by(client: &HttpsClient, steps_ahead: i64) -> String {
    let made: EnrolledFactor = client.post("/v1/people/me/second-factor", &Done {}).await.unwrap();
    assert!(made.uri.contains(&made.secret) && made.uri.starts_with("otpauth://totp/"));
    let first = code(&made.secret, steps_ahead);
    let _: Done = client.post("/v1/people/me/second-factor/confirm", &first).await.unwrap();
    made.secret
}

pub(crate) async fn login(client: HttpsClient, secret: &str, ahead: i64) -> HttpsClient {
    let login: Login = client.post("/v1/login", &code(secret, ahead)).await.unwrap();
    client.with_bearer(login.token)
}

pub(crate) async fn apply(client: &HttpsClient, text: &str) {
    let _: PolicyPreview = client.post("/v1/policy", &NewPolicy { text: text.to_owned() }).await.unwrap();
}

fn kind<T: serde::de::DeserializeOwned + std::fmt::Debug>(
    answer: Result<T, identity::ClientError>,
) -> (u16, String) {
    refusal(answer)
}

/// What a role may do it may do only with the second factor, for every endpoint of the table that says so, and what takes keys away it
/// may do without.
#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_asks_for_the_proof_that_the_table_says() {
    let site = Site::new().await;
    site.ceremony().await;
    apply(&site.officer(), "version = 1\n[people]\nsecond_factor = \"required\"\n").await;
    let mut asked = 0;
    for rule in TABLE {
        for role in rule.roles {
            let client = site.client(*role, "nobody-enrolled");
            let path = ["{name}", "{label}", "{role}", "{id}", "{volume}"]
                .iter()
                .fold(rule.path.to_owned(), |path, parameter| path.replace(parameter, "x"));
            let answer: Result<Value, _> = match rule.verb {
                Verb::Get => client.get(&path).await,
                Verb::Post => client.post(&path, &serde_json::json!({})).await,
                Verb::Patch => client.patch(&path, &serde_json::json!({})).await,
                Verb::Delete => client.delete(&path).await,
            };
            let wanted = answer.is_err_and(|error| error.to_string().contains("nightlatch people enrol"))
                && rule.path != "/v1/login";
            assert_eq!(wanted, rule.proof == Proof::SecondFactor, "{:?} {} as {role}", rule.verb, rule.path);
            asked += 1;
        }
    }
    assert!(asked > 80, "{asked}");
    // Without anything but a certificate everything can be forgotten.
    let _: Outcome = site.operator().post("/v1/lockdown", &Lockdown {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_takes_a_code_that_counts_once_and_belongs_to_one_certificate() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let operator = site.operator();
    // Three codes are wanted, which is as many as count at once.
    early_in_a_step().await;
    let secret = enrol_by(&operator, -1).await;
    let backup = "/v1/ledger/backup";
    assert_eq!(kind(operator.get::<Value>(backup).await), (401, "second-factor".to_owned()));
    // Others have none and need none: the policy asks only those who have.
    site.client(Role::Operator, "other").get::<Value>(backup).await.unwrap();

    let used = code(&secret, 0);
    let logged: Login = operator.post("/v1/login", &used).await.unwrap();
    let with = operator.clone().with_bearer(logged.token.clone());
    with.get::<Value>(backup).await.unwrap();
    assert_eq!(
        kind(operator.post::<Login>("/v1/login", &used).await),
        (401, "wrong-code".to_owned()),
        "twice"
    );
    // Stolen, it is worth nothing to another certificate, be it of the same name.
    let thief = site.client(Role::Operator, "thief").with_bearer(logged.token.clone());
    enrol(&site.client(Role::Operator, "thief")).await;
    assert_eq!(kind(thief.get::<Value>(backup).await), (401, "second-factor".to_owned()));
    let guessed = operator.clone().with_bearer("A".repeat(43));
    assert_eq!(kind(guessed.get::<Value>(backup).await), (401, "second-factor".to_owned()));
    let _: Done = with.post("/v1/logout", &Done {}).await.unwrap();
    assert_eq!(kind(with.get::<Value>(backup).await), (401, "second-factor".to_owned()), "after logging out");

    // Neither code nor token nor secret is in any file; a restart ends the logins and remembers the used code.
    site.stop().await;
    for entry in std::fs::read_dir(site.state_dir()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&secret) && !text.contains(&logged.token));
    }
    site.start().await;
    site.unseal(&shares).await;
    assert_eq!(kind(operator.post::<Login>("/v1/login", &used).await), (401, "wrong-code".to_owned()));
    login(operator.clone(), &secret, 1).await.get::<Value>(backup).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slow_and_in_the_trail() {
    let site = Site::new().await;
    site.ceremony().await;
    let operator = site.operator();
    let secret = enrol(&operator).await;
    for _ in 0..5 {
        let wrong = Code { code: "000000".to_owned() };
        assert_eq!(kind(operator.post::<Login>("/v1/login", &wrong).await), (401, "wrong-code".to_owned()));
    }
    let right = code(&secret, 1);
    assert_eq!(kind(operator.post::<Login>("/v1/login", &right).await), (429, "too-many-codes".to_owned()));
    let page: audit_log::Page = site.officer().get("/v1/audit").await.unwrap();
    let refused = page.lines.iter().filter(|line| line.contains("\"login-refused\"")).count();
    assert_eq!(refused, 5);
    assert!(page.lines.iter().all(|line| !line.contains(&right.code)), "a code is in the trail");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_what_it_was_made_for_with_its_makers_certificate_until_it_ends() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let secret = enrol(&site.operator()).await;
    let operator = login(site.operator(), &secret, 1).await;
    let make = |scopes: &[&str], days: u32| CreateToken {
        name: "nightly".to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        days,
    };
    let backup = "GET /v1/ledger/backup";
    let made: CreatedToken = operator.post("/v1/tokens", &make(&[backup], 30)).await.unwrap();
    let with = site.operator().with_bearer(made.token.clone());
    with.get::<Value>("/v1/ledger/backup").await.unwrap();
    assert_eq!(kind(with.get::<Value>("/v1/audit").await), (403, "out-of-scope".to_owned()));
    let delete = with.delete::<Done>(&format!("/v1/tokens/{}", made.id)).await;
    assert_eq!(kind(delete), (403, "out-of-scope".to_owned()));
    let thief = site.client(Role::Operator, "thief").with_bearer(made.token.clone());
    assert_eq!(kind(thief.get::<Value>("/v1/ledger/backup").await), (401, "bad-token".to_owned()));
    for refused in [
        make(&["POST /v1/tokens"], 30),
        make(&["POST /v1/approvals/{id}/approve"], 30),
        make(&["POST /v1/policy"], 30),
        make(&["POST /v1/login"], 30),
        make(&["GET /v1/nothing"], 30),
        make(&[], 30),
        make(&[backup], 0),
        make(&[backup], 366),
    ] {
        let answer = operator.post::<CreatedToken>("/v1/tokens", &refused).await;
        assert_eq!(kind(answer), (400, "invalid".to_owned()), "{refused:?}");
    }
    // It outlives a restart as a hash, and ends when it is revoked.
    site.stop().await;
    for entry in std::fs::read_dir(site.state_dir()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(&made.token));
    }
    site.start().await;
    site.unseal(&shares).await;
    let with = site.operator().with_bearer(made.token.clone());
    with.get::<Value>("/v1/ledger/backup").await.unwrap();
    let _: Done = site.officer().delete(&format!("/v1/tokens/{}", made.id)).await.unwrap();
    assert_eq!(kind(with.get::<Value>("/v1/ledger/backup").await), (401, "bad-token".to_owned()));
    let left: Vec<TokenEntry> = site.officer().get("/v1/tokens").await.unwrap();
    assert_eq!(left, []);
}

const TWO: &str = "version = 1\n[quorum]\nerase = 2\nloosen = 2\nunlatch = 2\nbreak_glass = true\n";

async fn wanted(client: &HttpsClient) -> Approval {
    let waiting: Vec<Approval> = client.get("/v1/approvals").await.unwrap();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    waiting[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_takes_another_person_and_its_backups_destruction() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    site.create("db", 1).await;
    site.create("other", 1).await;
    let _: Value = site.operator().get("/v1/ledger/backup").await.unwrap();
    apply(&site.officer(), TWO).await;
    let operator = site.operator();
    let erase = || async { operator.delete::<VolumeErased>("/v1/volumes/db").await };
    assert_eq!(kind(erase().await), (409, "approval-wanted".to_owned()));
    let request = wanted(&operator).await;
    assert!(request.act.starts_with("erase volume db (") && request.by == "operator/op", "{request:?}");
    assert_eq!(kind(erase().await), (409, "approval-wanted".to_owned()), "asking twice is one request");
    let path = format!("/v1/approvals/{}/approve", request.id);
    // Neither who asked, nor the same person in another role, nor somebody who may not decide it.
    for client in [&operator, &site.client(Role::SecurityOfficer, "op")] {
        assert_eq!(kind(client.post::<Approval>(&path, &Done {}).await), (403, "forbidden".to_owned()));
    }
    let auditor = site.client(Role::Auditor, "eve");
    assert_eq!(kind(auditor.post::<Approval>(&path, &Done {}).await), (403, "forbidden".to_owned()));
    let approved: Approval = site.officer().post(&path, &Done {}).await.unwrap();
    assert_eq!(approved.state, ApprovalState::Approved);
    // For that act by that person, and no other.
    assert_eq!(
        kind(operator.delete::<VolumeErased>("/v1/volumes/other").await),
        (409, "approval-wanted".to_owned())
    );
    let second = site.client(Role::Operator, "second");
    assert_eq!(
        kind(second.delete::<VolumeErased>("/v1/volumes/db").await),
        (409, "approval-wanted".to_owned())
    );
    let erased = erase().await.unwrap();
    assert_eq!(
        kind(operator.post::<Approval>(&path, &Done {}).await),
        (404, "not-found".to_owned()),
        "used up"
    );

    let entries: Vec<ErasureEntry> = operator.get("/v1/erasures").await.unwrap();
    assert_eq!(entries[0].state, ErasureState::Pending);
    let serial = entries[0].destroy_backups_up_to_serial.unwrap();
    assert_eq!(Some(serial), erased.destroy_backups_up_to_serial);
    let certificate = format!("/v1/erasures/{}/certificate", erased.volume);
    assert_eq!(
        kind(operator.post::<SignedErasure>(&certificate, &Done {}).await),
        (400, "invalid".to_owned())
    );
    let confirm = format!("/v1/erasures/{}/confirm", erased.volume);
    let body = |serial: u64| serde_json::json!({ "destroyed_up_to_serial": serial });
    let officer = site.officer();
    assert_eq!(kind(officer.post::<ErasureEntry>(&confirm, &body(serial - 1)).await).1, "invalid");
    let entry: ErasureEntry = officer.post(&confirm, &body(serial)).await.unwrap();
    assert_eq!(entry.state, ErasureState::Complete);
    let signed: SignedErasure = operator.post(&certificate, &Done {}).await.unwrap();
    is_signed(&signed);
    let said: Value = serde_json::from_str(&signed.certificate).unwrap();
    assert_eq!(said["label"], "db");
    assert_eq!(said["backups_confirmed_by"], "security-officer/alice");
}

fn is_signed(signed: &SignedErasure) {
    use sha2::Digest;
    let array = |text: &str| hex::decode(text).unwrap();
    let mut digest = sha2::Sha256::new();
    digest.update(b"nightlatch/erasure/1 certificate");
    digest.update(signed.certificate.as_bytes());
    let key: [u8; 32] = array(&signed.root_key).try_into().unwrap();
    let signature: [u8; 64] = array(&signed.signature).try_into().unwrap();
    let key = ed25519_dalek::VerifyingKey::from_bytes(&key).unwrap();
    key.verify_strict(&digest.finalize(), &ed25519_dalek::Signature::from_bytes(&signature)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_asks_for_less_takes_two_officers_and_one_that_asks_for_more_does_not() {
    let site = Site::new().await;
    site.ceremony().await;
    let officer = site.officer();
    apply(&officer, TWO).await;
    apply(&officer, &TWO.replace("erase = 2", "erase = 3")).await;
    let loose = NewPolicy { text: TWO.to_owned() };
    assert_eq!(kind(officer.post::<Value>("/v1/policy", &loose).await), (409, "approval-wanted".to_owned()));
    let request = wanted(&officer).await;
    assert!(request.act.contains("asks for less in quorum.erase"), "{request:?}");
    let path = format!("/v1/approvals/{}/approve", request.id);
    // An operator is not enough for this.
    assert_eq!(kind(site.operator().post::<Value>(&path, &Done {}).await), (403, "forbidden".to_owned()));
    let bob = site.client(Role::SecurityOfficer, "bob");
    let _: Approval = bob.post(&path, &Done {}).await.unwrap();
    // Not for another text.
    let looser = NewPolicy { text: "version = 1\n".to_owned() };
    assert_eq!(kind(officer.post::<Value>("/v1/policy", &looser).await), (409, "approval-wanted".to_owned()));
    apply(&officer, TWO).await;
    for text in ["version = 1\n[push]\nrebots = \"any\"", "version = 9"] {
        let wrong = NewPolicy { text: text.to_owned() };
        assert_eq!(
            kind(officer.post::<Value>("/v1/policy", &wrong).await),
            (400, "invalid-policy".to_owned())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn breaking_the_glass_is_seen_by_everybody() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    let volume = site.create("db", 1).await;
    apply(&site.officer(), TWO).await;
    let target = Target::Volume("db".to_owned());
    let _: Outcome = site.operator().post("/v1/revoke", &target).await.unwrap();
    let officer = site.officer();
    assert_eq!(
        kind(officer.post::<Outcome>("/v1/unlatch", &target).await),
        (409, "approval-wanted".to_owned())
    );
    let request = wanted(&officer).await;
    let path = format!("/v1/approvals/{}/break-glass", request.id);
    let reason = |text: &str| Reason { reason: text.to_owned() };
    assert_eq!(kind(site.operator().post::<Value>(&path, &reason("x")).await), (403, "forbidden".to_owned()));
    assert_eq!(kind(officer.post::<Value>(&path, &reason(" ")).await), (400, "invalid".to_owned()));
    let broken: Approval = officer.post(&path, &reason("bob is on a plane")).await.unwrap();
    assert_eq!(broken.state, ApprovalState::GlassBroken);
    let _: Outcome = officer.post("/v1/unlatch", &target).await.unwrap();
    let status = site.status().await;
    let seen = status.last_break_glass.unwrap();
    assert_eq!((seen.by.as_str(), seen.reason.as_str()), ("security-officer/alice", "bob is on a plane"));
    assert_eq!(site.volume("db").await.volume, volume.volume);
    let page: audit_log::Page = officer.get("/v1/audit").await.unwrap();
    assert!(page.lines.iter().any(|line| line.contains("\"break-glass\"") && line.contains("on a plane")));
    // Where the policy has no glass there is none to break.
    apply(&officer, &TWO.replace("break_glass = true\n", "")).await;
    let _: Outcome = site.operator().post("/v1/revoke", &target).await.unwrap();
    let _ = officer.post::<Outcome>("/v1/unlatch", &target).await;
    let path = format!("/v1/approvals/{}/break-glass", wanted(&officer).await.id);
    assert_eq!(kind(officer.post::<Value>(&path, &reason("x")).await), (403, "forbidden".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_gone_and_a_forgotten_factor_can_be_enrolled_again() {
    let site = Site::new().await;
    site.ceremony().await;
    let operator = site.operator();
    enrol(&operator).await;
    apply(&site.officer(), "version = 1\n[quorum]\npeople = 2\n").await;
    let officer = site.officer();
    let path = "/v1/people/operator/op/second-factor";
    assert_eq!(kind(officer.delete::<Done>(path).await), (409, "approval-wanted".to_owned()));
    let bob = site.client(Role::SecurityOfficer, "bob");
    let id = wanted(&bob).await.id;
    let _: Done = bob.post(&format!("/v1/approvals/{id}/refuse"), &Done {}).await.unwrap();
    assert_eq!(kind(officer.delete::<Done>(path).await), (409, "approval-wanted".to_owned()));
    let id = wanted(&bob).await.id;
    let _: Approval = bob.post(&format!("/v1/approvals/{id}/approve"), &Done {}).await.unwrap();
    let _: Done = officer.delete(path).await.unwrap();
    enrol(&operator).await;
    let nobody = officer.delete::<Done>("/v1/people/operator/nobody/second-factor").await;
    assert_eq!(kind(nobody), (404, "not-found".to_owned()));
}
