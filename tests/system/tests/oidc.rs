//! Logging in without a certificate, from the outside: a certified OpenID provider, somebody at a browser, and the command line.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use harness::client::{client, run, tools};
use harness::desk::word;
use harness::site::free_port;
use serde_json::Value;
use system_tests::Installation;

/// Who there is at the provider: anna proves more than a password, ben a password, and nobody knows carl's groups here.
const ACCOUNTS: &str = r#"{
  "anna": { "claims": { "groups": ["everybody", "storage"] }, "amr": ["pwd", "otp"] },
  "ben": { "claims": { "groups": "storage" }, "amr": ["pwd"] },
  "carl": { "claims": { "groups": ["everybody"] }, "amr": ["pwd", "otp"] }
}"#;

const POLICY: &str = r#"version = 1
[people]
second_factor = "required"
oidc_amr = ["otp"]
[[person]]
role = "storage-admin"
claims = { groups = "storage" }
"#;

/// The provider, and what it goes on saying: it ends where nobody listens.
struct Provider {
    process: Child,
    _said: BufReader<ChildStdout>,
}

impl Provider {
    fn start(dir: &Path, address: SocketAddr) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/oidc/provider.mjs");
        let modules = tools().join("oidc");
        assert!(modules.join("node_modules").is_dir(), "the provider is missing: run `make clients`");
        std::fs::write(dir.join("accounts.json"), ACCOUNTS).expect("space");
        let mut command = Command::new(client("node").get_program());
        command.arg(script).arg(address.port().to_string()).arg(dir.join("accounts.json")).arg("nightlatch");
        command.env("NODE_MODULES_DIR", modules).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("node");
        let mut said = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            let length = said.read_line(&mut line).expect("what the provider says");
            assert!(length > 0, "the provider did not start");
        }
        Self { process, _said: said }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `nightlatch login --oidc` with `name` at the browser.
fn login(site: &Installation, role: &str, name: &str) -> Result<Value, String> {
    let mut child = site
        .desk
        .command(&["--json", "--as", role, "login", "--oidc"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("what the command says");
    let Ok(page) = serde_json::from_str::<Value>(&line) else { return Err(finish(child)) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/browser.py");
    let mut browser = client("python3");
    browser.arg(script).arg(word(&page, "open")).arg(name);
    let seen = run(&mut browser).expect_success();
    assert!(seen.contains("look at the terminal"), "{seen}");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).expect("what the command says");
    serde_json::from_str(&rest).map_err(|_| finish(child))
}

/// What the command says as it fails.
fn finish(child: Child) -> String {
    let output = child.wait_with_output().expect("the command ends");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn people_of_a_real_provider_are_what_the_policy_makes_of_them() {
    let mut site = Installation::serving();
    let dir = site.desk.dir.clone();
    let address = free_port();
    let config = dir.join("keyholder.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let table = format!("[oidc]\nissuer = \"http://{address}\"\nclient_id = \"nightlatch\"\n");
    std::fs::write(&config, text + &table).expect("space");
    std::fs::write(dir.join("policy.toml"), POLICY).expect("space");
    site.restart_keyholder();
    site.desk.unseal();
    site.desk.run(&["policy", "apply", "policy.toml"]);

    let away = login(&site, "storage-admin", "anna").expect_err("there is no provider yet");
    assert!(away.contains("was not asked"), "{away}");
    let _provider = Provider::start(&dir, address);
    let anna = login(&site, "storage-admin", "anna").expect("a login");
    assert_eq!((word(&anna, "who").as_str(), &anna["second_factor"]), ("storage-admin/anna", &true.into()));
    let storage = |arguments: &[&str]| site.desk.command(&[&["--as", "storage-admin"], arguments].concat());
    let listed = run(&mut storage(&["volume", "list"])).expect_success();
    assert!(listed.contains("store"), "{listed}");
    run(&mut storage(&["volume", "create", "extra", "--node", "node-1", "--size", "16M"])).expect_success();
    // A storage administrator gives no node a key, reads no trail, and erases nothing.
    for refused in [
        ["push", "--all"].as_slice(),
        &["volume", "delete", "extra", "--yes"],
        &["audit", "search"],
        &["policy", "show"],
        &["unlatch", "--all"],
    ] {
        let said = run(&mut storage(refused)).expect_failure();
        assert!(said.contains("the role storage-admin may not do this"), "{refused:?}: {said}");
    }

    let carl = login(&site, "storage-admin", "carl").expect_err("the policy gives him nothing");
    assert!(carl.contains("[[person]] rule"), "{carl}");
    let officer = login(&site, "security-officer", "anna").expect_err("that is not what she is");
    assert!(officer.contains("no role as security-officer"), "{officer}");

    a_stolen_login_is_worth_nothing(&site);
    // A password alone is no second factor, and the policy wants one.
    let ben = login(&site, "storage-admin", "ben").expect("a login");
    assert_eq!(ben["second_factor"], false, "{ben}");
    run(&mut storage(&["volume", "list"])).expect_success();
    let refused = run(&mut storage(&["volume", "resize", "extra", "32M"])).expect_failure();
    assert!(refused.contains("people enrol"), "{refused}");
    run(&mut storage(&["logout"])).expect_success();
    let refused = run(&mut storage(&["volume", "list"])).expect_failure();
    assert!(refused.contains("login --oidc"), "{refused}");

    let trail = std::fs::read_to_string(site.state().join("audit.jsonl")).expect("a trail");
    for line in [
        r#""event":"login","by":"storage-admin/anna""#,
        r#""event":"volume-created""#,
        r#""event":"login-refused","by":"oidc/carl","why":"no-role""#,
    ] {
        assert!(trail.contains(line), "{line} is missing:\n{trail}");
    }
}

fn a_stolen_login_is_worth_nothing(site: &Installation) {
    let (ours, theirs) = (site.desk.dir.join("pki"), site.desk.dir.join("thief"));
    run(Command::new("cp").arg("-r").args([&ours, &theirs])).expect_success();
    let own = theirs.join("oidc/storage-admin");
    let mut openssl = client("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "9",
    ]);
    openssl.args(["-subj", "/CN=thief", "-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(own.join("key.pem")).arg("-out").arg(own.join("cert.pem"));
    run(&mut openssl).expect_success();
    run(Command::new("chmod").arg("600").arg(own.join("key.pem"))).expect_success();
    let profile = theirs.display().to_string();
    let refused = site.desk.refused(&["--profile", &profile, "--as", "storage-admin", "volume", "list"]);
    assert!(refused.contains("nobody is logged in with this key"), "{refused}");
}
