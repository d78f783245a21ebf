//! Logging in at an OpenID provider: what of its tokens counts, for whom, and what they let a person do. A provider that is not ours is in
//! tests/system; this one can be told to lie.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::{Json, Router, routing};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use identity::{ClientError, GuestKey, HttpsClient, Role};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use keyholder::access::TABLE;
use keyholder::api::{
    Code, Done, EnrolledFactor, Lockdown, NewPolicy, OidcLoggedIn, OidcLogin, OidcProvider, PolicyPreview,
};
use keyholder::oidc::nonce;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::site::{Site, refusal};

struct Signer {
    id: &'static str,
    key: KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        Self { id, key: KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    fn jwk(&self) -> Value {
        let point = self.key.public_key_raw();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..65]));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id, "x": x, "y": y })
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &EncodingKey::from_ec_der(self.key.serialized_der())).unwrap()
    }
}

/// A provider that publishes the keys that it is told to.
struct Provider {
    address: SocketAddr,
    keys: Arc<Mutex<Vec<Value>>>,
}

impl Provider {
    async fn start(signer: &Signer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(Mutex::new(vec![signer.jwk()]));
        let issuer = format!("http://{address}");
        let discovery = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
        let published = Arc::clone(&keys);
        let router = Router::new()
            .route("/.well-known/openid-configuration", routing::get(move || async move { Json(discovery) }))
            .route(
                "/keys",
                routing::get(move || async move { Json(json!({ "keys": *published.lock().unwrap() })) }),
            );
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, keys }
    }

    /// What the provider says of anna, for whoever has this key.
    fn claims(&self, guest: &GuestKey) -> Value {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        json!({
            "iss": format!("http://{}", self.address), "aud": "nightlatch", "sub": "anna", "groups": ["storage", "all"],
            "iat": now, "exp": now + 600, "nonce": nonce(guest), "amr": ["pwd"],
        })
    }
}

const POLICY: &str = r#"version = 1
[people]
second_factor = "required"
oidc_amr = ["otp"]
[[person]]
role = "storage-admin"
claims = { groups = "storage" }
[[person]]
role = "auditor"
claims = { groups = "all" }
"#;

async fn site_with(provider: &Provider) -> Site {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let _: PolicyPreview =
        site.officer().post("/v1/policy", &NewPolicy { text: POLICY.to_owned() }).await.unwrap();
    site.stop().await;
    let config = format!("issuer = \"http://{}\"\nclient_id = \"nightlatch\"\n", provider.address);
    site.oidc = Some(toml::from_str(&config).unwrap());
    site.start().await;
    site.unseal(&shares).await;
    site
}

async fn bring(
    client: &HttpsClient,
    id_token: String,
    role: Option<Role>,
) -> Result<OidcLoggedIn, ClientError> {
    client.post("/v1/login/oidc", &OidcLogin { id_token, role }).await
}

fn with(claims: &Value, change: &Value) -> Value {
    let mut claims = claims.clone();
    for (claim, value) in change.as_object().unwrap() {
        claims[claim] = value.clone();
    }
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_once_for_the_key_that_asked_for_it_and_no_forgery_does() {
    let (signer, stranger) = (Signer::new("one"), Signer::new("one"));
    let provider = Provider::start(&signer).await;
    let site = site_with(&provider).await;
    let (client, key) = site.guest("anna");
    let known: OidcProvider = client.get("/v1/login/oidc").await.unwrap();
    assert_eq!(
        (known.issuer, known.client_id.as_str()),
        (format!("http://{}", provider.address), "nightlatch")
    );
    let good = provider.claims(&key);
    let hmac = {
        // The oldest trick: the public key as a shared secret.
        let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
        let secret = signer.key.public_key_raw();
        encode(&header, &good, &EncodingKey::from_secret(secret).unwrap()).unwrap()
    };
    let unsigned = {
        let part = |json: Value| BASE64.encode(json.to_string());
        format!("{}.{}.", part(json!({ "alg": "none", "kid": "one" })), part(good.clone()))
    };
    let altered = {
        let mut parts: Vec<String> = signer.sign(&good).split('.').map(str::to_owned).collect();
        parts[1] = BASE64.encode(with(&good, &json!({ "sub": "root" })).to_string());
        parts.join(".")
    };
    let (_, other_key) = site.guest("thief");
    for (what, token) in [
        ("a stranger's signature", stranger.sign(&good)),
        ("a shared secret", hmac),
        ("no signature", unsigned),
        ("an altered token", altered),
        ("another program", signer.sign(&with(&good, &json!({ "aud": "other" })))),
        ("another provider", signer.sign(&with(&good, &json!({ "iss": "http://127.0.0.1:1" })))),
        ("a token that has ended", signer.sign(&with(&good, &json!({ "exp": 1_000 })))),
        ("a token of yesterday", signer.sign(&with(&good, &json!({ "iat": 1_000 })))),
        ("another key", signer.sign(&provider.claims(&other_key))),
        ("a name with a path in it", signer.sign(&with(&good, &json!({ "sub": "../anna" })))),
        ("nothing", String::new()),
    ] {
        assert_eq!(refusal(bring(&client, token, None).await), (401, "bad-id-token".to_owned()), "{what}");
    }
    let nobody = signer.sign(&with(&good, &json!({ "groups": [] })));
    assert_eq!(refusal(bring(&client, nobody, None).await), (403, "no-role".to_owned()));
    let too_much = bring(&client, signer.sign(&good), Some(Role::SecurityOfficer)).await;
    assert_eq!(refusal(too_much), (403, "no-role".to_owned()));

    let token = signer.sign(&good);
    let made = bring(&client, token.clone(), None).await.unwrap();
    assert_eq!((made.role, made.name.as_str(), made.second_factor), (Role::StorageAdmin, "anna", false));
    assert_eq!(refusal(bring(&client, token, None).await), (401, "bad-id-token".to_owned()), "it was used");
    // Stolen, the login is worth nothing without the key.
    let (thief, _) = site.guest("thief");
    for client in [client.clone(), thief.with_bearer(made.login.token.clone())] {
        let answer = client.get::<Value>("/v1/status").await;
        assert_eq!(refusal(answer), (401, "unauthenticated".to_owned()));
    }
    client.clone().with_bearer(made.login.token.clone()).get::<Value>("/v1/status").await.unwrap();

    // The provider changes its key: the new one is read, the old one is none any more.
    let next = Signer::new("two");
    *provider.keys.lock().unwrap() = vec![next.jwk()];
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    bring(&client, next.sign(&provider.claims(&key)), Some(Role::Auditor)).await.unwrap();
    assert_eq!(refusal(bring(&client, signer.sign(&good), None).await), (401, "bad-id-token".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_nobody_before_a_login_and_its_role_after_and_the_second_factor_is_the_policys_to_take() {
    let signer = Signer::new("one");
    let provider = Provider::start(&signer).await;
    let site = site_with(&provider).await;
    let (client, key) = site.guest("anna");
    for rule in TABLE.iter().filter(|rule| rule.path != "/v1/login/oidc") {
        let path = rule.path.replace(['{', '}'], "");
        let answer: Result<Value, _> = client.post(&path, &json!({})).await;
        let said = answer.unwrap_err().to_string();
        // Where there is no POST the router says so, before anybody is asked for anything.
        let other_method = said.contains("405");
        assert!(said.contains("nobody is logged in") || other_method, "{path}: {said}");
    }
    let claims = provider.claims(&key);
    let made = bring(&client, signer.sign(&claims), None).await.unwrap();
    let anna = client.clone().with_bearer(made.login.token);
    // The policy wants a second factor, and a password alone is none.
    let refused = refusal(anna.get::<Value>("/v1/approvals").await);
    assert_eq!(refused, (401, "second-factor".to_owned()));
    // Nor is what she is none of hers any more than it would be with a certificate.
    let refused = refusal(anna.post::<Value>("/v1/lockdown", &Lockdown {}).await);
    assert_eq!(refused, (403, "forbidden".to_owned()));
    let with_factor = with(&claims, &json!({ "amr": ["pwd", "otp"], "jti": "2" }));
    let made = bring(&client, signer.sign(&with_factor), None).await.unwrap();
    assert!(made.second_factor);
    let anna = client.clone().with_bearer(made.login.token);
    anna.get::<Value>("/v1/approvals").await.unwrap();
    // An authenticator of her own does as well, on top of the provider's word.
    let made = bring(&client, signer.sign(&with(&claims, &json!({ "jti": "3" }))), None).await.unwrap();
    let anna = client.clone().with_bearer(made.login.token);
    let enrolled: EnrolledFactor = anna.post("/v1/people/me/second-factor", &Done {}).await.unwrap();
    let wrong = Code { code: "000000".to_owned() };
    let refused = refusal(anna.post::<Done>("/v1/people/me/second-factor/confirm", &wrong).await);
    assert_eq!(refused, (401, "wrong-code".to_owned()));
    assert!(enrolled.uri.contains("storage-admin"));
    let _: Done = anna.post("/v1/logout", &Done {}).await.unwrap();
    assert_eq!(refusal(anna.get::<Value>("/v1/status").await), (401, "unauthenticated".to_owned()));
    let trail = std::fs::read_to_string(site.state_dir().join("audit.jsonl")).unwrap();
    assert!(trail.contains("\"by\":\"storage-admin/anna\"") && trail.contains("\"provider\":true"));
    // Who has a certificate has no business there.
    let refused = refusal(bring(&site.operator(), signer.sign(&claims), None).await);
    assert_eq!(refused, (403, "forbidden".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_provider_no_guest_gets_past_the_handshake() {
    let site = Site::new().await;
    let answer = site.guest("anna").0.get::<Value>("/v1/login/oidc").await;
    assert!(matches!(answer, Err(ClientError::Untrusted { .. })), "{answer:?}");
}
